"""How everything here is timed: alternately in one run, round after round, so that a busy machine slows both sides.

A script prints one JSON object: its rows of the table of aims, each contender's seconds, facts, versions and machine.
`run_all.py` runs the scripts and writes the table.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import timm
import torch

from patchconvnet.hardware import cpu_has_bfloat16, cpu_has_matrix_units

Times = dict[str, list[float]]  # seconds of each round, by contender


def arguments(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """What every script can be told."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each contender")
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each contender's turn comes")
    return parser


def race(contenders: Mapping[str, Callable[[], Any]], rounds: int, calls: int = 1, warm_up: int = 2) -> Times:
    """Seconds for one call of each contender, A B A B …, the order turned round every other round.

    A contender that returns a float has timed itself (it runs in another process) and is taken at its word.

    Args:
        rounds: turns of each contender.
        calls: calls in each turn, of which the mean counts.
        warm_up: turns before anything is timed.
    """
    times: Times = {name: [] for name in contenders}
    for i in range(-warm_up, rounds):
        for name in list(contenders)[:: 1 if i % 2 else -1]:
            call = contenders[name]
            started = time.perf_counter()
            own = [call() for _ in range(calls)]
            elapsed = (time.perf_counter() - started) / calls
            if i >= 0:
                times[name].append(statistics.mean(own) if isinstance(own[0], float) else elapsed)
    return times


def ratio(times: Times, over: str, under: str, scale: float = 1.0) -> dict[str, float]:
    """Seconds of `over` / seconds of `under`, times `scale`, round by round."""
    return spread([scale * a / b for a, b in zip(times[over], times[under], strict=True)])


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles, which lie within the values however few they are."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": statistics.median(values), "low": low, "high": high}


def seconds(times: Times) -> dict[str, float]:
    """Each contender's median."""
    return {name: statistics.median(values) for name, values in times.items()}


def matrix_product(dtype: torch.dtype, size: int = 2048) -> tuple[Callable[[], Any], int]:
    """A product of two square matrices to compare with, and its operations (multiplications and additions apart)."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2 * size**3


def row(what: str, against: str, aim: float | None, measured: Any, at_most: bool = False) -> dict[str, Any]:
    """A line of the table of aims.

    Args:
        aim: the ratio to reach, or with `at_most` not to exceed; None where the figure is only stated.
        measured: from `ratio` or `spread`, or a sentence that says why there is no figure.
    """
    met = None
    if aim is not None and not isinstance(measured, str):
        met = measured["median"] <= aim if at_most else measured["median"] >= aim
    return {"what": what, "against": against, "aim": aim, "at_most": at_most, "measured": measured, "met": met}


def report(rows: list[dict[str, Any]], times: dict[str, float], facts: dict[str, Any]) -> None:
    """Print the script's JSON."""
    print(json.dumps({"rows": rows, "seconds": times, "facts": facts, "setup": setup()}, ensure_ascii=False))


def setup() -> dict[str, Any]:
    """Versions and machine class."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    instructions = torch.backends.cpu.get_cpu_capability() + (", bfloat16" if cpu_has_bfloat16() else "")
    instructions += ", AMX" if cpu_has_matrix_units() else ""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{_processor()} ({instructions}), {os.cpu_count()} cores, {memory:.0f} GB",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
