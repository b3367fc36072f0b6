"""Is `patchconvnet plan` right on this CPU? A step's time as calculated, beside the time it takes.

    python benchmarks/plan.py [--networks example lite0 …] [--write NAME]

First the rates of this CPU are measured, on operators alone. Then each network's step is counted and calculated from
them, and timed in a process of its own: forward, loss, backward and optimizer on a batch in memory, as `patchconvnet
train` does it. With --write the rates go into src/patchconvnet/training/cpu_rates.json under that name, for `plan
--hardware NAME`; counts, times and rates into docs/benchmarks/plan.json, and the tables into docs/plan.md.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import setup, spread

from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.files import write_atomic
from patchconvnet.hardware import fastest_dtype, keep_freed_memory
from patchconvnet.models.winograd import by_winograd
from patchconvnet.training.convolution_gradients import faster_backward
from patchconvnet.training.measured_rates import measured_rates
from patchconvnet.training.operations import Amount, combined
from patchconvnet.training.optimization import build_optimizer
from patchconvnet.training.plan import count_step
from patchconvnet.training.rates import STORED, Rate, written_rates
from patchconvnet.training.recipe import ModelOptions, OptimizationOptions, Recipe
from patchconvnet.training.sources import build_model

DOCS = Path(__file__).parents[1] / "docs"
RESULTS, PAGE = DOCS / "benchmarks" / "plan.json", DOCS / "plan.md"
BEGIN, END = "<!-- plan: made by benchmarks/plan.py -->", "<!-- end of plan -->"
AIM = 0.25
SECONDS = 0.1  # that an operator is repeated
WARM_UP, STEPS = 8, 9  # until memory that is freed and asked for again fits together
NETWORKS = {  # name: (title, model, side, images of a step, whether its times were looked at while kinds were chosen)
    "example": ("the Keras example's network, CIFAR-10", "patchconvnet_keras", 32, 64, True),
    "lite0": ("EfficientNet-Lite0", "imagenet", 224, 16, True),
    "s60": ("PatchConvNet-S60", "patchconvnet_s60", 224, 4, True),
    "resnet18": ("ResNet-18", "resnet18", 224, 16, False),
    "resnet50": ("ResNet-50", "resnet50", 224, 8, False),
    "vit_small": ("ViT-S/16", "vit_small_patch16_224", 224, 8, False),
}


def recipe_of(name: str) -> Recipe:
    _, model, side, batch, _ = NETWORKS[name]
    # learning so slowly that values and gradients stay those of a training's beginning
    options = OptimizationOptions(learning_rate=1e-6)
    size = Preprocessing(size=(side, side))
    return Recipe(model=ModelOptions(name=model), preprocessing=size, batch_size=batch, optimization=options)


def network(name: str) -> Any:
    torch.manual_seed(0)
    classes = 10 if name == "example" else 1000
    return build_model(recipe_of(name), classes).requires_grad_(True)


def step_times(name: str) -> list[float]:
    """Seconds of each step of a training in this process."""
    keep_freed_memory()
    recipe, dtype = recipe_of(name), fastest_dtype(torch.device("cpu"))
    model = network(name).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, recipe.optimization)
    images = torch.randn(recipe.batch_size, 3, *recipe.preprocessing.size)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(model.num_classes, (recipe.batch_size,))
    taken = []
    for _ in range(WARM_UP + STEPS):
        began = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32), by_winograd(model):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        with faster_backward(model):
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append(time.perf_counter() - began)
    return taken[WARM_UP:]


def elsewhere(name: str, threads: int) -> list[float]:
    """`step_times` of a process of its own."""
    command = [sys.executable, __file__, "--steps-of", name, "--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def calculated(counts: dict[str, list[float]], rates: dict[str, dict[str, float]]) -> dict[str, float]:
    """Seconds by kind of operation, from what is stored."""
    return {kind: Rate(**rates[kind]).seconds(Amount(*each)) for kind, each in counts.items()}


def row_of(name: str, counts: dict[str, list[float]], rates: dict[str, Any], taken: list[float]) -> dict[str, Any]:
    title, _, side, batch, known = NETWORKS[name]
    step = sum(calculated(counts, rates).values())
    return {
        "network": name, "title": title, "side": side, "batch": batch, "known": known, "counts": counts,
        "calculated": step, "measured": spread(taken), "off": spread([step / each - 1 for each in taken]),
    }  # fmt: skip


def table(stored: dict[str, Any]) -> str:
    """The page's tables: networks, and the rates."""
    lines = [
        "| network | images of a step | calculated | measured | off by (quartiles) | aim | most of its time |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in stored["rows"]:
        off, mark = row["off"], "✓" if abs(row["off"]["median"]) <= AIM else "✗"
        seconds = calculated(row["counts"], stored["rates"])
        most = sorted(seconds, key=lambda kind: -seconds[kind])[:2]
        shares = ", ".join(f"{kind} {seconds[kind] / row['calculated']:.0%}" for kind in most)
        lines.append(
            f"| {row['title']}, {row['side']} px{'' if row['known'] else ' *'} | {row['batch']} "
            f"| {row['calculated']:.3f} s | {row['measured']['median']:.3f} s "
            f"| **{off['median']:+.0%}** ({off['low']:+.0%} to {off['high']:+.0%}) | ± {AIM:.0%} {mark} "
            f"| {shares} |"
        )
    s = stored["setup"]
    lines += [
        "", f"On {s['machine']}, {s['threads']} threads, PyTorch {s['torch']}, {s['date']}. Networks with * were kept "
        "aside: nothing of them was timed before the kinds of operations were chosen.",
        "", "| kind of operation | start | operations or values | memory | fits its operators within |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for kind, each in stored["rates"].items():
        start = f"{each['start'] * 1e6:.3g} µs" if each["start"] else ""
        operation = f"{1e-9 / each['operation']:,.3g} · 10⁹/s" if each["operation"] else ""
        byte = f"{1e-9 / each['byte']:,.3g} GB/s" if each["byte"] else ""
        fit = "" if each["fit"] is None else f"{each['fit']:.0%}"
        lines.append(f"| {kind} | {start} | {operation} | {byte} | {fit} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--write", metavar="NAME", help="write rates, results and the page; what to call this CPU")
    parser.add_argument("--steps-of", choices=NETWORKS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.steps_of:
        print(json.dumps(step_times(asked.steps_of)))
        return
    keep_freed_memory()
    dtype = fastest_dtype(torch.device("cpu"))
    rates = measured_rates(dtype, seconds=SECONDS)
    written = {str(dtype).removeprefix("torch."): written_rates(rates)}
    used = next(iter(written.values()))
    rows = []
    for name in asked.networks:
        taken = elsewhere(name, asked.threads)
        counted = count_step(network(name), recipe_of(name), dtype)
        counts = combined(NETWORKS[name][3], counted.image, 1, counted.step)
        rows.append(row_of(name, {kind: list(astuple(each)) for kind, each in counts.items()}, used, taken))
        print(name, {key: rows[-1][key] for key in ("calculated", "measured", "off")}, flush=True)
    if asked.write:
        if dtype is not torch.float32:
            written["float32"] = written_rates(measured_rates(torch.float32, seconds=SECONDS / 3))
        s = setup()
        cpu = {**{key: s[key] for key in ("machine", "threads", "date", "torch")}, "memory": rates.memory}
        stored_cpus = json.loads(STORED.read_text()) | {asked.write: {**cpu, "rates": written}}
        stored = {"rows": rows, "rates": used, "hardware": asked.write, "setup": s}
        page = PAGE.read_text()
        page = f"{page.split(BEGIN)[0]}{BEGIN}\n\n{table(stored)}\n\n{END}{page.split(END)[1]}"
        for path, text in (
            (STORED, json.dumps(stored_cpus, indent=1) + "\n"),
            (RESULTS, json.dumps(stored, indent=1) + "\n"),
            (PAGE, page),
        ):
            write_atomic(path, lambda part, text=text: part.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
