"""Figures of explanations: images, attention, evidence. Matplotlib without pyplot, so nothing global is touched.

Everything is placed in inches, and words are measured first, so that no name and no shape of image makes them overlap.
Dashed outlines mark what speaks against a class, which survives a black-and-white print.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from patchconvnet.errors import UserError
from patchconvnet.explanation.colours import (
    ATTENTION,
    EVIDENCE,
    attention_scale,
    evidence_print,
    evidence_scale,
    unseen_colours,
)
from patchconvnet.explanation.lettering import BASE, families, readable, shortened, width_of, wrapped
from patchconvnet.explanation.maps import Kind, MapChoice, Maps, Prediction
from patchconvnet.explanation.patch_grid import seen_pixels
from patchconvnet.explanation.removal import Removal
from patchconvnet.files import write_atomic

INK, FAINT, BAR, ACCENT, WRONG = "#1a1a1a", "#6b6b6b", "#9db2cf", "#1f4e8c", "#b3261e"
TITLE, TEXT, SMALL = 13, 9, 7.5  # points
MARGIN, GAP = 0.3, 0.22  # inches
LINE = 0.15  # inches from one small line to the next
SCALE = 0.75  # inches of a colour bar with its numbers and its label
NARROWEST = 1.7  # inches of a panel with its title; narrower images stand in them on the left
LOWEST = 1.25  # inches of a row of panels; lower images stand in it at the top, beside a colour bar of that height
ABOVE = 0.3  # inches of a panel's title
DISPLAY_SIDE = 480  # pixels of an image's longer side in a figure
HEAT, SIGNED = ListedColormap(ATTENTION, "attention"), ListedColormap(EVIDENCE, "evidence")
CROP = "Grey, hatched: outside of the crop, not seen by the network."


class Sheet:
    """A figure laid out in inches from its upper left corner."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), facecolor="white")

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self.height - top - height
        return self.figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))

    def text(
        self, left: float, top: float, words: str, size: float = TEXT, *, width: float | None = None, **options: Any
    ) -> None:
        """One line of words, shortened to `width` inches if that is given."""
        if width is not None:
            words = shortened(words, width, size, options.get("weight", "normal"))
        style: dict[str, Any] = {
            "fontsize": size,
            "fontfamily": families(words),
            "color": INK,
            "va": "baseline",
            "ha": "left",
            "parse_math": False,
            **options,
        }
        self.figure.text(left / self.width, 1 - (top + size / 72) / self.height, words, **style)

    def lines(self, left: float, top: float, lines: Sequence[str]) -> None:
        for number, words in enumerate(lines):
            self.text(left, top + number * LINE, words, SMALL, color=FAINT)

    def image(self, left: float, top: float, width: float, height: float, image: Image.Image | np.ndarray) -> Axes:
        axes = self.axes(left, top, width, height)
        axes.imshow(np.asarray(image), aspect="auto", interpolation="antialiased")
        axes.set_xticks([])
        axes.set_yticks([])
        for side in axes.spines.values():
            side.set(linewidth=0.5, color=FAINT)
        return axes

    def rectangle(self, left: float, top: float, width: float, height: float, colour: str) -> None:
        corner = (left / self.width, 1 - (top + height) / self.height)
        self.figure.add_artist(Rectangle(corner, width / self.width, height / self.height, color=colour, linewidth=0))

    def colour_bar(self, left: float, top: float, height: float, colours: ScalarMappable, label: str) -> None:
        axes = self.axes(left + 0.07, top, 0.09, height)
        bar = self.figure.colorbar(colours, cax=axes, ticks=MaxNLocator(4))
        bar.outline.set(linewidth=0.5, color=FAINT)
        axes.tick_params(labelsize=SMALL, length=2, width=0.5, color=FAINT, labelcolor=INK, labelfontfamily=BASE)
        axes.set_ylabel(label, fontsize=SMALL, color=FAINT, fontfamily=families(label))


