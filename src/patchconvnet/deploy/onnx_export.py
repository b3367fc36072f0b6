"""`export_onnx`: a network with its maps in one ONNX file, compared with PyTorch before it is kept."""

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch.export import ExportedProgram

from patchconvnet.deploy.description import KEY, Description
from patchconvnet.deploy.exportable import Answers, check_exportable, evidence_count
from patchconvnet.deploy.following import check_writable, describe, followed, network_input, quiet
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
    settings = network_input(model, size)
    check_writable(out)
    answers = Answers(model, count)
    inside = preprocessing == "inside"
    program, sides = followed(answers, settings.size, batch, any_size=not inside)
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


def _as_onnx(program: ExportedProgram, answers: Answers) -> tuple[Any, list[str]]:
    """The ONNX model, and the names of the nodes in front of its pooling."""
    try:
        with quiet():
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


def _require_packages() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"export to ONNX needs {package}: pip install 'patchconvnet[export]'")
