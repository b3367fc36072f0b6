"""The report's images: network inputs with the maps of each method over them, as JPEG inside of the page."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from patchconvnet.explanation.colours import attention_colours, evidence_colours
from patchconvnet.faithfulness.methods import Method

SIDE = 104  # pixels of an image in the report; twice as many are stored, for sharp screens


@dataclass(frozen=True, eq=False)
class Example:
    """An image with its maps.

    Attributes:
        image: (H, W, 3) uint8, the network input.
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


def overlaid(example: Example, method: Method) -> np.ndarray:
    """A method's map over the image, enlarged: (H', W', 3) uint8."""
    values = example.maps[method.name]
    if not np.isfinite(values).all() or values.min() == values.max():
        colours = np.zeros((*values.shape, 4), np.uint8)  # uninformative, so there is nothing to show
    elif method.signed:
        colours = evidence_colours(values)
    else:
        colours = attention_colours(values - values.min())
    alpha = colours[..., 3:].astype(np.float32) / 255
    grey = example.image.mean(2, keepdims=True)
    below = 255 - (255 - grey) * 0.6 if method.signed else grey * np.ones(3)
    return outlined(example, (below * (1 - alpha) + colours[..., :3] * alpha).astype(np.uint8))


def outlined(example: Example, image: np.ndarray) -> np.ndarray:
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


def data_uri(image: np.ndarray) -> str:
    """An image (H, W, 3) as a JPEG embedded in the page."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=88, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