def explanation_figure(explanation: Maps, *, evidence: int = 3, map: MapChoice = "auto") -> Figure:
    """The image | with its map | the likeliest classes, and below the evidence for these (and the target).

    Args:
        explanation: what to show.
        evidence: for how many classes to show evidence; 0 leaves that row out.
        map: the kind of map beside the image: "attention", "evidence", "contrast", or "auto" (see `Maps.shown`).

    Raises:
        UserError: there is no such map.
    """
    e, kind = explanation.scaled(DISPLAY_SIDE), explanation.shown(map)
    width, height = _panel(e)
    cell, row = max(width, NARROWEST), max(height, LOWEST)
    chosen = _evidence_classes(explanation, evidence)
    if kind == "evidence" and evidence:  # the subject's stands above already
        chosen = [k for k in _evidence_classes(explanation, evidence + 1) if k != explanation.subject.index]
    listed = explanation.top_classes()
    bars = max(cell, 2.4)
    total = max(2 * cell + GAP + SCALE + bars, len(chosen) * (cell + GAP) - GAP + SCALE)
    details = _details(explanation, total)
    first = MARGIN + 0.28 + len(details) * LINE + ABOVE
    second = first + max(row, 0.34 * len(listed)) + 0.15 + ABOVE
    bottom = second + row if chosen else second - ABOVE - 0.15
    footnotes = _footnotes(explanation, kind, bool(chosen) or kind != "attention", total)
    sheet = Sheet(total + 2 * MARGIN, bottom + 0.12 + len(footnotes) * LINE + MARGIN)
    _headline(sheet, explanation, details)

    _original(sheet, e, MARGIN, first, width, height, cell)
    middle = MARGIN + cell + GAP
    values = explanation.map_for(kind=kind)
    total_of = "" if kind == "attention" else f"Σ {_signed(float(values.sum()))}"
    title, room = _map_title(explanation, kind), cell - width_of(total_of, TEXT) - 0.08
    sheet.text(middle, first - 0.2, title, color=FAINT, width=room)
    sheet.text(middle + cell, first - 0.2, total_of, color=FAINT, ha="right")
    sheet.image(middle, first, width, height, e.attended(map=kind))
    if kind == "attention":
        shares = ScalarMappable(Normalize(0, attention_scale(values) * values.size / float(values.sum())), HEAT)
        sheet.colour_bar(middle + width, first, row, shares, "attention, × uniform")
    else:
        largest = evidence_scale(values)
        sheet.colour_bar(
            middle + width, first, row, ScalarMappable(Normalize(-largest, largest), SIGNED), "of the logit, a patch"
        )
    left = middle + cell + SCALE
    _class_bars(sheet, left, first, MARGIN + total - left, second - first - ABOVE - 0.15, explanation, listed)
    if chosen:
        _evidence_row(sheet, e, chosen, MARGIN, second, width, height)
    sheet.lines(MARGIN, bottom + 0.12, footnotes)
    return sheet.figure


def _headline(sheet: Sheet, explanation: Maps, details: Sequence[str]) -> None:
    best = explanation.predicted
    percent = f"  {best.probability:.1%}"
    room = sheet.width - 2 * MARGIN - width_of(percent, TITLE, "bold")
    name = shortened(_class_name(explanation, best.index), room, TITLE, "bold")
    sheet.text(MARGIN, MARGIN - 0.08, name + percent, TITLE, weight="bold")
    sheet.lines(MARGIN, MARGIN + 0.19, details)


