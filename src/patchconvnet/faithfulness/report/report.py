"""An audit's report: one HTML page that needs nothing else, and the same numbers as JSON and CSV."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from patchconvnet.errors import UserError
from patchconvnet.faithfulness.report.findings import findings
from patchconvnet.faithfulness.report.gallery import Example
from patchconvnet.faithfulness.report.page import html_report
from patchconvnet.faithfulness.statistics import Estimate
from patchconvnet.faithfulness.summary import Summary
from patchconvnet.files import write_atomic

NUMBERS = ("mean", "standard_deviation", "standard_error", "count", "missing")


class Files(NamedTuple):
    """What was written."""

    html: Path
    json: Path
    csv: Path


def write_report(summary: Summary, examples: Sequence[Example], folder: Path) -> Files:
    """Write `report.html`, `report.json` and `report.csv`, each atomically.

    Raises:
        UserError: the folder cannot be written.
    """
    written = Files(folder / "report.html", folder / "report.json", folder / "report.csv")
    contents = (html_report(summary, examples), json.dumps(to_dict(summary), indent=1) + "\n", csv_report(summary))
    try:
        for path, text in zip(written, contents, strict=True):
            write_atomic(path, lambda part, text=text: part.write_bytes(text.encode()))  # type: ignore[misc]
    except OSError as error:
        raise UserError(f"cannot write the report to {folder}: {error}") from error
    return written


def to_dict(summary: Summary) -> dict[str, Any]:
    """All numbers and sentences of the report, as plain values for JSON."""
    strong, weak = findings(summary)
    return {
        **summary.header,
        "images": summary.images,
        "top1": summary.top1,
        "measures": [
            {"name": c.name, "title": c.title, "better": c.better, "chance": c.chance, "about": c.about}
            for c in summary.columns
        ],
        "left_out": summary.left_out,
        "methods": [
            {
                "name": m.name,
                "title": m.title,
                "kind": m.kind,
                "about": m.about,
                "seconds_per_image": summary.seconds.get(m.name),
                "uninformative": summary.uninformative.get(m.name),
                "figures": {
                    name: figures_of(estimate)
                    for (method, name), estimate in summary.estimates.items()
                    if method == m.name
                },
                "curves": {
                    kind: [_number(point.mean) for point in summary.curves[m.name, kind]]
                    for kind in ("deletion", "insertion")
                    if (m.name, kind) in summary.curves
                },
                "cascade": {level: _number(point.mean) for level, point in zip(*summary.cascade[m.name], strict=True)}
                if m.name in summary.cascade
                else None,
            }
            for m in summary.methods
        ],
        "findings": {"for": strong, "against": weak},
    }


def figures_of(estimate: Estimate) -> dict[str, Any]:
    """An estimate as plain values for JSON, by `NUMBERS`; None for what is not finite."""
    return {
        "mean": _number(estimate.mean),
        "standard_deviation": _number(estimate.deviation),
        "standard_error": _number(estimate.error),
        "count": estimate.count,
        "missing": estimate.missing,
    }


def card_figures(summary: Summary) -> dict[str, Any]:
    """What a model card tells of an audit: each map's measures, as plain values for `config.json`."""
    maps: dict[str, Any] = {}
    for method in summary.methods:
        found = {column.title: summary.estimates.get((method.name, column.name)) for column in summary.columns}
        maps[method.title] = {
            title: {"mean": _number(one.mean), "standard_error": _number(one.error)}
            for title, one in found.items()
            if one
        }
    return {
        "data": summary.header["data"]["name"],
        "images": summary.images,
        "measures": {column.title: column.better for column in summary.columns},
        "maps": maps,
    }


def csv_report(summary: Summary) -> str:
    """A row for each method and measure."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("method", "kind", "measure", "better", *NUMBERS))
    for method in summary.methods:
        for column in summary.columns:
            if e := summary.estimates.get((method.name, column.name)):
                known = [_number(value) for value in (e.mean, e.deviation, e.error)]
                numbers = ["" if value is None else f"{value:.6g}" for value in known]
                table.writerow((method.name, method.kind, column.name, column.better, *numbers, e.count, e.missing))
        if method.name in summary.seconds:
            table.writerow(
                (method.name, method.kind, "seconds_per_image", "low", f"{summary.seconds[method.name]:.6g}")
            )
    return text.getvalue()


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
