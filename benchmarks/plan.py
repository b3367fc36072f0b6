"""Is `patchconvnet plan` right on this CPU? A step's time as calculated, beside the time it takes.

    python benchmarks/plan.py [--networks example lite0 s60]

For each network, in turn: the rates are measured and the step is calculated from them and counted operations; then it
is timed: forward, loss, backward and optimizer on a batch in memory, as `patchconvnet train` does it. Results go into
docs/benchmarks/plan.json and the table of docs/plan.md.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from measuring import setup, spread

from patchconvnet import load
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.hardware import fastest_dtype, keep_freed_memory
from patchconvnet.training.optimization import build_optimizer
from patchconvnet.training.plan import Machine, count_step, plan
from patchconvnet.training.recipe import OptimizationOptions, Recipe

DOCS = Path(__file__).parents[1] / "docs"
RESULTS, PAGE = DOCS / "benchmarks" / "plan.json", DOCS / "plan.md"
BEGIN, END = "<!-- plan: made by benchmarks/plan.py -->", "<!-- end of plan -->"
AIM = 0.25
NETWORKS = {  # (title, side, images of a step)
    "example": ("the Keras example's network", 48, 64),
    "lite0": ("EfficientNet-Lite0", 224, 16),
    "s60": ("PatchConvNet-S60", 224, 4),
}


def network(name: str) -> Any:
    if name == "lite0":
        return load("imagenet").requires_grad_(True)
    return timm.create_model("patchconvnet_keras" if name == "example" else "patchconvnet_s60")


def step_of(model: Any, side: int, batch: int) -> Callable[[], float]:
    """A training step that says how many seconds it took."""
    dtype = fastest_dtype(torch.device("cpu"))
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, OptimizationOptions())
    images = torch.rand(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.int64)

    def step() -> float:
        began = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - began

    return step


def table(stored: dict[str, Any]) -> str:
    """The page's table."""
    lines = [
        "| network | images of a step | calculated | measured | off by (quartiles) | aim |",
        "|---|---|---|---|---|---|",
    ]
    for row in stored["rows"]:
        mark = "✓" if abs(row["off"]["median"]) <= AIM else "✗"
        off = row["off"]
        lines.append(
            f"| {row['title']}, {row['side']} px | {row['batch']} | {row['calculated']['median']:.2f} s "
            f"| {row['measured']['median']:.2f} s | **{off['median']:+.0%}** ({off['low']:+.0%} to {off['high']:+.0%}) "
            f"| ± {AIM:.0%} {mark} |"
        )
    s = stored["setup"]
    return "\n".join([*lines, "", f"On {s['machine']}, {s['threads']} threads, {s['date']}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--write", action="store_true", help="write the results and the page")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    keep_freed_memory()
    rows = []
    for name in asked.networks:
        title, side, batch = NETWORKS[name]
        recipe = Recipe(preprocessing=Preprocessing(size=(side, side)), batch_size=batch)
        dtype = fastest_dtype(torch.device("cpu"))
        model, step = network(name), step_of(network(name), side, batch)
        counted = count_step(model, recipe, dtype)
        step()
        calculated, measured = [], []
        for _ in range(asked.rounds):
            calculated.append(plan(model, recipe, batch, Machine(1, "cpu"), dtype=dtype, counted=counted))
            measured.append(statistics.median(step() for _ in range(2)))
        off = spread([c.step / m - 1 for c, m in zip(calculated, measured, strict=True)])
        rows.append({
            "network": name, "title": title, "side": side, "batch": batch, "off": off,
            "calculated": spread([c.step for c in calculated]), "measured": spread(measured),
            "seconds": calculated[-1].seconds, "rates": calculated[-1].rates.operations,
        })  # fmt: skip
        print(json.dumps(rows[-1]))
    if asked.write:
        stored = {"rows": rows, "setup": setup()}
        RESULTS.write_text(json.dumps(stored, indent=1) + "\n")
        page = PAGE.read_text()
        PAGE.write_text(f"{page.split(BEGIN)[0]}{BEGIN}\n\n{table(stored)}\n\n{END}{page.split(END)[1]}")


if __name__ == "__main__":
    main()
