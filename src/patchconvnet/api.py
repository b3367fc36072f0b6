"""`evaluate`, `train` and `audit` as people call them: with the names and paths of models, data and recipes."""

import difflib
import os
import sys
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from rich.progress import Progress
from torch import nn

from patchconvnet.data.held_out import chosen_split, load_held_out, warn_if_learned
from patchconvnet.data.labelled_images import Images, StoredImages
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.data.splits import DataSplits, Split, SplitName
from patchconvnet.errors import UserError
from patchconvnet.explanation.explainer import Model, preprocessing_of
from patchconvnet.faithfulness.annotations import Source as Annotations
from patchconvnet.faithfulness.audit import Audit
from patchconvnet.faithfulness.audit import audit as audit_split
from patchconvnet.faithfulness.settings import AuditSettings
from patchconvnet.hardware import find_device
from patchconvnet.models.loading import as_model
from patchconvnet.training.evaluation import Evaluation
from patchconvnet.training.evaluation import evaluate as evaluate_split
from patchconvnet.training.evaluation_files import save_evaluation
from patchconvnet.training.launch import Hardware
from patchconvnet.training.loop import train as train_recipe
from patchconvnet.training.recipe import Recipe, read_recipe
from patchconvnet.training.run_folder import RECIPE_FILE, Resume

Data = str | os.PathLike[str] | DataSplits | Split


def evaluate(
    model: Model,
    data: Data,
    *,
    split: SplitName | Literal["auto"] = "auto",
    out: str | os.PathLike[str] | None = None,
    size: int | tuple[int, int] | None = None,
    preprocessing: Preprocessing | None = None,
    mirror: bool = False,
    batch_size: int | None = None,
    workers: int = 2,
    device: str | None = None,
    root: str | os.PathLike[str] | None = None,
    validation: float | None = None,
    test: float | None = None,
    data_seed: int | None = None,
    strict: bool = False,
    show_progress: bool | None = None,
) -> Evaluation:
    """How good a model is on labelled images: loss, top-1, top-5, calibration, per class, confusion.

    Args:
        model: a network, or the name or folder of one, as for `load`.
        data: a data set by name ("cifar10", "folder:PATH", …) or the path of its folder, or one that was loaded.
        split: "train", "validation", "test" or "all"; "auto" is the test split, or all images of a folder without one
            that the model has not seen.
        out: folder to write `evaluation.json`, tables and the confusion matrix into; nothing is written by default.
        size: another network input, (height, width) or one number for a square.
        preprocessing: from image to network input; by default the model's own.
        mirror: whether the mean logits of each image and its mirror image count; say so where you report it.
        batch_size: images in one forward pass; 256 if not given, on a CPU fewer large ones.
        workers: processes that read image files.
        device: cpu, cuda, mps or auto; by default where the model is, and the best there is for one given by name.
        show_progress: whether to draw a progress bar; by default in a terminal.
        root, validation, test, data_seed, strict: where a data set given by name is kept, how it is divided, and
            whether an unreadable image is an error, as for `patchconvnet.data.datasets.load`. The division is by
            default that of the model's training, if it was on this data.

    Warns:
        UserWarning: the split may hold images that the model has learned.

    Raises:
        UserError: there is no such model, data set or split, or the model's classes are not the data's.

    Example:
        >>> import timm
        >>> from patchconvnet import evaluate
        >>> untrained = timm.create_model("patchconvnet_micro", num_classes=10)
        >>> evaluate(untrained, "digits", test=20).count
        20
    """
    network = _placed(model, device)
    division = {"validation": validation, "test": test, "seed": data_seed}
    images, data_name, split = _split(data, split, network, division, root, strict)
    check_class_names(network, images)
    preprocessing = _sized(network, preprocessing, size)
    with Progress(transient=True, disable=not _shown(show_progress)) as bar:
        task = bar.add_task(f"{data_name}, {split}", total=len(images))
        result = evaluate_split(
            network,
            images,
            preprocessing,
            batch_size=batch_size,
            mirror=mirror,
            device=next(network.parameters()).device,
            workers=workers,
            on_batch=lambda count: bar.advance(task, count),
        )
    if out is not None:
        about = {"model": _model_name(model), "data": data_name, "split": split, "size": list(preprocessing.size)}
        save_evaluation(result, Path(out), {**about, "mirror": mirror})
    return result


def train(
    recipe: str | os.PathLike[str] | Recipe | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    resume: Resume = "no",
    hardware: Hardware | None = None,
    **changes: Any,
) -> Path:
    """Train a network by a recipe into a run folder.

    Args:
        recipe: the name of one that ships with the package, such as "digits", a YAML file, or a `Recipe`; a run that is
            resumed has its own.
        out: the run folder; by default `runs/RECIPE-DATE`.
        resume: "yes" continues the run in `out` after its last epoch, "auto" does so if there is one.
        hardware: devices; one, of the best kind there is, when left out. Threads beside other work: the command line
            sets GOMP_SPINCOUNT=0 and measures how many are fastest; here the first must be set in the environment
            before torch is imported, and `Hardware(threads="auto")` does the second.
        changes: fields of the recipe to change: `epochs=5`, `optimization={"learning_rate": 0.001}`. A word for `data`
            or `model` is its name: `data="folder:my_images"`.

    Returns:
        The model folder of the best epoch, for `load`.

    Raises:
        UserError: a mistake in the recipe, the data or the run folder; a full disk; a loss that is not a number.

    Example:
        train("digits", "runs/quick", epochs=5, data={"seed": 1})
    """
    if out is None and resume != "no":
        raise UserError("resume needs `out`, the run folder to continue.")
    if recipe is None:
        recipe = Path(out or "", RECIPE_FILE)
        if resume == "no" or not recipe.is_file():
            raise UserError("train() needs a recipe: the name of one that ships with the package, or a YAML file.")
    name = "run" if isinstance(recipe, Recipe) else Path(recipe).stem
    run = Path("runs", f"{name}-{datetime.now():%Y%m%d-%H%M%S}") if out is None else Path(out)
    return train_recipe(read_recipe(recipe, changes), run, resume=resume, hardware=hardware)