def _details(e: Maps, width: float) -> list[str]:
    h, w = (-(-side // max(e.refine, 1)) for side in e.grid.shape)  # half a patch is one
    patches = f"{w} × {h} cells, merged of {len(e.crops)} crops" if e.crops else f"{w} × {h} patches"
    if e.refine:
        patches += f", refined {e.refine} × {e.refine}"
    pieces = [readable(e.name, "image"), f"·  {e.image.width} × {e.image.height} pixels", f"·  {patches}"]
    if e.target is not None:
        asked = f"asked: {_class_name(e, e.subject.index)} {e.subject.probability:.1%}"
        pieces = [asked, f"·  {pieces[0]}", *pieces[1:]]
    return wrapped([shortened(piece, 0.6 * width, SMALL) for piece in pieces], width, SMALL)


def _original(sheet: Sheet, e: Maps, left: float, top: float, width: float, height: float, cell: float) -> None:
    """The image as it is, with a frame around what the network saw of it if that is not all."""
    sheet.text(left, top - 0.2, "image", color=FAINT, width=cell)
    axes = sheet.image(left, top, width, height, e.image)
    seen = seen_pixels(e.geometry)
    if _crops(e):
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        corner, size = (columns[0] - 0.5, rows[0] - 0.5), (len(columns), len(rows))
        for colour, style in (("white", "solid"), (INK, (0, (4, 4)))):
            axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=0.8, linestyle=style))


def _class_bars(
    sheet: Sheet, left: float, top: float, width: float, height: float, e: Maps, listed: Sequence[Prediction]
) -> None:
    sheet.text(left, top - 0.2, "most likely", color=FAINT, width=width)
    pitch = min(height / len(listed), 0.5)
    for i, prediction in enumerate(listed):
        bar = (left, top + i * pitch + 0.19, width, min(0.13, pitch - 0.21))
        sheet.rectangle(*bar, "#eeeeee")
        sheet.rectangle(bar[0], bar[1], width * prediction.probability, bar[3], ACCENT if i == 0 else BAR)
        weight = "bold" if prediction.index == e.subject.index else "normal"
        y, percent = top + i * pitch + 0.03, f"{prediction.probability:.1%}"
        room = width - width_of(percent, TEXT, weight) - 0.1
        sheet.text(left, y, _class_name(e, prediction.index), width=room, weight=weight)
        sheet.text(left + width, y, percent, ha="right", weight=weight)


def _evidence_row(
    sheet: Sheet, e: Maps, classes: Sequence[int], left: float, top: float, width: float, height: float
) -> None:
    """One panel a class, all on one scale, and their colour bar."""
    cell = max(width, NARROWEST)
    largest = evidence_scale(np.stack([e.evidence_for(k) for k in classes]))
    for i, k in enumerate(classes):
        x = left + i * (cell + GAP)
        total = f"Σ {_signed(float(e.evidence_for(k).sum()))}"
        room = cell - width_of(total, TEXT) - 0.08
        name = _class_name(e, k)
        title = f"evidence for {name}" if width_of(f"evidence for {name}", TEXT) <= room else f"for {name}"
        sheet.text(x, top - 0.2, title, color=FAINT, width=room)
        sheet.text(x + cell, top - 0.2, total, color=FAINT, ha="right")
        _evidence_panel(sheet, e, e.placed(k, "evidence"), largest, x, top, width, height)
    colours = ScalarMappable(Normalize(-largest, largest), SIGNED)
    right = left + (len(classes) - 1) * (cell + GAP) + width
    sheet.colour_bar(right, top, max(height, LOWEST), colours, "of the logit, a patch")


def _evidence_panel(
    sheet: Sheet, e: Maps, values: np.ndarray, largest: float, left: float, top: float, width: float, height: float
) -> None:
    printed = Image.fromarray(evidence_print(np.asarray(e.image), values, largest)).convert("RGBA")
    marked = Image.alpha_composite(printed, Image.fromarray(unseen_colours(seen_pixels(e.geometry))))
    axes = sheet.image(left, top, width, height, marked.convert("RGB"))
    for level, style in ((-0.5 * largest, "dashed"), (0.5 * largest, "solid")):
        if values.min() < level < values.max() and min(values.shape) > 1:
            axes.contour(values, [level], colors=INK, linewidths=0.6, linestyles=style)


