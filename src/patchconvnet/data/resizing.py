"""PyTorch's resizing of images on a CPU in NumPy: the same pixels, to rounding, where PyTorch is not installed.

Along the rows, then along the columns, every new value is a weighted sum of a few old ones in float32. The weights are
PyTorch's to the bit. So are the sums of up to four values; of longer ones the order depends on the instructions that
the CPU has, in PyTorch as here, and they differ by 6e-7 of white at most.

Source: PyTorch, `aten/src/ATen/native/cpu/UpSampleKernel.cpp` and `native/UpSample.h`, for the formulas.
"""

from typing import Literal

import numpy as np

Interpolation = Literal["bilinear", "bicubic", "nearest"]

FEW = 4  # values that are added up one by one, as PyTorch does it
BLOCK = 16  # neighbouring new values that one matrix product makes


def resize(values: np.ndarray, size: tuple[int, int], interpolation: Interpolation, antialias: bool) -> np.ndarray:
    """(C, H, W) float32 → (C, h, w) float32, as `torch.nn.functional.interpolate` makes it of a contiguous tensor.

    Args:
        values: of any range.
        size: (h, w).
        interpolation: "nearest" is PyTorch's "nearest-exact".
        antialias: whether shrinking averages over all pixels that fall together; not for "nearest".
    """
    if interpolation == "nearest":
        rows, columns = (_nearest(old, new) for old, new in zip(values.shape[1:], size, strict=True))
        return values[:, rows[:, None], columns]
    for axis in (2, 1):
        old, new = values.shape[axis], size[axis - 1]
        taps = _antialiased(old, new, interpolation) if antialias else _plain(old, new, interpolation)
        values = _along_rows(values, *taps) if axis == 2 else _along_columns(values, *taps)
    return values


def _nearest(old: int, new: int) -> np.ndarray:
    scale = np.float32(old) / np.float32(new)
    at = (np.arange(new) + 0.5).astype(np.float32) * scale
    return np.minimum(np.floor(at).astype(np.int64), old - 1)


def _plain(old: int, new: int, interpolation: Interpolation) -> tuple[np.ndarray, np.ndarray]:
    """(new, T) places of the old values that go into each new one, and their weights, float32."""
    one = np.float32(1)
    scale = np.float32(old) / np.float32(new)
    at = _fma(scale, np.arange(new) + 0.5, np.float32(-0.5))
    if interpolation == "bilinear":
        at = np.maximum(at, np.float32(0))
        first = np.minimum(at.astype(np.int64), old - 1)
        second = first + (first < old - 1)
        share = np.clip(at - first.astype(np.float32), np.float32(0), one)
        return np.stack([first, second], 1), np.stack([one - share, share], 1)
    first = np.minimum(np.floor(at).astype(np.int64), old - 1)
    t = np.clip(at - first.astype(np.float32), np.float32(0), one)
    a = np.float32(-0.75)
    weights = np.stack([_far(t + one, a), _near(t, a), _near(one - t, a), _far(one - t + one, a)], 1)
    return np.clip(first[:, None] + np.arange(-1, 3), 0, old - 1), weights


def _antialiased(old: int, new: int, interpolation: Interpolation) -> tuple[np.ndarray, np.ndarray]:
    """As `_plain`, with a kernel as wide as what falls together; unused taps have the weight 0."""
    scale = np.float32(old) / np.float32(new)
    half = 1 if interpolation == "bilinear" else 2
    support = np.float32(half * float(scale)) if scale >= 1 else np.float32(half)
    inverse = np.float32(1 / float(scale)) if scale >= 1 else np.float32(1)
    centres = (float(scale) * (np.arange(new) + 0.5)).astype(np.float32)
    first = np.maximum((centres - support).astype(np.float64) + 0.5, 0).astype(np.int64)
    last = np.minimum(((centres + support).astype(np.float64) + 0.5).astype(np.int64), old)
    most = int(np.ceil(support)) * 2 + 1
    count = np.clip(last - first, 0, most)
    taps = np.arange(int(count.max()))
    distance = (first[:, None] + taps).astype(np.float32) - centres[:, None]
    x = np.abs(((distance.astype(np.float64) + 0.5) * float(inverse)).astype(np.float32))
    if interpolation == "bilinear":
        weights = np.where(x < 1, np.float32(1) - x, np.float32(0))
    else:
        a = np.float32(-0.5)
        weights = np.where(x < 1, _near(x, a), np.where(x < 2, _far(x, a), np.float32(0)))
    weights[taps >= count[:, None]] = 0
    total = np.zeros(new, np.float32)
    for tap in taps:
        total += weights[:, tap]
    weights /= np.where(total == 0, np.float32(1), total)[:, None]
    return first[:, None] + taps, weights


def _near(x: np.ndarray, a: np.float32) -> np.ndarray:
    """The cubic kernel for |x| ≤ 1."""
    return _fma(_fma(a + np.float32(2), x, -(a + np.float32(3))) * x, x, np.float32(1))


def _far(x: np.ndarray, a: np.float32) -> np.ndarray:
    """The cubic kernel for 1 ≤ |x| < 2."""
    return _fma(_fma(_fma(a, x, -np.float32(5) * a), x, np.float32(8) * a), x, -np.float32(4) * a)


def _fma(x: np.ndarray | np.float32, y: np.ndarray, z: np.ndarray | np.float32) -> np.ndarray:
    """x·y + z in float32, rounded once: products of float32 are exact in float64."""
    return (np.asarray(x, np.float64) * y + z).astype(np.float32)


def _along_rows(values: np.ndarray, places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(C, H, W) → (C, H, new)."""
    channels, height, width = values.shape
    flat = values.reshape(-1, width)
    return _weighted(flat, places, weights, width).reshape(channels, height, -1)


def _along_columns(values: np.ndarray, places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(C, H, W) → (C, new, W)."""
    return np.stack([_weighted(channel.T, places, weights, len(channel)).T for channel in values])


def _weighted(rows: np.ndarray, places: np.ndarray, weights: np.ndarray, length: int) -> np.ndarray:
    """(N, old) → (N, new): sums of weights times the values at their places."""
    count, taps = weights.shape
    if taps <= FEW:
        result = rows[:, places[:, 0]] * weights[:, 0]
        for tap in range(1, taps):
            result = _fma(rows[:, np.minimum(places[:, tap], length - 1)], weights[:, tap], result)
        return result
    # a matrix product for a few neighbours at a time, which share most of their values
    result = np.empty((len(rows), count), np.float32)
    for begin in range(0, count, BLOCK):
        part, first = places[begin : begin + BLOCK], places[begin, 0]
        matrix = np.zeros((len(part), min(int(part[-1, -1]) + 1, length) - first), np.float32)
        for row, start, some in zip(matrix, part[:, 0] - first, weights[begin : begin + BLOCK], strict=True):
            row[start : start + taps] = some[: len(row) - start]
        result[:, begin : begin + BLOCK] = rows[:, first : first + matrix.shape[1]] @ matrix.T
    return result
