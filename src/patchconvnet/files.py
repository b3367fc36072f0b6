"""Files are written aside and then renamed, so that nobody ever finds half of one, whatever is killed or full."""

import contextlib
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from patchconvnet.errors import UserError, first_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = "lock"


def aside(target: Path) -> Path:
    """Where `target` is written before it is renamed; one name, so that what a kill leaves behind does not pile up."""
    return target.with_name(f".{target.name}.part")


def write_array(target: Path, values: np.ndarray) -> None:
    """Write a NumPy file, whole."""

    def write(part: Path) -> None:
        with part.open("wb") as file:  # given a path, NumPy would add an ending
            np.save(file, values)

    write_atomic(target, write)


def write_text(path: Path, text: str) -> None:
    """Write a small file aside, then rename it.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda part: part.write_text(text, encoding="utf-8", errors="backslashreplace"))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def write_atomic(target: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` write a file aside, and rename it to `target`; on any failure `target` stays as it was.

    The file gets the mode that the umask gives to new files, whatever `write` makes of it: safetensors writes for the
    owner alone.
    """
    part = aside(target)
    try:
        part.unlink(missing_ok=True)  # what a kill left may have another mode
        part.touch()
        mode = part.stat().st_mode
        write(part)
        if part.stat().st_mode != mode:
            part.chmod(mode)
        part.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def lock_folder(folder: Path, what: str) -> BinaryIO | None:
    """Hold a folder's `lock` until the returned file is closed or this process ends, whatever ends it.

    A record lock, not flock's: a reader process that was forked from a killed training does not keep it, and NFS has it
    where its lock service runs.

    Args:
        folder: that must exist.
        what: writes into it, such as "training".

    Returns:
        The open file; None where the file system has no locks, after a warning.

    Raises:
        UserError: another process holds it.
        OSError: the file cannot be made.
    """
    file = (folder / LOCK_FILE).open("a+b")
    try:
        if fcntl is None:
            raise OSError("this system has no fcntl")
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: held
        file.seek(0)
        holder = file.read(200).decode(errors="replace").strip()
        file.close()
        raise UserError(
            f"another {what}{f' ({holder})' if holder else ''} is writing into {folder}; wait for its end or stop it, "
            "or choose another --out"
        ) from None
    except OSError as error:
        file.close()
        warnings.warn(
            f"the file system of {folder} has no file locks ({error.strerror or error}), so nothing keeps a second "
            f"{what} from writing into the same folder",
            stacklevel=2,
        )
        return None
    with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        file.flush()
    return file


@contextlib.contextmanager
def locked_folder(folder: Path, what: str) -> Iterator[None]:
    """A folder that is made where it does not exist, and that no second process writes into.

    Args:
        folder, what: as for `lock_folder`.

    Raises:
        UserError: another process writes into it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = lock_folder(folder, what)
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise UserError(f"cannot write to {folder}: {first_line(error)}") from error
    try:
        yield
    finally:
        if file is not None:
            file.close()