def evidence_figure(explanation: Maps, classes: Sequence[int | str] | None = None) -> Figure:
    """The image and the evidence for some classes, on one scale.

    Args:
        explanation: what to show.
        classes: by name or index; by default the target or predicted class and the likeliest others, four in all.

    Raises:
        UserError: there is no such class, or no evidence for it.
    """
    if classes is None:
        chosen = _evidence_classes(explanation, 4)
    else:
        chosen = [explanation.class_index(c) for c in classes]
    e = explanation.scaled(DISPLAY_SIDE)
    width, height = _panel(e, 4.0)
    cell, row = max(width, NARROWEST), max(height, LOWEST)
    total = (1 + len(chosen)) * (cell + GAP) - GAP + SCALE
    details = _details(explanation, total)
    top = MARGIN + 0.28 + len(details) * LINE + ABOVE
    footnotes = _footnotes(explanation, "evidence", True, total)
    sheet = Sheet(total + 2 * MARGIN, top + row + 0.12 + len(footnotes) * LINE + MARGIN)
    _headline(sheet, explanation, details)
    _original(sheet, e, MARGIN, top, width, height, cell)
    if chosen:
        _evidence_row(sheet, e, chosen, MARGIN + cell + GAP, top, width, height)
    sheet.lines(MARGIN, top + row + 0.12, footnotes)
    return sheet.figure


def difference_figure(explanation: Maps, a: int | str, b: int | str) -> Figure:
    """ "Why A and not B": the evidence for both classes and its difference, whose sum is what separates their logits.

    Raises:
        UserError: there is no such class, or no evidence for it.
    """
    e = explanation.scaled(DISPLAY_SIDE)
    first, second = e.class_index(a), e.class_index(b)
    if first == second:
        raise UserError(f"both classes are {e.class_names[first]!r}; give two different ones.")
    names = [_class_name(e, k) for k in (first, second)]
    difference = e.evidence_for(first) - e.evidence_for(second)
    logits, bias = (float(v[first] - v[second]) for v in (e.logits, e.bias))
    total = float(difference.sum())
    rest = logits - bias - total
    width, height = _panel(e, 4.0)
    cell, row = max(width, NARROWEST), max(height, LOWEST)
    last = MARGIN + 3 * (cell + GAP) - GAP + SCALE
    room = last + cell + SCALE - MARGIN
    words = (
        f"Logit of {names[0]} less logit of {names[1]}: {_signed(logits)} = {_signed(total)} from the patches "
        f"{_signed(bias)} from the biases"
    )
    words += "." if abs(rest) < 0.005 else f" {_signed(rest)} that the evidence does not explain."
    words += f" Red speaks for {names[0]}, blue for {names[1]}."
    footnotes = [*wrapped(words, room, SMALL), *([CROP] if _crops(e) else [])]
    top = MARGIN + 0.28 + ABOVE
    sheet = Sheet(room + 2 * MARGIN, top + row + 0.12 + len(footnotes) * LINE + MARGIN)
    why, each = "why  and not ", (room - width_of("why  and not ", TITLE, "bold")) / 2
    short = [shortened(name, each, TITLE, "bold") for name in names]
    sheet.text(MARGIN, MARGIN - 0.08, f"{why[:4]}{short[0]}{why[4:]}{short[1]}", TITLE, weight="bold")
    _original(sheet, e, MARGIN, top, width, height, cell)
    _evidence_row(sheet, e, [first, second], MARGIN + cell + GAP, top, width, height)

    largest, sum_of = evidence_scale(difference), f"Σ {_signed(total)}"
    sheet.text(last, top - 0.2, "the one less the other", width=cell - width_of(sum_of, TEXT) - 0.08)
    sheet.text(last + cell, top - 0.2, sum_of, ha="right")
    values = e.placed(first, "evidence") - e.placed(second, "evidence")
    _evidence_panel(sheet, e, values, largest, last, top, width, height)
    colours = ScalarMappable(Normalize(-largest, largest), SIGNED)
    sheet.colour_bar(last + width, top, row, colours, "of the difference, a patch")
    sheet.lines(MARGIN, top + row + 0.12, footnotes)
    return sheet.figure


