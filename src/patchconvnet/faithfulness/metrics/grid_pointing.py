"""Does a map find the image of its class in a mosaic of several classes? Grid pointing needs no annotations."""

import math
from functools import partial
from typing import Any

from torch import Tensor

from patchconvnet.faithfulness.metrics.localisation import positive_share
from patchconvnet.faithfulness.metrics.metric import Case, Metric, Values
from patchconvnet.faithfulness.statistics import Estimate, estimate_of


def mosaic(images: Tensor) -> Tensor:
    """n² images as one, row by row: (M, n², C, H, W) → (M, C, n·H, n·W)."""
    count, cells, channels, height, width = images.shape
    n = math.isqrt(cells)
    rows = images.view(count, n, n, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(count, channels, n * height, n * width)


def grid_pointing(maps: Tensor) -> Tensor:
    """The share of a class's positive attribution that falls into its own cell of a mosaic, in 0..1; chance is 1/n².

    Böhle et al. 2021, arXiv 2104.00032, section 4 ("localisation metric"): mosaics of confidently and rightly
    classified images of n² different classes; for each class A⁺ in its cell ÷ A⁺ in the mosaic. An
    uninformative map, or one that has no positive value, scores 0.

    Args:
        maps: (M, n², n·H, n·W): map t of a mosaic is for the class in cell t, cells counted row by row.

    Returns:
        (M, n²).
    """
    count, cells, height, width = maps.shape
    n = math.isqrt(cells)
    positive = maps.nan_to_num().clamp(min=0).view(count, cells, n, height // n, n, width // n).sum((3, 5)).flatten(2)
    return positive_share(positive.diagonal(dim1=1, dim2=2), positive.sum(-1), maps)


def _shares(case: Case) -> list[Any]:
    return grid_pointing(case.maps).tolist()


def _estimates(name: str, values: Values) -> dict[str, Estimate]:
    """A mosaic's value is the mean over its cells; it is missing where that of a cell is."""
    rows = values[name].items()
    return {name: estimate_of({mosaic: None if None in row else math.fsum(row) / len(row) for mosaic, row in rows})}


def _metric(n: int, about: str) -> Metric:
    name = f"grid_pointing_{n}"
    return Metric(
        name,
        f"Grid {n} × {n}",
        "high",
        about,
        "Böhle et al. 2021, arXiv 2104.00032",
        _shares,
        stage="mosaics",
        cells=n,
        chance=1 / n**2,
        estimates=partial(_estimates, name),
    )


METRICS = (
    _metric(
        2,
        "Grid pointing: mosaics of four confidently classified images of four classes; the share of a class's "
        "positive attribution that lies in its own image. Chance is 1/4",
    ),
    _metric(3, "The same with nine images. Chance is 1/9"),
)
