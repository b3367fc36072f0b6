"""Where the patches of a map lie on the image: patch grid → network input → image pixels, exactly.

Positions are in pixels with whole numbers at pixel edges, so the first pixel's centre is at 0.5.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from patchconvnet.data.preprocessing import Geometry
from patchconvnet.models.stem import ConvStem, PooledStem

Smoothing = Literal["bilinear", "nearest"]


@dataclass(frozen=True)
class Grid:
    """The patch grid on the network input.

    Args:
        shape: (h, w) patches.
        step: (vertical, horizontal) distance of neighbouring patches, in pixels of the network input.
        first: (y, x) centre of the first patch there.
    """

    shape: tuple[int, int]
    step: tuple[float, float]
    first: tuple[float, float]

    def mirrored(self, width: int) -> "Grid":
        """The grid of a horizontally flipped map, whose network input was a flipped one of `width` pixels."""
        last = self.first[1] + (self.shape[1] - 1) * self.step[1]
        return Grid(self.shape, self.step, (self.first[0], width - last))

    def moved(self, down: float, right: float) -> "Grid":
        """The same grid, shifted by pixels of the network input."""
        return Grid(self.shape, self.step, (self.first[0] + down, self.first[1] + right))


def patch_grid(model: nn.Module, size: tuple[int, int], shape: tuple[int, int]) -> Grid:
    """How a model's patches lie on its input.

    A stack of 3×3 convolutions of stride 2 with a pixel of padding on both sides looks at pixel 0, 16, 32 … (centres of
    the receptive fields), not at the middles of 16×16 squares: half a patch away. Training does not undo that: with
    patches of 4 pixels, the maps of CIFAR-10 images and of their mirror images agree best (correlation 0.90) when
    centres are taken at 0.5 of the 4 pixels, as computed here, and less (0.85) at their middle. TensorFlow's padding
    shifts them the other way, and max pools look at the middle of what they pool.

    Args:
        model: the network; its stem, if it has ours, says where the receptive fields lie, and a timm backbone knows its
            `first_centre`. Patches of other networks divide the input evenly.
        size: (height, width) of the network input.
        shape: (h, w) patches it gives.
    """
    stem = getattr(model, "stem", None)
    if isinstance(stem, ConvStem):
        step = float(stem.patch_size)
        return Grid(shape, (step, step), (_first_centre(stem, size[0]), _first_centre(stem, size[1])))
    if isinstance(stem, PooledStem):  # centres of the first convolution's fields lie at 0.5, `stride` apart
        step, first = float(stem.patch_size), 0.5 + (stem.patch_size - stem.stride) / 2
        return Grid(shape, (step, step), (first, first))
    first = getattr(model, "first_centre", None)
    if first is not None:
        step = float(model.patch_size)  # type: ignore[arg-type]
        return Grid(shape, (step, step), first)
    step_y, step_x = size[0] / shape[0], size[1] / shape[1]
    return Grid(shape, (step_y, step_x), (step_y / 2, step_x / 2))


def _first_centre(stem: ConvStem, length: int) -> float:
    centre, stride = 0.5, 1
    for _ in stem.convs:
        padded_before = 1 if stem.padding == "symmetric" else length % 2
        centre += (1 - padded_before) * stride
        stride *= 2
        length = (length + 1) // 2
    return centre


def resample(values: np.ndarray, grid: Grid, fine: Grid, smoothing: Smoothing = "bilinear") -> np.ndarray:
    """Values on one grid, (..., h, w), read at the centres of another, (..., h', w'); constant beyond the edges."""
    rows = _weights(_centres(fine, 0), grid, 0, smoothing)
    columns = _weights(_centres(fine, 1), grid, 1, smoothing)
    return (rows @ values @ columns.T).astype(values.dtype)


def place(
    values: np.ndarray, grid: Grid, geometry: Geometry, *, smoothing: Smoothing = "bilinear", outside: float = 0.0
) -> np.ndarray:
    """A map over the patches → the same map over the image.

    Args:
        values: (..., h, w) float.
        grid: how the patches lie on the network input.
        geometry: how the network input lies on the image.
        smoothing: "bilinear" between patch centres, or "nearest".
        outside: value of the image's pixels that the network did not see.

    Returns:
        (..., H, W), at the image's own resolution.
    """
    (height, width), (left, top, right, bottom) = geometry.image, geometry.box
    # positions of the image's pixel centres on the network input
    y = (np.arange(height) + 0.5 - top) / (bottom - top) * geometry.size[0]
    x = (np.arange(width) + 0.5 - left) / (right - left) * geometry.size[1]
    placed = _weights(y, grid, 0, smoothing) @ values @ _weights(x, grid, 1, smoothing).T
    seen = seen_pixels(geometry)
    return np.where(seen, placed, outside).astype(values.dtype)


def seen_pixels(geometry: Geometry) -> np.ndarray:
    """(H, W) bool: the image's pixels whose centres lie inside of the network input."""
    (height, width), (left, top, right, bottom) = geometry.image, geometry.box
    y, x = np.arange(height) + 0.5, np.arange(width) + 0.5
    return ((y > top) & (y < bottom))[:, None] & ((x > left) & (x < right))[None, :]


def _centres(grid: Grid, axis: int) -> np.ndarray:
    return grid.first[axis] + grid.step[axis] * np.arange(grid.shape[axis])


def _weights(positions: np.ndarray, grid: Grid, axis: int, smoothing: Smoothing) -> np.ndarray:
    """(len(positions), patches) weights that read a row of patches at `positions`; each row sums to 1."""
    patches = np.arange(grid.shape[axis])
    index = np.clip((positions - grid.first[axis]) / grid.step[axis], 0, grid.shape[axis] - 1)
    if smoothing == "nearest":
        return (np.floor(index + 0.5)[:, None] == patches).astype(np.float64)
    return np.clip(1 - np.abs(index[:, None] - patches), 0, 1)
