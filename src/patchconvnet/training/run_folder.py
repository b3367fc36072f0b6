"""The run folder: what a training leaves, written so that a kill at any moment or a full disk spoils nothing.

Files are written aside and then renamed. The checkpoint is the one truth: `metrics.csv` and `best/` follow from it, and
are written again when a run is resumed after a kill between them. The checkpoint before it is kept too, for a disk may
damage a file. Names say which is newer, not times. One training at a time holds the folder's lock.
"""

import csv
import io
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
import yaml

from patchconvnet.errors import UserError, first_line
from patchconvnet.files import LOCK_FILE, aside, lock_folder, write_atomic, write_text
from patchconvnet.models.weights import in_present_words
from patchconvnet.training.parts import remove_unused, unused_folder, with_parts
from patchconvnet.training.recipe import Recipe, read_recipe, read_yaml

Resume = Literal["no", "yes", "auto"]

RECIPE_FILE = "recipe.yaml"
READING_FILE = "reading.json"  # how many images were read and skipped
_BEGINNING = {RECIPE_FILE, READING_FILE, "attention", "tensorboard", "checkpoints"}  # of a run without a checkpoint yet
MODEL_FILES = ("config.json", "model.safetensors", "README.md")
_FIELDS_OF_EVERY_RUN = {"data", "model", "preprocessing", "augmentation", "optimization", "epochs", "seed"}
# fields that may differ when a run is resumed: those that do not change the weights, and the run's length
FREE_TO_CHANGE = ("epochs", "checkpoint_every", "monitor.every", "data.root", "data.memory_gb", "data.workers")


@dataclass
class EpochPart:
    """The beginning of an epoch, as a checkpoint in its middle holds it.

    The order of an epoch's images follows from the recipe's seed and the epoch, so that `images` says which ones are
    done, whatever number of processes does them.

    Attributes:
        images: how many are done, over all processes.
        losses: of the steps done, means over all processes.
        correct: how many images had their class first, and among the first five.
        seconds: of its steps.
    """

    images: int = 0
    losses: list[float] = field(default_factory=list)
    correct: list[float] = field(default_factory=lambda: [0.0, 0.0])
    seconds: float = 0.0

    @classmethod
    def of(cls, standing: "Standing") -> "EpochPart":
        """That of a checkpoint, or an epoch that is to begin."""
        return cls(**standing.part)

    def to_dict(self) -> dict[str, Any]:
        """As the checkpoint holds it."""
        return asdict(self)


@dataclass
class Standing:
    """A run's progress; a checkpoint holds it beside the weights.

    Attributes:
        epoch: how many are done.
        seconds: of training, over all its processes one after the other.
        best_epoch: of the model to keep, counted from 0; -1 for none.
        best_top1: its validation accuracy.
        best_metrics: what the kept model folder says of itself.
        history: the rows of `metrics.csv`.
        extensions: [epochs done, epochs from then on] for each change of the run's length.
        part: an `EpochPart` of the epoch after those, or nothing between two epochs.
    """

    epoch: int = 0
    seconds: float = 0.0
    best_epoch: int = -1
    best_top1: float = -1.0
    best_metrics: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    extensions: list[list[int]] = field(default_factory=list)
    part: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Standing":
        """What a checkpoint holds of it, in today's words.

        Raises:
            KeyError, TypeError: something is missing or of another kind.
        """
        kinds = {f.name: type(getattr(cls(), f.name)) for f in fields(cls)}
        found = {name: state[name] for name in kinds if name not in ("extensions", "part") or name in state}
        for name, value in found.items():
            if not isinstance(value, kinds[name]) and not (kinds[name] is float and isinstance(value, int)):
                raise TypeError(f"{name} is of type {type(value).__name__}")
        standing = cls(**found)
        standing.best_metrics = {name: in_present_words(value) for name, value in standing.best_metrics.items()}
        part = EpochPart.of(standing)
        begun = part.images > 0 and len(part.losses) > 0
        if (standing.part and not begun) or standing.epoch < (0 if begun else 1):
            raise TypeError("it holds no training")
        if len(standing.history) != standing.epoch:
            raise TypeError(f"it holds {len(standing.history)} rows of {standing.epoch} epochs")
        return standing

    def to_dict(self) -> dict[str, Any]:
        """As the checkpoint holds it."""
        return asdict(self)


