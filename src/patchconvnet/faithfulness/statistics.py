"""From the results of an audit to its figures: mean and spread for each method and measure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from patchconvnet.faithfulness.methods import Method
from patchconvnet.faithfulness.metrics.localisation import max_box_accuracy, pixel_average_precision
from patchconvnet.faithfulness.results import Ledger, Record

RESAMPLES = 200  # of the images, for the spread of what is a figure of all images together


@dataclass(frozen=True)
class Measure:
    """A column of the report.

    Args:
        name: in JSON and CSV.
        title: in the report.
        better: "high", "low", or "near zero".
        about: what it means, in a sentence or two, with its source.
        chance: what a map that knows nothing scores, where that is known beforehand.
        part_of: the measure of `AuditSettings` that it comes from.
    """

    name: str
    title: str
    better: Literal["high", "low", "near zero"]
    about: str
    part_of: str
    chance: float | None = None

    def gain(self, values: Any) -> Any:
        """Values turned so that higher is better."""
        return {"high": values, "low": -values, "near zero": -abs(values)}[self.better]


COLUMNS = (
    Measure(
        "deletion",
        "Deletion",
        "low",
        "Pixels are set to the mean colour, the most important first: area under the class's probability. A map that "
        "knows what matters makes it fall at once. Fine, scattered holes destroy a decision by themselves, so maps at "
        "the resolution of pixels have an advantage here (Petsiuk et al. 2018).",
        "deletion",
    ),
    Measure(
        "insertion",
        "Insertion",
        "high",
        "A blurred image becomes sharp, the most important pixels first: area under the class's probability "
        "(Petsiuk et al. 2018).",
        "insertion",
    ),
    Measure(
        "insertion_minus_deletion",
        "Insertion − deletion",
        "high",
        "Both together. What scattering gains in one it tends to lose in the other.",
        "insertion",
    ),
    Measure(
        "road",
        "ROAD",
        "high",
        "The most, or the least, important tenths of the pixels are filled in from their neighbours, so that the holes "
        "have no shape to be seen: half the difference of the class's probability. An order that knows nothing has 0 "
        "(Rong et al. 2022).",
        "road",
        0.0,
    ),
    Measure(
        "grid_pointing_2",
        "Grid 2 × 2",
        "high",
        "Grid pointing: mosaics of four confidently classified images of four classes; the share of a class's "
        "positive attribution that lies in its own image. Chance is 1/4 (Böhle et al. 2021).",
        "grid_pointing_2",
        1 / 4,
    ),
    Measure(
        "grid_pointing_3",
        "Grid 3 × 3",
        "high",
        "The same with nine images. Chance is 1/9.",
        "grid_pointing_3",
        1 / 9,
    ),
    Measure(
        "pointing",
        "Pointing",
        "high",
        "Share of images whose map has its largest value on the object. For noise by pixels that is the object's "
        "share of the image; noise by patches has less, since patches at the border keep their largest values whole, "
        "and a guess at the centre more (Zhang et al. 2016).",
        "pointing",
    ),
    Measure(
        "energy",
        "Energy",
        "high",
        "Share of the positive attribution that lies on the object (Wang et al. 2020).",
        "energy",
    ),
    Measure(
        "max_box_accuracy",
        "MaxBoxAccV2",
        "high",
        "Share of objects whose box is found from the map at the best threshold, mean over overlaps of 0.3, 0.5 and "
        "0.7 (Choe et al. 2020).",
        "boxes",
    ),
    Measure(
        "pixel_average_precision",
        "PxAP",
        "high",
        "Average precision of the map as a segmentation, over all pixels (Choe et al. 2020).",
        "pixels",
    ),
    Measure(
        "sanity_rank_correlation",
        "Sanity: rank",
        "near zero",
        "Rank correlation of the map with that of the same network after all of its weights were randomised. A map "
        "that stays as it is shows the image, not the network (Adebayo et al. 2018).",
        "sanity",
        None,
    ),
    Measure(
        "sanity_similarity",
        "Sanity: SSIM",
        "near zero",
        "The same as structural similarity, as an eye would see it.",
        "sanity",
        None,
    ),
    Measure(
        "stability_shift",
        "Stable: shift",
        "high",
        "Rank correlation of the map with that of the image moved by one pixel, moved back (after Alvarez-Melis and "
        "Jaakkola 2018). Needed, not enough: a map that ignores everything is stable too.",
        "stability",
    ),
    Measure(
        "stability_noise",
        "Stable: noise",
        "high",
        "The same with faint noise on the image.",
        "stability",
    ),
    Measure(
        "completeness",
        "Completeness error",
        "low",
        "How far the map misses the sum it claims to have (for evidence the logit less its bias), in parts of all it "
        "shows. Only for methods that claim a sum (axiom of Sundararajan et al. 2017).",
        "completeness",
        0.0,
    ),
)


@dataclass(frozen=True, eq=False)
class Figure:
    """One method on one measure.

    mean: over images, or of all together.
    deviation: standard deviation over images; None for what is a figure of all together.
    error: standard error of the mean.
    count: images or mosaics.
    missing: of these, how many have no value.
    values: by image or mosaic, for comparing methods pair by pair; empty for what is a figure of all together.
    """

    mean: float
    deviation: float | None
    error: float
    count: int
    missing: int = 0
    values: dict[Any, float] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, eq=False)
class Summary:
    """What an audit found.

    methods: as asked for.
    columns: the measures there are figures of.
    figures: by method and measure.
    seconds: an image, median over batches, by method.
    uninformative: share of maps that are uniform or not finite, by method.
    curves: mean deletion and insertion curve, by method and "deletion" or "insertion".
    cascade: names of the levels, and mean rank correlation at each, by method.
    left_out: measures that could not be made, with the reason.
    header: what was measured, on what, and how.
    images, top1: number of images that were explained, and the share rightly classified.
    class_names: of the model.
    """

    methods: list[Method]
    columns: list[Measure]
    figures: dict[tuple[str, str], Figure]
    seconds: dict[str, float]
    uninformative: dict[str, float]
    curves: dict[tuple[str, str], list[float]]
    cascade: dict[str, tuple[list[str], list[float | None]]]
    left_out: dict[str, str]
    header: dict[str, Any]
    images: int
    top1: float
    class_names: list[str]

    def gap(self, first: str, second: str, column: Measure) -> tuple[float, float] | None:
        """By how much `first` is better than `second`, and the standard error of that; None where one has no figure.

        Image by image where there are values of images, which is much sharper than comparing two means.
        """
        a, b = (self.figures.get((name, column.name)) for name in (first, second))
        if a is None or b is None:
            return None
        common = [key for key in a.values if key in b.values]
        if not common:
            return column.gain(a.mean) - column.gain(b.mean), float(np.hypot(a.error, b.error))
        if column.better == "near zero":  # the mean is what should be near zero, not each value
            mine, theirs = (np.array([figure.values[key] for key in common]) for figure in (a, b))
            gaps = np.sign(theirs.mean()) * theirs - np.sign(mine.mean()) * mine
        else:
            gaps = np.array([column.gain(a.values[key]) - column.gain(b.values[key]) for key in common])
        return float(gaps.mean()), float(gaps.std(ddof=1) / np.sqrt(len(gaps))) if len(gaps) > 1 else float("inf")

    def best(self, column: Measure) -> list[str]:
        """The best method on a measure, and those that can't be told from it: within two standard errors.

        Controls are not asked: they are what the others must beat. Nor is a method without a value for most images.
        """
        figures = {m.name: self.figures.get((m.name, column.name)) for m in self.methods if m.kind != "control"}
        named = [name for name, figure in figures.items() if figure is not None and 2 * figure.missing <= figure.count]
        if not named:
            return []
        top = max(named, key=lambda name: column.gain(self.figures[name, column.name].mean))
        close = [top]
        for name in named:
            gap = self.gap(top, name, column)
            if name != top and gap is not None and gap[0] <= 2 * gap[1]:
                close.append(name)
        return close


def summarise(
    ledger: Ledger,
    methods: list[Method],
    measures: Iterable[str],
    left_out: dict[str, str],
    header: dict[str, Any],
    class_names: list[str],
) -> Summary:
    """The figures of all results in a ledger; arguments as the fields of `Summary`."""
    measures = [name for name in measures if name not in left_out]
    maps, close = (_by_method(ledger.of_kind(kind)) for kind in ("map", "close"))
    mosaics = _by_method(ledger.of_kind("mosaic"))
    figures: dict[tuple[str, str], Figure] = {}
    for method in methods:
        found = {
            **_of_maps(maps.get(method.name, [])),
            **_of_mosaics(mosaics.get(method.name, [])),
            **_of_close(close.get(method.name, [])),
        }
        figures |= {(method.name, name): figure for name, figure in found.items()}
    columns = [c for c in COLUMNS if c.part_of in measures and any((m.name, c.name) in figures for m in methods)]
    explained = {record["image"] for records in maps.values() for record in records}
    explained |= {record["image"] for records in close.values() for record in records}
    predictions = [record for record in ledger.of_kind("prediction") if record["image"] in explained]
    return Summary(
        methods=methods,
        columns=columns,
        figures=figures,
        seconds={name: float(np.median([r["seconds"] for r in records])) for name, records in maps.items()},
        uninformative={name: float(np.mean([r["uninformative"] for r in records])) for name, records in maps.items()},
        curves={
            (name, kind): np.mean([record[f"{kind}_curve"] for record in records], axis=0).tolist()
            for name, records in maps.items()
            for kind in ("deletion", "insertion")
            if f"{kind}_curve" in records[0]
        },
        cascade={name: _cascade(records) for name, records in close.items() if "levels" in records[0]},
        left_out=left_out,
        header=header,
        images=len(explained),
        top1=float(np.mean([r["predicted"] == r["label"] for r in predictions])) if predictions else 0.0,
        class_names=class_names,
    )


def _by_method(records: Iterable[Record]) -> dict[str, list[Record]]:
    grouped: dict[str, list[Record]] = {}
    for record in records:
        grouped.setdefault(record["method"], []).append(record)
    return grouped


def _of_maps(records: list[Record]) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for name in ("deletion", "insertion", "road", "completeness", "pointing", "energy"):
        if records and name in records[0]:
            figures[name] = _figure({record["image"]: record[name] for record in records})
    if {"deletion", "insertion"} <= set(figures):
        values = {
            r["image"]: None if None in (r["insertion"], r["deletion"]) else r["insertion"] - r["deletion"]
            for r in records
        }
        figures["insertion_minus_deletion"] = _figure(values)
    if records and "boxes" in records[0]:
        best = np.array([record["boxes"] for record in records]) / 100
        figures["max_box_accuracy"] = _resampled(best, lambda rows: float(np.mean([*max_box_accuracy(rows).values()])))
        for overlap, accuracy in max_box_accuracy(best).items():
            figures[f"max_box_accuracy_{overlap}"] = Figure(accuracy, None, 0.0, len(best))
    if records and "pixels" in records[0]:
        histograms = np.array([record["pixels"] for record in records])
        if histograms[:, 0].any():  # else no object lies where the network looked
            figures["pixel_average_precision"] = _resampled(
                histograms, lambda rows: pixel_average_precision(rows) if rows[:, 0].any() else float("nan")
            )
    return figures


def _of_mosaics(records: list[Record]) -> dict[str, Figure]:
    return {
        f"grid_pointing_{n}": _figure({r["image"]: float(np.mean(r["shares"])) for r in records if r["n"] == n})
        for n in sorted({record["n"] for record in records})
    }


def _of_close(records: list[Record]) -> dict[str, Figure]:
    figures = {}
    if records and "levels" in records[0]:
        for name, what in (("sanity_rank_correlation", "rank_correlation"), ("sanity_similarity", "similarity")):
            figures[name] = _figure({record["image"]: record[what][-1] for record in records})
    for name in ("stability_shift", "stability_noise"):
        if records and name in records[0]:
            figures[name] = _figure({record["image"]: record[name] for record in records})
    return {name: figure for name, figure in figures.items() if figure.count > figure.missing}


def _cascade(records: list[Record]) -> tuple[list[str], list[float | None]]:
    levels = records[0]["levels"]
    means: list[float | None] = []
    for i in range(len(levels)):
        known = [record["rank_correlation"][i] for record in records if record["rank_correlation"][i] is not None]
        means.append(float(np.mean(known)) if known else None)
    return levels, means


def _figure(values: dict[Any, float | None]) -> Figure:
    known = {key: value for key, value in values.items() if value is not None}
    numbers = np.array([*known.values()])
    deviation = float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0
    return Figure(
        mean=float(numbers.mean()) if len(numbers) else float("nan"),
        deviation=deviation,
        error=deviation / np.sqrt(len(numbers)) if len(numbers) > 1 else float("inf"),
        count=len(values),
        missing=len(values) - len(known),
        values=known,
    )


def _resampled(rows: np.ndarray, measure: Callable[[np.ndarray], float]) -> Figure:
    """A figure of all images together, its standard error from drawing the images again (bootstrap)."""
    generator = np.random.default_rng(0)
    again = [measure(rows[generator.integers(0, len(rows), len(rows))]) for _ in range(RESAMPLES)]
    return Figure(measure(rows), None, float(np.nanstd(again)) if len(rows) > 1 else float("inf"), len(rows))
