"""Colours of maps: values → pixels, over an image or instead of it.

Attention is matplotlib's inferno at opacity 0.6 over the image (as in the Keras example). Evidence is ColorBrewer's
red–blue, which colour-blind readers can tell apart; zero is neutral. What the network did not see is grey and hatched.
"""

import numpy as np

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
    rgba = _coloured(values / (largest or attention_scale(values)), (255 * ATTENTION + 0.5).astype(np.uint8))
    rgba[..., 3] = round(255 * ATTENTION_OPACITY)
    return rgba


def evidence_colours(values: np.ndarray, largest: float | None = None) -> np.ndarray:
    """Evidence (H, W) → (H, W, 4) uint8: blue against, red for, the more opaque the stronger; zero is transparent."""
    relative = values / (largest or evidence_scale(values))
    rgba = _coloured((relative + 1) / 2, (255 * EVIDENCE + 1e-6).astype(np.uint8))
    rgba[..., 3] = np.rint(255 * EVIDENCE_OPACITY * np.minimum(np.abs(relative), 1))
    return rgba


def evidence_print(image: np.ndarray, values: np.ndarray, largest: float | None = None) -> np.ndarray:
    """An image (H, W, 3) uint8 as a pale grey print, coloured by evidence (H, W); where that is zero it stays grey."""
    pale = 0.5 + 0.5 * (image @ np.array([0.299, 0.587, 0.114]))[..., None] / 255
    colour = EVIDENCE[_places((values / (largest or evidence_scale(values)) + 1) / 2)]
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
    hidden = ~seen
    np.copyto(_whole_pixels(rgba), _whole_pixels(np.ascontiguousarray(hatched)), where=hidden)
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    line = max(1, max(height, width) // 240)
    framed = np.zeros_like(seen)
    framed[max(0, rows[0] - line) : rows[-1] + 1 + line, max(0, columns[0] - line) : columns[-1] + 1 + line] = True
    np.copyto(_whole_pixels(rgba), np.uint32(0xFFFFFFFF), where=framed & hidden)
    return rgba


def lay_over_unseen(rgba: np.ndarray, seen: np.ndarray) -> None:
    """Put the colours of what was not seen into `rgba` (H, W, 4) uint8, where `seen` (H, W) is false."""
    if not seen.all():
        np.copyto(_whole_pixels(rgba), _whole_pixels(unseen_colours(seen)), where=~seen)


def _coloured(shares: np.ndarray, table: np.ndarray) -> np.ndarray:
    """(H, W) in 0..1 → (H, W, 4) uint8 of a table (256, 3) of colours; opacity is left to the caller."""
    pixels = np.pad(table, ((0, 0), (0, 1))).view(np.uint32)[:, 0][_places(shares)]
    return pixels.view(np.uint8).reshape(*shares.shape, 4)


def _whole_pixels(rgba: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8 → the same memory as (H, W) of 32 bits: a pixel is moved at once, several times as fast."""
    return rgba.view(np.uint32)[..., 0]


def _places(shares: np.ndarray) -> np.ndarray:
    """Where values in 0..1, or beyond, are in a table of 256 colours."""
    return np.clip(shares * 256, 0, 255).astype(np.int64)


# ColorBrewer's RdBu, from blue to red
_RED_BLUE = [
    (5, 48, 97), (33, 102, 172), (67, 147, 195), (146, 197, 222), (209, 229, 240), (247, 247, 247), (253, 219, 199),
    (244, 165, 130), (214, 96, 77), (178, 24, 43), (103, 0, 31),
]  # fmt: skip
_INFERNO = (
    "00000300000400000601000701010901010b02010e02021003021204031404031605041806041b07051d08061f090621"
    "0a07230b07260d08280e082a0f092d10092f120a32130a34140b36160b39170b3b190b3e1a0b401c0c431d0c451f0c47"
    "200c4a220b4c240b4e260b50270b52290b542b0a562d0a582e0a5a300a5c32095d34095f3509603709613909623b0964"
    "3c09653e0966400966410967430a68450a69460a69480b6a4a0b6a4b0c6b4d0c6b4f0d6c500d6c520e6c530e6d550f6d"
    "570f6d58106d5a116d5b116e5d126e5f126e60136e62146e63146e65156e66156e68166e6a176e6b176e6d186e6e186e"
    "70196e72196d731a6d751b6d761b6d781c6d7a1c6d7b1d6c7d1d6c7e1e6c801f6b811f6b83206b85206a86216a88216a"
    "8922698b22698d23698e24689024689125679325679526669626669827659928649b28649c29639e2963a02a62a12b61"
    "a32b61a42c60a62c5fa72d5fa92e5eab2e5dac2f5cae305baf315bb1315ab23259b43358b53357b73456b83556ba3655"
    "bb3754bd3753be3852bf3951c13a50c23b4fc43c4ec53d4dc73e4cc83e4bc93f4acb4049cc4148cd4247cf4446d04544"
    "d14643d24742d44841d54940d64a3fd74b3ed94d3dda4e3bdb4f3adc5039dd5238de5337df5436e05634e25733e35832"
    "e45a31e55b30e65c2ee65e2de75f2ce8612be9622aea6428eb6527ec6726ed6825ed6a23ee6c22ef6d21f06f1ff0701e"
    "f1721df2741cf2751af37719f37918f47a16f57c15f57e14f68012f68111f78310f7850ef8870df8880cf88a0bf98c09"
    "f98e08f99008fa9107fa9306fa9506fa9706fb9906fb9b06fb9d06fb9e07fba007fba208fba40afba60bfba80dfbaa0e"
    "fbac10fbae12fbb014fbb116fbb318fbb51afbb71cfbb91efabb21fabd23fabf25fac128f9c32af9c52cf9c72ff8c931"
    "f8cb34f8cd37f7cf3af7d13cf6d33ff6d542f5d745f5d948f4db4bf4dc4ff3de52f3e056f3e259f2e45df2e660f1e864"
    "f1e968f1eb6cf1ed70f1ee74f1f079f1f27df2f381f2f485f3f689f4f78df5f891f6fa95f7fb99f9fc9dfafda0fcfea4"
)


def _evidence_table() -> np.ndarray:
    fine = np.linspace(0, 1, 256)
    whole = np.stack([np.interp(fine, np.linspace(0, 1, 11), channel) for channel in np.transpose(_RED_BLUE)], 1) / 255
    return whole[(np.linspace(0.08, 0.92, 256) * 256).astype(int)]  # its ends hide what is below


ATTENTION = np.frombuffer(bytes.fromhex("".join(_INFERNO)), np.uint8).reshape(256, 3) / 255  # (256, 3), 0..1
EVIDENCE = _evidence_table()
