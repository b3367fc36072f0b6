"""The preprocessing as ONNX nodes in front of a network: uint8 pixels of any size → its input.

The formulas are those of `data/preprocessing.py`: /255, resized, cut or framed, normalised. A letterbox's frame has the
mean colour, which is zero behind the normalisation.
"""

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from patchconvnet.data.preprocessing import Preprocessing

PREFIX = "preprocessing"


class _Nodes:
    """Nodes and constants as they are added; a value is the name of what a node gives."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def __call__(self, operator: str, *inputs: Any, **attributes: Any) -> str:
        name = attributes.pop("output", f"{PREFIX}_{len(self.nodes)}")
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.nodes.append(
            helper.make_node(operator, names, [name], name=f"{PREFIX}_{operator}_{len(self.nodes)}", **attributes)
        )
        return name

    def constant(self, value: Any) -> str:
        array = np.asarray(value)
        name = f"{PREFIX}_constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name


def put_in_front(proto: ModelProto, preprocessing: Preprocessing, batch: int | None) -> None:
    """Let a network's graph take `pixels` (B, H, W, C) uint8 instead of `image`, in place."""
    add = _Nodes()
    channels = preprocessing.channels
    # no Transpose: behind one, onnxruntime's layout for int8 convolutions permutes the two sizes of Resize as if they
    # were four, and refuses the file
    values = add("Einsum", add("Cast", "pixels", to=TensorProto.FLOAT), equation="bhwc->bchw")
    values = add("Div", values, np.float32(255))
    shape = add("Shape", "pixels", start=1, end=3)  # int64 [H, W]
    resized = _resized_shape(add, shape, preprocessing)
    if preprocessing.interpolation == "nearest":
        for axis in (0, 1):
            values = _nearest(add, values, axis + 2, shape, resized)
    else:
        values = add("Resize", values, "", "", resized, axes=[2, 3], **_resize_attributes(preprocessing))
    if preprocessing.interpolation == "bicubic":
        values = add("Clip", values, np.float32(0), np.float32(1))
    if preprocessing.resize == "crop":
        spare = add("Sub", resized, _int64(preprocessing.size))
        # rounded half to even, as Python does
        half = add("Round", add("Div", add("Cast", spare, to=TensorProto.DOUBLE), np.float64(2)))
        start = add("Cast", half, to=TensorProto.INT64)
        values = add("Slice", values, start, add("Add", start, _int64(preprocessing.size)), _int64([2, 3]))
    mean, std = (np.array(v, np.float32)[None, :, None, None] for v in (preprocessing.mean, preprocessing.std))
    letterbox = preprocessing.resize == "letterbox"
    values = add("Div", add("Sub", values, mean), std, **({} if letterbox else {"output": "image"}))
    if letterbox:
        missing = add("Sub", _int64(preprocessing.size), resized)
        before = add("Div", missing, _int64([2]))
        after = add("Sub", missing, before)
        pads = add("Concat", before, after, axis=0)
        add("Pad", values, pads, np.float32(0), _int64([2, 3]), output="image")
    pixels = helper.make_tensor_value_info(
        "pixels", TensorProto.UINT8, ["batch" if batch is None else batch, "height", "width", channels]
    )
    del proto.graph.input[:]
    proto.graph.input.append(pixels)
    proto.graph.initializer.extend(add.constants)
    behind = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*add.nodes, *behind])


def _resized_shape(add: _Nodes, shape: str, preprocessing: Preprocessing) -> str:
    """int64 [h, w] that the whole image is resized to, as `Preprocessing.geometry` has it."""
    size = preprocessing.size
    if preprocessing.resize == "stretch":
        return add.constant(_int64(size))
    if preprocessing.resize == "crop":
        cover = _int64([int(side / preprocessing.crop_ratio) for side in size])
        # [h, w] · [W, H]: both sides by the other's ratio; the one that leaves more is kept
        turned = add("Gather", shape, _int64([1, 0]))
        products = add("Mul", cover, turned)  # [h·W, w·H]
        by_height = add("GreaterOrEqual", *(add("Gather", products, _int64([i])) for i in (0, 1)))
        scaled = add("Div", add("Gather", products, _int64([1, 0])), turned)  # [w·H/W, h·W/H]
        keeps = add("Concat", by_height, add("Not", by_height), axis=0)
        return add("Where", keeps, cover, scaled)
    real = add("Cast", shape, to=TensorProto.DOUBLE)
    scale = add("ReduceMin", add("Div", np.array(size, np.float64), real), keepdims=1)
    rounded = add("Cast", add("Round", add("Mul", real, scale)), to=TensorProto.INT64)
    return add("Max", rounded, _int64([1]))


def _nearest(add: _Nodes, values: str, axis: int, shape: str, resized: str) -> str:
    """Of `old` lines of an axis, those numbered ⌊(i + ½)·old/new⌋ in float32: the operator rounds otherwise."""
    old, new = (add("Gather", length, np.int64(axis - 2)) for length in (shape, resized))
    scale = add("Div", *(add("Cast", length, to=TensorProto.FLOAT) for length in (old, new)))
    numbers = add("Cast", add("Range", np.int64(0), new, np.int64(1)), to=TensorProto.FLOAT)
    places = add("Floor", add("Mul", add("Add", numbers, np.float32(0.5)), scale))
    return add("Gather", values, add("Cast", places, to=TensorProto.INT64), axis=axis)


def _resize_attributes(preprocessing: Preprocessing) -> dict[str, Any]:
    antialias = int(preprocessing.antialias)
    common = {"coordinate_transformation_mode": "half_pixel", "antialias": antialias, "exclude_outside": antialias}
    if preprocessing.interpolation == "bilinear":
        return {"mode": "linear", **common}
    return {"mode": "cubic", "cubic_coeff_a": -0.5 if antialias else -0.75, **common}


def _int64(values: Any) -> np.ndarray:
    return np.array(values, np.int64)
