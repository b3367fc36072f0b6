"""A file's trunk in 8-bit integers or half precision; pooling, softmax, classifier and evidence stay float32.

int8 is static, with a scale for each output channel of the weights and one for each activation, found on calibration
images (Jacob et al. 2018, arXiv 1712.05877), in ONNX's QuantizeLinear and DequantizeLinear pairs. Since everything
behind the patches is as it was, evidence still sums to logit − bias to float32's rounding.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image

from patchconvnet.data.geometry import Geometry
from patchconvnet.deploy.runtime import OnnxModel
from patchconvnet.errors import UserError, first_line
from patchconvnet.explanation.explanation import Explanation
from patchconvnet.explanation.patch_grid import Grid, resample

# not MaxPool: where it is padded with −∞ there is no scale
QUANTISED = ["Conv", "MatMul", "Gemm", "Clip", "Relu", "Add"]
FEWEST_FOR_CALIBRATION = 16


@dataclass(frozen=True)
class Labelled:
    """Images with their classes, to measure what lower precision costs.

    Args:
        image: reads the image of a number.
        labels: a class for each; None where that is not known.
        mask: where the object is on the network input (height, width), bool; None where that is not known.
    """

    image: Callable[[int], Image.Image]
    labels: Sequence[int | None]
    mask: Callable[[int, Geometry], np.ndarray] | None = None


def to_int8(proto: Any, trunk: Sequence[str], input_name: str, batches: Sequence[np.ndarray]) -> Any:
    """The model with the trunk's products in 8-bit integers.

    Args:
        proto: the float32 model.
        trunk: names of the nodes in front of the pooling.
        input_name: of its input.
        batches: calibration images as it takes them.

    Raises:
        UserError: there are too few images, or onnxruntime cannot quantise the graph.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    if len(batches) < FEWEST_FOR_CALIBRATION:
        raise UserError(
            f"int8 needs at least {FEWEST_FOR_CALIBRATION} calibration images to find its scales on, and there are "
            f"{len(batches)}; give a folder of images like those it will see, better a hundred"
        )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.waiting: Iterator[np.ndarray] = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.waiting, None)
            return None if batch is None else {input_name: batch}

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        onnx.save(onnx.shape_inference.infer_shapes(proto), before)
        root = logging.getLogger()  # where it advises to run what has been run
        level = root.level
        root.setLevel(logging.ERROR)
        try:
            quantize_static(
                before, after, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=QUANTISED,
                nodes_to_quantize=[name for name in trunk if name],
            )  # fmt: skip
        except Exception as error:  # onnxruntime's, of many types
            raise UserError(f"onnxruntime cannot quantise this network: {first_line(error)}") from error
        finally:
            root.setLevel(level)
        return onnx.load(after)


def to_fp16(proto: Any, trunk: Sequence[str]) -> Any:
    """The model with the trunk in float16 and what follows it, inputs and outputs in float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    inside = set(trunk)
    others = [node.name for node in proto.graph.node if node.name not in inside]
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    try:
        half = convert_float_to_float16(copy, keep_io_types=True, node_block_list=others)
    except Exception as error:
        raise UserError(f"this network cannot be converted to float16: {first_line(error)}") from error
    _remove_detours(half.graph)
    return half


def _remove_detours(graph: Any) -> None:
    """Leave out float32 → float16 → float32 between float32 nodes, and on the way to outputs."""
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    rounded = {
        output: casts[node.input[0]].input[0]
        for output, node in casts.items()
        if node.attribute[0].i == onnx.TensorProto.FLOAT
        and node.input[0] in casts
        and casts[node.input[0]].attribute[0].i == onnx.TensorProto.FLOAT16
    }
    # an output gets the name of what it was rounded from
    final = {rounded[value.name]: value.name for value in graph.output if value.name in rounded}
    for node in graph.node:
        node.input[:] = [final.get(rounded.get(name, name), rounded.get(name, name)) for name in node.input]
        if node.op_type != "Cast" or node.output[0] not in final.values():
            node.output[:] = [final.get(name, name) for name in node.output]
    detours = [node for node in graph.node if node.op_type == "Cast" and node.output[0] in rounded]
    for node in detours:
        graph.node.remove(node)
    for _ in range(2):  # what led to them, if nothing else reads it
        used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        for node in [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in used]:
            graph.node.remove(node)


def measure(before: OnnxModel, after: OnnxModel, data: Labelled) -> dict[str, Any]:
    """What lower precision costs on labelled images: accuracy, and how far the maps agree.

    Args:
        before, after: the float32 file, and the other.

    Returns:
        top-1 of both where labels are known, the share of equal answers, the mean rank correlation of the evidence
        (attention where there is none) for the class that the float32 file predicts, and, with masks, the mean share of
        its positive part that is in the object, for both.
    """
    right = {"fp32": 0, "this": 0}
    same, correlations = 0, []
    energies: dict[str, list[float]] = {"fp32": [], "this": []}
    for i, label in enumerate(data.labels):
        image = data.image(i)
        both = {"fp32": before.explain(image)[0], "this": after.explain(image)[0]}
        said = {name: int(explained.logits.argmax()) for name, explained in both.items()}
        for name in both:
            right[name] += said[name] == label
        same += said["fp32"] == said["this"]
        maps = {name: _map_of(explained, said["fp32"]) for name, explained in both.items()}
        correlations.append(_rank_correlation(maps["fp32"], maps["this"]))
        if data.mask is not None:
            mask = data.mask(i, both["fp32"].geometry)
            for name, explained in both.items():
                energies[name].append(_energy(maps[name], explained.grid, mask))
    count = len(data.labels)
    measured: dict[str, Any] = {
        "images": count,
        "same_answers": same / count,
        "rank_correlation": float(np.mean(correlations)),
    }
    if None not in data.labels:
        measured["top1"] = {name: hits / count for name, hits in right.items()}
    if data.mask is not None:
        measured["energy_in_mask"] = {name: float(np.mean(values)) for name, values in energies.items()}
    return measured


def _map_of(explained: Explanation, predicted: int) -> np.ndarray:
    if predicted in explained.evidence_classes:
        return explained.evidence_for(predicted)
    return explained.attention.mean(0)


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's ρ; 1 where one of them is constant and both are, else 0."""
    ranks = [np.unique(values, return_inverse=True)[1].ravel().astype(np.float64) for values in (a, b)]
    x, y = (rank - rank.mean() for rank in ranks)
    scale = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum() / scale) if scale else float(not x.any() and not y.any())


def _energy(values: np.ndarray, grid: Grid, mask: np.ndarray) -> float:
    fine = Grid((mask.shape[0], mask.shape[1]), (1.0, 1.0), (0.5, 0.5))
    positive = np.maximum(resample(values, grid, fine), 0)
    return float(positive[mask].sum() / positive.sum()) if positive.sum() else 0.0
