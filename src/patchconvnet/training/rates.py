"""How fast a device computes, by kind of operation: three constants each, measured or from its maker's figures."""

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from patchconvnet.training.operations import (
    ATTENTION,
    ATTENTION_BACKWARD,
    CONVOLUTION,
    CONVOLUTION_BACKWARD,
    DEPTHWISE,
    DEPTHWISE_BACKWARD,
    DEPTHWISE_LARGE,
    DEPTHWISE_STRIDED,
    KINDS,
    MATRIX,
    POINTWISE,
    POINTWISE_BACKWARD,
    STARTING,
    WINOGRAD,
    WINOGRAD_BACKWARD,
    Amount,
)

STORED = Path(__file__).with_name("cpu_rates.json")  # written by benchmarks/plan.py
SHARE_OF_PEAK = 0.4  # of a GPU's peak in a training of convolutions: our assumption, checked nowhere yet
SHARE_OF_BANDWIDTH = 0.7


@dataclass(frozen=True)
class Rate:
    """Of one kind of operation: what an amount of it takes is a sum of three.

    Attributes:
        start: seconds to start one.
        operation: seconds of a multiplication or addition; of kinds that multiply no matrices, of a value.
        byte: seconds of a byte read or written.
        fit: median of |ln(these constants' time / the operator's)| over the operators that they come from; 0.1 is
            about 10 %.
    """

    start: float = 0.0
    operation: float = 0.0
    byte: float = 0.0
    fit: float | None = None

    def seconds(self, amount: Amount) -> float:
        """That the amount takes."""
        return amount.calls * self.start + amount.operations * self.operation + amount.bytes * self.byte


@dataclass(frozen=True)
class Rates:
    """Of one device.

    Attributes:
        kinds: by kind of operation.
        memory: bytes that it has.
        checked: whether plans by such rates have been compared with real steps.
        source: where they come from.
    """

    kinds: dict[str, Rate]
    memory: float
    checked: bool
    source: str


@dataclass(frozen=True)
class Gpu:
    """A GPU by its maker's figures.

    Attributes:
        title: what people call it.
        tera: peak of dense bfloat16 or float16 matrix products, in 10¹² multiplications and additions a second.
        tera_float32: the same in float32 (TF32 where it has that).
        bandwidth: of its memory, in 10⁹ bytes a second.
        memory: in 10⁹ bytes.
        source: of the figures.
    """

    title: str
    tera: float
    tera_float32: float
    bandwidth: float
    memory: float
    source: str


GPUS = {
    "h100": Gpu("NVIDIA H100 SXM", 989, 494, 3350, 80, "NVIDIA H100 data sheet, without sparsity"),
    "h200": Gpu("NVIDIA H200 SXM", 989, 494, 4800, 141, "NVIDIA H200 data sheet, without sparsity"),
    "a100": Gpu("NVIDIA A100 SXM 80 GB", 312, 156, 2039, 80, "NVIDIA A100 data sheet, without sparsity"),
    "v100": Gpu("NVIDIA V100 SXM2 32 GB", 125, 15.7, 900, 32, "NVIDIA V100 data sheet"),
    "l4": Gpu("NVIDIA L4", 121, 60, 300, 24, "NVIDIA L4 data sheet, without sparsity"),
    "t4": Gpu("NVIDIA T4", 65, 8.1, 320, 16, "NVIDIA T4 data sheet"),
}
_PRODUCTS = (
    MATRIX, CONVOLUTION, CONVOLUTION_BACKWARD, WINOGRAD, WINOGRAD_BACKWARD, POINTWISE, POINTWISE_BACKWARD, ATTENTION,
    ATTENTION_BACKWARD,
)  # fmt: skip
_DEPTHWISE = (DEPTHWISE, DEPTHWISE_BACKWARD, DEPTHWISE_STRIDED, DEPTHWISE_LARGE)


def gpu_rates(kind: str, dtype: torch.dtype) -> Rates:
    """Shares of a GPU's peak and bandwidth; starting operations is not counted."""
    gpu = GPUS[kind]
    operation = 1 / ((gpu.tera_float32 if dtype is torch.float32 else gpu.tera) * 1e12 * SHARE_OF_PEAK)
    byte = 1 / (gpu.bandwidth * 1e9 * SHARE_OF_BANDWIDTH)
    return Rates(
        {
            **{each: Rate(byte=byte) for each in KINDS},
            **{each: Rate(operation=operation, byte=byte) for each in _PRODUCTS},
            # the units that multiply matrices have no use for single channels
            **{each: Rate(operation=20 * operation, byte=byte) for each in _DEPTHWISE},
            STARTING: Rate(),
        },
        gpu.memory * 1e9,
        False,
        f"{gpu.title}: {SHARE_OF_PEAK:.0%} of its peak, {SHARE_OF_BANDWIDTH:.0%} of its bandwidth ({gpu.source})",
    )


@cache
def stored_cpus() -> dict[str, Any]:
    """CPUs that were measured before: name → `machine`, `threads`, `date`, `memory` and, by number format, `rates`."""
    return json.loads(STORED.read_text(encoding="utf-8"))


def stored_rates(kind: str, dtype: torch.dtype) -> Rates:
    """Those of a CPU that was measured before."""
    cpu = stored_cpus()[kind]
    return read_rates(cpu["rates"][str(dtype).removeprefix("torch.")], cpu)


def read_rates(kinds: dict[str, dict[str, float]], cpu: dict[str, Any]) -> Rates:
    """What `written_rates` made, of a CPU as `stored_cpus` has it."""
    source = f"measured on {cpu['machine']}, {cpu['threads']} threads, {cpu['date']}"
    found = {kind: Rate(**each) for kind, each in kinds.items()}
    # measured before these had a way of their own: the plan's time is too long then
    for kind, other in ((WINOGRAD, CONVOLUTION), (WINOGRAD_BACKWARD, CONVOLUTION_BACKWARD)):
        found.setdefault(kind, found[other])
    return Rates(found, cpu["memory"], True, source)


def written_rates(rates: Rates) -> dict[str, dict[str, float]]:
    """For a file, by kind of operation."""
    return {kind: asdict(rate) for kind, rate in rates.kinds.items()}