def removal_figure(explanation: Maps, removal: Removal) -> Figure:
    """What if this were gone: the image with the patches taken out, with its pixels grey, and what that changes.

    Args:
        explanation: of the image.
        removal: what `Explanation.without` returned.
    """
    width, height = _panel(explanation)
    cell, row, bars = max(width, NARROWEST), max(height, LOWEST), 3.4
    total = 2 * cell + 2 * GAP + bars
    answers = {
        "as it is": explanation.logits,
        "patches taken out": removal.logits,
        "pixels made grey": removal.greyed_logits,
    }
    listed = [p.index for p in explanation.top_classes(min(3, explanation.top))]
    for logits in answers.values():
        listed += [k for k in (int(logits.argmax()),) if k not in listed]
    words = (
        f"Taken out: {int(removal.patches.sum())} of {removal.patches.size} patches, exactly; attention is "
        "renormalised over the others, which may have seen some of it in the forward pass. Made grey: the pixels, and "
        "the image is run through the network again."
    )
    footnotes = wrapped(words, total, SMALL)
    details = _details(explanation, total)
    top = MARGIN + 0.28 + len(details) * LINE + ABOVE
    bottom = top + max(row, len(listed) * 0.7)
    sheet = Sheet(total + 2 * MARGIN, bottom + 0.12 + len(footnotes) * LINE + MARGIN)
    _headline(sheet, explanation, details)
    kept = np.asarray(explanation.image).copy()
    gone = removal.patch_pixels()
    kept[gone] = (0.2 * kept[gone] + 0.8 * 60).astype(np.uint8)
    for left, title, panel in (
        (MARGIN, "patches taken out", Image.fromarray(kept)),
        (MARGIN + cell + GAP, "pixels made grey", removal.greyed),
    ):
        sheet.text(left, top - 0.2, title, color=FAINT, width=cell)
        axes = sheet.image(left, top, width, height, panel)
        axes.contour(removal.pixels, [0.5], colors=INK, linewidths=0.8)
    left = MARGIN + 2 * (cell + GAP)
    label = max(width_of(name, SMALL) for name in answers) + 0.08
    for i, k in enumerate(listed):
        y = top + i * 0.7
        sheet.text(left, y - 0.02, _class_name(explanation, k), weight="bold", width=bars)
        for j, (name, logits) in enumerate(answers.items()):
            share, line = float(explanation.probabilities_of(logits)[k]), y + 0.15 + j * LINE
            sheet.text(left, line, name, SMALL, color=FAINT)
            sheet.rectangle(left + label, line + 0.01, bars - label - 0.5, 0.09, "#eeeeee")
            sheet.rectangle(left + label, line + 0.01, (bars - label - 0.5) * share, 0.09, BAR if j else ACCENT)
            sheet.text(left + bars, line, f"{share:.1%}", SMALL, ha="right")
    sheet.lines(MARGIN, bottom + 0.12, footnotes)
    return sheet.figure


def contact_sheet(
    explanations: Sequence[Maps], *, columns: int = 4, rows: int = 6, map: MapChoice = "auto"
) -> list[Figure]:
    """Many explanations small: the image beside its map, its class below; as many pages as that takes.

    Args:
        explanations: in the order to show them; `Maps.scaled` keeps thousands small.
        columns: of a page.
        rows: of a page.
        map: the kind of map: "attention", "evidence", "contrast", or "auto" (see `Maps.shown`).

    Raises:
        UserError: there is nothing to show, or no such map.
    """
    if not explanations:
        raise UserError("there are no explanations to put on a contact sheet.")
    page = columns * rows
    return [_contact_page(explanations[i : i + page], columns, map) for i in range(0, len(explanations), page)]


def _contact_page(explanations: Sequence[Maps], columns: int, map: MapChoice) -> Figure:
    columns = min(columns, len(explanations))
    rows = [explanations[i : i + columns] for i in range(0, len(explanations), columns)]
    width = columns * (_PAIR + GAP) - GAP
    footnotes = _sheet_footnotes(explanations, map, width)
    sheet = Sheet(MARGIN * 2 + width, MARGIN * 2 + sum(_row_height(row) for row in rows) + len(footnotes) * LINE)
    top = MARGIN
    for row in rows:
        top = _pairs(sheet, top, row, [("", INK)] * len(row), map)
    sheet.lines(MARGIN, top, footnotes)
    return sheet.figure


