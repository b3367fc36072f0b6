"""The report as one HTML page: what `report.html.j2` shows, prepared; every text in it is escaped by the template."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from patchconvnet.faithfulness.methods import Method
from patchconvnet.faithfulness.metrics import Column
from patchconvnet.faithfulness.report.charts import cascade_chart, curves_chart
from patchconvnet.faithfulness.report.findings import findings
from patchconvnet.faithfulness.report.gallery import Example, data_uri, outlined, overlaid
from patchconvnet.faithfulness.statistics import LEAST_VALUES, Estimate
from patchconvnet.faithfulness.summary import Summary

ARROWS = {"high": "↑", "low": "↓", "near zero": "→ 0"}
KINDS = {"ours": "Ours", "method": "Usual methods, same network", "control": "Controls: ignore the network"}
GROUPS = {
    "faithfulness": "Does a map show what the decision depends on?",
    "annotations": "Does it agree with the annotations?",
    "robustness": "Does it depend on the network, and not on chance?",
}
PACKAGE = "patchconvnet.faithfulness"


@dataclass(frozen=True)
class Cell:
    """A number of a table, in words: what it says, how sure it is, and how it is marked."""

    mean: str = "–"
    error: str = ""
    missing: str = ""
    mark: str = "none"
    about: str = ""


@dataclass(frozen=True)
class Table:
    """One of the tables: its title, its columns, and a row of cells for each method that has any."""

    title: str
    columns: list[Column]
    rows: list[tuple[Method, list[Cell]]]

    @property
    def kinds(self) -> list[tuple[str, list[tuple[Method, list[Cell]]]]]:
        """The rows by kind of method."""
        found = [(kind, [row for row in self.rows if row[0].kind == kind]) for kind in KINDS]
        return [(kind, rows) for kind, rows in found if rows]


def html_report(summary: Summary, examples: Sequence[Example]) -> str:
    """The report as one page."""
    environment = Environment(
        loader=PackageLoader(PACKAGE, "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    strong, weak = findings(summary)
    methods = sorted(summary.methods, key=lambda method: list(KINDS).index(method.kind))
    tables = [table for group in GROUPS if (table := _table(summary, methods, group))]
    marks = {cell.mark for table in tables for _, cells in table.rows for cell in cells}
    return environment.get_template("report.html.j2").render(
        style=Markup(files(f"{PACKAGE}.report").joinpath("report.css").read_text(encoding="utf-8")),
        summary=summary,
        header=summary.header,
        methods=methods,
        strong=strong,
        weak=weak,
        tables=tables,
        marks=marks,
        least=LEAST_VALUES,
        kinds=KINDS,
        arrows=ARROWS,
        seconds={name: _duration(seconds) for name, seconds in summary.seconds.items()},
        gallery=_gallery(methods, examples),
        curves=_curves(summary, methods),
        cascades=_cascades(summary, methods),
        levels=next(iter(summary.cascade.values()))[0] if summary.cascade else [],
        facts=_facts(summary),
    )


def _table(summary: Summary, methods: Sequence[Method], group: str) -> Table | None:
    columns = [column for column in summary.columns if column.group == group]
    best = {column.name: summary.best(column) for column in columns}
    rows = [(method, [_cell(summary, method, column, best[column.name]) for column in columns]) for method in methods]
    rows = [(method, cells) for method, cells in rows if any(cell.mark != "none" for cell in cells)]
    return Table(GROUPS[group], columns, rows) if columns and rows else None


def _cell(summary: Summary, method: Method, column: Column, best: Sequence[str]) -> Cell:
    estimate = summary.estimates.get((method.name, column.name))
    if estimate is None:
        return Cell()
    mark = "plain"
    if not estimate.is_enough:
        mark = "few"
    elif method.name in best:
        mark = "best"
    elif method.kind == "control" and best and column.contest:
        ahead = column.gain(estimate.mean) > column.gain(summary.estimates[best[0], column.name].mean)
        mark = "beats" if ahead else "plain"
    spread = "" if not estimate.deviation else f", standard deviation {estimate.deviation:.4g}"
    return Cell(
        mean=_short(estimate.mean) if estimate.known else "–",
        error=_error(estimate),
        missing=f"{estimate.missing} missing" if estimate.missing else "",
        mark=mark,
        about=f"{method.title}, {column.title}: {estimate.mean:.5g}{spread}, {estimate.known} values",
    )


def _gallery(methods: Sequence[Method], examples: Sequence[Example]) -> dict[str, Any]:
    shown = [method for method in methods if not method.name.startswith("random")]
    rows = []
    for example in examples:
        maps = [(f"{method.title}, {example.name}", data_uri(overlaid(example, method))) for method in shown]
        rows.append((example, data_uri(outlined(example, example.image)), maps))
    return {"methods": shown, "rows": rows}


def _curves(summary: Summary, methods: Sequence[Method]) -> list[tuple[Method, Markup, str]]:
    means = {key: [point.mean for point in points] for key, points in summary.curves.items()}
    top = max((value for curve in means.values() for value in curve if math.isfinite(value)), default=1.0) or 1.0
    panels = []
    for method in methods:
        pair = [means.get((method.name, kind)) for kind in ("deletion", "insertion")]
        if any(pair):
            points = [p for kind in ("deletion", "insertion") for p in summary.curves.get((method.name, kind), [])]
            panels.append((method, Markup(curves_chart(pair[0], pair[1], top, method.title)), _missing(points)))
    return panels


def _cascades(summary: Summary, methods: Sequence[Method]) -> list[tuple[Method, Markup, str]]:
    panels = []
    for method in methods:
        if method.name in summary.cascade:
            levels, points = summary.cascade[method.name]
            means = [point.mean if point.known else None for point in points]
            panels.append((method, Markup(cascade_chart(levels, means, method.title)), _missing(points)))
    return panels


def _missing(points: Sequence[Estimate]) -> str:
    """How many values are missing at the point where most are."""
    most = max(points, key=lambda point: point.missing)
    return f"up to {most.missing} of {most.count} values missing" if most.missing else ""


def _facts(summary: Summary) -> dict[str, str]:
    header, settings = summary.header, summary.header["settings"]
    options = {
        key.replace("_", " "): ", ".join(value) if isinstance(value, list | tuple) else str(value)
        for key, value in settings.items()
        if key not in ("methods", "measures") and value is not None
    }
    return {
        "Model": f"{header['model']['name']}, weights {header['model']['weights']}",
        "Data": f"{header['data']['name']}, {header['data']['images']:,} images, {summary.images:,} explained",
        "Network input": " × ".join(str(side) for side in reversed(header["preprocessing"]["size"])) + " pixels",
        "Device": header["device"],
        "Package": f"patchconvnet {header['package']['version']}",
        **options,
    }


def _short(value: float) -> str:
    return f"{value:.1e}" if 0 < abs(value) < 5e-4 else f"{value:.3f}"


def _error(estimate: Estimate) -> str:
    if not math.isfinite(estimate.error):
        return ""
    small = 1e-3 * abs(estimate.mean) < estimate.error < 5e-4  # and not just rounding
    return f"± {estimate.error:.0e}" if small else f"± {estimate.error:.3f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
