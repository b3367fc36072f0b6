"""Does a map lie on the annotated object? Pointing game, energy, boxes (MaxBoxAccV2) and pixels of masks (PxAP).

Maps and masks are at the resolution of the network input. An uninformative map (uniform, or not finite) is a miss
everywhere, and so is an object of no pixels: some libraries count both as hits.
"""

from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from patchconvnet.errors import UserError
from patchconvnet.faithfulness.methods import uninformative
from patchconvnet.faithfulness.metrics.metric import Case, Metric, Values
from patchconvnet.faithfulness.statistics import Estimate, resampled

THRESHOLDS = 100  # of maps scaled to 0..1: 0, 0.01 … 0.99
OVERLAPS = (0.3, 0.5, 0.7)
MANY = 50  # parts above one threshold


# Objects


def pointing(maps: Tensor, objects: Tensor) -> Tensor:
    """The pointing game: 1 where the map's largest value is on the object, else 0.

    Zhang et al. 2016, arXiv 1608.00507, section 4.2, without its tolerance of 15 pixels. Where several pixels share the
    largest value all of them must lie on the object, and an uninformative map is a miss.

    Args:
        maps: (B, H, W).
        objects: (B, H, W) bool; an empty one is a miss.

    Returns:
        (B,) of 0 and 1.
    """
    largest = maps == maps.amax((1, 2), keepdim=True)
    return ((~largest | objects).flatten(1).all(1) & ~uninformative(maps)).to(maps.dtype)


def energy(maps: Tensor, objects: Tensor) -> Tensor:
    """The share of the positive attribution that is on the object, in 0..1; chance is the object's share of pixels.

    The energy-based pointing game of Wang et al. 2020 (Score-CAM, arXiv 1910.01279), section 4.3. An
    uninformative map, or one that has no positive value, scores 0.

    Args and returns: as `pointing`; values between 0 and 1.
    """
    positive = maps.nan_to_num().clamp(min=0)
    return positive_share((positive * objects).sum((1, 2)), positive.sum((1, 2)), maps)


def positive_share(part: Tensor, whole: Tensor, maps: Tensor) -> Tensor:
    """part / whole; 0 for uninformative maps, and for those without a positive value."""
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
        (THRESHOLDS,) intersection over union, 0..1; zeros for an uninformative map, or without boxes.
    """
    scaled = scale(torch.from_numpy(np.asarray(values))[None])[0].numpy()
    best = np.zeros(THRESHOLDS)
    if not len(boxes):
        return best
    least = (boxes[:, 2:] - boxes[:, :2]).prod(1).min()
    for i in range(THRESHOLDS):
        parts, count = ndimage.label(scaled > i / THRESHOLDS, np.ones((3, 3)))
        if count > MANY:  # of noise, where taking each part's box is most of the time: the largest come first
            sizes = np.bincount(parts.ravel())[1:]
            best[i] = _best_overlap(_those(parts, sizes > sizes.max() / 2), boxes)
            # n pixels that are connected across corners too reach over n rows and columns at most
            parts = _those(parts, sizes.astype(np.float64) ** 2 > best[i] * least)
        best[i] = max(best[i], _best_overlap(parts, boxes))
    return best


def _those(parts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The chosen ones of the numbered parts (H, W), numbered anew."""
    return np.append(0, np.where(chosen, chosen.cumsum(), 0))[parts]


def _best_overlap(parts: np.ndarray, boxes: np.ndarray) -> float:
    """The best overlap of any part's box, of numbered parts (H, W), with any box; 0 without parts."""
    found = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(parts)]
    return float(overlaps(np.array(found, dtype=np.float64), boxes).max()) if found else 0.0


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
        maps: (B, H, W), scaled to 0..1 here; an uninformative one becomes zeros.
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
        In 0..1; an uninformative map has the objects' share of all pixels.

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
    """Each map (..., H, W) to 0..1 by its own least and largest value; zeros where it is uninformative."""
    clean = torch.where(uninformative(maps)[..., None, None], 0.0, maps)
    lowest = clean.amin((-2, -1), keepdim=True)
    span = clean.amax((-2, -1), keepdim=True) - lowest
    return torch.where(span > 0, (clean - lowest) / span.clamp(min=torch.finfo(maps.dtype).tiny), 0.0)


# Records


def _masks(case: Case) -> Tensor:
    return torch.from_numpy(np.stack([place.mask for place in case.located])).to(case.maps.device)


def _pointing(case: Case) -> list[Any]:
    return pointing(case.maps[:, 0], _masks(case)).tolist()


def _energy(case: Case) -> list[Any]:
    return energy(case.maps[:, 0], _masks(case)).tolist()


def _boxes(case: Case) -> list[Any]:
    """Whole percents, rounded down: thirty of them are an overlap of at least 0.3."""
    pairs = zip(case.maps[:, 0].cpu().numpy(), case.located, strict=True)
    return [np.floor(box_overlaps(map_, place.boxes) * 100 + 1e-9).astype(int).tolist() for map_, place in pairs]


def _boxes_estimates(values: Values) -> dict[str, Estimate]:
    best = np.array([*values["boxes"].values()]) / 100
    found = {"max_box_accuracy": resampled(best, lambda rows: float(np.mean([*max_box_accuracy(rows).values()])))}
    for overlap, accuracy in max_box_accuracy(best).items():
        found[f"max_box_accuracy_{overlap}"] = Estimate(accuracy, None, 0.0, len(best))
    return found


def _pixels(case: Case) -> list[Any]:
    return pixel_histograms(case.maps[:, 0], _masks(case)).tolist()


def _pixels_estimates(values: Values) -> dict[str, Estimate]:
    histograms = np.array([*values["pixels"].values()])
    if not histograms[:, 0].any():  # no object is on the network input
        return {}

    def precision(rows: np.ndarray) -> float:
        return pixel_average_precision(rows) if rows[:, 0].any() else float("nan")

    return {"pixel_average_precision": resampled(histograms, precision)}


METRICS = (
    Metric(
        "pointing",
        "Pointing",
        "high",
        "Share of images whose map has its largest value on the object. Noise by pixels scores the object's share of "
        "the image; noise by patches less, since patches at the border keep their largest values whole; and a guess "
        "at the centre more",
        "Zhang et al. 2016, arXiv 1608.00507",
        _pointing,
        needs="annotations",
    ),
    Metric(
        "energy",
        "Energy",
        "high",
        "Share of the positive attribution that lies on the object",
        "Wang et al. 2020, arXiv 1910.01279",
        _energy,
        needs="annotations",
    ),
    Metric(
        "boxes",
        "MaxBoxAccV2",
        "high",
        "Share of objects whose box is found from the map at the best threshold, mean over overlaps of 0.3, 0.5 and "
        "0.7",
        "Choe et al. 2020, arXiv 2007.04178",
        _boxes,
        needs="annotations",
        seconds_per_pixel=2e-6,  # measured at 224
        column="max_box_accuracy",
        estimates=_boxes_estimates,
    ),
    Metric(
        "pixels",
        "PxAP",
        "high",
        "Average precision of the map as a segmentation, over all pixels",
        "Choe et al. 2020, arXiv 2001.07437",
        _pixels,
        needs="masks",
        column="pixel_average_precision",
        estimates=_pixels_estimates,
    ),
)
