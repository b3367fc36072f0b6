"""Colours of maps: values → RGBA, to lay over an image.

Attention is inferno at opacity 0.6 over the image (as in the Keras example). Evidence is ColorBrewer's red–blue,
which colour-blind readers can tell apart; zero is neutral.
"""

import numpy as np
from matplotlib import colormaps

ATTENTION = colormaps["inferno"]
EVIDENCE = colormaps["RdBu_r"]
ATTENTION_OPACITY = 0.6
EVIDENCE_OPACITY = 0.9


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
