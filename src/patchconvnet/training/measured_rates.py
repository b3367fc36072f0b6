"""The rates of this CPU, measured on operators alone: no network takes part.

For each kind of operation a few operators of different sizes are timed, each on tensors of its own, and the kind's
three constants are those that come nearest to all of them: seconds = calls × start + operations / rate + bytes /
bandwidth, none below 0, by least squares of the relative error.
"""

import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from patchconvnet.models import winograd
from patchconvnet.training.operations import (
    ACTIVATION,
    ATTENTION,
    ATTENTION_BACKWARD,
    BATCH_NORM,
    BATCH_NORM_BACKWARD,
    CONVOLUTION,
    CONVOLUTION_BACKWARD,
    DEPTHWISE,
    DEPTHWISE_BACKWARD,
    DEPTHWISE_LARGE,
    DEPTHWISE_STRIDED,
    ELEMENTWISE,
    KINDS,
    LAYER_NORM,
    LAYER_NORM_BACKWARD,
    MATRIX,
    POINTWISE,
    POINTWISE_BACKWARD,
    POOLING,
    STARTING,
    SUM,
    WINOGRAD,
    WINOGRAD_BACKWARD,
    Amount,
    Counter,
    has_gradients_by_winograd,
)
from patchconvnet.training.rates import Rate, Rates

Operator = partial[Any]
KEPT = 64e6  # bytes of results that are kept, so that each is written to memory that the caches have lost
_aten = torch.ops.aten


def measured_rates(dtype: torch.dtype, kinds: Iterable[str] = KINDS, *, seconds: float = 0.03) -> Rates:
    """Measure this CPU, on as many threads as torch has.

    Args:
        dtype: of products, convolutions and activations; norms of layers and some gradients of depthwise convolutions
            are computed in float32, as in training.
        kinds: those that are needed.
        seconds: how long an operator is repeated at least; three times in any case.
    """
    taken = {kind: samples(kind, dtype, seconds) for kind in kinds if kind in OPERATORS}
    found = {kind: fitted(some) for kind, some in taken.items() if some}
    if STARTING in kinds:
        found[STARTING] = _starting(dtype, found)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    threads = torch.get_num_threads()
    return Rates(found, float(memory), True, f"measured here on {threads} thread{'s' if threads > 1 else ''}")


def samples(kind: str, dtype: torch.dtype, seconds: float) -> list[tuple[Amount, float]]:
    """The operators of a kind: what each does, and the seconds it takes (median).

    Some convolutions are of another kind in one number format than in another, and a kind may have none.
    """
    found = []
    with torch.no_grad():
        for operator in OPERATORS[kind](dtype):
            with Counter() as counter:
                operator()
            if kind in counter.counts:
                found.append((counter.counts[kind], _seconds(operator, seconds)))
    return found


def fitted(found: list[tuple[Amount, float]]) -> Rate:
    """The constants that come nearest to what was measured, by ratio: half is as far off as double."""
    columns = np.array([[amount.calls, amount.operations, amount.bytes] for amount, _ in found])
    took = np.array([each for _, each in found])
    scale = columns.max(axis=0)
    scale[scale == 0] = 1
    weights = 1 / took
    for _ in range(50):  # weighted squares whose slope is that of the squared logarithm
        constants, _ = nnls(columns / scale * weights[:, None], took * weights)
        near = np.maximum(columns / scale @ constants, took / 100)
        apart = np.where(np.isclose(near, took), took, near - took)
        slope = np.where(np.isclose(near, took), 1.0, np.log(near / took))
        weights = np.sqrt(slope / apart / near)
    constants /= scale
    errors = np.abs(np.log(columns @ constants / took))
    start, operation, byte = (float(each) for each in constants)
    return Rate(start, operation, byte, fit=float(np.median(errors)))


