"""How attention changes while a network trains: images beside their maps, as figures and as an animation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from patchconvnet.data.preprocessing import Geometry
from patchconvnet.errors import UserError
from patchconvnet.explanation.colours import ATTENTION_OPACITY, attention_colours
from patchconvnet.explanation.figures import FAINT, GAP, MARGIN, SMALL, TITLE, _panel, _Sheet, _short, to_image
from patchconvnet.explanation.patch_grid import Grid, place


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

    The other arguments are those of `attention_evolution`.

    Args:
        headings: one for each epoch, by default its number.
        dpi: pixels an inch.

    Raises:
        UserError: as `attention_evolution`.
    """
    images, largest = _checked_evolution(images, maps, epochs)
    headings = [f"epoch {epoch}" for epoch in epochs] if headings is None else headings
    return [
        to_image(attention_grid(images, values, heading=heading, grid=grid, largest=largest), dpi)
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
