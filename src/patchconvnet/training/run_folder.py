"""The run folder's files that must survive a kill at any moment: written aside, then renamed."""

import csv
import io
import os
import pickle
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from patchconvnet.errors import UserError

LAST = Path("checkpoints") / "last.ckpt"


def save_checkpoint(fabric: Fabric, run: Path, state: dict[str, Any]) -> None:
    """Write `checkpoints/last.ckpt`; the one before stays whole until the new one is.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    target = run / LAST
    aside = target.with_suffix(".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fabric.save(aside, state)
        if fabric.is_global_zero:
            aside.replace(target)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        aside.unlink(missing_ok=True)
        kept = f"; {target} of the epoch before is whole" if target.exists() else ""
        raise UserError(
            f"cannot write the checkpoint {target}: {error}{kept}. Make room or make the folder writable, then go on with "
            f"--resume"
        ) from error
    fabric.barrier()


def load_checkpoint(fabric: Fabric, run: Path, state: dict[str, Any]) -> None:
    """Read what `save_checkpoint` wrote back into the modules, the optimizer and the values of `state`.

    Raises:
        UserError: the file is not a whole checkpoint of this run.
    """
    path = run / LAST
    try:
        fabric.load(path, state)
    except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is damaged or of another run ({error}); remove it to begin anew") from error


def write_metrics(run: Path, history: list[dict[str, Any]]) -> None:
    """`metrics.csv`: a row an epoch, rewritten whole so that a resumed run has no row twice."""
    if not history:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in history)
    write_text(run / "metrics.csv", text.getvalue())


def write_text(path: Path, text: str) -> None:
    """Write a small file aside, then rename it.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    aside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text)
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error}") from error