def _seconds(operator: Operator, least: float) -> float:
    """Of a call whose first tensor is in the caches, as in a network, and everything else is not.

    The first is what the operation before has just made; what the forward pass kept was made long ago, and results go
    to memory used long ago.
    """
    function, arguments = operator.func, operator.args
    tensors = [each for each in arguments if isinstance(each, Tensor)]
    copied = sum(each.nbytes for each in tensors[1:])
    sets = [arguments]
    for _ in range(min(int(KEPT / max(copied, 1)), 64) if len(tensors) > 1 else 0):
        sets.append(tuple(
            each.clone() if isinstance(each, Tensor) and each is not tensors[0] else each for each in arguments
        ))  # fmt: skip
    first = operator()
    size = sum(value.nbytes for value in (first if isinstance(first, tuple) else (first,)) if value is not None)
    kept = deque([first], maxlen=max(1, min(int(KEPT / max(size, 1)), 64)))
    for _ in range(kept.maxlen or 1):  # until the memory that comes next was used before
        kept.append(operator())
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < 3 or time.perf_counter() - began < least:
        given = sets[len(taken) % len(sets)]
        start = time.perf_counter()
        out = function(*given, **operator.keywords)
        taken.append(time.perf_counter() - start)
        kept.append(out)
    return statistics.median(taken)


def _starting(dtype: torch.dtype, rates: dict[str, Rate]) -> Rate:
    """What an operation of a training takes besides: steps of tiny layers, less what their kinds take."""
    layers = [layer for _ in range(40) for layer in (nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU())]
    network = nn.Sequential(*layers).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)
    values = torch.randn(4, 8)

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            out = network(values)
        out.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # makes the optimizer's state
    with Counter() as counter:
        step()
    taken = []
    for _ in range(9):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    known = sum(rates[kind].seconds(amount) for kind, amount in counter.counts.items() if kind in rates)
    return Rate(start=max(statistics.median(taken) - known, 0.0) / counter.counts[STARTING].calls)


def _images(batch: int, channels: int, side: int, dtype: torch.dtype) -> Tensor:
    return torch.rand(batch, channels, side, side).contiguous(memory_format=torch.channels_last).to(dtype)


def _matrix(dtype: torch.dtype) -> Iterator[Operator]:
    # (rows, from, to) of layers; then the gradients of input and weights, whose operands lie transposed
    for rows, width, out in ((640, 320, 320), (1600, 320, 1280), (6400, 160, 640), (3200, 640, 640)):
        values, weight = torch.rand(rows, width).to(dtype), torch.rand(out, width).to(dtype)
        bias, gradient = torch.rand(out).to(dtype), torch.rand(rows, out).to(dtype)
        yield partial(_aten.addmm.default, bias, values, weight.t())
        yield partial(_aten.mm.default, gradient, weight)
        yield partial(_aten.mm.default, gradient.t(), values)


