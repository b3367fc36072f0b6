"""The run folder: what a training leaves, written so that a kill at any moment or a full disk spoils nothing.

Files are written aside and then renamed. The checkpoint is the one truth: `metrics.csv` and `best/` follow from it, and
are written again when a run goes on after a kill between them.
"""

import csv
import io
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from patchconvnet.errors import UserError, first_line
from patchconvnet.files import aside, write_atomic
from patchconvnet.models.weights import in_present_words, read_config
from patchconvnet.training.recipe import Recipe, read_recipe, read_yaml

Resume = Literal["no", "yes", "auto"]

RECIPE_FILE = "recipe.yaml"
_BEGINNING = {RECIPE_FILE, "attention", "tensorboard", "checkpoints"}  # of a run without a checkpoint yet
MODEL_FILES = ("config.json", "model.safetensors")
# what a recipe may say otherwise when a run goes on, since it does not change the weights
FREE_TO_CHANGE = ("monitor.every", "data.root", "data.memory_gb", "data.workers")


class RunFolder:
    """The files of one training.

    Args:
        path: the folder; need not exist.
        checkpoint: name of the file by which a run is gone on with.
    """

    def __init__(self, path: Path, checkpoint: str = "last.ckpt"):
        self.path = path
        self.checkpoint = path / "checkpoints" / checkpoint
        self.best = path / "best"
        self.attention = path / "attention"
        self.curves = path / "curves.png"
        self._recipe = path / RECIPE_FILE
        self._metrics = path / "metrics.csv"

    def open(self, recipe: Recipe, resume: Resume) -> None:
        """Make the folder ready for a new run, or check that it holds one to go on with.

        Raises:
            UserError: it holds a run already, or something else, or nothing to resume, or a run of another recipe, or
                it cannot be written.
        """
        with self.writing():
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"{self.path} is a file; --out must be a folder")
            if self.checkpoint.is_file():
                if resume == "no":
                    raise UserError(
                        f"{self.path} holds a run already; give --resume to go on with it, or another --out"
                    )
                self._check_recipe(recipe)
            elif resume == "yes":
                raise UserError(f"nothing to resume: there is no {self.checkpoint}; leave --resume away to begin")
            elif self._holds_something_else():
                raise UserError(f"{self.path} holds files, but no run to go on with; choose a new or empty --out")
            self._remove_leftovers()
        if not self.checkpoint.is_file():
            write_text(self._recipe, recipe.to_yaml())

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write `checkpoints/last.ckpt`; the one before stays whole until the new one is.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        with self.writing():
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.checkpoint, lambda part: _save(state, part))

    def load_checkpoint(self) -> dict[str, Any]:
        """What `save_checkpoint` wrote.

        Raises:
            UserError: the file is damaged.
        """
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
            raise UserError(
                f"{self.checkpoint} is damaged ({first_line(error)}); begin anew in another --out"
            ) from error
        best = {name: in_present_words(value) for name, value in state["best_metrics"].items()}
        return {**state, "data": in_present_words(state.get("data", {})), "best_metrics": best}

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """`metrics.csv`: a row an epoch, rewritten whole so that a resumed run has no row twice."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in history)
        write_text(self._metrics, text.getvalue())

    def best_metrics(self) -> dict[str, Any]:
        """What the kept model folder says about itself; empty when there is none, or none that is whole."""
        try:
            return read_config(self.best)[1].metrics
        except UserError:
            return {}

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Say in words what kept something inside from being written.

        Raises:
            UserError: for every OSError.
        """
        try:
            yield
        except OSError as error:
            # os.path's does not raise where the folder may not be entered
            kept = f"; {self.checkpoint} is whole" if os.path.isfile(self.checkpoint) else ""
            raise UserError(
                f"cannot write to the run folder {self.path}: {error.strerror or error}{kept}. Make room or make the "
                f"folder writable, then go on with: patchconvnet train --resume auto --out {self.path}"
            ) from error

    def _check_recipe(self, recipe: Recipe) -> None:
        changed = [
            name for name in read_recipe(self._recipe).differences(recipe) if not name.startswith(FREE_TO_CHANGE)
        ]
        if changed:
            raise UserError(
                f"the run in {self.path} was begun with other values of {', '.join(changed)}; resume it with its own "
                f"recipe ({self._recipe}), or begin a new run in another --out"
            )

    def _holds_something_else(self) -> bool:
        """Whether the folder, which has no checkpoint, holds more than the beginning of a run."""
        if not self.path.is_dir():
            return False
        names = {file.name for file in self.path.iterdir()} - {aside(self._recipe).name}
        return bool(names) and not (names <= _BEGINNING and self._is_our_recipe())

    def _is_our_recipe(self) -> bool:
        """Whether `recipe.yaml` is all fields and no remarks, as a run writes it; a person's must not be lost."""
        try:
            text = self._recipe.read_text()
            has_no_remarks = text == yaml.safe_dump(yaml.safe_load(text), sort_keys=False)
            return has_no_remarks and read_yaml(self._recipe) == read_recipe(self._recipe).to_dict()
        except (UserError, OSError, ValueError, yaml.YAMLError):
            return False

    def _remove_leftovers(self) -> None:
        """Files that a killed process was about to rename; images and logs of one killed before its checkpoint."""
        files = (self._recipe, self._metrics, self.curves, self.checkpoint, *(self.best / name for name in MODEL_FILES))
        for file in files:
            aside(file).unlink(missing_ok=True)
        if not self.checkpoint.is_file():
            for folder in (self.attention, self.path / "tensorboard"):
                shutil.rmtree(folder, ignore_errors=True)


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


def _save(state: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # torch's writer complains about its position in the file, and keeps the system's reason in the background
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())  # some file systems find out only now that they are full
