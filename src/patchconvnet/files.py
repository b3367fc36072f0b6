"""Files are written aside and then renamed, so that nobody ever finds half of one, whatever is killed or full."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from patchconvnet.errors import UserError


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