_PAIR = 3.0  # inches of an image and its map, beside each other
_HALF = (_PAIR - 0.06) / 2
_TALLEST = 1.6


def _pairs(
    sheet: Sheet, top: float, explanations: Sequence[Maps], verdicts: Sequence[tuple[str, str]], map: MapChoice
) -> float:
    """A row of pairs, each over its class and its name, which a verdict and its colour precede; returns its end."""
    for column, (e, (verdict, colour)) in enumerate(zip(explanations, verdicts, strict=True)):
        shown = e.scaled(240)
        width, height = _half(e)
        left, foot = MARGIN + column * (_PAIR + GAP), top + _row_height(explanations) - 0.5
        sheet.image(left, foot - height, width, height, shown.image)
        sheet.image(left + width + 0.06, foot - height, width, height, shown.attended(map=map))
        percent = f"  {e.predicted.probability:.0%}"
        name = shortened(_class_name(e, e.predicted.index), _PAIR - width_of(percent, TEXT, "bold"), TEXT, "bold")
        sheet.text(left, foot + 0.05, name + percent, TEXT, color=colour, weight="bold")
        below = readable(e.name, f"image {column + 1}")
        if verdict:
            verdict = shortened(verdict, 0.6 * _PAIR, SMALL)
            below = f"{verdict}  ·  {below}"
        sheet.text(left, foot + 0.2, below, SMALL, color=FAINT, width=_PAIR)
    return top + _row_height(explanations)


def _half(e: Maps) -> tuple[float, float]:
    ratio = e.image.width / e.image.height
    height = min(_HALF / ratio, _TALLEST)
    return min(max(height * ratio, 0.25), _HALF), max(height, 0.25)


def _row_height(explanations: Sequence[Maps]) -> float:
    return 0.5 + max((_half(e)[1] for e in explanations), default=0.0)


def _sheet_footnotes(explanations: Sequence[Maps], map: MapChoice, width: float) -> list[str]:
    """What the maps of a sheet are."""
    kinds = {e.shown(map) for e in explanations}
    asked = any(e.target is not None for e in explanations)
    subject = "the class that was asked about" if asked else "the predicted class"
    against = " (red: for it, blue: against it)"
    legends = {
        "attention": "attention (yellow: most)",
        "evidence": f"evidence for {subject}{against}",
        "contrast": f"evidence for {subject} less that for the likeliest other one{against}",
    }
    shown = " or, where attention is nearly uniform, ".join(legends[kind] for kind in legends if kind in kinds)
    words = f"Beside each image: {shown}, each on its own scale."
    return wrapped(words + (f" {CROP}" if any(_crops(e) for e in explanations) else ""), width, SMALL)


def certainty_sheet(
    explanations: Sequence[Maps], labels: Sequence[int] | None = None, *, count: int = 4, map: MapChoice = "auto"
) -> Figure:
    """The most and the least certain images and, where labels are known, the wrong ones, most confident first.

    Args:
        explanations: those to choose from.
        labels: the true class index of each, if known.
        count: how many of each kind.
        map: the kind of map: "attention", "evidence", "contrast", or "auto" (see `Maps.shown`).

    Raises:
        UserError: there is nothing to show, or not one label for each.
    """
    if not explanations:
        raise UserError("there are no explanations to choose the most and least certain of.")
    if labels is not None and len(labels) != len(explanations):
        raise UserError(f"given {len(labels)} labels for {len(explanations)} explanations; give one each.")
    order = sorted(range(len(explanations)), key=lambda i: -explanations[i].predicted.probability)
    groups = {"most certain": order[:count], "least certain": order[::-1][:count]}
    if labels is not None:
        wrong = [i for i in order if explanations[i].predicted.index != labels[i]]
        groups[f"wrong ({len(wrong)} of {len(order)}), most confident first"] = wrong[:count]
    columns = max(min(count, len(order)), 2)
    width = columns * (_PAIR + GAP) - GAP
    height = sum(0.32 + _row_height([explanations[i] for i in members]) for members in groups.values())
    footnotes = _sheet_footnotes([explanations[i] for members in groups.values() for i in members], map, width)
    sheet = Sheet(MARGIN * 2 + width, MARGIN * 2 + height + len(footnotes) * LINE)
    top = MARGIN
    for title, members in groups.items():
        sheet.text(MARGIN, top - 0.02, title, TITLE - 2, weight="bold")
        verdicts = []
        for i in members:
            if labels is None:
                verdicts.append(("", INK))
            elif explanations[i].predicted.index == labels[i]:
                verdicts.append(("right", INK))
            else:
                verdicts.append((f"is {_class_name(explanations[i], labels[i])}", WRONG))
        top = _pairs(sheet, top + 0.32, [explanations[i] for i in members], verdicts, map)
    sheet.lines(MARGIN, top, footnotes)
    return sheet.figure


