"""`audit`: how far a model's maps can be trusted, in numbers, on a whole data set, beside the usual methods."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from patchconvnet._version import __version__
from patchconvnet.data.labelled_images import Images
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.data.splits import Split
from patchconvnet.errors import UserError
from patchconvnet.explanation.explainer import class_names_of, preprocessing_of
from patchconvnet.faithfulness.annotations import Source, image_name, read_annotations
from patchconvnet.faithfulness.baselines import chosen_methods
from patchconvnet.faithfulness.methods import AttributionOptions, Method, frozen
from patchconvnet.faithfulness.metrics import METRICS, Metric
from patchconvnet.faithfulness.passes import fused
from patchconvnet.faithfulness.progress import Progress, estimated_cost, seconds_of_a_pass
from patchconvnet.faithfulness.report.report import Files, write_report
from patchconvnet.faithfulness.results import Results
from patchconvnet.faithfulness.runner import Runner, load_images
from patchconvnet.faithfulness.settings import QUICK, AuditSettings
from patchconvnet.faithfulness.summary import Summary, summarise


class Audit(NamedTuple):
    """The estimates, and the files they were written to."""

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

    Results are kept as soon as they are there: after an interruption the same call continues where it stopped, and
    gives the same numbers as without it.

    Args:
        model: a classifier with attention pooling; any classifier with `forward_features` and `forward_head` if the
            methods named don't include our own maps.
        data: the images.
        out: folder for `report.html`, `report.json`, `report.csv` and the state of the audit.
        settings: what to measure.
        boxes, masks: where the objects are, see `annotations.read_annotations`.
        preprocessing: from image to network input; the model's own by default.
        device: where to compute; the model is moved there.
        name, data_name: what the report calls the model and the data.
        show_progress: whether to say the estimated time and the progress: a bar on a terminal, lines elsewhere.

    Raises:
        UserError: an empty data set, a model without maps or of other classes, a measure without what it needs, wrong
            boxes or masks, or a folder that holds another audit.
    """
    settings = settings or AuditSettings()
    if not len(data):
        raise UserError("there are no images to audit on; the data set, or this split of it, is empty.")
    methods = chosen_methods(settings.methods)
    metrics, left_out = _metrics(settings, boxes is not None or masks is not None, masks is not None)
    preprocessing = preprocessing or preprocessing_of(model)
    order = list(range(len(data)))
    random.Random(settings.seed).shuffle(order)
    chosen = order[: settings.limit]
    needs_annotations = any(metric.needs for metric in metrics)
    annotations = read_annotations(data, chosen, boxes, masks) if needs_annotations else None
    labels = _labels(model, data)
    device = torch.device(device)
    header = {
        "package": {"version": __version__},
        "model": {"name": name, "weights": _fingerprint(model)},
        "data": {"name": data_name, "images": len(data), "fingerprint": _data_fingerprint(data)},
        "annotations": annotations.fingerprint() if annotations else None,
        "preprocessing": preprocessing.to_dict(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "settings": {**asdict(settings), "measures": [metric.name for metric in metrics]},
    }
    model.to(device)
    with frozen(model), _channels_last(model):
        first = load_images(data, chosen[: settings.batch_size], preprocessing, device).images
        fast = fused(model)
        _try(model, fast, methods, first[:1], settings, metrics)
        size = (first.shape[-2], first.shape[-1])
        seconds = seconds_of_a_pass(fast, first, settings.forward_batch)
        with_gradients = any(method.differentiates for method in methods)
        slowly = seconds_of_a_pass(model, first, settings.forward_batch) if with_gradients else seconds
        cost = estimated_cost(seconds, slowly, size, settings, methods, metrics)
        results = Results(Path(out), header)
        progress = Progress(show_progress, cost)
        runner = Runner(
            model, fast, data, labels, preprocessing, device, settings, methods, metrics, annotations, results, progress
        )
        try:
            predicted = min(len(order), runner.predicted(len(chosen)))
            repeated = min(len(chosen), settings.robustness)
            progress.total = cost.total(predicted, len(chosen), settings.mosaics, repeated)
            with progress.started_after(cost.of(results.records)):
                left_out |= runner.run(chosen, order)
            summary = summarise(results, methods, metrics, left_out, header, class_names_of(model))
            examples = runner.examples(chosen)
        finally:
            results.close()
    return Audit(summary, write_report(summary, examples, Path(out)))


@contextmanager
def _channels_last(model: nn.Module) -> Iterator[None]:
    """Convolution weights with their channels last: EfficientNet-Lite0 takes 31 instead of 47 ms an image.

    Results are the same but for rounding (1e-6). Only what needs gradients computes with them; the rest does fused.
    Under bfloat16 an image takes 13 ms, but mean deletion moves by 0.0012 to 0.0015, so that is not done.
    """
    turned = [weight for weight in model.parameters() if weight.ndim == 4 and weight.is_contiguous()]
    for weight in turned:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for weight in turned:
            weight.data = weight.data.contiguous()


def _metrics(settings: AuditSettings, annotated: bool, masked: bool) -> tuple[list[Metric], dict[str, str]]:
    """What will be measured; and what not, with the reason."""
    lacking = {
        name: "the data has no boxes and no masks" if not annotated else "the data has boxes, but no masks"
        for name, metric in METRICS.items()
        if metric.needs and (not annotated or (metric.needs == "masks" and not masked))
    }
    if settings.measures is not None:
        for name in settings.measures:
            if name in lacking:
                needed = "masks; boxes are too coarse for it" if annotated else "boxes or masks of the objects"
                raise UserError(f"measure {name!r} needs {needed}. Give them, or leave it out.")
        return [metric for name, metric in METRICS.items() if name in settings.measures], {}
    if settings.quick:
        lacking |= dict.fromkeys(QUICK["without"], "not part of a quick audit")
    return [metric for name, metric in METRICS.items() if name not in lacking], lacking


def _try(
    model: nn.Module,
    fast: nn.Module,
    methods: Sequence[Method],
    image: Tensor,
    settings: AuditSettings,
    metrics: Sequence[Metric],
) -> None:
    """Whether every method has a map for this model, and mosaics fit into it; found now, not after an hour."""
    classes = torch.zeros(1, 1, dtype=torch.int64, device=image.device)
    quick = AttributionOptions(settings.seed, settings.forward_batch, rise_masks=2, gradient_steps=2)
    for method in methods:
        try:
            method(model if method.differentiates else fast, image, classes, quick)
        except AttributeError as error:
            raise UserError(
                f"{type(model).__name__} cannot be explained by {method.title}: {error}. It has no spatial map before "
                "its head; leave that method out."
            ) from error
    for metric in metrics:
        if metric.stage == "mosaics":
            try:
                with torch.no_grad():
                    model(image.repeat(1, 1, metric.cells, metric.cells))
            except Exception as error:  # every architecture says in its own way that it takes one size only
                raise UserError(
                    f"{type(model).__name__} takes no images of {metric.cells} times the size ({error}); leave the "
                    f"measure {metric.name!r} out."
                ) from error


def _labels(model: nn.Module, data: Split) -> list[int]:
    """The images' labels as indices of the model's classes."""
    names = class_names_of(model)
    labels = data.labels.tolist()
    stored = bool(getattr(getattr(model, "metadata", None), "class_names", None))
    if not stored or names == list(data.class_names):
        if len(names) != len(data.class_names):
            raise UserError(f"the model has {len(names)} classes, the data {len(data.class_names)}; they do not match.")
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
