"""Where the patches of a map are on the image: patch grid → network input → image pixels, exactly.

Positions are in pixels with whole numbers at pixel edges, so the first pixel's centre is at 0.5.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from patchconvnet.data.geometry import Geometry

if TYPE_CHECKING:
    from torch import nn

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

    def centres(self, axis: int) -> np.ndarray:
        """(h,) or (w,): the patches' centres along axis 0 or 1."""
        return self.first[axis] + self.step[axis] * np.arange(self.shape[axis])

    def weights(self, positions: np.ndarray, axis: int, smoothing: Smoothing = "bilinear") -> np.ndarray:
        """(len(positions), patches) weights that read patches along an axis at `positions`; each row sums to 1."""
        patches, index = np.arange(self.shape[axis]), self._index(positions, axis)
        if smoothing == "nearest":
            return (np.floor(index + 0.5)[:, None] == patches).astype(np.float64)
        return np.clip(1 - np.abs(index[:, None] - patches), 0, 1)

    def read(
        self, values: np.ndarray, positions: np.ndarray, axis: int, smoothing: Smoothing = "bilinear"
    ) -> np.ndarray:
        """Values (..., h, w) at `positions` along axis 0 or 1, as by `weights`, of which two at most are not zero.

        A product with all of them would wake as many threads of NumPy's as there are cores, for less work than that.
        """
        index, along = self._index(positions, axis), axis - 2
        if smoothing == "nearest":
            return values.take(np.floor(index + 0.5).astype(np.intp), along)
        below = index.astype(np.intp)
        share = np.expand_dims(index - below, 1) if axis == 0 else index - below
        above = np.minimum(below + 1, self.shape[axis] - 1)
        return values.take(below, along) * (1 - share) + values.take(above, along) * share

    def _index(self, positions: np.ndarray, axis: int) -> np.ndarray:
        """Positions counted in patches, those beyond the first and the last patch at these."""
        return np.clip((positions - self.first[axis]) / self.step[axis], 0, self.shape[axis] - 1)

    def mirrored(self, width: int) -> "Grid":
        """The grid of a horizontally flipped map, whose network input was a flipped one of `width` pixels."""
        last = self.first[1] + (self.shape[1] - 1) * self.step[1]
        return Grid(self.shape, self.step, (self.first[0], width - last))

    def moved(self, down: float, right: float) -> "Grid":
        """The same grid, shifted by pixels of the network input."""
        return Grid(self.shape, self.step, (self.first[0] + down, self.first[1] + right))


def patch_grid(model: "nn.Module", size: tuple[int, int], shape: tuple[int, int]) -> Grid:
    """How a model's patches are placed on its input.

    Args:
        model: the network. Ours say where the receptive fields of their patches have their centres (`patch_positions`);
            patches of others divide the input evenly.
        size: (height, width) of the network input.
        shape: (h, w) patches it gives.
    """
    from patchconvnet.models.classifier import AttentionClassifier  # with torch, for which who draws need not wait

    if isinstance(model, AttentionClassifier):
        first, step = model.patch_positions(size, shape)
        return Grid(shape, step, first)
    step = (size[0] / shape[0], size[1] / shape[1])
    return Grid(shape, step, (step[0] / 2, step[1] / 2))


def resample(values: np.ndarray, grid: Grid, fine: Grid, smoothing: Smoothing = "bilinear") -> np.ndarray:
    """Values on one grid, (..., h, w), read at the centres of another, (..., h', w'); constant beyond the edges."""
    rows, columns = (grid.weights(fine.centres(axis), axis, smoothing) for axis in (0, 1))
    return (rows @ values @ columns.T).astype(values.dtype)


def place(
    values: np.ndarray, grid: Grid, geometry: Geometry, *, smoothing: Smoothing = "bilinear", outside: float = 0.0
) -> np.ndarray:
    """A map over the patches → the same map over the image.

    Args:
        values: (..., h, w) float.
        grid: how the patches are placed on the network input.
        geometry: how the network input is placed on the image.
        smoothing: "bilinear" between patch centres, or "nearest".
        outside: value of the image's pixels that the network did not see.

    Returns:
        (..., H, W), at the image's own resolution.
    """
    (height, width), (left, top, right, bottom) = geometry.image, geometry.box
    # positions of the image's pixel centres on the network input
    y = (np.arange(height) + 0.5 - top) / (bottom - top) * geometry.size[0]
    x = (np.arange(width) + 0.5 - left) / (right - left) * geometry.size[1]
    placed = grid.read(grid.read(values, x, 1, smoothing), y, 0, smoothing)
    seen = seen_pixels(geometry)
    return np.where(seen, placed, outside).astype(values.dtype)


def seen_pixels(geometry: Geometry) -> np.ndarray:
    """(H, W) bool: the image's pixels whose centres are inside the network input."""
    (height, width), (left, top, right, bottom) = geometry.image, geometry.box
    y, x = np.arange(height) + 0.5, np.arange(width) + 0.5
    return ((y > top) & (y < bottom))[:, None] & ((x > left) & (x < right))[None, :]
