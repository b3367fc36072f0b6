"""What a step computes: every operation counted while it runs, by kind, with what it calculates and what it moves.

A kind is a sort of operation that runs at rates of its own. An amount has three numbers: how often operations of the
kind are started, multiplications and additions, and bytes read and written.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from patchconvnet.models import winograd
from patchconvnet.training.convolution_gradients import bfloat16_by_winograd, is_depthwise, is_slow

MATRIX = "matrix products"
CONVOLUTION, CONVOLUTION_BACKWARD = "convolutions", "convolutions, backward"
WINOGRAD = "3×3 convolutions by Winograd's algorithm"  # of many images; on CPUs (winograd.py)
WINOGRAD_BACKWARD = f"{WINOGRAD}, backward"
POINTWISE, POINTWISE_BACKWARD = "1×1 convolutions", "1×1 convolutions, backward"
DEPTHWISE, DEPTHWISE_BACKWARD = "depthwise convolutions", "depthwise convolutions, backward"
# these two in float32 wherever a CPU computes them (convolution_gradients.py)
DEPTHWISE_STRIDED = "strided depthwise convolutions, gradient of the input"
DEPTHWISE_LARGE = "depthwise convolutions above 3×3, gradient of the weights"
ATTENTION, ATTENTION_BACKWARD = "attention", "attention, backward"
ELEMENTWISE = "elementwise"
ACTIVATION = "exponentials"  # GELU, SiLU, sigmoid, softmax, …, and their gradients
BATCH_NORM, BATCH_NORM_BACKWARD = "batch norm", "batch norm, backward"
LAYER_NORM, LAYER_NORM_BACKWARD = "layer norm", "layer norm, backward"
SUM = "sums"
POOLING = "pooling"
STARTING = "starting operations"  # Python, autograd and memory, of every operation; views too
KINDS = (
    MATRIX, CONVOLUTION, CONVOLUTION_BACKWARD, WINOGRAD, WINOGRAD_BACKWARD, POINTWISE, POINTWISE_BACKWARD, DEPTHWISE,
    DEPTHWISE_BACKWARD, DEPTHWISE_STRIDED, DEPTHWISE_LARGE, ATTENTION, ATTENTION_BACKWARD, ELEMENTWISE, ACTIVATION,
    BATCH_NORM, BATCH_NORM_BACKWARD, LAYER_NORM, LAYER_NORM_BACKWARD, SUM, POOLING, STARTING,
)  # fmt: skip

_BY_NAME = {
    "native_batch_norm": BATCH_NORM,
    "native_batch_norm_backward": BATCH_NORM_BACKWARD,
    "native_layer_norm": LAYER_NORM,
    "native_layer_norm_backward": LAYER_NORM_BACKWARD,
    "native_group_norm": LAYER_NORM,
    "native_group_norm_backward": LAYER_NORM_BACKWARD,
    **dict.fromkeys(("sum", "mean", "amax", "var_mean", "linalg_vector_norm"), SUM),
}
_EXPONENTIALS = ("gelu", "silu", "mish", "sigmoid", "tanh", "erf", "exp", "log", "softmax", "_softmax", "_log_softmax")
_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
_NAMES_ONLY = ("detach", "_unsafe_view", "_local_scalar_dense", "_record_function")  # nothing is computed


@dataclass(frozen=True)
class Amount:
    """Of one kind of operation.

    Attributes:
        calls: operations started.
        operations: multiplications and additions of products and convolutions; of all others, values computed (of sums,
            values summed).
        bytes: of the tensors that are read and written, each once.
    """

    calls: float = 0.0
    operations: float = 0.0
    bytes: float = 0.0

    def combined(self, factor: float, other: "Amount", weight: float) -> "Amount":
        """`factor` times this one and `weight` times another; nothing below 0."""
        return Amount(
            max(factor * self.calls + weight * other.calls, 0.0),
            max(factor * self.operations + weight * other.operations, 0.0),
            max(factor * self.bytes + weight * other.bytes, 0.0),
        )


Counts = dict[str, Amount]  # by kind


def combined(factor: float, counts: Counts, weight: float, others: Counts) -> Counts:
    """`factor` times the first and `weight` times the others, kind by kind."""
    kinds = dict.fromkeys((*counts, *others))
    none = Amount()
    return {kind: counts.get(kind, none).combined(factor, others.get(kind, none), weight) for kind in kinds}


class Counter(TorchDispatchMode):
    """Counts what is computed while it lasts, into `counts`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counts = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for kind, amount in [(STARTING, Amount(1)), *_amounts(func, args, kwargs or {}, out)]:
            self.counts[kind] = self.counts.get(kind, Amount()).combined(1, amount, 1)
        return out


