"""Estimates: the mean of a measure over images with what is known of its spread, and how two of them are compared."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

RESAMPLES = 200  # of the images, for the standard error of a value of all images together

# Below this number of values nothing is said about a method in words: of fewer than ten normal values an interval of
# two standard errors covers the true mean less than 92 times in 100 (Student's t, nine degrees of freedom), of two
# values 70 times.
LEAST_VALUES = 10


@dataclass(frozen=True, eq=False)
class Estimate:
    """One method on one measure.

    Attributes:
        mean: over images, or of all together; NaN without a value.
        deviation: standard deviation over images; None for a value of all together.
        error: standard error of the mean; infinite with fewer than two values.
        count: images or mosaics.
        missing: of these, how many have no value.
        values: by image or mosaic, for comparing methods pair by pair; empty for a value of all together.
    """

    mean: float
    deviation: float | None
    error: float
    count: int
    missing: int = 0
    values: Mapping[Any, float] = field(default_factory=dict, repr=False)

    @property
    def known(self) -> int:
        """How many images or mosaics have a value."""
        return self.count - self.missing

    @property
    def is_enough(self) -> bool:
        """Whether anything may be said in words: `LEAST_VALUES` values, and no more missing than there."""
        return self.known >= LEAST_VALUES and self.missing <= self.known


@dataclass(frozen=True)
class Gap:
    """By how much one estimate is better than another.

    Attributes:
        mean: above zero where the first is better.
        error: its standard error.
        count: values, or pairs of values, that it comes from.
    """

    mean: float
    error: float
    count: int


def estimate_of(values: Mapping[Hashable, float | None]) -> Estimate:
    """The mean of values by image; None is a missing value."""
    known = {key: value for key, value in values.items() if value is not None and np.isfinite(value)}
    numbers = np.array([*known.values()])
    deviation = float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0
    return Estimate(
        mean=float(numbers.mean()) if len(numbers) else float("nan"),
        deviation=deviation,
        error=deviation / np.sqrt(len(numbers)) if len(numbers) > 1 else float("inf"),
        count=len(values),
        missing=len(values) - len(known),
        values=known,
    )


def resampled(rows: np.ndarray, measure: Callable[[np.ndarray], float]) -> Estimate:
    """A value of all images together, its standard error from drawing the images again (bootstrap)."""
    generator = np.random.default_rng(0)
    again = [measure(rows[generator.integers(0, len(rows), len(rows))]) for _ in range(RESAMPLES)]
    return Estimate(measure(rows), None, float(np.nanstd(again)) if len(rows) > 1 else float("inf"), len(rows))


def gap_between(first: Estimate, second: Estimate, gain: Callable[[Any], Any], of_means: bool = False) -> Gap | None:
    """By how much `first` is better than `second`; None where one has no value.

    Image by image where there are values of images, which is much sharper than comparing two means.

    Args:
        gain: turns values so that higher is better.
        of_means: whether the means are what counts and not each value, as where a mean should be near zero.
    """
    if not first.known or not second.known:
        return None
    if not first.values or not second.values:
        error = float(np.hypot(first.error, second.error))
        return Gap(float(gain(first.mean) - gain(second.mean)), error, min(first.known, second.known))
    common = [key for key in first.values if key in second.values]
    if not common:
        return None
    mine, theirs = (np.array([estimate.values[key] for key in common]) for estimate in (first, second))
    if of_means:
        gaps = np.sign(theirs.mean()) * theirs - np.sign(mine.mean()) * mine
    else:
        gaps = gain(mine) - gain(theirs)
    error = float(gaps.std(ddof=1) / np.sqrt(len(gaps))) if len(gaps) > 1 else float("inf")
    return Gap(float(gaps.mean()), error, len(common))
