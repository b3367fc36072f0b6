"""What if this were gone: a network's answer with some patches taken out of its pooling, and with their pixels grey.

Taking patches out is exact and needs no second pass through the trunk: pooling reads a set of patches, so that what
remains of them is pooled and classified as it is, with attention renormalised over it. What the remaining patches saw
of the region through their receptive fields stays; pixels made grey, and run again through the whole network, lose that
too, but show the network an image such as it never learned from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from patchconvnet.data.geometry import Geometry
from patchconvnet.errors import UserError
from patchconvnet.explanation.crops import Crop, merged, merged_grid
from patchconvnet.explanation.maps import Maps
from patchconvnet.explanation.patch_grid import Grid, place

Box = tuple[float, float, float, float]
Region = np.ndarray | Sequence[float] | Sequence[Sequence[float]]
LEAST_COVERED = 0.5  # of a patch's square


@dataclass(frozen=True, eq=False)
class Removal:
    """What a network answers without a part of an image.

    Attributes:
        pixels: (H, W) bool, the part, on the image.
        patches: (h, w) bool, those taken out: at least half of their squares is in it.
        grid: how these are placed on the network input. Of several crops, patches and grid are of the whole image, and
            what was taken out are the cells of which most that saw them was.
        geometry: how the network input is placed on the image.
        greyed: the image with the part's pixels in the preprocessing's mean colour.
        logits: (K,) float32, of the other patches pooled.
        greyed_logits: (K,) float32, of the greyed image, run again through the whole network.
    """

    pixels: np.ndarray
    patches: np.ndarray
    grid: Grid
    geometry: Geometry
    greyed: Image.Image
    logits: np.ndarray
    greyed_logits: np.ndarray

    def patch_pixels(self) -> np.ndarray:
        """(H, W) bool: the squares of the patches that were taken out, on the image."""
        return place(self.patches.astype(np.float64), self.grid, self.geometry, smoothing="nearest") > 0

    def to_dict(self, maps: Maps) -> dict[str, Any]:
        """Plain values for JSON: the part's box, the patches, and the listed classes with both answers."""
        answers = {"taken_out": self.logits, "greyed": self.greyed_logits}
        listed = [p.index for p in maps.top_classes()]
        for index in (maps.subject.index, *(int(logits.argmax()) for logits in answers.values())):
            listed += [index] if index not in listed else []
        shares = {name: maps.probabilities_of(logits) for name, logits in answers.items()}
        return {
            "box": dict(zip(("left", "top", "right", "bottom"), self.box, strict=True)),
            "patches": self.patches.astype(int).tolist(),
            "classes": [
                {
                    "index": k,
                    "name": maps.class_names[k],
                    **{
                        name: {"probability": float(shares[name][k]), "logit": float(logits[k])}
                        for name, logits in answers.items()
                    },
                }
                for k in listed
            ],
        }

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The smallest box around the pixels: left, top, right, bottom."""
        rows, columns = np.flatnonzero(self.pixels.any(1)), np.flatnonzero(self.pixels.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def region_pixels(region: Region, image: tuple[int, int]) -> np.ndarray:
    """A mask, a box or several boxes → (H, W) bool.

    Raises:
        UserError: it is none of these, or has no pixel of the image.
    """
    height, width = image
    if isinstance(region, np.ndarray) and region.dtype == bool:
        if region.shape != image:
            raise UserError(
                f"the mask is of shape {region.shape} and the image of {image}, (height, width); give a mask of the "
                "image's size, or a box (left, top, right, bottom) in its pixels."
            )
        pixels = region
    else:
        try:
            boxes = np.atleast_2d(np.asarray(region, dtype=np.float64))
        except (TypeError, ValueError):
            boxes = np.zeros((0, 0))
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
            raise UserError(
                f"{region!r} is no part of an image; give a box (left, top, right, bottom) in pixels, a list of these, "
                "or a mask of booleans, (height, width)."
            )
        y, x = np.arange(height)[:, None] + 0.5, np.arange(width)[None] + 0.5
        pixels = np.zeros(image, dtype=bool)
        for left, top, right, bottom in boxes:
            inside = (x > left) & (x < right) & (y > top) & (y < bottom)
            if not inside.any():
                raise UserError(
                    f"the box {left:g},{top:g},{right:g},{bottom:g} holds no pixel of the image, which is {width} × "
                    f"{height}; a box is left,top,right,bottom, from its upper left corner."
                )
            pixels |= inside
    if not pixels.any():
        raise UserError("the mask holds no pixel; mark those to remove.")
    return pixels


def greyed(image: Image.Image, pixels: np.ndarray, mean: Sequence[float]) -> Image.Image:
    """The image with some of its pixels in one colour.

    Args:
        image: of any mode.
        pixels: (H, W) bool.
        mean: the colour's three channels, or one for all, in 0..1.
    """
    values = np.asarray(image.convert("RGB")).copy()
    values[pixels] = np.round(255 * np.resize(mean, 3)).astype(np.uint8)
    return Image.fromarray(values)


def logits_of_kept(attention: np.ndarray, evidence: np.ndarray, bias: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """(K,) float32: the logits of some patches pooled alone, from the maps of all.

    Where one linear classifier reads Σ attention · values, and the attention is one softmax, renormalised over the
    patches that remain: logit_k = bias_k + Σ evidence_k / Σ attention_k, both over these.

    Args:
        attention: (1, h, w), or (K, h, w) where each class has its own.
        evidence: (K, h, w).
        bias: (K,).
        kept: (h, w) bool.

    Raises:
        UserError: the patches that remain have no attention at all.
    """
    totals = attention[:, kept].sum(1, dtype=np.float64)
    if not (totals > 0).all():
        raise UserError("the patches that remain have no attention, so their answer cannot be computed from the maps.")
    return (bias + evidence[:, kept].sum(1, dtype=np.float64) / totals).astype(np.float32)


def removal(
    image: Image.Image,
    region: Region,
    crops: Sequence[Crop],
    grid: Grid,
    logits_of_kept: Callable[[int, np.ndarray], np.ndarray],
    logits_of_images: Callable[[Sequence[Image.Image]], np.ndarray],
) -> Removal:
    """Ask an image's crops what they answer without a part of it.

    A crop of which nothing remains is left out, and the others' shares become larger by as much.

    Args:
        image: as it was before preprocessing.
        region: the part.
        crops: those that the answer was made of.
        grid: how each one's patches are placed on the network input.
        logits_of_kept: of a crop's number and its patches (h, w) bool that are kept: their logits (K,).
        logits_of_images: of one image for each crop, still to be preprocessed: their logits (n, K).

    Raises:
        UserError: the region is none, or covers no patch, or all.
    """
    size = (image.height, image.width)
    pixels, crops = region_pixels(region, size), [replace(crop, geometry=crop.geometry.on(size)) for crop in crops]
    removed = np.stack([covered_patches(pixels, grid, crop.geometry) for crop in crops])  # (n, h, w)
    _check_covered(removed, grid, crops[0].geometry)
    remaining = [i for i in range(len(crops)) if not removed[i].all()]
    shares = np.array([crops[i].share for i in remaining])
    logits = np.average([logits_of_kept(i, ~removed[i]) for i in remaining], axis=0, weights=shares)
    grey = greyed(image, pixels, crops[0].preprocessing.mean)
    logits_of_grey = np.average(
        logits_of_images([crop.of(grey) for crop in crops]), axis=0, weights=[crop.share for crop in crops]
    )
    where, geometry, patches = grid, crops[0].geometry, removed[0]
    if len(crops) > 1:
        where, geometry = merged_grid(crops, grid)
        out, all_of_it = (merged(values, crops, grid, where) for values in (removed, np.ones_like(removed)))
        patches = out > LEAST_COVERED * all_of_it
    return Removal(pixels, patches, where, geometry, grey, logits.astype(np.float32), logits_of_grey.astype(np.float32))


def covered_patches(pixels: np.ndarray, grid: Grid, geometry: Geometry) -> np.ndarray:
    """(h, w) bool: the patches at least half of whose squares, on the image, are among the pixels (H, W)."""
    left, top, right, bottom = geometry.box
    scales = ((bottom - top) / geometry.size[0], (right - left) / geometry.size[1])  # image pixels per input pixel
    sums = np.pad(pixels.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    edges = []
    for axis, (scale, start) in enumerate(zip(scales, (top, left), strict=True)):
        centres = start + scale * grid.centres(axis)
        half = scale * grid.step[axis] / 2
        edges.append([np.clip(np.round(centres + side), 0, pixels.shape[axis]).astype(int) for side in (-half, half)])
    (y0, y1), (x0, x1) = edges
    inside = sums[y1][:, x1] - sums[y0][:, x1] - sums[y1][:, x0] + sums[y0][:, x0]
    return inside >= LEAST_COVERED * grid.step[0] * scales[0] * grid.step[1] * scales[1]


def _check_covered(removed: np.ndarray, grid: Grid, geometry: Geometry) -> None:
    if not removed.any():
        left, top, right, bottom = geometry.box
        height, width = (bottom - top) / geometry.size[0], (right - left) / geometry.size[1]
        raise UserError(
            f"the part to remove covers half of no patch; a patch is {grid.step[1] * width:.0f} × "
            f"{grid.step[0] * height:.0f} pixels of this image. Give a larger part, or a larger `size` of the input."
        )
    if removed.all():
        raise UserError("the part to remove covers all patches, so nothing is left to classify.")