def _amounts(func: Any, args: Any, kwargs: Any, out: Any) -> list[tuple[str, Amount]]:
    name = func._opname
    if name == "convolution":
        return [_convolution(out, args[0], args[1], args[2], list(args[3:]))]
    if name == "convolution_backward":
        return _convolution_backward(out, args[0], args[1], args[2], list(args[4:10]))
    if func is winograd.CONVOLUTION:
        return [(WINOGRAD, Amount(1, _operations(out, args[1]), _bytes(out) + _bytes(args[0]) + _bytes(args[1])))]
    if func is winograd.CONVOLUTION_BACKWARD:
        found = [each if wanted else None for each, wanted in zip(out, args[3:], strict=True)]
        return _convolution_backward((*found, None), args[0], args[1], args[2], winograd.HOW)
    tensors = [value for value in tree_leaves((args, kwargs, out)) if isinstance(value, Tensor)]
    moved = sum(_bytes(value) for value in tensors)
    if name.startswith(_ATTENTION):
        backward = "backward" in name
        query, key = args[1:3] if backward else args[:2]
        products = 5 if backward else 2  # the scores are made again in the backward pass
        operations = products * 2 * query.numel() * key.shape[-2]
        return [(ATTENTION_BACKWARD if backward else ATTENTION, Amount(1, operations, moved))]
    if count := flop_registry.get(func._overloadpacket):
        return [(MATRIX, Amount(1, count(*args, **kwargs, out_val=out), moved))]
    if _is_view(func):
        return []
    return [(_kind(name), Amount(1, max((value.numel() for value in tensors), default=0), moved))]


def _convolution(
    out: Tensor, images: Tensor, weight: Tensor, bias: Tensor | None, how: list[Any]
) -> tuple[str, Amount]:
    moved = _bytes(out) + _bytes(images) + _bytes(weight) + (0 if bias is None else _bytes(bias))
    if is_depthwise(weight, how[-1]):
        kind = DEPTHWISE
    elif _is_pointwise(weight):
        kind = POINTWISE
    else:
        single = images.dtype is torch.float32
        kind = WINOGRAD if single and winograd.is_for_many(weight, how) else CONVOLUTION
    return kind, Amount(1, _operations(out, weight), moved)


def _convolution_backward(
    out: tuple[Tensor | None, ...], gradient: Tensor, images: Tensor, weight: Tensor, how: list[Any]
) -> list[tuple[str, Amount]]:
    of_images, of_weight, _ = out
    operations, found = _operations(gradient, weight), []
    of_images_kind = of_weight_kind = POINTWISE_BACKWARD if _is_pointwise(weight) else CONVOLUTION_BACKWARD
    if has_gradients_by_winograd(images.dtype) and winograd.is_for_many(weight, how):
        of_images_kind = of_weight_kind = WINOGRAD_BACKWARD
    elif is_depthwise(weight, how[-1]):
        strided, large = is_slow(weight, how[0], how[-1])
        of_images_kind = DEPTHWISE_STRIDED if strided else DEPTHWISE_BACKWARD
        of_weight_kind = DEPTHWISE_LARGE if large else DEPTHWISE_BACKWARD
    if of_images is not None:
        moved = _bytes(gradient) + _bytes(weight) + _bytes(of_images)
        found.append((of_images_kind, Amount(1, operations, moved)))
    if of_weight is not None:
        moved = _bytes(gradient) + _bytes(images) + _bytes(of_weight)
        found.append((of_weight_kind, Amount(1, operations, moved)))
    return found


def _operations(out: Tensor, weight: Tensor) -> int:
    # each value of the output is a sum over the kernel and the channels of its group
    return 2 * out.numel() * weight.shape[1:].numel()


def has_gradients_by_winograd(dtype: torch.dtype) -> bool:
    """Whether large convolutions' are computed so here.

    Which batch is large enough for it is not known, where few images are counted.
    """
    return dtype is torch.float32 or (dtype is torch.bfloat16 and bfloat16_by_winograd())


def _is_pointwise(weight: Tensor) -> bool:
    return weight.shape[2:].numel() == 1


def _kind(name: str) -> str:
    if "pool" in name:
        return POOLING
    if name.removesuffix("_").removesuffix("_data").removesuffix("_backward") in _EXPONENTIALS:
        return ACTIVATION
    return _BY_NAME.get(name, ELEMENTWISE)


def _is_view(func: Any) -> bool:
    # a new name for old memory, or an empty new one
    returns = func._schema.returns
    aliases = any(each.alias_info is not None and not each.alias_info.is_write for each in returns)
    return aliases or func._opname.startswith(("empty", "new_empty", *_NAMES_ONLY))


def _bytes(value: Tensor) -> int:
    """Of what is there; a value that is expanded along an axis is there once."""
    there = [size for size, stride in zip(value.shape, value.stride(), strict=True) if stride]
    return value.element_size() * torch.Size(there).numel() if value.numel() else 0
