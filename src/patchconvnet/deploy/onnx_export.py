"""`export_onnx`: a network with its maps in one ONNX file, compared with PyTorch before it is kept."""

import contextlib
import importlib.util
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch.export import Dim, ExportedProgram

from patchconvnet._version import __version__
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.deploy.description import KEY, Description, Side
from patchconvnet.deploy.exportable import Answers, check_exportable, evidence_count, placement_of
from patchconvnet.deploy.runtime import OnnxModel
from patchconvnet.deploy.verification import HALF_TOLERANCE, compare, made_images
from patchconvnet.errors import UserError, first_line
from patchconvnet.files import write_atomic
from patchconvnet.models.classifier import AttentionClassifier

if TYPE_CHECKING:
    from patchconvnet.deploy.quantization import Labelled  # with onnx, without which the reason is said in words

Precision = Literal["fp32", "fp16", "int8"]
Where = Literal["outside", "inside"]
OPSET = 20
LARGEST = 2**31 - 2**20  # bytes of an ONNX file, which is one protobuf message


def export_onnx(
    model: AttentionClassifier,
    out: Path,
    *,
    name: str = "",
    size: int | tuple[int, int] | None = None,
    preprocessing: Where = "outside",
    batch: int | None = None,
    evidence: str | int = "auto",
    images: Sequence[Image.Image] = (),
    precision: Precision = "fp32",
    calibration: Sequence[Image.Image] = (),
    data: "Labelled | None" = None,
) -> Description:
    """Write a network as one ONNX file that classifies and explains.

    Args:
        model: in evaluation mode, on the CPU; stays as it is.
        out: the file.
        name: what the model is called.
        size: the network input, (height, width) or one number for a square; by default the model's own. Others can be
            given to the file too, where the network takes them.
        preprocessing: "outside": the file takes normalised images; "inside": it takes uint8 pixels of any size, and
            its network input has the one size.
        batch: images at a time; None for any number.
        evidence: for how many classes: see `patchconvnet.deploy.exportable.evidence_count`.
        images: to compare the file with the network on; by default made ones.
        precision: "fp32"; "fp16" or "int8" for the trunk, while pooling, softmax, classifier and evidence stay float32.
        calibration: images that int8's scales are found on.
        data: labelled images to measure on what another precision costs.

    Returns:
        What the file says about itself.

    Raises:
        UserError: the network cannot be exported, the size is not one of its, the file cannot be written, or differs
            from the network.
    """
    check_exportable(model)
    if precision not in get_args(Precision):
        raise UserError(f"unknown precision {precision!r}; known: {', '.join(get_args(Precision))}")
    if precision == "int8" and not calibration:
        raise UserError("int8 needs calibration images to find its scales on: --calibration FOLDER, of about a hundred")
    _require_packages()
    count = evidence_count(model, evidence)
    settings = Preprocessing.from_dict(model.preprocessing)
    settings = settings if size is None else settings.with_size(size)
    if min(settings.size) < model.patch_size:
        raise UserError(
            f"size is {settings.size[0]} × {settings.size[1]}, and a patch of this network has {model.patch_size} × "
            f"{model.patch_size} pixels; give at least that"
        )
    check_writable(out)
    answers = Answers(model.float(), count)
    inside = preprocessing == "inside"
    program, sides = _followed(answers, settings.size, batch, any_size=not inside)
    proto, trunk = _as_onnx(program, answers)
    about = describe(model, name, settings, answers, sides, batch)
    if inside:
        from patchconvnet.deploy.preprocessing_graph import put_in_front

        put_in_front(proto, settings, batch)
        about = replace(about, input="pixels")
    change = None
    if precision != "fp32":
        change = _Change(precision, trunk, list(calibration), data)
    return _write(proto, out, about, answers, list(images), change)


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


