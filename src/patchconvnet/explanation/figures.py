"""Figures of explanations: images, attention, evidence. Matplotlib without pyplot, so nothing global is touched.

Attention is inferno at opacity 0.6 over the image (as in the Keras example). Evidence is ColorBrewer's red–blue,
which colour-blind readers can tell apart; zero is neutral, and dashed outlines mark what speaks against, so that it
survives a black-and-white print.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from patchconvnet.errors import UserError
from patchconvnet.explanation.colours import ATTENTION, EVIDENCE
from patchconvnet.explanation.maps import Maps, Prediction
from patchconvnet.files import write_atomic

INK, FAINT, BAR, ACCENT = "#1a1a1a", "#6b6b6b", "#9db2cf", "#1f4e8c"
TITLE, TEXT, SMALL = 13, 9, 7.5  # points
MARGIN, GAP = 0.3, 0.22  # inches
DISPLAY_SIDE = 480  # pixels of an image's longer side in a figure


class _Sheet:
    """A figure laid out in inches from its upper left corner."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), facecolor="white")

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self.height - top - height
        return self.figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))

    def text(self, left: float, top: float, words: str, size: float = TEXT, **options: Any) -> None:
        style: dict[str, Any] = {
            "fontsize": size,
            "color": INK,
            "va": "baseline",
            "ha": "left",
            "parse_math": False,
            **options,
        }
        self.figure.text(left / self.width, 1 - (top + size / 72) / self.height, words, **style)

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
        axes = self.axes(left, top, 0.09, height)
        bar = self.figure.colorbar(colours, cax=axes)
        bar.outline.set(linewidth=0.5, color=FAINT)
        axes.tick_params(labelsize=SMALL, length=2, width=0.5, color=FAINT, labelcolor=INK)
        axes.set_ylabel(label, fontsize=SMALL, color=FAINT)


def explanation_figure(explanation: Maps, *, evidence: int = 3) -> Figure:
    """Original | attended | likeliest classes, and below the evidence for the likeliest (and the target).

    Args:
        explanation: what to show.
        evidence: for how many classes to show evidence; 0 leaves that row out.
    """
    e = explanation.scaled(DISPLAY_SIDE)
    width, height = _panel(e.image.width / e.image.height, 2.9)
    chosen = _evidence_classes(explanation, evidence)
    top = MARGIN + 0.62
    below = top + max(height, 0.3 * len(explanation.top_classes())) + 0.62
    total = 3 * width + 2 * GAP + 0.65 + 2 * MARGIN
    sheet = _Sheet(total, below + height + 0.42 + MARGIN if chosen else below - 0.62 + MARGIN)
    _headline(sheet, explanation)

    middle = MARGIN + width + GAP
    sheet.text(MARGIN, top - 0.2, "original", color=FAINT)
    sheet.image(MARGIN, top, width, height, e.image)
    about = f"attended, for {_short(explanation.subject.name)}" if explanation.class_wise else "attended"
    sheet.text(middle, top - 0.2, about, color=FAINT)
    sheet.image(middle, top, width, height, e.attended())
    average = 1 / explanation.attention[0].size
    colours = ScalarMappable(Normalize(0, float(explanation.map_for().max()) / average), ATTENTION)
    sheet.colour_bar(middle + width + 0.07, top, height, colours, "attention, × uniform")
    left = middle + width + 0.75
    _class_bars(sheet, left, top, total - MARGIN - left, below - top - 0.62, explanation)
    if chosen:
        _evidence_row(sheet, e, chosen, MARGIN, below, width, height)
        sheet.text(MARGIN, sheet.height - MARGIN - 0.14, _what_evidence_is(explanation), SMALL, color=FAINT)
    return sheet.figure


