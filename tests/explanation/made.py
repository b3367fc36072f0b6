"""An explanation with maps made by hand, and what tests read from a figure."""

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image
from skimage import data

from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.explanation import Explanation
from patchconvnet.explanation.patch_grid import Grid

NAMES = ["cat", "dog", "frog", "space shuttle, and all its boosters", "$price$_up^"]


def bump(y: float, x: float, width: float, shape: tuple[int, int] = (12, 12)) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / width**2).astype(np.float32)


def made(exact: bool = True, **changes: Any) -> Explanation:
    """An explanation of a cat's photograph with maps made by hand: eyes for, nose against."""
    attention = 0.02 + bump(5, 3, 2) + bump(5, 8, 2)
    evidence = np.stack([bump(5, 3, 2), bump(5, 8, 2), -bump(9, 7, 2), bump(2, 2, 3), -bump(2, 2, 3)]) / 8
    logits = np.array([4.0, 2.5, 1.0, 0.0, -1.0], np.float32)
    bias = logits - evidence.sum((1, 2)) - (0 if exact else 0.5)
    image = changes.pop("image", None) or Image.fromarray(data.chelsea()).resize((226, 150))
    fields = {
        "name": "chelsea",
        "class_names": NAMES,
        "logits": logits,
        "bias": bias.astype(np.float32),
        "attention": (attention / attention.sum())[None],
        "evidence": evidence,
        "evidence_classes": tuple(range(5)),
        "grid": Grid((12, 12), (4.0, 4.0), (2.0, 2.0)),
        "geometry": Preprocessing((48, 48)).geometry(image.height, image.width),
    }
    return Explanation(**{"image": image, "exact": exact, **fields, **changes})


def flat(**changes: Any) -> Explanation:
    """The same with uniform attention."""
    return made(attention=np.full((1, 12, 12), 1 / 144, np.float32), **changes)


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def extents(figure: Figure) -> dict[str, Bbox]:
    """Where each piece of text lies, in pixels, those of colour bars included."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = list(figure.texts)
    for axes in figure.axes:
        texts += [axes.yaxis.label, *axes.get_yticklabels()]
        low, high = sorted(axes.get_ylim())
        ticks = [t for t, at in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True) if not low <= at <= high]
        texts = [text for text in texts if text not in ticks]
    return {
        f"{number} {text.get_text()}": text.get_window_extent(renderer)
        for number, text in enumerate(texts)
        if text.get_text() and text.get_visible()
    }


def collisions(figure: Figure) -> list[str]:
    """Texts that overlap another one or an image, or leave the figure."""
    placed = list(extents(figure).items())
    found = []
    for i, (name, box) in enumerate(placed):
        if box.x0 < 0 or box.y0 < 0 or box.x1 > figure.bbox.width or box.y1 > figure.bbox.height:
            found.append(f"{name!r} leaves the figure: {box}")
        found += [f"{name!r} lies on {other!r}" for other, b in placed[i + 1 :] if overlap(box, b)]
        found += [f"{name!r} lies on an image" for axes in figure.axes if axes.images and overlap(box, axes.bbox)]
    return found


def overlap(a: Bbox, b: Bbox, slack: float = 0.5) -> bool:
    """Whether two boxes share more than half a pixel both ways."""
    return min(a.x1, b.x1) - max(a.x0, b.x0) > slack and min(a.y1, b.y1) - max(a.y0, b.y0) > slack
