"""From the results of an audit to its estimates: mean and spread for each method and measure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from patchconvnet.faithfulness.methods import Method
from patchconvnet.faithfulness.metrics import Column, Metric
from patchconvnet.faithfulness.results import Record, Results
from patchconvnet.faithfulness.statistics import Estimate, Gap, estimate_of, gap_between


@dataclass(frozen=True, eq=False)
class Summary:
    """What an audit found.

    Attributes:
        methods: as asked for.
        columns: the columns that there are estimates for.
        estimates: by method and column.
        seconds: for an image, median over batches, by method.
        uninformative: share of maps that are uniform or not finite, by method.
        curves: mean probability by method and "deletion" or "insertion", an estimate for each point.
        cascade: names of the levels, and the rank correlation at each, by method.
        left_out: measures that could not be made, with the reason.
        header: what was measured, on what, and how.
        images, top1: number of images that were explained, and the share rightly classified.
        class_names: of the model.
    """

    methods: list[Method]
    columns: list[Column]
    estimates: dict[tuple[str, str], Estimate]
    header: dict[str, Any]
    images: int
    top1: float
    class_names: list[str]
    seconds: dict[str, float] = field(default_factory=dict)
    uninformative: dict[str, float] = field(default_factory=dict)
    curves: dict[tuple[str, str], list[Estimate]] = field(default_factory=dict)
    cascade: dict[str, tuple[list[str], list[Estimate]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def gap(self, first: str, second: str, column: Column) -> Gap | None:
        """By how much method `first` is better than `second`; None where one has no value."""
        a, b = (self.estimates.get((name, column.name)) for name in (first, second))
        if a is None or b is None:
            return None
        return gap_between(a, b, column.gain, of_means=column.better == "near zero")

    def usual_errors(self) -> dict[str, float]:
        """The standard error of each column, by its title: the median over the methods that ask the network."""
        found = {}
        for column in self.columns:
            named = [
                self.estimates.get((method.name, column.name)) for method in self.methods if method.kind != "control"
            ]
            if errors := [e.error for e in named if e is not None and np.isfinite(e.error)]:
                found[column.title] = float(np.median(errors))
        return found

    def best(self, column: Column) -> list[str]:
        """The best method on a measure, and those that can't be told from it: within two standard errors.

        Controls are not asked: they are what the others must beat. Nor is a method with too few values.
        """
        found = {m.name: self.estimates.get((m.name, column.name)) for m in self.methods if m.kind != "control"}
        named = [name for name, e in found.items() if e is not None and e.is_enough]
        if not named:
            return []
        top = max(named, key=lambda name: column.gain(self.estimates[name, column.name].mean))
        close = [top]
        for name in named:
            gap = self.gap(top, name, column)
            if name != top and gap is not None and gap.mean <= 2 * gap.error:
                close.append(name)
        return close


def summarise(
    results: Results,
    methods: list[Method],
    metrics: Sequence[Metric],
    left_out: dict[str, str],
    header: dict[str, Any],
    class_names: list[str],
) -> Summary:
    """The estimates of all results; arguments as the attributes of `Summary`."""
    metrics = [metric for metric in metrics if metric.name not in left_out]
    values = {method.name: _values(results, method, metrics) for method in methods}
    estimates = {
        (method.name, name): estimate
        for method in methods
        for metric in metrics
        for name, estimate in metric.estimated(values[method.name]).items()
    }
    columns = [
        column
        for metric in metrics
        for column in metric.columns
        if any((method.name, column.name) in estimates for method in methods)
    ]
    maps = _by_method(results.of_kind("maps"))
    explained = {record["image"] for kind in ("maps", "repeated") for record in results.of_kind(kind)}
    predictions = [record for record in results.of_kind("prediction") if record["image"] in explained]
    return Summary(
        methods=methods,
        columns=columns,
        estimates=estimates,
        header=header,
        images=len(explained),
        top1=float(np.mean([r["predicted"] == r["label"] for r in predictions])) if predictions else 0.0,
        class_names=class_names,
        seconds={name: float(np.median([r["seconds"] for r in records])) for name, records in maps.items()},
        uninformative={name: float(np.mean([r["uninformative"] for r in records])) for name, records in maps.items()},
        curves={
            (method.name, kind): _points([value["curve"] for value in found.values()])
            for method in methods
            for kind in ("deletion", "insertion")
            if (found := values[method.name].get(kind))
        },
        cascade={
            method.name: (
                next(iter(found.values()))["levels"],
                _points([value["rank_correlation"] for value in found.values()]),
            )
            for method in methods
            if (found := values[method.name].get("sanity"))
        },
        left_out=left_out,
    )


def _values(results: Results, method: Method, metrics: Sequence[Metric]) -> dict[str, dict[Any, Any]]:
    """One method's values, by metric and then by image or mosaic."""
    found: dict[str, dict[Any, Any]] = {metric.name: {} for metric in metrics}
    for metric in metrics:
        for record in results.of_kind(metric.stage):
            if record["method"] == method.name and metric.name in record:
                found[metric.name][record["image"]] = record[metric.name]
    return found


def _by_method(records: Iterable[Record]) -> dict[str, list[Record]]:
    grouped: dict[str, list[Record]] = {}
    for record in records:
        grouped.setdefault(record["method"], []).append(record)
    return grouped


def _points(rows: Sequence[Sequence[float | None]]) -> list[Estimate]:
    """An estimate for each point of curves."""
    return [estimate_of(dict(enumerate(points))) for points in zip(*rows, strict=True)]