def audit(
    model: Model,
    data: Data,
    out: str | os.PathLike[str] = "audit",
    *,
    split: SplitName | Literal["auto"] = "auto",
    boxes: Annotations | None = None,
    masks: Annotations | None = None,
    size: int | tuple[int, int] | None = None,
    preprocessing: Preprocessing | None = None,
    device: str | None = None,
    root: str | os.PathLike[str] | None = None,
    validation: float | None = None,
    test: float | None = None,
    data_seed: int | None = None,
    strict: bool = False,
    show_progress: bool | None = None,
    **settings: Any,
) -> Audit:
    """How far a model's maps can be trusted: measured beside the usual methods on a data set, with a report.

    Args:
        model: a network, or the name or folder of one, as for `load`.
        data: a data set by name or folder, or one that was loaded.
        out: folder for the report and the audit's state; after an interruption the same call continues it.
        split: as for `evaluate`.
        boxes, masks: where the objects are: a CSV of boxes, a folder of masks.
        size: another network input, (height, width) or one number for a square.
        preprocessing: from image to network input; by default the model's own.
        device, root, validation, test, data_seed, strict: as for `evaluate`.
        show_progress: whether to draw a progress bar; by default in a terminal.
        settings: fields of `AuditSettings`: `limit=200`, `methods=["evidence", "gradcam"]`, …

    Warns:
        UserWarning: the split may hold images that the model has learned.

    Raises:
        UserError: there is no such model, data set, split or setting, or the model has no maps.

    Example:
        audit("cifar10", "cifar10", "trust", limit=200)
    """
    known = [field.name for field in fields(AuditSettings)]
    if unknown := [name for name in settings if name not in known]:
        raise UserError(f"audit has no setting {unknown[0]!r}; known: {', '.join(known)}.{_meant(unknown[0], known)}")
    chosen = AuditSettings(**settings)
    network = _placed(model, device)
    division = {"validation": validation, "test": test, "seed": data_seed}
    images, data_name, split = _split(data, split, network, division, root, strict)
    return audit_split(
        network,
        images,
        Path(out),
        chosen,
        boxes=boxes,
        masks=masks,
        preprocessing=_sized(network, preprocessing, size),
        device=next(network.parameters()).device,
        name=_model_name(model),
        data_name=f"{data_name}, {split}",
        show_progress=_shown(show_progress),
    )


def _placed(model: Model, device: str | None) -> nn.Module:
    network = as_model(model)
    return network if device is None else network.to(find_device(device))


def _split(
    data: Data,
    split: SplitName | Literal["auto"],
    network: nn.Module,
    division: dict[str, Any],
    root: str | os.PathLike[str] | None,
    strict: bool,
) -> tuple[Split, str, SplitName]:
    """The images of a split, and what data set and split are called; warns if the network may have learned them."""
    provenance = getattr(getattr(network, "metadata", None), "provenance", None) or {}
    if isinstance(data, str | os.PathLike):
        name = data if isinstance(data, str) else f"folder:{os.fspath(data)}"
        loaded, name_of_split = load_held_out(
            name, split, provenance, root=root, strict=strict, show_progress=_shown(None), **division
        )
        return loaded.require(name_of_split), loaded.name, name_of_split
    if given := [name for name, value in division.items() if value is not None]:
        raise UserError(f"this data set is loaded already, so it can't be divided again by {', '.join(given)}.")
    if isinstance(data, DataSplits):
        name_of_split = chosen_split(data, split, provenance)
        warn_if_learned(data, name_of_split, provenance)
        return data.require(name_of_split), data.name, name_of_split
    if isinstance(data, Images | StoredImages):
        return data, "images", "all"
    raise UserError(
        f"given data of type {type(data).__name__}; give the name of a data set, its folder's path, or a loaded one."
    )


def check_class_names(network: nn.Module, images: Split) -> None:
    """Refuse data whose classes are not those that the network names.

    Raises:
        UserError: they are others, or in another order.
    """
    names = getattr(getattr(network, "metadata", None), "class_names", None)
    if names and list(names) != list(images.class_names):
        raise UserError(
            f"the model's classes ({_listed(names)}) are not the data's ({_listed(images.class_names)}); evaluate "
            "needs the same classes in the same order"
        )


def _listed(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f", … {len(names)} in all" if len(names) > most else "")


def _sized(
    network: nn.Module, preprocessing: Preprocessing | None, size: int | tuple[int, int] | None
) -> Preprocessing:
    preprocessing = preprocessing or preprocessing_of(network)
    return preprocessing if size is None else preprocessing.with_size(size)


def _model_name(model: Model) -> str:
    return type(model).__name__ if isinstance(model, nn.Module) else str(model)


def _shown(show_progress: bool | None) -> bool:
    return sys.stdout.isatty() if show_progress is None else show_progress


def _meant(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
