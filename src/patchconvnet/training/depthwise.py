"""Two gradients of depthwise convolutions that a CPU computes faster in float32 than in bfloat16.

In bfloat16 oneDNN (3.12, in PyTorch 2.14) has no depthwise kernels for the gradient of the input where the stride is
above 1, and for that of the weights where the kernel is above 3×3; the general ones it takes pad each channel to 16
and are up to 200 times as slow (docs/plan.md). In float32 it has them.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

CHUNK = 2**21  # values of images in float32 at a time; the largest layer takes twice as long if converted at once
_BACKWARD = torch.ops.aten.convolution_backward.default


def is_depthwise(weight: Tensor, groups: int) -> bool:
    """Whether a convolution of this weight (C_out, C_in / groups, kH, kW) has a group for each channel of its input."""
    return groups > 1 and weight.shape[1] == 1


def is_slow(weight: Tensor, stride: list[int], groups: int) -> tuple[bool, bool]:
    """Whether bfloat16 is slow for the gradient of the input, and for that of the weights."""
    depthwise = is_depthwise(weight, groups)
    return depthwise and max(stride) > 1, depthwise and max(weight.shape[2:]) > 3


class Float32Depthwise(TorchDispatchMode):
    """While it lasts, those gradients are computed in float32 and rounded to bfloat16; everything else as it is.

    It is for the backward pass alone: each operation meanwhile takes some microseconds more.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not _BACKWARD or args[0].dtype is not torch.bfloat16 or args[0].device.type != "cpu":
            return func(*args, **(kwargs or {}))
        gradient, images, weight, *how, wanted = args
        _, stride, _, _, transposed, _, groups = how
        of_images, of_weight = is_slow(weight, stride, groups)
        # oneDNN makes the bias's gradient together with that of the weights
        slow = [asked and each for asked, each in zip(wanted, (of_images, of_weight, of_weight), strict=True)]
        if transposed or not any(slow):
            return func(*args)
        others = [asked and not each for asked, each in zip(wanted, slow, strict=True)]
        found = func(gradient, images, weight, *how, others) if any(others) else (None, None, None)
        exact = _in_float32(gradient, images, weight, how, slow)
        return tuple(each if each is not None else other for each, other in zip(exact, found, strict=True))


def _in_float32(
    gradient: Tensor, images: Tensor, weight: Tensor, how: list[Any], wanted: list[bool]
) -> tuple[Tensor | None, ...]:
    """What `wanted` says of the gradients of input, weights and bias, in bfloat16."""
    at_once = max(1, CHUNK * len(images) // max(images.numel(), 1))
    single = weight.float()
    of_images, of_weight, of_bias = list[Tensor](), torch.zeros_like(single), single.new_zeros(len(single))
    for part, some in zip(gradient.split(at_once), images.split(at_once), strict=True):
        # of the input only the weights' gradient needs more than the shape
        some = some.float() if wanted[1] or wanted[2] else torch.empty_like(some, dtype=torch.float32)
        found = _BACKWARD(part.float(), some, single, *how, wanted)
        if wanted[0]:
            of_images.append(found[0].to(gradient.dtype))
        if wanted[1]:
            of_weight += found[1]
        if wanted[2]:
            of_bias += found[2]
    together = torch.cat(of_images) if wanted[0] else None
    return together, of_weight.to(weight.dtype) if wanted[1] else None, of_bias.to(weight.dtype) if wanted[2] else None


def faster_backward(model: nn.Module) -> AbstractContextManager[Any]:
    """For a network's backward pass on a CPU: `Float32Depthwise` where it has such gradients, else nothing."""
    there = any(
        isinstance(module, nn.Conv2d) and any(is_slow(module.weight, [*module.stride], module.groups))
        for module in model.modules()
    )
    return Float32Depthwise() if there else nullcontext()