def to_image(figure: Figure, dpi: int = 100) -> Image.Image:
    """A figure as an RGB image."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG, atomically.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_atomic(path, lambda part: image.save(part, "PNG"))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _panel(e: Maps, area: float = 6.2) -> tuple[float, float]:
    """Inches of a panel for an image: of about the same area whatever its shape, but at most 4.4 long."""
    ratio = e.image.width / e.image.height
    factor = min(1.0, 4.4 / (area * max(ratio, 1 / ratio)) ** 0.5)
    return max(factor * (area * ratio) ** 0.5, 0.25), max(factor * (area / ratio) ** 0.5, 0.25)


def _class_name(e: Maps, index: int) -> str:
    """The first of a class's names (ImageNet's are lists of synonyms), as fonts can show it."""
    return readable(e.class_names[index].split(",")[0], f"class {index}")


def _signed(value: float) -> str:
    return f"{'+' if value >= 0 else '−'}{abs(value):.2f}"


def _evidence_classes(e: Maps, count: int) -> list[int]:
    ranked: list[Prediction] = [e.subject, *(p for p in e.top_classes(count) if p.index != e.subject.index)]
    return [p.index for p in ranked if p.index in e.evidence_classes][:count]


def _map_title(e: Maps, kind: Kind) -> str:
    name = _class_name(e, e.subject.index)
    if kind == "attention":
        return f"attention for {name}" if e.class_wise else "attention"
    if kind == "evidence" or e.runner_up is None:
        return f"evidence for {name}"
    return f"{name} less {_class_name(e, e.runner_up.index)}"


def _crops(e: Maps) -> bool:
    """Whether a part of the image worth mentioning was not seen; half a pixel lost to rounding is not."""
    return float(seen_pixels(e.geometry).mean()) < 0.995


def _footnotes(e: Maps, kind: Kind, evidence: bool, width: float) -> list[str]:
    sentences: list[str] = []
    if kind == "evidence" and e.attention_is_flat:
        shared = len(e.attention) > 1 and not e.class_wise
        why = f"{len(e.attention)} queries share the attention" if shared else "Attention is nearly uniform here"
        sentences.append(f"{why}, so evidence is shown beside the image.")
    if kind == "contrast" and e.runner_up is not None:
        sentences.append("Beside the image: evidence for the class less that for the likeliest other one.")
    if evidence:
        sentences.append(_what_evidence_is(e))
    if _crops(e):
        sentences.append(CROP)
    return wrapped(" ".join(sentences), width, SMALL) if sentences else []


def _what_evidence_is(e: Maps) -> str:
    words = "Evidence: red patches speak for the class, blue (dashed outline) against it; no colour is neutral."
    if e.exact:
        return words + " Exact: the patches sum to the class's logit less its bias."
    rest = e.remainder.get(e.subject.index)
    if rest is None:
        return words
    how = "Averaged over shifts and flips" if e.refine else "First order around this image"
    return (
        f"{words} {how}: {_signed(rest)} of {_class_name(e, e.subject.index)}'s logit of "
        f"{_signed(float(e.logits[e.subject.index]))} is not in it."
    )
