"""What other ways to some convolutions and their gradients bring a training step on this CPU.

    python benchmarks/convolutions.py [--networks patchconvnet_midi …] [--threads 2] [--rounds 7] [--single]

Each network's whole step (forward, loss, backward, optimizer) in turn with PyTorch's own convolutions and as `train`
computes them, in one process: in bfloat16 where this CPU computes in it, else, or with --single, in float32. And how
far the gradients of its weights are from those of a step of PyTorch's in float32 throughout (if the step is in float32
itself, in float64), as a share of their length. docs/plan.md's tables, one for each machine, are written from
docs/benchmarks/convolutions.json, where networks that are not measured keep what they have.
"""

import argparse
import copy
import json
import statistics
import time
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from measuring import setup
from plan import PAGE
from run_all import RESULTS, replace_between, write_text

from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.hardware import fastest_dtype, keep_freed_memory
from patchconvnet.models.winograd import by_winograd
from patchconvnet.training.convolution_gradients import faster_backward
from patchconvnet.training.optimization import build_optimizer
from patchconvnet.training.recipe import ModelOptions, OptimizationOptions, Recipe
from patchconvnet.training.sources import build_model

KEPT = RESULTS / "convolutions.json"
BEGIN, END = "<!-- gradients: made by benchmarks/convolutions.py -->", "<!-- end of gradients -->"
NETWORKS = {  # images in a step, their side in pixels, classes
    "imagenet": (16, 224, 1000),
    "efficientnet_b0": (16, 224, 1000),
    "mobilenetv3_large_100": (16, 224, 1000),
    "convnext_atto": (16, 224, 1000),
    "resnet50": (16, 224, 1000),
    "patchconvnet_midi": (500, 32, 10),
    "patchconvnet_keras": (128, 48, 10),
}
WARM_UP = 3
IN_SINGLE = ", in float32"  # behind a machine's name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS), help="none: only the tables")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--single", action="store_true", help="in float32, wherever")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    keep_freed_memory()
    kept = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    s = setup()
    where = f"{s['machine']}, {s['threads']} threads, PyTorch {s['torch']}, timm {s['timm']}, {s['date']}"
    single = a.single or fastest_dtype(torch.device("cpu")) is torch.float32
    for name in a.networks:
        result = {**measured(name, a.rounds, single), "rounds": a.rounds, "where": where}
        kept.setdefault(s["machine"] + (IN_SINGLE if single else ""), {})[name] = result
        write_text(KEPT, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        print(line(name, result), flush=True)
    replace_between(PAGE, BEGIN, END, tables(kept))


def line(name: str, r: dict[str, Any]) -> str:
    """One network's line."""
    batch, side, _ = NETWORKS[name]
    return (
        f"| {name} | {batch} of {side}×{side} | {r['before']:.3f} s | {r['now']:.3f} s | **{r['ratio']:.2f}** | "
        f"{r['error_before']:.2%} | {r['error_now']:.2%} |"
    )


def tables(kept: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A table for each machine."""
    return "\n\n".join(table(results, machine.endswith(IN_SINGLE)) for machine, results in kept.items())


def table(results: dict[str, dict[str, Any]], single: bool) -> str:
    """One machine's lines, and what they were measured on."""
    exact = "float64" if single else "float32"
    lines = [
        "| network | images | step with PyTorch's convolutions | as trained | times as fast | "
        f"gradients off {exact}'s: before | now |",
        "|---|---|---|---|---|---|---|",
        *(line(name, results[name]) for name in NETWORKS if name in results),
        "",
        *dict.fromkeys(
            f"In {'float32' if single else 'bfloat16'}, medians of {r['rounds']} rounds on {r['where']}."
            for r in results.values()
        ),
    ]
    return "\n".join(lines)


def measured(name: str, rounds: int, single: bool) -> dict[str, float]:
    """Seconds of both steps, the median of their ratios, and both errors."""
    batch, side, classes = NETWORKS[name]
    torch.manual_seed(0)
    options = OptimizationOptions(learning_rate=1e-6)
    recipe = Recipe(
        model=ModelOptions(name=name, pretrained=name == "imagenet"), preprocessing=Preprocessing(size=(side, side)),
        batch_size=batch, optimization=options,
    )  # fmt: skip
    model = build_model(recipe, classes).requires_grad_(True).to(memory_format=torch.channels_last).train()
    images = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(classes, (batch,))

    def gradients(of: torch.nn.Module, pixels: torch.Tensor, *, ours: bool, exact: bool = False) -> None:
        torch.manual_seed(1)  # whatever the network draws
        of.zero_grad()
        half = torch.autocast("cpu", torch.bfloat16, enabled=not (exact or single))
        with half, by_winograd(of) if ours else nullcontext():
            logits = of(pixels)
        loss = F.cross_entropy(logits if single else logits.float(), labels)
        with faster_backward(of) if ours else nullcontext():
            loss.backward()

    def step(*, ours: bool) -> float:
        began = time.perf_counter()
        gradients(model, images, ours=ours)
        optimizer.step()
        return time.perf_counter() - began

    if single:  # of as many images as fit into memory in float64
        few = max(1, batch // 4)
        exact = copy.deepcopy(model).double()
        labels, whole = labels[:few], labels
        gradients(exact, images[:few].double(), ours=False)
        right, compared = _flat(exact).float(), images[:few]
        del exact
    else:
        gradients(model, images, ours=False, exact=True)
        right, compared, whole = _flat(model), images, labels
    errors = []
    for ours in (False, True):
        gradients(model, compared, ours=ours)
        errors.append(float((_flat(model) - right).norm() / right.norm()))
    labels = whole
    optimizer = build_optimizer(model, options)
    taken = [(step(ours=False), step(ours=True)) for _ in range(WARM_UP + rounds)][WARM_UP:]
    before, now = (statistics.median(each) for each in zip(*taken, strict=True))
    return {
        "before": before, "now": now, "ratio": statistics.median(one / two for one, two in taken),
        "error_before": errors[0], "error_now": errors[1],
    }  # fmt: skip


def _flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


if __name__ == "__main__":
    main()