def _headline(sheet: _Sheet, explanation: Maps) -> None:
    best = explanation.predicted
    sheet.text(MARGIN, MARGIN - 0.08, f"{_short(best.name, 40)}  {best.probability:.1%}", TITLE, weight="bold")
    h, w = (-(-side // max(explanation.refine, 1)) for side in explanation.grid.shape)  # half a patch is one
    image = explanation.image
    details = f"{_short(explanation.name, 40)}  ·  {image.width} × {image.height} pixels  ·  {w} × {h} patches"
    if explanation.refine:
        details += f", refined {explanation.refine} × {explanation.refine}"
    if explanation.target is not None:
        details = f"asked: {_short(explanation.subject.name)} {explanation.subject.probability:.1%}  ·  {details}"
    sheet.text(sheet.width - MARGIN, MARGIN - 0.03, details, SMALL, color=FAINT, ha="right")


def _class_bars(sheet: _Sheet, left: float, top: float, width: float, height: float, e: Maps) -> None:
    listed = e.top_classes()
    sheet.text(left, top - 0.2, "most likely", color=FAINT)
    pitch = min(height / len(listed), 0.5)
    for i, prediction in enumerate(listed):
        bar = (left, top + i * pitch + 0.2, width, min(0.13, pitch - 0.21))
        sheet.rectangle(*bar, "#eeeeee")
        sheet.rectangle(bar[0], bar[1], width * prediction.probability, bar[3], ACCENT if i == 0 else BAR)
        weight = "bold" if prediction.index == e.subject.index else "normal"
        y = top + i * pitch + 0.04
        sheet.text(left, y, _short(prediction.name, max(8, int((width - 0.55) / 0.078))), TEXT, weight=weight)
        sheet.text(left + width, y, f"{prediction.probability:.1%}", TEXT, ha="right", weight=weight)


def _evidence_row(
    sheet: _Sheet, e: Maps, classes: Sequence[int], left: float, top: float, width: float, height: float
) -> None:
    """One panel a class, all on one scale, and their colour bar."""
    placed = [e.placed(k, "evidence") for k in classes]
    largest = max(float(np.abs(e.evidence_for(k)).max()) for k in classes) or 1.0
    for i, (k, values) in enumerate(zip(classes, placed, strict=True)):
        x = left + i * (width + GAP)
        total = float(e.evidence_for(k).sum())
        sheet.text(x, top - 0.2, f"evidence for {_short(e.class_names[k], int(width / 0.13))}", color=FAINT)
        sheet.text(x + width, top - 0.2, f"Σ {_signed(total)}", color=FAINT, ha="right")
        _evidence_panel(sheet, e, values, largest, x, top, width, height)
    colours = ScalarMappable(Normalize(-largest, largest), EVIDENCE)
    right = left + len(classes) * (width + GAP) - GAP
    sheet.colour_bar(right + 0.07, top, height, colours, "share of the logit, a patch")


def _evidence_panel(
    sheet: _Sheet,
    e: Maps,
    values: np.ndarray,
    largest: float,
    left: float,
    top: float,
    width: float,
    height: float,
) -> None:
    # the image as a pale print, coloured by the evidence: where that is zero the print stays as it is
    pale = 0.5 + 0.5 * np.asarray(e.image.convert("L"), dtype=np.float32)[..., None] / 255
    colour = EVIDENCE((values / largest + 1) / 2)[..., :3]
    axes = sheet.image(left, top, width, height, np.clip(pale * colour, 0, 1))
    for level, style in ((-0.5 * largest, "dashed"), (0.5 * largest, "solid")):
        if values.min() < level < values.max():
            axes.contour(values, [level], colors=INK, linewidths=0.6, linestyles=style)


def evidence_figure(explanation: Maps, classes: Sequence[int | str] | None = None) -> Figure:
    """Original and the evidence for some classes, on one scale.

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
    return _evidence_sheet(explanation, chosen, _what_evidence_is(explanation))


def difference_figure(explanation: Maps, a: int | str, b: int | str) -> Figure:
    """ "Why A and not B": the evidence for both classes and its difference, whose sum is what separates their logits.

    Raises:
        UserError: there is no such class, or no evidence for it.
    """
    e = explanation.scaled(DISPLAY_SIDE)
    first, second = e.class_index(a), e.class_index(b)
    if first == second:
        raise UserError(f"both classes are {e.class_names[first]!r}; give two different ones.")
    names = [_short(e.class_names[k]) for k in (first, second)]
    difference = e.evidence_for(first) - e.evidence_for(second)
    logits, bias = (float(v[first] - v[second]) for v in (e.logits, e.bias))
    total = float(difference.sum())
    rest = logits - bias - total
    width, height = _panel(e.image.width / e.image.height, 2.3)
    columns = MARGIN + np.arange(4) * (width + GAP) + np.array([0, 0, 0, 0.62])
    top = MARGIN + 0.62
    sheet = _Sheet(float(columns[3]) + width + 0.62 + MARGIN, top + height + 0.25 + MARGIN)
    sheet.text(MARGIN, MARGIN - 0.08, f"why {names[0]} and not {names[1]}", TITLE, weight="bold")
    sheet.text(MARGIN, top - 0.2, "original", color=FAINT)
    sheet.image(MARGIN, top, width, height, e.image)
    _evidence_row(sheet, e, [first, second], float(columns[1]), top, width, height)

    largest = float(np.abs(difference).max()) or 1.0
    last = float(columns[3])
    sheet.text(last, top - 0.2, "the one less the other")
    sheet.text(last + width, top - 0.2, f"Σ {_signed(total)}", color=INK, ha="right")
    values = e.placed(first, "evidence") - e.placed(second, "evidence")
    _evidence_panel(sheet, e, values, largest, last, top, width, height)
    colours = ScalarMappable(Normalize(-largest, largest), EVIDENCE)
    sheet.colour_bar(last + width + 0.07, top, height, colours, "share of the difference, a patch")
    words = (
        f"Logit of {names[0]} less logit of {names[1]}: {_signed(logits)} = {_signed(total)} from the patches "
        f"{_signed(bias)} from the biases"
    )
    words += "." if abs(rest) < 0.005 else f" {_signed(rest)} that the evidence does not hold."
    words += f" Red speaks for {names[0]}, blue for {names[1]}."
    sheet.text(MARGIN, sheet.height - MARGIN - 0.1, words, SMALL, color=FAINT)
    return sheet.figure


def _evidence_sheet(explanation: Maps, chosen: Sequence[int], footnote: str) -> Figure:
    e = explanation.scaled(DISPLAY_SIDE)
    width, height = _panel(e.image.width / e.image.height, 2.3)
    top = MARGIN + 0.62
    sheet = _Sheet(MARGIN + (1 + len(chosen)) * (width + GAP) + 0.5 + MARGIN, top + height + 0.25 + MARGIN)
    _headline(sheet, explanation)
    sheet.text(MARGIN, top - 0.2, "original", color=FAINT)
    sheet.image(MARGIN, top, width, height, e.image)
    _evidence_row(sheet, e, chosen, MARGIN + width + GAP, top, width, height)
    sheet.text(MARGIN, sheet.height - MARGIN - 0.1, footnote, SMALL, color=FAINT)
    return sheet.figure


def contact_sheet(explanations: Sequence[Maps], *, columns: int = 4, rows: int = 6) -> list[Figure]:
    """Many explanations small: image beside attended, its class below; as many pages as that takes.

    Args:
        explanations: in the order to show them; `Explanation.scaled` keeps thousands small.
        columns, rows: of a page.

    Raises:
        UserError: there is nothing to show.
    """
    if not explanations:
        raise UserError("there are no explanations to put on a contact sheet.")
    page = columns * rows
    return [_contact_page(explanations[i : i + page], columns) for i in range(0, len(explanations), page)]


def _contact_page(explanations: Sequence[Maps], columns: int) -> Figure:
    columns = min(columns, len(explanations))
    rows = [explanations[i : i + columns] for i in range(0, len(explanations), columns)]
    sheet = _Sheet(MARGIN * 2 + columns * (_PAIR + GAP) - GAP, MARGIN * 2 + sum(map(_row_height, rows)))
    top = MARGIN
    for row in rows:
        captions = [(_likely(e), _short(e.name, 32), INK) for e in row]
        top = _pairs(sheet, top, row, captions)
    return sheet.figure


_PAIR = 2.5  # inches of an image and its attended version, beside each other
_HALF = (_PAIR - 0.06) / 2


def _pairs(sheet: _Sheet, top: float, explanations: Sequence[Maps], captions: Sequence[tuple[str, str, str]]) -> float:
    """A row of pairs, each over two lines of words and their colour; returns where the next row begins."""
    for column, (e, (words, below, colour)) in enumerate(zip(explanations, captions, strict=True)):
        shown = e.scaled(240)
        width, height = _panel(shown.image.width / shown.image.height, _HALF, _HALF)
        left, foot = MARGIN + column * (_PAIR + GAP), top + _row_height(explanations) - 0.5
        sheet.image(left, foot - height, width, height, shown.image)
        sheet.image(left + width + 0.06, foot - height, width, height, shown.attended())
        sheet.text(left, foot + 0.05, words, TEXT, color=colour)
        sheet.text(left, foot + 0.2, below, SMALL, color=FAINT)
    return top + _row_height(explanations)


def _row_height(explanations: Sequence[Maps]) -> float:
    return 0.5 + max((_panel(e.image.width / e.image.height, _HALF, _HALF)[1] for e in explanations), default=0.0)


def _likely(e: Maps) -> str:
    return f"{_short(e.predicted.name, 22)}  {e.predicted.probability:.0%}"


def certainty_sheet(explanations: Sequence[Maps], labels: Sequence[int] | None = None, *, count: int = 4) -> Figure:
    """The most and the least certain images and, where labels are known, the wrong ones, the surest mistake first.

    Args:
        explanations: those to choose from.
        labels: the true class index of each, if known.
        count: how many of each kind.

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
        groups[f"wrong ({len(wrong)} of {len(order)}), the surest first"] = wrong[:count]
    columns = min(count, len(order))
    height = sum(0.32 + _row_height([explanations[i] for i in members]) for members in groups.values())
    sheet = _Sheet(MARGIN * 2 + columns * (_PAIR + GAP) - GAP, MARGIN * 2 + height)
    top = MARGIN
    for title, members in groups.items():
        sheet.text(MARGIN, top - 0.02, title, TITLE - 2, weight="bold")
        captions = []
        for i in members:
            e, name = explanations[i], _short(explanations[i].name, 32)
            if labels is None:
                captions.append((_likely(e), name, INK))
            elif e.predicted.index == labels[i]:
                captions.append((_likely(e), f"right  ·  {name}", INK))
            else:
                captions.append((_likely(e), f"is {_short(e.class_names[labels[i]], 22)}  ·  {name}", _WRONG))
        top = _pairs(sheet, top + 0.32, [explanations[i] for i in members], captions)
    return sheet.figure


_WRONG = "#b3261e"


def to_image(figure: Figure, dpi: int = 100) -> Image.Image:
    """A figure as an RGB image."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_atomic(path, lambda part: image.save(part, "PNG"))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _panel(ratio: float, width: float, tallest: float | None = None) -> tuple[float, float]:
    """Inches of a panel for an image of that width over height."""
    tallest = tallest or 1.35 * width
    height = min(width / ratio, tallest)
    return max(height * ratio, 0.25), max(height, 0.25)


def _short(words: str, length: int = 24) -> str:
    words = words.split(",")[0]  # ImageNet's names are lists of synonyms
    return words if len(words) <= length else words[: length - 1].rstrip() + "…"


def _signed(value: float) -> str:
    return f"{'+' if value >= 0 else '−'}{abs(value):.2f}"


def _evidence_classes(e: Maps, count: int) -> list[int]:
    ranked: list[Prediction] = [e.subject, *(p for p in e.top_classes(count) if p.index != e.subject.index)]
    return [p.index for p in ranked if p.index in e.evidence_classes][:count]


def _what_evidence_is(e: Maps) -> str:
    words = "Evidence: red patches speak for the class, blue (dashed outline) against it; no colour is neutral. "
    if e.exact:
        return words + "Exact: the patches sum to the class's logit less its bias."
    rest = e.remainder.get(e.subject.index)
    if rest is None:
        return words
    how = "Averaged over shifts and flips" if e.refine else "First order around this image"
    return (
        f"{words}{how}: {_signed(rest)} of {_short(e.subject.name)}'s logit of "
        f"{_signed(float(e.logits[e.subject.index]))} is not in it."
    )
