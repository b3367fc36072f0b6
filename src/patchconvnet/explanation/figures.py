"""Figures of explanations: images, attention, evidence. Matplotlib without pyplot, so nothing global is touched.

Attention is inferno at opacity 0.6 over the image (as in the Keras example). Evidence is ColorBrewer's red–blue,
which colour-blind readers can tell apart; zero is neutral, and dashed outlines mark what speaks against, so that it
survives a black-and-white print.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from patchconvnet.data.preprocessing import Geometry
from patchconvnet.errors import UserError
from patchconvnet.explanation.patch_grid import Grid, place
from patchconvnet.files import write_atomic

if TYPE_CHECKING:
    from patchconvnet.explanation.explanation import Explanation, Prediction

ATTENTION = colormaps["inferno"]
EVIDENCE = colormaps["RdBu_r"]
ATTENTION_OPACITY = 0.6
EVIDENCE_OPACITY = 0.9

INK, FAINT, BAR, ACCENT = "#1a1a1a", "#6b6b6b", "#9db2cf", "#1f4e8c"
TITLE, TEXT, SMALL = 13, 9, 7.5  # points
MARGIN, GAP = 0.3, 0.22  # inches
DISPLAY_SIDE = 480  # pixels of an image's longer side in a figure


def attention_colours(values: np.ndarray, largest: float | None = None) -> np.ndarray:
    """Attention (H, W) → (H, W, 4) uint8: inferno from 0 to `largest` (the map's own by default), at opacity 0.6."""
    rgba = ATTENTION(values / (largest or values.max() or 1.0), bytes=True)
    rgba[..., 3] = round(255 * ATTENTION_OPACITY)
    return rgba


def evidence_colours(values: np.ndarray, largest: float | None = None) -> np.ndarray:
    """Evidence (H, W) → (H, W, 4) uint8: blue against, red for, the more opaque the stronger; zero is transparent."""
    relative = values / (largest or np.abs(values).max() or 1.0)
    rgba = EVIDENCE((relative + 1) / 2, bytes=True)
    rgba[..., 3] = np.rint(255 * EVIDENCE_OPACITY * np.minimum(np.abs(relative), 1))
    return rgba


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


def explanation_figure(explanation: "Explanation", *, evidence: int = 3) -> Figure:
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


def _headline(sheet: _Sheet, explanation: "Explanation") -> None:
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


def _class_bars(sheet: _Sheet, left: float, top: float, width: float, height: float, e: "Explanation") -> None:
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
    sheet: _Sheet, e: "Explanation", classes: Sequence[int], left: float, top: float, width: float, height: float
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
    e: "Explanation",
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


def evidence_figure(explanation: "Explanation", classes: Sequence[int | str] | None = None) -> Figure:
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


def difference_figure(explanation: "Explanation", a: int | str, b: int | str) -> Figure:
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


def _evidence_sheet(explanation: "Explanation", chosen: Sequence[int], footnote: str) -> Figure:
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


def contact_sheet(explanations: Sequence["Explanation"], *, columns: int = 4, rows: int = 6) -> list[Figure]:
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


def _contact_page(explanations: Sequence["Explanation"], columns: int) -> Figure:
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


def _pairs(
    sheet: _Sheet, top: float, explanations: Sequence["Explanation"], captions: Sequence[tuple[str, str, str]]
) -> float:
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


def _row_height(explanations: Sequence["Explanation"]) -> float:
    return 0.5 + max((_panel(e.image.width / e.image.height, _HALF, _HALF)[1] for e in explanations), default=0.0)


def _likely(e: "Explanation") -> str:
    return f"{_short(e.predicted.name, 22)}  {e.predicted.probability:.0%}"


def certainty_sheet(
    explanations: Sequence["Explanation"], labels: Sequence[int] | None = None, *, count: int = 4
) -> Figure:
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


def attention_grid(
    images: np.ndarray,
    maps: np.ndarray,
    titles: Sequence[str] | None = None,
    *,
    heading: str = "",
    columns: int = 4,
    grid: Grid | None = None,
    largest: np.ndarray | None = None,
) -> Figure:
    """Images beside themselves with their attention map over them: what the monitor draws while a network trains.

    Args:
        images: (n, H, W, 3) or (n, 3, H, W) uint8, the network's input before normalisation.
        maps: (n, h, w) attention.
        titles: one an image.
        heading: over all of them.
        columns: image pairs side by side.
        grid: how the patches lie on the images (see `placement.patch_grid`); evenly over all of it by default.
        largest: (n,) the attention that is brightest for each image; its map's largest by default.

    Raises:
        UserError: the shapes don't fit, or a map is not finite.
    """
    images, maps = _checked(images, maps)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width, height = _panel(images.shape[2] / images.shape[1], 1.2)
    words = 0.2 if titles is not None else 0.08
    top = MARGIN + (0.3 if heading else 0.0)
    cell = 2 * width + 0.05
    sheet = _Sheet(2 * MARGIN + columns * (cell + GAP) - GAP, top + rows * (height + words) + MARGIN - 0.08)
    if heading:
        sheet.text(MARGIN, MARGIN - 0.08, heading, TITLE - 2, weight="bold")
    for i, (image, values) in enumerate(zip(images, maps, strict=True)):
        x, y = MARGIN + i % columns * (cell + GAP), top + i // columns * (height + words)
        enlarged = _enlarged(image)
        sheet.image(x, y, width, height, enlarged)
        blend = _blend(enlarged, values, image.shape[:2], grid, None if largest is None else largest[i])
        sheet.image(x + width + 0.05, y, width, height, blend)
        if titles is not None:
            sheet.text(x, y + height + 0.03, _short(titles[i], int(cell / 0.065)), SMALL)
    return sheet.figure


def attention_evolution(
    images: np.ndarray,
    maps: np.ndarray,
    epochs: Sequence[int],
    *,
    columns: int = 8,
    grid: Grid | None = None,
) -> Figure:
    """The same images' attention over the epochs: one row an image, one column an epoch, one scale a row.

    Args:
        images: (n, H, W, 3) or (n, 3, H, W) uint8.
        maps: (epochs, n, h, w) attention.
        epochs: the number of each.
        columns: at most so many epochs are shown, the first and the last among them.
        grid: as in `attention_grid`.

    Raises:
        UserError: the shapes don't fit, or a map is not finite.
    """
    images, largest = _checked_evolution(images, maps, epochs)
    shown = np.unique(np.linspace(0, len(epochs) - 1, min(columns, len(epochs))).round().astype(int))
    width, height = _panel(images.shape[2] / images.shape[1], 1.15)
    top = MARGIN + 0.2
    pitch = width + 0.06
    sheet = _Sheet(2 * MARGIN + (len(shown) + 1) * pitch, top + len(images) * (height + 0.06) - 0.06 + MARGIN)
    sheet.text(MARGIN, top - 0.2, "original", color=FAINT)
    for column, index in enumerate(shown):
        sheet.text(MARGIN + (column + 1) * pitch + 0.06, top - 0.2, f"epoch {epochs[index]}", color=FAINT)
    for row, image in enumerate(images):
        y = top + row * (height + 0.06)
        enlarged = _enlarged(image)
        sheet.image(MARGIN, y, width, height, enlarged)
        for column, index in enumerate(shown):
            blend = _blend(enlarged, maps[index, row], image.shape[:2], grid, largest[row])
            sheet.image(MARGIN + (column + 1) * pitch + 0.06, y, width, height, blend)
    return sheet.figure


def evolution_frames(
    images: np.ndarray,
    maps: np.ndarray,
    epochs: Sequence[int],
    *,
    headings: Sequence[str] | None = None,
    grid: Grid | None = None,
    dpi: int = 80,
) -> list[Image.Image]:
    """The same as an `attention_grid` an epoch, on one scale an image: frames for `write_gif`.

    Args: as `attention_evolution`; headings: one an epoch, by default its number; dpi: pixels an inch.

    Raises:
        UserError: as `attention_evolution`.
    """
    images, largest = _checked_evolution(images, maps, epochs)
    headings = [f"epoch {epoch}" for epoch in epochs] if headings is None else headings
    return [
        to_image(attention_grid(images, values, heading=heading, grid=grid, largest=largest), dpi)
        for values, heading in zip(maps, headings, strict=True)
    ]


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


def write_gif(frames: Sequence[Image.Image], path: str | Path, *, seconds: float = 0.5, hold: float = 2.0) -> Path:
    """Write an endless animation.

    Args:
        frames: images of one size.
        path: where to.
        seconds: how long each frame stays.
        hold: how long the last one does.

    Raises:
        UserError: there are no frames, or they differ in size.
    """
    if not frames or len({frame.size for frame in frames}) > 1:
        sizes = sorted({frame.size for frame in frames})
        raise UserError(f"an animation needs frames of one size; given {len(frames)} of sizes {sizes}.")
    # one palette for all frames, taken from all of them, or colours would flicker
    strip = Image.new("RGB", (frames[0].width, frames[0].height * min(len(frames), 8)), "white")
    for row, index in enumerate(np.linspace(0, len(frames) - 1, min(len(frames), 8)).round().astype(int)):
        strip.paste(frames[index], (0, row * frames[0].height))
    palette = strip.quantize(256)
    coded = [frame.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [round(1000 * seconds)] * (len(coded) - 1) + [round(1000 * hold)]
    path = Path(path)
    coded[0].save(path, format="GIF", save_all=True, append_images=coded[1:], duration=durations, loop=0)
    return path


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


def _evidence_classes(e: "Explanation", count: int) -> list[int]:
    ranked: list[Prediction] = [e.subject, *(p for p in e.top_classes(count) if p.index != e.subject.index)]
    return [p.index for p in ranked if p.index in e.evidence_classes][:count]


def _what_evidence_is(e: "Explanation") -> str:
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


def _checked(images: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if images.ndim == 4 and images.shape[1] == 3 and images.shape[3] != 3:
        images = images.transpose(0, 2, 3, 1)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UserError(f"given images of {images.dtype} {images.shape}; needed are uint8, shape (n, H, W, 3).")
    if maps.ndim != 3 or len(maps) != len(images) or not len(maps):
        raise UserError(f"given maps of shape {maps.shape} for {len(images)} images; needed is (images, h, w).")
    if not np.isfinite(maps).all():
        raise UserError("an attention map holds values that are not finite numbers; the training has diverged.")
    return images, maps


def _checked_evolution(images: np.ndarray, maps: np.ndarray, epochs: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The images, (n, H, W, 3), and the largest attention of each over all epochs, (n,)."""
    if maps.ndim != 4 or len(maps) != len(epochs) or not len(epochs):
        raise UserError(f"given maps of shape {maps.shape} for {len(epochs)} epochs; needed: (epochs, images, h, w).")
    largest = maps.max((0, 2, 3))
    return _checked(images, maps.sum(0))[0], largest


def _enlarged(image: np.ndarray, side: int = 120) -> np.ndarray:
    factor = max(1, -(-side // max(image.shape[:2])))
    return image.repeat(factor, 0).repeat(factor, 1)


def _blend(
    image: np.ndarray, values: np.ndarray, size: tuple[int, int], grid: Grid | None, largest: float | None = None
) -> np.ndarray:
    """An image (H, W, 3), maybe enlarged from a network input of `size`, with attention (h, w) over it."""
    if grid is None:
        h, w = values.shape
        step = (size[0] / h, size[1] / w)
        grid = Grid((h, w), step, (step[0] / 2, step[1] / 2))
    shape = (image.shape[0], image.shape[1])
    geometry = Geometry(image=shape, resized=size, offset=(0, 0), size=size)
    colour = attention_colours(place(values, grid, geometry), largest)[..., :3]
    return np.rint((1 - ATTENTION_OPACITY) * image + ATTENTION_OPACITY * colour).astype(np.uint8)