class RunFolder:
    """The files of one training.

    Args:
        path: the folder; need not exist.
        checkpoint: name of the file that a run is resumed from.
    """

    def __init__(self, path: Path, checkpoint: str = "last.ckpt"):
        self.path = path
        self._lock: BinaryIO | None = None
        self.checkpoint = path / "checkpoints" / checkpoint
        self.previous = self.checkpoint.with_stem("previous")
        self._newest_is_whole = True
        self.best = path / "best"
        self.attention = path / "attention"
        self.curves = path / "curves.png"
        self.reading = path / READING_FILE
        self._recipe = path / RECIPE_FILE
        self._metrics = path / "metrics.csv"

    def open(self, recipe: Recipe, resume: Resume) -> None:
        """Lock the folder, and make it ready for a new run, or check that it holds one to resume.

        Raises:
            UserError: another training writes into it, it holds a run already, or something else, or nothing to resume,
                or a run of another recipe, or it cannot be written.
        """
        self._check(recipe, resume)
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(self.path, "training")
        try:
            self._check(recipe, resume)  # again: another training may have begun and ended in between
            with self.writing():
                self._remove_leftovers()
            if not self.has_checkpoint:
                self.write_recipe(recipe)
        except BaseException:
            self.close()
            raise

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a run to resume."""
        return self.checkpoint.is_file() or self.previous.is_file()

    def write_recipe(self, recipe: Recipe) -> None:
        """Write `recipe.yaml`.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        write_text(self._recipe, recipe.to_yaml())

    def epochs(self) -> int:
        """How long its recipe says that the run is."""
        return read_recipe(self._recipe).epochs

    def close(self) -> None:
        """Let another training have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _check(self, recipe: Recipe, resume: Resume) -> None:
        with self.writing():
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"{self.path} is a file; --out must be a folder")
            if self.has_checkpoint:
                if resume == "no":
                    raise UserError(f"{self.path} holds a run already; give --resume to continue it, or another --out")
                self._check_recipe(recipe)
            elif resume == "yes":
                raise UserError(
                    f"nothing to resume: there is no {self.checkpoint}; to start a new run, leave out --resume"
                )
            elif self._holds_something_else():
                raise UserError(f"{self.path} holds files, but no run to resume; choose a new or empty --out")

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write `checkpoints/last.ckpt`; the one before becomes `previous.ckpt` when the new one is complete.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """

        def write(part: Path) -> None:
            _save(state, part)
            if self._newest_is_whole and self.checkpoint.is_file():
                _keep(self.checkpoint, self.previous)

        with self.writing():
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.checkpoint, write)
            self._newest_is_whole = True
            remove_unused([self.checkpoint, self.previous])

    def new_parts(self) -> Path:
        """A folder for the parts of the next checkpoint."""
        return unused_folder(self.checkpoint.parent)

    def load_checkpoint(self) -> tuple[Path, dict[str, Any]]:
        """The newest checkpoint that is whole: its file, and what `save_checkpoint` wrote, in today's words.

        Warns:
            UserWarning: the newest is damaged, and the one before is taken.

        Raises:
            UserError: there is none, or none of a training.
        """
        try:
            return self.checkpoint, self.read_checkpoint(self.checkpoint)
        except UserError as error:
            if not self.previous.is_file():
                raise UserError(f"{error}; begin a new run in another --out") from error
            damage = str(error)
        try:
            state = self.read_checkpoint(self.previous)
        except UserError as error:
            raise UserError(
                f"{damage}, and so is the one before it: {error}; begin a new run in another --out"
            ) from error
        self._newest_is_whole = False
        warnings.warn(f"{damage}; going on from the one before it, {self.previous}", stacklevel=2)
        return self.previous, state

    def read_checkpoint(self, file: Path) -> dict[str, Any]:
        """What a checkpoint holds, in today's words.

        Raises:
            UserError: the file is damaged, or is no checkpoint of a training.
        """
        try:
            with zipfile.ZipFile(file) as archive:
                if damaged := archive.testzip():  # torch does not compare checksums
                    raise ValueError(f"the checksum of {damaged} is not that of its content")
            state = torch.load(file, map_location="cpu", weights_only=True)
            if not isinstance(state, dict):
                raise TypeError(f"it holds a {type(state).__name__}")
            Standing.of(state)
            state = with_parts(state, file.parent)
        except (
            OSError,
            RuntimeError,
            EOFError,
            KeyError,
            ValueError,
            TypeError,
            zipfile.BadZipFile,
            pickle.UnpicklingError,
        ) as error:
            raise UserError(f"{file} is damaged ({first_line(error)})") from error
        return {**state, "data": in_present_words(state.get("data", {}))}

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """`metrics.csv`: a row an epoch, all of it rewritten so that a resumed run has no row twice."""
        if not history:  # in the first epoch
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in history)
        write_text(self._metrics, text.getvalue())

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
            kept = f"; {self.checkpoint} is as it was" if os.path.isfile(self.checkpoint) else ""
            raise UserError(
                f"cannot write to the run folder {self.path}: {error.strerror or error}{kept}. Make room or make the "
                f"folder writable, then continue with: patchconvnet train --resume auto --out {self.path}"
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
        unfinished = {aside(file).name for file in (self._recipe, self.reading)}
        names = {file.name for file in self.path.iterdir()} - unfinished - {LOCK_FILE}
        return bool(names) and not (names <= _BEGINNING and self._is_our_recipe())

    def _is_our_recipe(self) -> bool:
        """Whether `recipe.yaml` is all fields and no remarks, as a run writes it; a person's must not be lost."""
        try:
            text = self._recipe.read_text()
            has_no_remarks = text == yaml.safe_dump(yaml.safe_load(text), sort_keys=False)
            read_recipe(self._recipe)
            # an older version's lacks fields of today
            return has_no_remarks and read_yaml(self._recipe).keys() >= _FIELDS_OF_EVERY_RUN
        except (UserError, OSError, ValueError, yaml.YAMLError):
            return False

    def _remove_leftovers(self) -> None:
        """Files that a killed process was about to rename; images and logs of one killed before its checkpoint."""
        files = (
            self._recipe,
            self._metrics,
            self.curves,
            self.reading,
            self.checkpoint,
            self.previous,
            *(self.best / name for name in MODEL_FILES),
        )
        for file in files:
            aside(file).unlink(missing_ok=True)
        remove_unused([self.checkpoint, self.previous])
        if not self.has_checkpoint:
            for folder in (self.attention, self.path / "tensorboard"):
                shutil.rmtree(folder, ignore_errors=True)


def _keep(file: Path, name: Path) -> None:
    """Give a file a second name, so that it stays when the first one is given to another; or only that name."""
    part = aside(name)
    part.unlink(missing_ok=True)
    if name.exists() and name.samefile(
        file
    ):  # of one that was killed here; renaming one name to the other does nothing
        return
    try:
        os.link(file, part)
    except OSError:  # a file system without links
        file.replace(name)
    else:
        part.replace(name)


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
