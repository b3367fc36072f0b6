"""An audit's report: one HTML file that needs nothing else, and the same figures as JSON and CSV."""

import base64
import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from patchconvnet.errors import UserError
from patchconvnet.explanation.colours import attention_colours, evidence_colours
from patchconvnet.faithfulness.methods import Method
from patchconvnet.faithfulness.report.charts import cascade_chart, curves_chart
from patchconvnet.faithfulness.report.findings import findings
from patchconvnet.faithfulness.statistics import Figure, Measure, Summary
from patchconvnet.files import write_atomic

SIDE = 104  # pixels of an image in the report; twice as many are stored, for sharp screens
ARROWS = {"high": "↑", "low": "↓", "near zero": "→ 0"}
KINDS = {"ours": "Ours", "method": "Usual methods, same network", "control": "Controls: know no network"}


@dataclass(frozen=True, eq=False)
class Example:
    """An image with its maps.

    image: (H, W, 3) uint8, the network input as it looks.
    maps: (H, W) by method.
    name, label, predicted, probability: what it is called, its class, the network's answer (None: not shown).
    mask: (H, W) bool where its object is, or None.
    cells: n of a mosaic whose first cell holds the class that was asked for.
    """

    image: np.ndarray
    maps: dict[str, np.ndarray]
    name: str
    label: str
    predicted: str
    probability: float | None
    mask: np.ndarray | None
    cells: int | None = None


class Files(NamedTuple):
    """What was written."""

    html: Path
    json: Path
    csv: Path


def write_report(summary: Summary, examples: Sequence[Example], folder: Path) -> Files:
    """Write `report.html`, `report.json` and `report.csv`, each aside first and then renamed.

    Raises:
        UserError: the folder cannot be written.
    """
    written = Files(folder / "report.html", folder / "report.json", folder / "report.csv")
    contents = (html_report(summary, examples), json.dumps(to_dict(summary), indent=1) + "\n", csv_report(summary))
    try:
        for path, text in zip(written, contents, strict=True):
            write_atomic(path, lambda aside, text=text: aside.write_bytes(text.encode()))  # type: ignore[misc]
    except OSError as error:
        raise UserError(f"cannot write the report to {folder}: {error}") from error
    return written


def to_dict(summary: Summary) -> dict[str, Any]:
    """Everything the report says in figures, as plain values for JSON."""
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
                    name: {
                        "mean": _number(figure.mean),
                        "standard_deviation": _number(figure.deviation),
                        "standard_error": _number(figure.error),
                        "count": figure.count,
                        "missing": figure.missing,
                    }
                    for (method, name), figure in summary.figures.items()
                    if method == m.name
                },
                "curves": {
                    kind: summary.curves[m.name, kind]
                    for kind in ("deletion", "insertion")
                    if (m.name, kind) in summary.curves
                },
                "cascade": dict(zip(*summary.cascade[m.name], strict=True)) if m.name in summary.cascade else None,
            }
            for m in summary.methods
        ],
        "findings": {"for": [_bare(text) for text in strong], "against": [_bare(text) for text in weak]},
    }


