"""Time and peak memory of one image from 224 to 1024 pixels: the S60, and timm's ViT-S beside it.

    python benchmarks/image_size.py

The exponent is the slope of log time (or memory) over log pixels: 1 is linear. Memory is what a forward pass adds to
the process at its peak, in a separate process for each network, from small images to large.
"""

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from measuring import arguments, race, report, row, seconds, spread
from torch import nn

import patchconvnet  # noqa: F401  (registers the models)
from patchconvnet.hardware import fastest_dtype

SIZES = (224, 320, 448, 640, 832, 1024)
AIM = 1.05
OURS, VIT = "S60, ours", "ViT-S/16, timm"


def networks() -> dict[str, Callable[[], nn.Module]]:
    """Both in the fastest number format of the machine."""
    dtype = fastest_dtype(torch.device("cpu"))
    return {
        OURS: lambda: timm.create_model("patchconvnet_s60").eval().fuse("auto"),
        VIT: lambda: timm.create_model("vit_small_patch16_224", dynamic_img_size=True).eval().to(dtype),
    }


def image_of(name: str, size: int) -> torch.Tensor:
    image = torch.rand(1, 3, size, size)
    return image.to(fastest_dtype(image.device)) if name == VIT else image


def print_memory(name: str) -> None:
    """Bytes that a forward pass adds to the process at its peak, one number a size."""
    network = networks()[name]()
    added = []
    with torch.inference_mode():
        for size in SIZES:
            image = image_of(name, size)
            network(image)  # libraries load, and lay out, what they need for this size
            added.append(added_at_peak(partial(network, image)))
    print(json.dumps(added))


def added_at_peak(call: Callable[[], Any]) -> int:
    """Bytes between what the process holds before the call and its most during the call (Linux)."""
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # begin the high-water mark anew
    call()
    return resident("VmHWM") - before


def resident(what: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def exponent(values: list[float]) -> float:
    """Slope over pixels, on double logarithmic scale."""
    return float(np.polyfit(np.log(np.array(SIZES, float) ** 2), np.log(values), 1)[0])


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--memory-of", choices=[OURS, VIT], help="print its memory only")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if a.memory_of:
        return print_memory(a.memory_of)

    rows, medians, facts = [], {}, {}
    for name, build in networks().items():
        network = build()
        contenders: dict[str, Callable[[], Any]] = {
            f"{name}, {size}": partial(network, image_of(name, size)) for size in SIZES
        }
        with torch.inference_mode():
            times = race(contenders, a.rounds, warm_up=1)
        medians |= seconds(times)
        by_round = [exponent([times[contender][i] for contender in contenders]) for i in range(a.rounds)]
        aim = AIM if name == OURS else None
        rows.append(
            row(f"growth of time with pixels, 224 → 1024: {name}", "linear = 1", aim, spread(by_round), at_most=True)
        )
        command = [sys.executable, __file__, "--threads", str(a.threads), "--memory-of", name]
        memory = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        slope = spread([exponent(memory)])
        rows.append(row(f"growth of peak memory with pixels: {name}", "linear = 1", aim, slope, at_most=True))
        facts[f"MB added at the peak, {name}"] = dict(zip(SIZES, (round(m / 1e6, 1) for m in memory), strict=True))
    report(rows, medians, facts)


if __name__ == "__main__":
    main()