def _convolution(
    dtype: torch.dtype, layers: Sequence[tuple[int, ...]], *, parts: str, depthwise: bool = False
) -> Iterator[Operator]:
    """Forward passes, or their gradients by the input ("i"), the weights ("w") or both, one after another.

    Args:
        layers: of each images, channels in and out, side, kernel and stride.
        parts: "f", "i", "w" or "iw".
    """
    for batch, channels, out_channels, side, kernel, stride in layers:
        images = _images(batch, channels, side, dtype)
        weight = torch.rand(out_channels, 1 if depthwise else channels, kernel, kernel).to(dtype)
        if kernel > 1:
            weight = weight.contiguous(memory_format=torch.channels_last)
        how = ([stride] * 2, [kernel // 2] * 2, [1, 1], False, [0, 0], channels if depthwise else 1)
        forward = partial(_aten.convolution.default, images, weight, None, *how)
        if parts == "f":
            yield forward
            continue
        gradient = torch.rand_like(forward())
        for part in parts:
            mask = [part == "i", part == "w", False]
            yield partial(_aten.convolution_backward.default, gradient, images, weight, [0], *how, mask)


def _winograd(dtype: torch.dtype, backward: bool) -> Iterator[Operator]:
    if not (has_gradients_by_winograd(dtype) if backward else dtype is torch.float32):
        return
    for batch, channels, out_channels, side in (
        (128, 96, 96, 16),
        (64, 96, 192, 16),
        (256, 192, 192, 8),
        (64, 128, 256, 12),
        (4, 160, 160, 40),
    ):
        images, weight = _images(batch, channels, side, dtype), torch.rand(out_channels, channels, 3, 3).to(dtype)
        if not backward:
            yield partial(winograd.CONVOLUTION, images, weight)
            continue
        gradient = _images(batch, out_channels, side, dtype)
        yield partial(winograd.CONVOLUTION_BACKWARD, gradient, images, weight, True, False)
        yield partial(winograd.CONVOLUTION_BACKWARD, gradient, images, weight, False, True)


_DENSE = [(16, 3, 32, 160, 3, 2), (16, 64, 64, 40, 3, 1), (4, 160, 160, 40, 3, 1), (16, 320, 320, 10, 3, 1),
          (16, 64, 128, 40, 3, 2), (4, 320, 640, 20, 3, 2), (32, 160, 160, 20, 3, 1)]  # fmt: skip
_POINTWISE = [(16, 32, 160, 80, 1, 1), (16, 160, 32, 80, 1, 1), (16, 64, 320, 40, 1, 1), (16, 320, 64, 40, 1, 1),
              (16, 160, 640, 20, 1, 1), (16, 640, 160, 20, 1, 1), (16, 320, 1280, 10, 1, 1),
              (16, 1280, 320, 10, 1, 1)]  # fmt: skip
_SMALL = [(16, 64, 64, 80, 3, 1), (4, 320, 320, 20, 3, 1), (16, 160, 160, 40, 3, 1), (16, 640, 640, 10, 3, 1)]
_LARGE = [(16, 64, 64, 80, 5, 1), (16, 160, 160, 40, 5, 1), (4, 640, 640, 20, 5, 1), (16, 640, 640, 10, 5, 1),
          (16, 160, 160, 20, 5, 2), (16, 320, 320, 10, 7, 1)]  # fmt: skip
_STRIDED = [(16, 64, 64, 80, 3, 2), (16, 160, 160, 20, 3, 2), (16, 640, 640, 10, 3, 2), (16, 160, 160, 40, 5, 2),
            (16, 320, 320, 20, 5, 2)]  # fmt: skip


def _depthwise_backward(dtype: torch.dtype) -> Iterator[Operator]:
    yield from _convolution(dtype, _SMALL, parts="iw", depthwise=True)
    yield from _convolution(dtype, _LARGE[:3], parts="i", depthwise=True)
    yield from _convolution(dtype, _STRIDED[:3], parts="w", depthwise=True)


def _attention(dtype: torch.dtype, backward: bool) -> Iterator[Operator]:
    for batch, heads, tokens, width in (
        (2, 4, 64, 32),
        (4, 4, 400, 32),
        (16, 5, 100, 64),
        (4, 5, 256, 64),
        (16, 10, 225, 64),
    ):
        # as a layer makes them: one product, of which each head has its slice
        query, key, value = torch.rand(3, batch, tokens, heads, width).to(dtype).transpose(2, 3).unbind()
        forward = partial(_aten._scaled_dot_product_flash_attention_for_cpu.default, query, key, value)
        if not backward:
            yield forward
            continue
        out, sums = forward()
        gradient = torch.rand_like(out)
        yield partial(
            _aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
            gradient, query, key, value, out, sums, 0.0, False,
        )  # fmt: skip


_SIZES = [(4, 10, 10), (4, 320, 10), (4, 640, 20), (16, 320, 20), (16, 160, 80)]  # images, channels, side


def _elementwise(dtype: torch.dtype) -> Iterator[Operator]:
    for size in _SIZES:
        values, single = _images(*size, dtype), _images(*size, torch.float32)
        scale = torch.rand(size[1])
        yield partial(_aten.relu.default, values)
        yield partial(_aten.add.Tensor, values, values)
        yield partial(_aten.threshold_backward.default, values, values, 0)
        yield partial(_aten.mul.Tensor, values, torch.rand(size[0], size[1], 1, 1).to(dtype))
        yield partial(_aten._to_copy.default, values, dtype=torch.float32)
        yield partial(_aten._to_copy.default, single, dtype=dtype)
        yield partial(_aten.add.Tensor, single, single)
        yield partial(_aten.mul.Tensor, single.permute(0, 2, 3, 1), scale)
        yield partial(_aten.addcmul.default, single, single, single)


def _activation(dtype: torch.dtype) -> Iterator[Operator]:
    for size in _SIZES:
        values = _images(*size, dtype)
        yield partial(_aten.gelu.default, values)
        yield partial(_aten.gelu_backward.default, values, values)
        yield partial(_aten.silu.default, values)


def _batch_norm(dtype: torch.dtype, backward: bool) -> Iterator[Operator]:
    for size in _SIZES:
        values = _images(*size, dtype)
        weight, bias, mean, variance = (torch.ones(size[1]) for _ in range(4))
        forward = partial(_aten.native_batch_norm.default, values, weight, bias, mean, variance, True, 0.1, 1e-5)
        if not backward:
            yield forward
            continue
        _, own_mean, own_deviation = forward()
        yield partial(
            _aten.native_batch_norm_backward.default,
            values, values, weight, mean, variance, own_mean, own_deviation, True, 1e-5, [True] * 3,
        )  # fmt: skip


def _layer_norm(backward: bool) -> Iterator[Operator]:
    for batch, channels, side in _SIZES:
        values = torch.rand(batch, side, side, channels)
        weight, bias = torch.ones(channels), torch.ones(channels)
        forward = partial(_aten.native_layer_norm.default, values, [channels], weight, bias, 1e-5)
        if not backward:
            yield forward
            continue
        _, mean, deviation = forward()
        yield partial(
            _aten.native_layer_norm_backward.default,
            values, values, [channels], mean, deviation, weight, bias, [True] * 3,
        )  # fmt: skip


def _sum(dtype: torch.dtype) -> Iterator[Operator]:
    for batch, channels, side in _SIZES:
        for each in (dtype, torch.float32):
            values = torch.rand(batch, side, side, channels).to(each)
            yield partial(_aten.sum.dim_IntList, values, [0, 1, 2])
            yield partial(_aten.mean.dim, values, [1, 2])


def _pooling(dtype: torch.dtype) -> Iterator[Operator]:
    for size in _SIZES:
        values = _images(*size, dtype)
        how = ([3, 3], [2, 2], [1, 1])
        out, places = _aten.max_pool2d_with_indices.default(values, *how)
        yield partial(_aten.max_pool2d_with_indices.default, values, *how)
        yield partial(_aten.max_pool2d_with_indices_backward.default, out, values, *how, [1, 1], False, places)


OPERATORS: dict[str, Callable[[torch.dtype], Iterator[Operator]]] = {
    MATRIX: _matrix,
    CONVOLUTION: partial(_convolution, layers=_DENSE, parts="f"),
    CONVOLUTION_BACKWARD: partial(_convolution, layers=_DENSE[1:], parts="iw"),
    WINOGRAD: partial(_winograd, backward=False),
    WINOGRAD_BACKWARD: partial(_winograd, backward=True),
    POINTWISE: partial(_convolution, layers=_POINTWISE, parts="f"),
    POINTWISE_BACKWARD: partial(_convolution, layers=_POINTWISE, parts="iw"),
    DEPTHWISE: partial(_convolution, layers=_SMALL + _LARGE[:3] + _STRIDED[:3], parts="f", depthwise=True),
    DEPTHWISE_BACKWARD: _depthwise_backward,
    DEPTHWISE_STRIDED: lambda _: _convolution(torch.float32, _STRIDED, parts="i", depthwise=True),
    DEPTHWISE_LARGE: lambda _: _convolution(torch.float32, _LARGE, parts="w", depthwise=True),
    ATTENTION: partial(_attention, backward=False),
    ATTENTION_BACKWARD: partial(_attention, backward=True),
    ELEMENTWISE: _elementwise,
    ACTIVATION: _activation,
    BATCH_NORM: partial(_batch_norm, backward=False),
    BATCH_NORM_BACKWARD: partial(_batch_norm, backward=True),
    LAYER_NORM: lambda _: _layer_norm(False),
    LAYER_NORM_BACKWARD: lambda _: _layer_norm(True),
    SUM: _sum,
    POOLING: _pooling,
}
