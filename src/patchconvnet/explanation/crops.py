"""The whole of an image that preprocessing cuts: several crops of it, whose answers and maps are averaged.

A network for photographs was trained on their centres, and names them best from there (docs/explaining.md). So half of
the answer comes from the crop that its preprocessing makes, and the other half, in equal shares, from the largest crops
that cover the image together, side by side along its longer side. The logits are the weighted mean of the crops', and
so evidence, laid where each crop saw it, still sums to them. NumPy alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypedDict, get_args

import numpy as np
from PIL import Image

from patchconvnet.data.geometry import Geometry
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.explanation.patch_grid import Grid

View = Literal["own", "whole"]
VIEWS = get_args(View)
CENTRE_SHARE = 0.5  # of the crop that the preprocessing makes
SPARED = 0.02  # of a crop's length, which one crop fewer leaves unseen
MOST_CROPS = 12  # that cover an image
CELLS = 2  # of the merged grid to a value of the crops' maps, both ways


@dataclass(frozen=True)
class Crop:
    """A part of an image that goes through the network by itself.

    Args:
        preprocessing: from the part to the network input.
        geometry: how that lies on the image.
        share: of the answer.
    """

    preprocessing: Preprocessing
    geometry: Geometry
    share: float

    def of(self, image: Image.Image) -> Image.Image:
        """The part, still to be preprocessed."""
        return image if self.geometry.part is None else image.crop(self.geometry.part)


def crops_of(preprocessing: Preprocessing, height: int, width: int, view: View) -> tuple[Crop, ...]:
    """The crops that an answer about an image of `height` × `width` pixels is made of.

    One where the view is "own", and where the preprocessing cuts nothing off, or next to nothing. Of an image so long
    that more than `MOST_CROPS` would be needed to cover it, what lies between these is not seen.

    Raises:
        UserError: the image is so long and thin that it would be resized beyond what is allowed.
    """
    centre = preprocessing.checked_geometry(height, width)
    if view == "own" or preprocessing.resize != "crop" or centre.resized == centre.size:
        return (Crop(preprocessing, centre, 1.0),)
    widest = replace(preprocessing, crop_ratio=1.0)
    # what of the image a crop of the network input's shape can hold at most
    aspect = preprocessing.size[1] / preprocessing.size[0]
    part = (min(height, round(width / aspect)), min(width, round(height * aspect)))
    along = 0 if height > part[0] else 1
    longer, length = (height, width)[along], max(part[along], 1)
    count = min(max(1, math.ceil(longer / length - SPARED)), MOST_CROPS)
    if count == 1 and preprocessing.crop_ratio == 1:  # it would be the centre's crop again
        return (Crop(preprocessing, centre, 1.0),)
    spare = longer - length
    starts = [round(i * spare / (count - 1)) for i in range(count)] if count > 1 else [spare // 2]
    crops = [Crop(preprocessing, centre, CENTRE_SHARE)]
    for start in starts:
        top, left = (start, 0) if along == 0 else (0, start)
        bottom, right = top + max(part[0], 1), left + max(part[1], 1)
        inside = widest.checked_geometry(bottom - top, right - left)
        geometry = replace(inside, image=(height, width), part=(left, top, right, bottom))
        crops.append(Crop(widest, geometry, (1 - CENTRE_SHARE) / count))
    return tuple(crops)


class Laid(TypedDict):
    """An image's maps with where they lie: fields of `Maps`, which describes them."""

    attention: np.ndarray
    evidence: np.ndarray
    grid: Grid
    geometry: Geometry
    crops: tuple[Crop, ...]
    uniform: np.ndarray | None


def laid(crops: tuple[Crop, ...], attention: np.ndarray, evidence: np.ndarray, grid: Grid) -> Laid:
    """The maps of an image from those of its crops.

    Args:
        crops: as `crops_of` returned them.
        attention: (n, Q, h, w), of the n crops.
        evidence: (n, K', h, w).
        grid: how these lie on the network input.
    """
    if len(crops) == 1:
        return Laid(
            attention=attention[0], evidence=evidence[0], grid=grid, geometry=crops[0].geometry, crops=(), uniform=None
        )
    onto, geometry = merged_grid(crops, grid)
    even = np.ones((len(crops), *grid.shape))
    return Laid(
        attention=merged(attention, crops, grid, onto),
        evidence=merged(evidence, crops, grid, onto),
        grid=onto,
        geometry=geometry,
        crops=crops,
        uniform=merged(even, crops, grid, onto),
    )


def merged_grid(crops: Sequence[Crop], grid: Grid) -> tuple[Grid, Geometry]:
    """A grid over the whole image for the maps of several crops, and how it lies on it.

    Its "network input" is the image as the first crop's preprocessing resizes it before it cuts.

    Args:
        crops: as `crops_of` returned them.
        grid: of the crops' maps.
    """
    centre = crops[0].geometry
    rows, columns = (
        max(1, round(length * CELLS / step)) for length, step in zip(centre.resized, grid.step, strict=True)
    )
    fine = (centre.resized[0] / rows, centre.resized[1] / columns)
    grid = Grid((rows, columns), fine, (fine[0] / 2, fine[1] / 2))
    return grid, Geometry(image=centre.image, resized=centre.resized, offset=(0, 0), size=centre.resized)


def merged(maps: np.ndarray, crops: Sequence[Crop], grid: Grid, onto: Grid) -> np.ndarray:
    """The weighted mean of the crops' maps, laid on the whole image: sums stay what they are.

    Each value is spread around its patch's centre, falling to nothing at its neighbours' (bilinear), within the crop.

    Args:
        maps: (n, ..., h, w), one of each crop.
        crops: n.
        grid: how a crop's values lie on the network input.
        onto: the whole image's, of `merged_grid`.

    Returns:
        (..., h', w') float32.
    """
    total: np.ndarray = np.zeros(())
    for values, crop in zip(maps, crops, strict=True):
        rows, columns = (_spread(grid, crop.geometry, onto.shape[axis], axis) for axis in (0, 1))
        total = total + crop.share * (rows.T @ values.astype(np.float64) @ columns)
    return total.astype(np.float32)


def _spread(grid: Grid, geometry: Geometry, cells: int, axis: int) -> np.ndarray:
    """(patches, cells): the shares of each value, along an axis, that lie in each of the image's cells."""
    left, top, right, bottom = geometry.box
    start, end = ((top, bottom), (left, right))[axis]
    borders = np.arange(cells + 1) * (geometry.image[axis] / cells)
    on_input = np.clip((borders - start) / (end - start), 0, 1) * geometry.size[axis]
    below = _tent_below((on_input - grid.centres(axis)[:, None]) / grid.step[axis])
    # of a patch at the crop's edge all lies inside; the edge itself may round to beyond the image's last pixel
    edges = _tent_below((np.array([0, geometry.size[axis]]) - grid.centres(axis)[:, None]) / grid.step[axis])
    below[:, 0], below[:, -1] = edges[:, 0], edges[:, 1]
    return np.diff(below, axis=1) / np.diff(edges, axis=1)


def _tent_below(x: np.ndarray) -> np.ndarray:
    """How much of a tent of area 1, which falls from its middle at 0 to nothing at −1 and 1, lies below x."""
    x = np.clip(x, -1, 1)
    return 0.5 + x - 0.5 * x * np.abs(x)
