"""Gradients of convolutions that a CPU computes faster by another way than PyTorch's, in a training in bfloat16.

- **Depthwise ones, two in float32.** oneDNN (3.12, in PyTorch 2.14) has no bfloat16 kernels for the gradient of the
  input where the stride is above 1, and for that of the weights where the kernel is above 3×3; the general ones it
  takes pad each channel to 16 and are up to 200 times as slow (docs/plan.md). In float32 it has them.
- **Large 3×3 ones, both by Winograd's algorithm** (`models/winograd.py`), with a quarter of the products, where a CPU
  computes in bfloat16 without units for matrices.
- **Those of 3×3 weights on narrow images, several images side by side.** Intel's matrix units (AMX) multiply 32 places
  of a row at once, and oneDNN pads each row to that: of images 8 wide three quarters of the work is of zeros, of images
  4 wide seven eighths. A row of several images, a column of zeros behind each, is as wide as one likes.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from patchconvnet.hardware import cpu_has_bfloat16, cpu_has_matrix_units
from patchconvnet.models import winograd

CHUNK = 2**21  # values of images in float32 at a time; the largest layer takes twice as long if converted at once
NARROW = 8  # places in a row; from 12 on the copies cost what is gained
ROW = 64  # places of images side by side
_BACKWARD = torch.ops.aten.convolution_backward.default


def is_depthwise(weight: Tensor, groups: int) -> bool:
    """Whether a convolution of this weight (C_out, C_in / groups, kH, kW) has a group for each channel of its input."""
    return groups > 1 and weight.shape[1] == 1


def is_slow(weight: Tensor, stride: list[int], groups: int) -> tuple[bool, bool]:
    """Whether bfloat16 is slow for the gradient of the input, and for that of the weights."""
    depthwise = is_depthwise(weight, groups)
    return depthwise and max(stride) > 1, depthwise and max(weight.shape[2:]) > 3


def is_narrow(images: Tensor, weight: Tensor, how: list[Any]) -> bool:
    """Whether a convolution's gradient of the weights can be had, and sooner, of its images side by side.

    Args:
        images: (B, C_in, H, W).
        weight: (C_out, C_in / groups, kH, kW).
        how: stride, padding, dilation, whether it is transposed, output padding, groups.
    """
    plain = weight.shape[2:] == (3, 3) and how == [[1, 1], [1, 1], [1, 1], False, [0, 0], 1]
    return plain and images.shape[-1] <= NARROW and len(images) > 1


class FasterGradients(TorchDispatchMode):
    """While it lasts, those gradients are computed so; everything else as it is.

    It is for the backward pass alone: each operation meanwhile takes some microseconds more.

    Args:
        side_by_side: whether narrow images are laid so, which is for CPUs with matrix units.
        by_winograd: whether large convolutions' are computed so, which is for those without.
    """

    def __init__(self, *, side_by_side: bool = False, by_winograd: bool = False):
        super().__init__()
        self.side_by_side, self.by_winograd = side_by_side, by_winograd

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not _BACKWARD or args[0].dtype is not torch.bfloat16 or args[0].device.type != "cpu":
            return func(*args, **(kwargs or {}))
        gradient, images, weight, biases, *how, wanted = args
        if self.by_winograd and winograd.is_for(images, weight, how):
            of_both = winograd.CONVOLUTION_BACKWARD(gradient, images, weight, *wanted[:2])
            found = *of_both, gradient.sum((0, 2, 3)) if wanted[2] else None
            return tuple(each if asked else None for each, asked in zip(found, wanted, strict=True))
        narrow = self.side_by_side and is_narrow(images, weight, how)
        of_images, of_weight = (False, True) if narrow else is_slow(weight, how[0], how[-1])
        # oneDNN makes the bias's gradient together with that of the weights
        slow = [asked and each for asked, each in zip(wanted, (of_images, of_weight, of_weight), strict=True)]
        if how[3] or not any(slow):
            return func(*args)
        others = [asked and not each for asked, each in zip(wanted, slow, strict=True)]
        found = func(gradient, images, weight, biases, *how, others) if any(others) else (None, None, None)
        if narrow:
            ours = func(_side_by_side(gradient), _side_by_side(images), weight, biases, *how, slow)
        else:
            ours = _in_float32(gradient, images, weight, [biases, *how], slow)
        return tuple(each if each is not None else other for each, other in zip(ours, found, strict=True))


def _side_by_side(images: Tensor) -> Tensor:
    """Images (B, C, H, W) in rows of `ROW` places: (⌈B/n⌉, C, H, n · (W + 1)), a column of zeros behind each."""
    number, channels, height, width = images.shape
    across = max(1, ROW // (width + 1))
    together, left = divmod(number, across)
    patches = images.permute(0, 2, 3, 1)
    rows = images.new_zeros(together + bool(left), height, across, width + 1, channels)
    whole = patches[: together * across].unflatten(0, (together, across))
    rows[:together, :, :, :width] = whole.transpose(1, 2)
    if left:
        rows[together, :, :left, :width] = patches[together * across :].transpose(0, 1)
    return rows.flatten(2, 3).permute(0, 3, 1, 2)


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
    """For a network's backward pass on a CPU: `FasterGradients` where it has such convolutions, else nothing."""
    units, fewer = cpu_has_matrix_units(), bfloat16_by_winograd()
    there = any(
        isinstance(module, nn.Conv2d)
        and (
            any(is_slow(module.weight, [*module.stride], module.groups))
            or ((units or fewer) and module.kernel_size == (3, 3) and module.groups == 1)
        )
        for module in model.modules()
    )
    return FasterGradients(side_by_side=units, by_winograd=fewer) if there else nullcontext()


def bfloat16_by_winograd() -> bool:
    """Whether gradients in bfloat16 gain by Winograd's algorithm here: units for matrices outrun its transforms."""
    return cpu_has_bfloat16() and not cpu_has_matrix_units()
