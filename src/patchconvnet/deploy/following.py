"""What exports to any format share: the network as torch.export follows it, and what the file says about it."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from patchconvnet._version import __version__
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.deploy.description import Description, Side
from patchconvnet.deploy.exportable import Answers, placement_of
from patchconvnet.errors import UserError, first_line
from patchconvnet.files import write_atomic
from patchconvnet.models.classifier import AttentionClassifier


def network_input(model: AttentionClassifier, size: int | tuple[int, int] | None) -> Preprocessing:
    """The model's preprocessing, to the size of network input that is asked for.

    Raises:
        UserError: that is smaller than one patch.
    """
    settings = Preprocessing.from_dict(model.preprocessing)
    settings = settings if size is None else settings.with_size(size)
    if min(settings.size) < model.patch_size:
        raise UserError(
            f"size is {settings.size[0]} × {settings.size[1]}, and a patch of this network has {model.patch_size} × "
            f"{model.patch_size} pixels; give at least that"
        )
    return settings


def check_writable(out: Path) -> None:
    """Refuse a file that could not be written when the work is done.

    Raises:
        UserError: its folder does not exist and cannot be made, or cannot be written to.
    """
    try:
        if out.is_dir():
            raise UserError(f"{out} is a folder; give a file name such as {out / 'model.onnx'}")
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out.with_name(f"{out.name}.try"), lambda part: None)
        out.with_name(f"{out.name}.try").unlink()
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise UserError(f"cannot write {str(out)!r}: {getattr(error, 'strerror', None) or error}") from error


def describe(
    model: AttentionClassifier,
    name: str,
    preprocessing: Preprocessing,
    answers: Answers,
    sides: tuple[Side, Side],
    batch: int | None,
) -> Description:
    """What an exported file says about a network."""
    bias = getattr(model.get_classifier(), "bias", None)
    with torch.no_grad():
        queries = answers(torch.zeros(1, model.in_chans, *preprocessing.size))[1].shape[1]
    return Description(
        name=name or model.kind,
        architecture={"kind": model.kind, **_plain(model.config)},
        class_names=model.class_names,
        preprocessing=preprocessing,
        temperature=float(model.metadata.temperature),
        bias=[0.0] * model.num_classes if bias is None else bias.detach().float().tolist(),
        evidence="none" if not answers.evidence else "exact" if answers.exact else "first order",
        evidence_classes=answers.evidence,
        queries=queries,
        placement=placement_of(model, preprocessing.size),
        patch_size=model.patch_size,
        input="image",
        height=sides[0],
        width=sides[1],
        batch=batch,
        outputs=answers.outputs,
        provenance=model.metadata.provenance,
        metrics=model.metadata.metrics,
        version=__version__,
    )


def followed(
    answers: Answers, size: tuple[int, int], batch: int | None, *, any_size: bool
) -> tuple[ExportedProgram, tuple[Side, Side]]:
    """The network as torch.export follows it, for inputs of as many sizes as it can, and which they are."""
    patch = answers.model.patch_size
    image = torch.rand(batch or 2, answers.model.in_chans, *size)  # a batch of 1 would silently stay 1
    batches = {} if batch else {0: Dim("batch", min=1)}
    ways: list[tuple[Any, Side]] = []
    if any_size and answers.follows_any_size and min(size) >= 2 * patch:
        ways.append(((Dim("height", min=2 * patch), Dim("width", min=2 * patch)), Side(patch)))
        if size[0] % patch == 0 and size[1] % patch == 0:
            ways.append(((patch * Dim("rows", min=2), patch * Dim("columns", min=2)), Side(patch, step=patch)))
    for (height, width), side in ways:
        try:
            return _export(answers, image, {**batches, 2: height, 3: width}), (side, side)
        except UserError as error:
            logging.getLogger(__name__).debug("no export for any size: %s", error)
    return _export(answers, image, batches), (Side(size[0], size[0]), Side(size[1], size[1]))


def _export(answers: Answers, image: torch.Tensor, axes: dict[int, Any]) -> ExportedProgram:
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(answers, (image,), dynamic_shapes=(axes,), strict=False)
    except Exception as error:  # of many types, by what the exporter stumbles over
        raise UserError(f"this network cannot be exported: {first_line(error)}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter's notes on its own progress and on deprecations within PyTorch go nowhere."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "torch.fx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _plain(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config)))
