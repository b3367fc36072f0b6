"""Colours of maps: values → pixels, over an image or instead of it.

Attention is inferno at opacity 0.6 over the image (as in the Keras example). Evidence is ColorBrewer's red–blue,
which colour-blind readers can tell apart; zero is neutral. What the network did not see is grey and hatched.
"""

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap

ATTENTION = colormaps["inferno"]
EVIDENCE = ListedColormap(colormaps["RdBu_r"](np.linspace(0.08, 0.92, 256)), "evidence")  # its ends hide what is below
ATTENTION_OPACITY = 0.6
EVIDENCE_OPACITY = 0.9
BRIGHT = 3.0  # times uniform attention: what is drawn brightest at least, or an even map would be bright all over


def attention_scale(values: np.ndarray) -> float:
    """The attention that is drawn brightest for maps (..., h, w): their largest, or `BRIGHT` × uniform if that is more.

    Without the second, a map that is nearly uniform would be yellow all over and look like one that sees everything.
    """
    uniform = float(values.sum((-2, -1)).max()) / (values.shape[-2] * values.shape[-1])
    return max(float(values.max()), BRIGHT * uniform) or 1.0


def evidence_scale(values: np.ndarray) -> float:
    """The evidence, of either sign, that is drawn strongest: the largest of all."""
    return float(np.abs(values).max()) or 1.0


def attention_colours(values: np.ndarray, largest: float | None = None) -> np.ndarray:
    """Attention (H, W) → (H, W, 4) uint8: inferno from 0 to `largest` (by `attention_scale`), at opacity 0.6."""
    rgba = ATTENTION(values / (largest or attention_scale(values)), bytes=True)
    rgba[..., 3] = round(255 * ATTENTION_OPACITY)
    return rgba


def evidence_colours(values: np.ndarray, largest: float | None = None) -> np.ndarray:
    """Evidence (H, W) → (H, W, 4) uint8: blue against, red for, the more opaque the stronger; zero is transparent."""
    relative = values / (largest or evidence_scale(values))
    rgba = EVIDENCE((relative + 1) / 2, bytes=True)
    rgba[..., 3] = np.rint(255 * EVIDENCE_OPACITY * np.minimum(np.abs(relative), 1))
    return rgba


def evidence_print(image: np.ndarray, values: np.ndarray, largest: float | None = None) -> np.ndarray:
    """An image (H, W, 3) uint8 as a pale grey print, coloured by evidence (H, W); where that is zero it stays grey."""
    pale = 0.5 + 0.5 * (image @ np.array([0.299, 0.587, 0.114]))[..., None] / 255
    colour = EVIDENCE((values / (largest or evidence_scale(values)) + 1) / 2)[..., :3]
    return np.rint(255 * np.clip(pale * colour, 0, 1)).astype(np.uint8)


def unseen_colours(seen: np.ndarray) -> np.ndarray:
    """(H, W) bool → (H, W, 4) uint8: dark hatched grey over what was not seen, a white frame around what was."""
    height, width = seen.shape
    rgba = np.zeros((height, width, 4), np.uint8)
    if seen.all() or not seen.any():
        return rgba
    period = max(4, max(height, width) // 24)
    dark, light = np.array([[88, 88, 88, 190], [170, 170, 170, 190]], np.uint8)
    stripes = np.where((np.arange(height + width) % period < max(1, period // 10))[:, None], light, dark)
    hatched = np.lib.stride_tricks.sliding_window_view(stripes, (width, 4))[:height, 0]  # each row a pixel further
    rgba[~seen] = hatched[~seen]
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    line = max(1, max(height, width) // 240)
    framed = np.zeros_like(seen)
    framed[max(0, rows[0] - line) : rows[-1] + 1 + line, max(0, columns[0] - line) : columns[-1] + 1 + line] = True
    rgba[framed & ~seen] = (255, 255, 255, 255)
    return rgba
