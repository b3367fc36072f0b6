"""How maps change while a network trains: images beside their maps, as one image and as an animation.

Drawn every few epochs while training waits, so the images are pasted into one canvas; matplotlib only sets the words.
An Axes for each image took half a second for sixteen of them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from patchconvnet.data.geometry import Geometry
from patchconvnet.errors import UserError
from patchconvnet.explanation.colours import (
    ATTENTION_OPACITY,
    attention_colours,
    attention_scale,
    evidence_print,
    evidence_scale,
)
from patchconvnet.explanation.figures import FAINT, GAP, INK, MARGIN, SMALL, TEXT, TITLE
from patchconvnet.explanation.lettering import families, readable, shortened
from patchconvnet.explanation.maps import Kind
from patchconvnet.explanation.patch_grid import Grid, place

DPI = 100
CLOSE = 0.06  # inches between an image and its map
NARROWEST = 0.9  # inches of an image, so that there is room for words under it


class _Canvas:
    """An image laid out in inches from its upper left corner."""

    def __init__(self, width: float, height: float, dpi: int):
        self.dpi = dpi
        self.image = Image.new("RGB", (round(width * dpi), round(height * dpi)), "white")
        self.figure = Figure(figsize=(self.image.width / dpi, self.image.height / dpi), dpi=dpi, facecolor="none")

    def paste(self, left: float, top: float, width: float, height: float, pixels: np.ndarray) -> None:
        size = (max(1, round(width * self.dpi)), max(1, round(height * self.dpi)))
        shrinks = size[0] < pixels.shape[1] or size[1] < pixels.shape[0]
        image = Image.fromarray(pixels).resize(size, Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST)
        self.image.paste(image, (round(left * self.dpi), round(top * self.dpi)))

    def text(self, left: float, top: float, words: str, size: float = TEXT, **options: Any) -> None:
        x, y = left * self.dpi / self.image.width, 1 - (top + size / 72) * self.dpi / self.image.height
        style = {"fontsize": size, "fontfamily": families(words), "color": INK, "va": "baseline", "parse_math": False}
        self.figure.text(x, y, words, **{**style, **options})

    def drawn(self) -> Image.Image:
        """The image with the words over it (matplotlib would resample the image if it were given to the figure)."""
        canvas = FigureCanvasAgg(self.figure)
        canvas.draw()
        words = Image.fromarray(np.asarray(canvas.buffer_rgba()))
        self.image.paste(words.convert("RGB"), mask=words.getchannel("A"))
        return self.image


def attention_grid(
    images: np.ndarray,
    maps: np.ndarray,
    titles: Sequence[str] | None = None,
    *,
    heading: str = "",
    columns: int = 4,
    grid: Grid | None = None,
    kind: Kind = "attention",
    largest: np.ndarray | None = None,
    dpi: int = DPI,
) -> Image.Image:
    """Images beside themselves with their maps: what the monitor draws while a network trains.

    Args:
        images: (n, H, W, 3) or (n, 3, H, W) uint8, the network's input before normalisation.
        maps: (n, h, w) attention, or evidence.
        titles: one an image.
        heading: over all of them.
        columns: image pairs side by side.
        grid: how the patches lie on the images (see `patch_grid`); evenly over all of it by default.
        kind: what the maps are: "attention", or "evidence" (or "contrast"), which is signed.
        largest: (n,) the value drawn brightest for each image; by default its map's own, see `attention_scale`.
        dpi: pixels an inch.

    Raises:
        UserError: the shapes don't fit, or a map is not finite.
    """
    return _grid(images, maps, titles, heading, columns, grid, kind, largest, dpi).drawn()


def _grid(
    images: np.ndarray,
    maps: np.ndarray,
    titles: Sequence[str] | None,
    heading: str,
    columns: int,
    grid: Grid | None,
    kind: Kind,
    largest: np.ndarray | None,
    dpi: int,
) -> _Canvas:
    images, maps = _checked(images, maps)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width, height = _panel(images, 1.2)
    words = 0.2 if titles is not None else 0.08
    top = MARGIN + (0.3 if heading else 0.0)
    cell = max(2 * width + CLOSE, 2 * NARROWEST)
    total = columns * (cell + GAP) - GAP
    canvas = _Canvas(2 * MARGIN + total, top + rows * (height + words) + MARGIN - 0.08, dpi)
    if heading:
        canvas.text(MARGIN, MARGIN - 0.08, shortened(heading, total, TITLE - 2, "bold"), TITLE - 2, weight="bold")
    for i, (image, values) in enumerate(zip(images, maps, strict=True)):
        x, y = MARGIN + i % columns * (cell + GAP), top + i // columns * (height + words)
        enlarged = _enlarged(image)
        canvas.paste(x, y, width, height, enlarged)
        blend = _blend(enlarged, values, image.shape[:2], grid, kind, None if largest is None else largest[i])
        canvas.paste(x + width + CLOSE, y, width, height, blend)
        if titles is not None:
            canvas.text(x, y + height + 0.03, shortened(readable(titles[i], f"image {i + 1}"), cell, SMALL), SMALL)
    return canvas


def attention_evolution(
    images: np.ndarray,
    maps: np.ndarray,
    epochs: Sequence[int],
    *,
    columns: int = 8,
    grid: Grid | None = None,
    kind: Kind = "attention",
    dpi: int = DPI,
) -> Image.Image:
    """The same images' maps over the epochs: one row an image, one column an epoch, one scale a row.

    Args:
        images: (n, H, W, 3) or (n, 3, H, W) uint8.
        maps: (epochs, n, h, w) attention, or evidence.
        epochs: the number of each.
        columns: at most so many epochs are shown, the first and the last among them.
        grid: how the patches lie on the images, as in `attention_grid`.
        kind: what the maps are, as in `attention_grid`.
        dpi: pixels an inch.

    Raises:
        UserError: the shapes don't fit, or a map is not finite.
    """
    return _evolution(images, maps, epochs, columns, grid, kind, dpi).drawn()


def _evolution(
    images: np.ndarray,
    maps: np.ndarray,
    epochs: Sequence[int],
    columns: int,
    grid: Grid | None,
    kind: Kind,
    dpi: int,
) -> _Canvas:
    images, largest = _checked_evolution(images, maps, epochs, kind)
    shown = np.unique(np.linspace(0, len(epochs) - 1, min(columns, len(epochs))).round().astype(int))
    width, height = _panel(images, 1.15)
    top = MARGIN + 0.2
    pitch = max(width, NARROWEST) + CLOSE
    canvas = _Canvas(2 * MARGIN + (len(shown) + 1) * pitch, top + len(images) * (height + CLOSE) - CLOSE + MARGIN, dpi)
    canvas.text(MARGIN, top - 0.2, "image", color=FAINT)
    for column, index in enumerate(shown):
        canvas.text(MARGIN + (column + 1) * pitch + CLOSE, top - 0.2, f"epoch {epochs[index]}", color=FAINT)
    for row, image in enumerate(images):
        y = top + row * (height + CLOSE)
        enlarged = _enlarged(image)
        canvas.paste(MARGIN, y, width, height, enlarged)
        for column, index in enumerate(shown):
            blend = _blend(enlarged, maps[index, row], image.shape[:2], grid, kind, largest[row])
            canvas.paste(MARGIN + (column + 1) * pitch + CLOSE, y, width, height, blend)
    return canvas


def evolution_frames(
    images: np.ndarray,
    maps: np.ndarray,
    epochs: Sequence[int],
    *,
    headings: Sequence[str] | None = None,
    grid: Grid | None = None,
    kind: Kind = "attention",
    dpi: int = 80,
) -> list[Image.Image]:
    """The same as an `attention_grid` an epoch, on one scale an image: frames for `write_gif`.

    The other arguments are those of `attention_evolution`.

    Args:
        headings: one for each epoch, by default its number.
        dpi: pixels an inch.

    Raises:
        UserError: as `attention_evolution`.
    """
    images, largest = _checked_evolution(images, maps, epochs, kind)
    headings = [f"epoch {epoch}" for epoch in epochs] if headings is None else headings
    return [
        attention_grid(images, values, heading=heading, grid=grid, kind=kind, largest=largest, dpi=dpi)
        for values, heading in zip(maps, headings, strict=True)
    ]


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


def _panel(images: np.ndarray, width: float) -> tuple[float, float]:
    """Inches of a panel for images (n, H, W, 3)."""
    ratio = images.shape[2] / images.shape[1]
    height = min(width / ratio, 1.35 * width)
    return max(height * ratio, 0.25), max(height, 0.25)


def _checked(images: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if images.ndim == 4 and images.shape[1] == 3 and images.shape[3] != 3:
        images = images.transpose(0, 2, 3, 1)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UserError(f"given images of {images.dtype} {images.shape}; needed are uint8, shape (n, H, W, 3).")
    if maps.ndim != 3 or len(maps) != len(images) or not len(maps):
        raise UserError(f"given maps of shape {maps.shape} for {len(images)} images; needed is (images, h, w).")
    if not np.isfinite(maps).all():
        raise UserError("a map holds values that are not finite numbers; the training has diverged.")
    return images, maps


def _checked_evolution(
    images: np.ndarray, maps: np.ndarray, epochs: Sequence[int], kind: Kind
) -> tuple[np.ndarray, np.ndarray]:
    """The images, (n, H, W, 3), and for each the value drawn brightest in all epochs, (n,)."""
    if maps.ndim != 4 or len(maps) != len(epochs) or not len(epochs):
        raise UserError(f"given maps of shape {maps.shape} for {len(epochs)} epochs; needed: (epochs, images, h, w).")
    images = _checked(images, maps.sum(0))[0]
    scale = attention_scale if kind == "attention" else evidence_scale
    return images, np.array([scale(maps[:, i]) for i in range(len(images))])


def _enlarged(image: np.ndarray, side: int = 120) -> np.ndarray:
    factor = max(1, -(-side // max(image.shape[:2])))
    return image.repeat(factor, 0).repeat(factor, 1)


def _blend(
    image: np.ndarray, values: np.ndarray, size: tuple[int, int], grid: Grid | None, kind: Kind, largest: float | None
) -> np.ndarray:
    """An image (H, W, 3), maybe enlarged from a network input of `size`, with its map (h, w)."""
    if grid is None:
        h, w = values.shape
        step = (size[0] / h, size[1] / w)
        grid = Grid((h, w), step, (step[0] / 2, step[1] / 2))
    geometry = Geometry(image=(image.shape[0], image.shape[1]), resized=size, offset=(0, 0), size=size)
    placed = place(values, grid, geometry)
    if kind != "attention":
        return evidence_print(image, placed, largest or evidence_scale(values))
    colour = attention_colours(placed, largest or attention_scale(values))[..., :3]
    return np.rint((1 - ATTENTION_OPACITY) * image + ATTENTION_OPACITY * colour).astype(np.uint8)
