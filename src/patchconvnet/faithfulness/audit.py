"""`audit`: how far a model's maps can be trusted, in figures, on a whole data set, beside the usual methods."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from patchconvnet._version import __version__
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.data.splits import Images, Split
from patchconvnet.errors import UserError
from patchconvnet.explanation.explainer import class_names_of, preprocessing_of
from patchconvnet.faithfulness.annotations import Source, image_name, read_objects
from patchconvnet.faithfulness.baselines import chosen_methods
from patchconvnet.faithfulness.methods import AttributionOptions, Method, frozen
from patchconvnet.faithfulness.report.report import Files, write_report
from patchconvnet.faithfulness.results import Ledger
from patchconvnet.faithfulness.runner import AuditRun, load_images
from patchconvnet.faithfulness.settings import LOCALISATION, MEASURES, MOSAICS, AuditSettings
from patchconvnet.faithfulness.statistics import Summary, summarise


class Audit(NamedTuple):
    """The figures, and the files they were written to."""

    summary: Summary
    files: Files


def audit(
    model: nn.Module,
    data: Split,
    out: str | Path,
    settings: AuditSettings | None = None,
    *,
    boxes: Source | None = None,
    masks: Source | None = None,
    preprocessing: Preprocessing | None = None,
    device: torch.device | str = "cpu",
    name: str = "model",
    data_name: str = "data",
    show_progress: bool = True,
) -> Audit:
    """Measure a model's maps beside the usual methods and write a report.

    What is measured is kept at once: after an interruption the same call goes on where it stopped, and gives the same
    figures as if nothing had been.

    Args:
        model: a classifier with attention pooling; any classifier with `forward_features` and `forward_head` if the
            methods named don't include our own maps.
        data: the images.
        out: folder for `report.html`, `report.json`, `report.csv` and the state of the audit.
        settings: what to measure.
        boxes, masks: where the objects are, see `objects.read_objects`.
        preprocessing: from image to network input; the model's own by default.
        device: where to compute; the model is moved there.
        name, data_name: what the report calls the model and the data.
        show_progress: whether to draw a progress bar.

    Raises:
        UserError: an empty data set, a model without maps or of other classes, a measure without what it needs, wrong
            boxes or masks, or a folder that holds another audit.
    """
    settings = settings or AuditSettings()
    if not len(data):
        raise UserError("there are no images to audit on; the data set, or this split of it, is empty.")
    methods = chosen_methods(settings.methods)
    measures, left_out = _measures(settings, has_objects=boxes is not None or masks is not None, masks=masks)
    preprocessing = preprocessing or preprocessing_of(model)
    order = list(range(len(data)))
    random.Random(settings.seed).shuffle(order)
    chosen = order[: settings.limit]
    objects = read_objects(data, chosen, boxes, masks) if set(measures) & set(LOCALISATION) else None
    labels = _labels(model, data)
    device = torch.device(device)
    header = {
        "package": {"version": __version__},
        "model": {"name": name, "weights": _fingerprint(model)},
        "data": {"name": data_name, "images": len(data), "fingerprint": _data_fingerprint(data)},
        "objects": objects.fingerprint() if objects else None,
        "preprocessing": preprocessing.to_dict(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "settings": {**asdict(settings), "measures": list(measures)},
    }
    model.to(device)
    with frozen(model):
        _try(model, methods, load_images(data, chosen[:1], preprocessing, device).images, settings, measures)
        ledger = Ledger(Path(out), header)
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=Console(),
            disable=not show_progress,
            transient=True,
        )
        run = AuditRun(
            model, data, labels, preprocessing, device, settings, methods, measures, objects, ledger, progress
        )
        try:
            with progress:
                run.predict(chosen, order)
                run.explain(chosen)
                for measure, n in MOSAICS.items():
                    if measure in measures and (missing := run.mosaics(n)):
                        left_out[measure] = missing
                run.look_closely(chosen)
            summary = summarise(ledger, methods, measures, left_out, header, class_names_of(model))
            examples = run.examples(chosen)
        finally:
            ledger.close()
    return Audit(summary, write_report(summary, examples, Path(out)))


def _measures(settings: AuditSettings, has_objects: bool, masks: Any) -> tuple[tuple[str, ...], dict[str, str]]:
    """What will be measured, and what not and why."""
    if settings.measures is None:
        left_out = {}
        if not has_objects:
            left_out = dict.fromkeys(LOCALISATION, "the data has no boxes and no masks")
        elif masks is None:
            left_out["pixels"] = "the data has boxes, but no masks"
        return tuple(name for name in MEASURES if name not in left_out), left_out
    if not has_objects and (impossible := [name for name in settings.measures if name in LOCALISATION]):
        raise UserError(f"measure {impossible[0]!r} needs to know where the objects are; give boxes or masks.")
    if "pixels" in settings.measures and masks is None:
        raise UserError("measure 'pixels' needs masks, boxes are too coarse for it; give masks or leave it out.")
    return tuple(name for name in MEASURES if name in settings.measures), {}


def _try(
    model: nn.Module, methods: Sequence[Method], image: Tensor, settings: AuditSettings, measures: Sequence[str]
) -> None:
    """Whether every method has a map for this model, and mosaics fit into it; found now, not after an hour."""
    classes = torch.zeros(1, 1, dtype=torch.int64, device=image.device)
    quick = AttributionOptions(settings.seed, settings.forward_batch, rise_masks=2, gradient_steps=2)
    for method in methods:
        try:
            method(model, image, classes, quick)
        except AttributeError as error:
            raise UserError(
                f"{type(model).__name__} cannot be explained by {method.title}: {error}. It has no spatial map before "
                "its head; leave that method out."
            ) from error
    for measure, n in MOSAICS.items():
        if measure in measures:
            try:
                with torch.no_grad():
                    model(image.repeat(1, 1, n, n))
            except Exception as error:  # every architecture says in its own way that it takes one size only
                raise UserError(
                    f"{type(model).__name__} takes no images of {n} times the size ({error}); leave the measure "
                    f"{measure!r} out."
                ) from error


def _labels(model: nn.Module, data: Split) -> list[int]:
    """The images' labels as indices of the model's classes."""
    names = class_names_of(model)
    labels = data.labels.tolist()
    stored = bool(getattr(getattr(model, "metadata", None), "class_names", None))
    if not stored or names == list(data.class_names):
        if len(names) != len(data.class_names):
            raise UserError(
                f"the model has {len(names)} classes, the data {len(data.class_names)}; they do not belong together."
            )
        return labels
    if unknown := [name for name in data.class_names if name not in names]:
        known = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
        raise UserError(f"the model does not know the data's class {unknown[0]!r}; it knows: {known}.")
    return [names.index(data.class_names[label]) for label in labels]


def _fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256(repr(model).encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _data_fingerprint(data: Split) -> str:
    digest = hashlib.sha256(data.labels.numpy().tobytes())
    if isinstance(data, Images):
        digest.update(data.images.numpy().tobytes())
    else:
        digest.update("\n".join(image_name(data, index) for index in range(len(data))).encode())
    return digest.hexdigest()[:16]
