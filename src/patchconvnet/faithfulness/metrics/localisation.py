"""Does a map lie on the thing? Grid pointing, pointing game, energy, boxes (MaxBoxAccV2) and masks (PxAP).

Maps and masks are at the resolution of the network input. A map that says nothing (uniform, or not finite) is a miss
everywhere, and so is an object of no pixels: some libraries count both as hits.
"""

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from patchconvnet.errors import UserError
from patchconvnet.faithfulness.methods import uninformative

THRESHOLDS = 100  # of maps scaled to 0..1: 0, 0.01 … 0.99
OVERLAPS = (0.3, 0.5, 0.7)


# Grid pointing


def mosaic(images: Tensor) -> Tensor:
    """n² images as one, row by row: (M, n², C, H, W) → (M, C, n·H, n·W)."""
    count, cells, channels, height, width = images.shape
    n = math.isqrt(cells)
    rows = images.view(count, n, n, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(count, channels, n * height, n * width)


def grid_pointing(maps: Tensor) -> Tensor:
    """The share of a class's positive attribution that falls into its own cell of a mosaic, in 0..1; chance is 1/n².

    Böhle et al. 2021, arXiv 2104.00032, section 4 ("localisation metric"): mosaics of confidently and rightly
    classified images of n² different classes; for each class A⁺ in its cell ÷ A⁺ in the mosaic. A map that says
    nothing, or that has no positive value, scores 0.

    Args:
        maps: (M, n², n·H, n·W): map t of a mosaic is for the class in cell t, cells counted row by row.

    Returns:
        (M, n²).
    """
    count, cells, height, width = maps.shape
    n = math.isqrt(cells)
    positive = maps.nan_to_num().clamp(min=0).view(count, cells, n, height // n, n, width // n).sum((3, 5)).flatten(2)
    return _share(positive.diagonal(dim1=1, dim2=2), positive.sum(-1), maps)


# Objects


def pointing(maps: Tensor, objects: Tensor) -> Tensor:
    """The pointing game: 1 where the map's largest value lies on the object, else 0.

    Zhang et al. 2016, arXiv 1608.00507, section 4.2, without its tolerance of 15 pixels. Where several pixels share the
    largest value all of them must lie on the object, and a map that says nothing is a miss.

    Args:
        maps: (B, H, W).
        objects: (B, H, W) bool; an empty one is a miss.

    Returns:
        (B,) of 0 and 1.
    """
    largest = maps == maps.amax((1, 2), keepdim=True)
    return ((~largest | objects).flatten(1).all(1) & ~uninformative(maps)).to(maps.dtype)


def energy(maps: Tensor, objects: Tensor) -> Tensor:
    """The share of the positive attribution that lies on the object, in 0..1; chance is the object's share of pixels.

    The energy-based pointing game of Wang et al. 2020 (Score-CAM, arXiv 1910.01279), section 4.3. A map that says
    nothing, or that has no positive value, scores 0.

    Args and returns: as `pointing`; values between 0 and 1.
    """
    positive = maps.nan_to_num().clamp(min=0)
    return _share((positive * objects).sum((1, 2)), positive.sum((1, 2)), maps)


def _share(part: Tensor, whole: Tensor, maps: Tensor) -> Tensor:
    return torch.where((whole > 0) & ~uninformative(maps), part / whole.clamp(min=torch.finfo(whole.dtype).tiny), 0.0)


# Boxes


def box_overlaps(values: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The best overlap of any box from a map with any box of the object, at each threshold.

    Choe et al. 2020, arXiv 2001.07437, sections 3.3 and 4.1, in the second version (MaxBoxAccV2) of arXiv 2007.04178:
    the map is scaled to 0..1; at each of `THRESHOLDS` thresholds the pixels above it fall into connected parts
    (diagonals connect), and each part has its bounding box.

    Args:
        values: (H, W), one map.
        boxes: (n, 4) as x0, y0, x1, y1, edges at whole numbers.

    Returns:
        (THRESHOLDS,) intersection over union, 0..1; zeros for a map that says nothing, or without boxes.
    """
    scaled = scale(torch.from_numpy(np.asarray(values))[None])[0].numpy()
    best = np.zeros(THRESHOLDS)
    if not len(boxes):
        return best
    for i in range(THRESHOLDS):
        parts, _ = ndimage.label(scaled > i / THRESHOLDS, np.ones((3, 3)))
        found = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(parts)]
        if found:
            best[i] = overlaps(np.array(found, dtype=np.float64), boxes).max()
    return best


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of every box of (n, 4) with every one of (m, 4): (n, m)."""
    a, b = first[:, None], second[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = sides.clip(0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (a, b)]
    return common / (areas[0] + areas[1] - common)


def max_box_accuracy(best: np.ndarray) -> dict[float, float]:
    """Share of images whose box is found, at the threshold that is best for all, for each of `OVERLAPS`.

    MaxBoxAcc of Choe et al. 2020; MaxBoxAccV2 is the mean over the three overlaps.

    Args:
        best: (N, THRESHOLDS), one row of `box_overlaps` an image.
    """
    return {overlap: float((best >= overlap).mean(0).max()) for overlap in OVERLAPS}


# Masks


def pixel_histograms(maps: Tensor, objects: Tensor) -> Tensor:
    """How many pixels of the object and of the rest lie between which thresholds.

    Args:
        maps: (B, H, W), scaled to 0..1 here; one that says nothing becomes zeros.
        objects: (B, H, W) bool.

    Returns:
        (B, 2, THRESHOLDS + 1) int64: the object's pixels, the rest's; the last bin holds values of 1.
    """
    bins = (scale(maps) * THRESHOLDS).floor().long().clamp(0, THRESHOLDS).flatten(1)  # (B, P)
    inside = objects.flatten(1).long()
    counts = maps.new_zeros((len(maps), 2, THRESHOLDS + 1), dtype=torch.int64)
    for row, chosen in enumerate((inside, 1 - inside)):
        counts[:, row].scatter_add_(1, bins, chosen)
    return counts


def pixel_average_precision(histograms: np.ndarray) -> float:
    """PxAP: average precision of "this pixel belongs to the object" over all pixels of all images.

    Choe et al. 2020, arXiv 2001.07437, section 4.2: Σ precision(τ)·(recall(τ) − recall(next higher τ)).

    Args:
        histograms: (N, 2, THRESHOLDS + 1) of `pixel_histograms`.

    Returns:
        In 0..1; a map of no use has the objects' share of all pixels.

    Raises:
        UserError: there is no pixel of an object.
    """
    inside, outside = histograms.sum(0)[:, ::-1].cumsum(1).astype(np.float64)  # pixels at or above each threshold
    if not inside[-1]:
        raise UserError("no pixel of any mask belongs to an object, so there is no precision to average.")
    named = inside + outside
    precision = np.divide(inside, named, out=np.zeros_like(named), where=named > 0)
    return float((precision * np.diff(inside / inside[-1], prepend=0)).sum())


def scale(maps: Tensor) -> Tensor:
    """Each map (..., H, W) to 0..1 by its own least and largest value; zeros where it says nothing."""
    clean = torch.where(uninformative(maps)[..., None, None], 0.0, maps)
    lowest = clean.amin((-2, -1), keepdim=True)
    span = clean.amax((-2, -1), keepdim=True) - lowest
    return torch.where(span > 0, (clean - lowest) / span.clamp(min=torch.finfo(maps.dtype).tiny), 0.0)
