"""3×3 convolutions on a CPU with a quarter of the multiplications, and their gradients, in whole batches.

Winograd's minimal filtering: m × m outputs at a time are an inverse transform of the elementwise product of a
transformed filter and a transformed tile of (m + 2) × (m + 2) inputs; summed over the channels, these products are
(m + 2)² products of matrices. oneDNN, by which PyTorch computes convolutions, works at the CPU's peak of
multiplications, so that fewer of them are what is left to gain (docs/plan.md).

In float32 results are exact to rounding. In bfloat16 the transformed tiles and filters are rounded, too, and the
transforms enlarge that: results are off by 1.3 to 1.6 % of their spread, where oneDNN's are by 0.2. So there it is for
gradients only (`training/convolution_gradients.py`), in which bfloat16's forward pass has left more than that already
(docs/plan.md).

Source: Lavin & Gray 2015, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308; the transforms of any
m are Toom and Cook's, from the points below.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchconvnet.models.passes import for_each

AT_ONCE = 600_000  # values of the transformed tiles that are worked on at a time: they stay in a core's own cache
# tiles of a part for each C_in · C_out / (C_in + C_out), in bfloat16: with fewer, adding up the weights' gradient moves
# more, as float32, than making it; with more, the tiles leave the caches. In float32 a product adds by itself
LEAST_SUMMED = 3
LEAST_PRODUCTS = 40  # C_in · C_out / (C_in + C_out); with fewer the transforms cost what the products gain
LEAST_PLACES = 4096  # B · H · W; with fewer it is the filters' transforms that cost so much
LEAST_OPERATIONS = 2_000_000_000  # for each thread: some ten milliseconds, beside which starting threads is little
TILES = (3, 4)  # m; with larger ones rounding errors grow fast
HOW = [[1, 1], [1, 1], [1, 1], False, [0, 0], 1]  # stride, padding, dilation, not transposed, output padding, groups
# for each m the points at which polynomials are evaluated, with infinity: of simple fractions those whose rounding
# errors are the smallest, half as large for 4 × 4 outputs as those of 0, ±1 and ±2
_POINTS = {3: (0, 3 / 4, -3 / 4, 2), 4: (0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)}


@contextmanager
def by_winograd(model: nn.Module) -> Iterator[None]:
    """While it lasts, a network's forward pass computes such convolutions so, and so will the backward pass of it.

    Under autocast, which would have them in bfloat16, it changes nothing. What a backward pass computes again
    (`recomputing.py`) is a forward pass, too, and has to be within.
    """
    layers = [layer for layer in model.modules() if type(layer) is nn.Conv2d and is_for_many(layer.weight, _how(layer))]
    for layer in layers:
        layer._conv_forward = partial(_forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer._conv_forward


def _forward(layer: nn.Conv2d, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    single = images.dtype is weight.dtype is torch.float32 and not torch.is_autocast_enabled("cpu")
    if not (single and is_for(images, weight, _how(layer))):
        return nn.Conv2d._conv_forward(layer, images, weight, bias)
    outputs = _convolution(images, weight)
    return outputs if bias is None else outputs + bias[:, None, None]


def _how(layer: nn.Conv2d) -> list[Any]:
    with_zeros = isinstance(layer.padding, tuple) and layer.padding_mode == "zeros"
    padding = layer.padding if with_zeros else ()
    return [[*layer.stride], [*padding], [*layer.dilation], layer.transposed, [*layer.output_padding], layer.groups]


# one operation each, so that what is kept for the backward pass can be chosen by operation (`recomputing.py`)
@torch.library.custom_op("patchconvnet::winograd_convolution", mutates_args=())
def _convolution(images: Tensor, weight: Tensor) -> Tensor:
    return convolve(images, weight)


@torch.library.custom_op("patchconvnet::winograd_convolution_backward", mutates_args=())
def _convolution_backward(
    gradient: Tensor, images: Tensor, weight: Tensor, of_images: bool, of_weight: bool
) -> tuple[Tensor, Tensor]:
    found = gradients(gradient, images, weight, of_images, of_weight)
    return tuple(  # an operation's outputs are tensors
        images.new_empty(0) if each is None else each.to(like.dtype)
        for each, like in zip(found, (images, weight), strict=True)
    )  # type: ignore[return-value]


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    wanted = ctx.needs_input_grad
    found = _convolution_backward(gradient, *ctx.saved_tensors, *wanted)
    return found[0] if wanted[0] else None, found[1] if wanted[1] else None


_convolution.register_autograd(_backward, setup_context=_keep)
CONVOLUTION = torch.ops.patchconvnet.winograd_convolution.default
CONVOLUTION_BACKWARD = torch.ops.patchconvnet.winograd_convolution_backward.default


def is_for(images: Tensor, weight: Tensor, how: list[Any]) -> bool:
    """Whether a convolution gains by it: one of 3 × 3, padded by 1, on a CPU, and large enough.

    Args:
        images: (B, C_in, H, W).
        weight: (C_out, C_in / groups, 3, 3).
        how: stride, padding, dilation, whether it is transposed, output padding, groups.
    """
    if images.device.type != "cpu" or not is_for_many(weight, how):
        return False
    places = images.numel() // images.shape[1]
    return places >= LEAST_PLACES and 2 * places * weight.numel() >= LEAST_OPERATIONS * torch.get_num_threads()


def is_for_many(weight: Tensor, how: list[Any]) -> bool:
    """Whether a convolution with this weight gains by it on a CPU, where images are large or many."""
    plain = weight.shape[2:] == (3, 3) and how == HOW
    outputs, inputs = weight.shape[:2]
    return plain and outputs * inputs >= LEAST_PRODUCTS * (outputs + inputs)


def convolve(images: Tensor, weight: Tensor) -> Tensor:
    """The convolution, (B, C_in, H, W) → (B, C_out, H, W), channels-last, exact but for rounding (about 1.4e-6).

    Args:
        images: in float32 or bfloat16, as will be the outputs.
        weight: in either.
    """
    result, parts = _convolution_in_parts(images, weight)
    for_each(_run, parts, images.device)
    return result


def gradients(
    gradient: Tensor, images: Tensor, weight: Tensor, of_images: bool = True, of_weight: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """Those of the same convolution: of its images, (B, C_in, H, W), and of its weight, (C_out, C_in, 3, 3) in float32.

    Args:
        gradient: of its outputs, (B, C_out, H, W).
        images, weight: as it had them.
        of_images, of_weight: which are wanted; the other one is None.
    """
    result, convolving = _convolution_in_parts(gradient, _turned_around(weight)) if of_images else (None, [])
    summing = _weight_gradient_in_parts(gradient, images) if of_weight else []
    # the long ones first: a thread that is done with its own takes of the short ones until all are
    total = sum(for_each(_run, [*summing, *convolving], images.device)[: len(summing)])
    if not isinstance(total, Tensor):
        return result, None
    _, of_filters, _ = _transforms(_Size(images, len(weight)).side, images.dtype)
    return result, (of_filters.T @ total.flatten(1)).view(3, 3, *total.shape[1:]).permute(3, 2, 0, 1)


def _run(part: Callable[[], Tensor]) -> Tensor:
    return part()


def _convolution_in_parts(images: Tensor, weight: Tensor) -> tuple[Tensor, list[Callable[[], Tensor]]]:
    """The result, empty at first, and the calls that fill it in, in any order or side by side."""
    size, outputs = _Size(images, weight.shape[0]), weight.shape[0]
    of_tiles, of_filters, of_outputs = _transforms(size.side, images.dtype)
    # (36, C_in, C_out)
    filters = (of_filters @ weight.float().permute(2, 3, 1, 0).flatten(2).flatten(0, 1)).to(images.dtype)
    filters = filters.unflatten(1, (-1, outputs))
    result = images.new_empty(len(images), size.height, size.width, outputs)

    def fill(part: Tensor, into: Tensor) -> Tensor:
        tiles = size.tiles(part)
        products = torch.bmm((of_tiles @ tiles.flatten(1)).view_as(tiles), filters)  # (36, N, C_out)
        return size.put_together(of_outputs @ products.flatten(1), into)

    parts = zip(size.parts(images.permute(0, 2, 3, 1)), size.parts(result), strict=True)
    return result.permute(0, 3, 1, 2), [partial(fill, part, into) for part, into in parts]


def _weight_gradient_in_parts(gradient: Tensor, images: Tensor) -> list[Callable[[], Tensor]]:
    """One call for each thread; their answers sum up to the gradient of the transformed filters, (36, C_in, C_out)."""
    inputs, outputs = images.shape[1], gradient.shape[1]
    least = 0 if images.dtype is torch.float32 else LEAST_SUMMED * inputs * outputs / (inputs + outputs)
    size = _Size(images, outputs, least)
    of_tiles, _, of_outputs = _transforms(size.side, images.dtype)

    def summed(images: Tensor, gradient: Tensor) -> Tensor:
        total = torch.zeros(len(of_tiles), inputs, outputs)
        for some, part in zip(size.parts(images), size.parts(gradient), strict=True):
            tiles = size.tiles(some)
            of_part = (of_outputs.T @ size.taken_apart(part)).view(*tiles.shape[:2], -1)
            transformed = (of_tiles @ tiles.flatten(1)).view_as(tiles).mT
            if total.dtype is images.dtype:
                total.baddbmm_(transformed, of_part)
            else:
                total += torch.bmm(transformed, of_part)
        return total

    threads = min(torch.get_num_threads(), len(images))
    shares = (values.permute(0, 2, 3, 1).tensor_split(threads) for values in (images, gradient))
    return [partial(summed, *share) for share in zip(*shares, strict=True)]


def _turned_around(weight: Tensor) -> Tensor:
    """(C_out, C_in, 3, 3) → (C_in, C_out, 3, 3), of the convolution that takes outputs' gradients to images'."""
    return weight.flip(2, 3).transpose(0, 1)


class _Size:
    """How images (B, C, H, W) are divided into tiles of m × m outputs, and the batch into parts.

    Args:
        images: of the convolution.
        outputs: its C_out.
        least: tiles of a part, even if they take more than `AT_ONCE`.
    """

    def __init__(self, images: Tensor, outputs: int, least: float = 0):
        _, channels, self.height, self.width = images.shape
        self.side = min(TILES, key=lambda m: (m + 2) ** 2 * -(-self.height // m) * -(-self.width // m))  # m
        self.down, self.across = -(-self.height // self.side), -(-self.width // self.side)
        self.below, self.right = self.down * self.side - self.height, self.across * self.side - self.width
        of_an_image = self.down * self.across  # tiles
        in_cache = AT_ONCE // ((self.side + 2) ** 2 * of_an_image * max(channels, outputs))
        self.images_of_a_part = max(1, in_cache, math.ceil(least / of_an_image))

    def parts(self, images: Tensor) -> tuple[Tensor, ...]:
        """Parts of a batch (B, H, W, C) whose tiles stay in a cache."""
        return images.split(self.images_of_a_part)

    def tiles(self, part: Tensor) -> Tensor:
        """The inputs of every tile of (b, H, W, C): ((m + 2)², N, C)."""
        reach, channels = self.side + 2, part.shape[-1]
        padded = F.pad(part.contiguous(), (0, 0, 1, 1 + self.right, 1, 1 + self.below))
        image, row, place, channel = padded.stride()
        tiles = padded.as_strided(
            (reach, reach, len(part), self.down, self.across, channels),
            (row, place, image, self.side * row, self.side * place, channel),
        )
        return tiles.reshape(reach**2, -1, channels)

    def put_together(self, tiles: Tensor, into: Tensor) -> Tensor:
        """Outputs (m², N · C) to where they are in images (b, H, W, C), which it returns."""
        outputs = tiles.view(self.side, self.side, len(into), self.down, self.across, -1).permute(2, 3, 0, 4, 1, 5)
        if self.below or self.right:
            outputs = outputs.flatten(3, 4).flatten(1, 2)[:, : self.height, : self.width]
            into.copy_(outputs)
        else:
            into.view_as(outputs).copy_(outputs)
        return into

    def taken_apart(self, part: Tensor) -> Tensor:
        """The reverse of `put_together`, with zeros where there is no image: (b, H, W, C) → (m², N · C)."""
        part = F.pad(part, (0, 0, 0, self.right, 0, self.below))
        tiles = part.unflatten(2, (self.across, self.side)).unflatten(1, (self.down, self.side))
        return tiles.permute(2, 4, 0, 1, 3, 5).reshape(self.side**2, -1)


@cache
def _transforms(side: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Of tiles ((m + 2)², (m + 2)²), of filters ((m + 2)², 9) and of outputs (m², (m + 2)²), each in both axes at once.

    That of the filters is in float32, the others are in `dtype`.

    In one axis: evaluate the filter as a polynomial at m + 1 points and infinity, and the outputs' transpose, too; the
    tile's transform is the transpose of the interpolation.
    """
    points = np.array(_POINTS[side], np.float64)
    others = [np.delete(points, i) for i in range(len(points))]
    scale = np.array([np.prod(at - rest) for at, rest in zip(points, others, strict=True)])
    last = np.eye(1, 3, 2), np.eye(1, side, side - 1)
    filters = np.concatenate([np.vander(points, 3, increasing=True) / scale[:, None], last[0]])
    outputs = np.concatenate([np.vander(points, side, increasing=True), last[1]]).T
    tiles = np.zeros((side + 2, side + 2))
    for i, rest in enumerate(others):
        tiles[i, : side + 1] = np.poly(rest)[::-1]
    tiles[-1] = np.poly(points)[::-1]
    both = [torch.from_numpy(np.kron(matrix, matrix)).float() for matrix in (tiles, filters, outputs)]
    return both[0].to(dtype), both[1], both[2].to(dtype)
