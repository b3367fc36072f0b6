"""Files are written aside and then renamed, so that nobody ever finds half of one, whatever is killed or full."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def aside(target: Path) -> Path:
    """Where `target` is written before it is renamed; one name, so that what a kill leaves behind does not pile up."""
    return target.with_name(f".{target.name}.part")


def write_array(target: Path, values: np.ndarray) -> None:
    """Write a NumPy file, whole."""

    def write(part: Path) -> None:
        with part.open("wb") as file:  # given a path, NumPy would add an ending
            np.save(file, values)

    write_atomic(target, write)


def write_atomic(target: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` write a file aside, and rename it to `target`; on any failure `target` stays as it was."""
    part = aside(target)
    try:
        write(part)
        part.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