def _followed(
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
        with torch.no_grad(), _quiet():
            return torch.export.export(answers, (image,), dynamic_shapes=(axes,), strict=False)
    except Exception as error:  # of many types, by what the exporter stumbles over
        raise UserError(f"this network cannot be exported: {first_line(error)}") from error


def _as_onnx(program: ExportedProgram, answers: Answers) -> tuple[Any, list[str]]:
    """The ONNX model, and the names of the nodes in front of its pooling."""
    try:
        with _quiet():
            made = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, input_names=["image"], output_names=answers.outputs,
                external_data=False, verbose=False,
            )  # fmt: skip
    except Exception as error:
        raise UserError(f"this network cannot be written as ONNX: {first_line(error)}") from error
    assert made is not None
    proto = made.model_proto
    _name_axes(proto.graph, answers)
    del proto.metadata_props[:]
    trunk = [node.name for node in proto.graph.node if _is_in_trunk(node)]
    for node in proto.graph.node:  # where in the source it came from, with paths of this machine
        del node.metadata_props[:]
        node.doc_string = ""
    return proto, trunk


def _is_in_trunk(node: Any) -> bool:
    scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "")
    return bool(re.search(r"'model\.(backbone|stem|trunk|unrolled)[.']", scopes))


@dataclass(frozen=True)
class _Change:
    """Another precision for the nodes of the trunk, and what it is found and measured on."""

    precision: Precision
    trunk: list[str]
    calibration: list[Image.Image]
    data: "Labelled | None"

    def of(self, proto: Any, float32: OnnxModel) -> Any:
        from patchconvnet.deploy.quantization import to_fp16, to_int8

        if self.precision == "fp16":
            return to_fp16(proto, self.trunk)
        count = float32.description.batch or 1
        batches = [np.stack([float32.prepare(image)[0]] * count) for image in self.calibration]
        return to_int8(proto, self.trunk, float32.description.input, batches)

    @property
    def tolerance(self) -> float:
        return HALF_TOLERANCE if self.precision == "fp16" else float("inf")


def _name_axes(graph: Any, answers: Answers) -> None:
    """Names that people know for the axes of any length."""
    names = {"image": ("batch", "", "height", "width"), "logits": ("batch",), "evidence_classes": ("batch",)}
    names |= dict.fromkeys(("attention", "evidence"), ("batch", "", "rows", "columns"))
    for value in (*graph.input, *graph.output):
        for axis, word in zip(value.type.tensor_type.shape.dim, names[value.name], strict=False):
            if axis.dim_param and word:
                axis.dim_param = word
    del graph.value_info[:]


def _write(
    proto: Any, out: Path, about: Description, answers: Answers, images: list[Image.Image], change: _Change | None
) -> Description:
    """Write the file aside, compare it with the network, and rename it."""
    if proto.ByteSize() > LARGEST:
        raise UserError(
            f"this network takes {proto.ByteSize() / 1e9:.1f} GB, and an ONNX file of one piece 2 GB at most"
        )
    chosen = images or made_images(about.preprocessing.channels, np.random.default_rng(0))
    described = [about]

    def write(part: Path) -> None:
        _put(proto, part, about)
        float32 = OnnxModel(part)
        found = compare(float32.run, answers, about, chosen)
        flat = found.pop("attention_is_flat") and about.evidence != "none"
        verified = {**found, "of": "given images" if images else "made images", **_versions()}
        written = proto
        if change:
            from patchconvnet.deploy.quantization import measure

            verified["size"] = {"fp32": part.stat().st_size}
            written = change.of(proto, float32)
            _put(written, part, replace(about, precision=change.precision))
            changed = OnnxModel(part)
            also = compare(changed.run, answers, about, chosen, tolerance=change.tolerance)
            verified["with_this_precision"] = {k: also[k] for k in ("tolerance", "largest_differences")}
            verified["size"]["this"] = part.stat().st_size
            if change.data:
                verified["measured"] = measure(float32, changed, change.data)
        described[0] = replace(
            about,
            verification=verified,
            shown="evidence" if flat else "attention",
            precision=change.precision if change else "fp32",
        )
        _put(written, part, described[0])

    try:
        write_atomic(out, write)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    return described[0]


def _put(proto: Any, path: Path, about: Description) -> None:
    del proto.metadata_props[:]
    proto.metadata_props.add(key=KEY, value=about.to_json())
    path.write_bytes(proto.SerializeToString())


def _versions() -> dict[str, str]:
    import onnxruntime

    return {"torch": str(torch.__version__), "onnxruntime": onnxruntime.__version__}


def _plain(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config)))


def _require_packages() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"export to ONNX needs {package}: pip install 'patchconvnet[export]'")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