def csv_report(summary: Summary) -> str:
    """A row for each method and measure."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        ("method", "kind", "measure", "better", "mean", "standard_deviation", "standard_error", "count", "missing")
    )
    for method in summary.methods:
        for column in summary.columns:
            if figure := summary.figures.get((method.name, column.name)):
                spread = (
                    "" if value is None else f"{value:.6g}" for value in (figure.deviation, _number(figure.error))
                )
                table.writerow(
                    (
                        *(method.name, method.kind, column.name, column.better, f"{figure.mean:.6g}"),
                        *(*spread, figure.count, figure.missing),
                    )
                )
        if method.name in summary.seconds:
            table.writerow(
                (method.name, method.kind, "seconds_per_image", "low", f"{summary.seconds[method.name]:.6g}")
            )
    return text.getvalue()


def html_report(summary: Summary, examples: Sequence[Example]) -> str:
    """The report as one page."""
    header = summary.header
    settings = header["settings"]
    title = f"Can you trust these maps? {header['model']['name']}"
    asked = "the predicted class" if settings["target"] == "predicted" else "the image's own class"
    strong, weak = findings(summary)
    style = files("patchconvnet.faithfulness.report").joinpath("report.css").read_text(encoding="utf-8")
    sections = [
        f'<header><p class="kicker">Audit of explanations</p><h1>Can you trust these maps?</h1><p class="lead">'
        f"<b>{escape(header['model']['name'])}</b> on {escape(header['data']['name'])}: {summary.images:,} "
        f"images, of which it classifies {summary.top1:.1%} rightly. Maps are for {asked}.</p></header>",
        _section("In short", _sentences(strong, weak)),
        _section("Figures", _table(summary), wide=True),
        _section("Images", _gallery(summary, examples), wide=True) if examples else "",
        _section("Taking away and bringing in", _curves(summary)) if summary.curves else "",
        _section("Forgetting", _cascades(summary)) if summary.cascade else "",
        _section("What the measures mean", _meanings(summary)),
        _section("What the methods are", _methods(summary)),
        _section("How this was measured", _how(summary)),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>'
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


# The page's parts


def _section(title: str, content: str, wide: bool = False) -> str:
    return f"<section{' class=wide' if wide else ''}><h2>{title}</h2>{content}</section>"


def _sentences(strong: Sequence[str], weak: Sequence[str]) -> str:
    parts = []
    for title, sentences, empty in (
        ("What they are good for", strong, "Nothing in these figures sets them apart."),
        ("What they are not good for", weak, "These figures show no weakness. They do not prove that there is none."),
    ):
        items = "".join(f"<li>{sentence}</li>" for sentence in sentences) or f"<li>{empty}</li>"
        parts.append(f"<div><h3>{title}</h3><ul>{items}</ul></div>")
    return f'<div class="two">{"".join(parts)}</div>'


def _table(summary: Summary) -> str:
    columns = summary.columns
    best = {column.name: summary.best(column) for column in columns}
    head = "".join(
        f'<th title="{escape(c.about)}">{escape(c.title)} <span class="arrow">{ARROWS[c.better]}</span></th>'
        for c in columns
    )
    rows = []
    kind = None
    for method in _in_order(summary):
        if method.kind != kind:
            kind = method.kind
            rows.append(f'<tr class="kind"><th colspan="{len(columns) + 2}">{KINDS[kind]}</th></tr>')
        cells = "".join(_cell(summary, method, column, best[column.name]) for column in columns)
        seconds = summary.seconds.get(method.name)
        spent = f"<td>{_duration(seconds)}</td>" if seconds is not None else '<td class="none">–</td>'
        rows.append(f'<tr class="{method.kind}"><th scope="row">{escape(method.title)}</th>{spent}{cells}</tr>')
    left_out = "".join(
        f"<li>{escape(name.replace('_', ' '))}: {escape(reason)}</li>" for name, reason in summary.left_out.items()
    )
    body = "".join(rows)
    return (
        f'<div class="scroll"><table><thead><tr><th></th><th>Time an image</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        '<p class="note">Mean, and below it its standard error. <b>Bold</b>: the best of the methods, and those that '
        "can't be told from it (pair by pair, within two standard errors). Arrows: which way is better."
        + (" <span class=beats>Orange</span>: a control that is ahead of all methods." if "class=beats" in body else "")
        + "</p>"
        + (f'<p class="note">Left out:</p><ul class="note">{left_out}</ul>' if left_out else "")
    )


def _cell(summary: Summary, method: Method, column: Measure, best: Sequence[str]) -> str:
    figure = summary.figures.get((method.name, column.name))
    if figure is None or math.isnan(figure.mean):
        return '<td class="none">–</td>'
    style = ""
    if method.name in best:
        style = " class=best"
    elif (
        method.kind == "control"
        and best
        and column.gain(figure.mean) > column.gain(summary.figures[best[0], column.name].mean)
    ):
        style = " class=beats"
    missing = f" ({figure.missing} missing)" if figure.missing else ""
    return (
        f'<td{style} title="{escape(method.title)}, {escape(column.title)}: {_precise(figure)}, n = {figure.count}'
        f'{missing}">{_short(figure.mean)}<small>{_error(figure)}</small></td>'
    )


def _gallery(summary: Summary, examples: Sequence[Example]) -> str:
    methods = [method for method in _in_order(summary) if not method.name.startswith("random")]
    head = "<th></th>" + "".join(f'<th class="{m.kind}">{escape(m.title)}</th>' for m in methods)
    rows = []
    for example in examples:
        about = f"<b>{escape(example.predicted)}</b>"
        if example.probability is not None:
            about += f" {example.probability:.0%}"
        if example.cells:
            about = f"maps for <b>{escape(example.predicted)}</b>, first cell"
        elif example.label != example.predicted:
            about += f"<br>is: {escape(example.label)}"
        cells = [
            f"<td><figure>{_image(_outlined(example, example.image), example.name)}<figcaption>{about}"
            f"<br><small>{'no. ' * example.name.isdigit()}{escape(example.name)}</small></figcaption></figure></td>"
        ]
        for method in methods:
            image = _overlaid(example, method)
            cells.append(f"<td>{_image(image, f'{method.title}, {example.name}')}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        '<p class="note">The first images of the audit, drawn at random and not picked out, as the network gets '
        "them. Signed maps: red for, blue against. The others from their least value (dark) to their largest (bright). "
        'Noise is not shown.</p><div class="scroll"><table class="gallery">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _curves(summary: Summary) -> str:
    top = max(max(curve) for curve in summary.curves.values()) or 1.0
    panels = []
    for method in _in_order(summary):
        pair = [summary.curves.get((method.name, kind)) for kind in ("deletion", "insertion")]
        if any(pair):
            panels.append(_panel(method, curves_chart(pair[0], pair[1], top, method.title)))
    return (
        "<p>Mean probability of the class while the most important pixels are brought into a blurred image "
        '(<span class="insertion">insertion, full line</span>: should rise early) or taken out of it '
        '(<span class="deletion">deletion, dashed</span>: should fall early). Shaded: where the one '
        f'is above the other.</p><div class="panels">{"".join(panels)}</div>'
    )


def _cascades(summary: Summary) -> str:
    panels = [
        _panel(method, cascade_chart(*summary.cascade[method.name], method.title))
        for method in _in_order(summary)
        if method.name in summary.cascade
    ]
    levels = next(iter(summary.cascade.values()))[0]
    return (
        "<p>Rank correlation of each map with itself while the network forgets, part by part: "
        f"{escape(' → '.join(levels))}. At the last bar nothing that was learned is left. A map that is still there "
        f'shows the image, not the network.</p><div class="panels">{"".join(panels)}</div>'
    )


def _panel(method: Method, chart: str) -> str:
    return f'<figure class="panel {method.kind}"><figcaption>{escape(method.title)}</figcaption>{chart}</figure>'


def _meanings(summary: Summary) -> str:
    items = []
    for column in summary.columns:
        better = {"high": "Higher is better.", "low": "Lower is better.", "near zero": "Near zero is good."}[
            column.better
        ]
        items.append(f"<dt>{escape(column.title)}</dt><dd>{escape(column.about)} {better}</dd>")
    return (
        f"<dl>{''.join(items)}</dl><p>A map that is uniform or not finite counts as a miss; in the sanity check, where "
        "it has no order to compare, it is left out. No measure here says that a map is right: each takes one thing "
        "that a right map would do, and looks whether it does. None shows whether people understand the maps.</p>"
    )


def _methods(summary: Summary) -> str:
    items = "".join(f"<dt>{escape(m.title)}</dt><dd>{escape(m.about)}.</dd>" for m in _in_order(summary))
    return f"<dl>{items}</dl>"


def _how(summary: Summary) -> str:
    header, settings = summary.header, summary.header["settings"]
    rows = {
        "Model": f"{header['model']['name']}, weights {header['model']['weights']}",
        "Data": f"{header['data']['name']}, {header['data']['images']:,} images, {summary.images:,} explained",
        "Network input": " × ".join(str(side) for side in reversed(header["preprocessing"]["size"])) + " pixels",
        "Device": header["device"],
        "Package": f"patchconvnet {header['package']['version']}",
        **{key.replace("_", " "): ", ".join(value) if isinstance(value, list | tuple) else str(value)
           for key, value in settings.items() if key not in ("methods", "measures")},
    }  # fmt: skip
    cells = "".join(f"<tr><th scope=row>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in rows.items())
    return (
        "<p>Times are medians over batches, measured here in the same run, maps only; the network's own answer is part "
        f'of ours and not of the others’.</p><table class="plain">{cells}</table>'
    )


# Images


def _overlaid(example: Example, method: Method) -> np.ndarray:
    values = example.maps[method.name]
    if not np.isfinite(values).all() or values.min() == values.max():
        colours = np.zeros((*values.shape, 4), np.uint8)  # says nothing, and shows nothing
    elif method.signed:
        colours = evidence_colours(values)
    else:
        colours = attention_colours(values - values.min())
    alpha = colours[..., 3:].astype(np.float32) / 255
    grey = example.image.mean(2, keepdims=True)
    below = 255 - (255 - grey) * 0.6 if method.signed else grey * np.ones(3)
    return _outlined(example, (below * (1 - alpha) + colours[..., :3] * alpha).astype(np.uint8))


def _outlined(example: Example, image: np.ndarray) -> np.ndarray:
    """The image, enlarged, with a line around its object or around the cell that was asked for."""
    height, width = image.shape[:2]
    factor = 2 * SIDE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    resample = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    large = np.asarray(Image.fromarray(image).resize(size, resample)).copy()
    inside = None
    if example.mask is not None:
        inside = np.asarray(Image.fromarray(example.mask).resize(size, Image.Resampling.NEAREST))
    elif example.cells:
        inside = np.zeros(large.shape[:2], bool)
        inside[: size[1] // example.cells, : size[0] // example.cells] = True
    if inside is not None:
        edge = np.zeros_like(inside)
        for axis in (0, 1):
            change = np.diff(inside, axis=axis)
            edge |= np.insert(change, 0, False, axis) | np.insert(change, change.shape[axis], False, axis)
        large[edge] = (60, 255, 120)
    return large


def _image(image: np.ndarray, about: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=88, subsampling=0)
    data = base64.b64encode(buffer.getvalue()).decode()
    height, width = image.shape[:2]
    return (
        f'<img src="data:image/jpeg;base64,{data}" width="{width // 2}" height="{height // 2}" alt="{escape(about)}">'
    )


# Words and numbers


def _in_order(summary: Summary) -> list[Method]:
    return sorted(summary.methods, key=lambda method: list(KINDS).index(method.kind))


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _short(value: float) -> str:
    return f"{value:.1e}" if 0 < abs(value) < 5e-4 else f"{value:.3f}"


def _error(figure: Figure) -> str:
    if not math.isfinite(figure.error):
        return ""
    small = 1e-3 * abs(figure.mean) < figure.error < 5e-4  # and not just rounding
    return f"± {figure.error:.0e}" if small else f"± {figure.error:.3f}"


def _precise(figure: Figure) -> str:
    spread = "" if figure.deviation is None else f", standard deviation {figure.deviation:.4g}"
    return f"{figure.mean:.5g}{spread}"


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def _bare(text: str) -> str:
    return text.replace("<b>", "").replace("</b>", "")
