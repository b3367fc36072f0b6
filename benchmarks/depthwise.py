"""What float32 for two gradients of depthwise convolutions brings a training step in bfloat16 on this CPU.

    python benchmarks/depthwise.py [--networks imagenet …] [--threads 2] [--rounds 7]

Each network's whole step (forward, loss, backward, optimizer) in turn with all gradients in bfloat16 and as `train`
computes them, in one process. And how far the gradients of its weights are from those of a step in float32 throughout,
as a share of their length. The table goes into docs/plan.md.
"""

import argparse
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from measuring import setup
from plan import PAGE
from run_all import replace_between

from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.hardware import keep_freed_memory
from patchconvnet.training.depthwise import faster_backward
from patchconvnet.training.optimization import build_optimizer
from patchconvnet.training.recipe import ModelOptions, OptimizationOptions, Recipe
from patchconvnet.training.sources import build_model

BEGIN, END = "<!-- depthwise: made by benchmarks/depthwise.py -->", "<!-- end of depthwise -->"
NETWORKS = ("imagenet", "efficientnet_b0", "mobilenetv3_large_100", "convnext_atto")
BATCH, SIDE, CLASSES = 16, 224, 1000
WARM_UP = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    keep_freed_memory()
    lines = [
        "| network | step, all in bfloat16 | as trained | times as fast | gradients off float32's: before | now |",
        "|---|---|---|---|---|---|",
    ]
    for name in a.networks:
        before, now, ratio, errors = measured(name, a.rounds)
        lines.append(f"| {name} | {before:.3f} s | {now:.3f} s | **{ratio:.2f}** | {errors[0]:.2%} | {errors[1]:.2%} |")
        print(lines[-1], flush=True)
    s = setup()
    lines += ["", f"{BATCH} images at {SIDE}×{SIDE}, on {s['machine']}, {s['threads']} threads, PyTorch {s['torch']}, "
              f"timm {s['timm']}, {s['date']}; medians of {a.rounds} rounds."]  # fmt: skip
    replace_between(PAGE, BEGIN, END, "\n".join(lines))


def measured(name: str, rounds: int) -> tuple[float, float, float, list[float]]:
    """Seconds of both steps, the median of their ratios, and both errors."""
    torch.manual_seed(0)
    options = OptimizationOptions(learning_rate=1e-6)
    recipe = Recipe(
        model=ModelOptions(name=name, pretrained=name == "imagenet"), preprocessing=Preprocessing(size=(SIDE, SIDE)),
        batch_size=BATCH, optimization=options,
    )  # fmt: skip
    model = build_model(recipe, CLASSES).requires_grad_(True).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, options)
    images = torch.randn(BATCH, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (BATCH,))

    def gradients(context: AbstractContextManager[Any], *, exact: bool = False) -> None:
        torch.manual_seed(1)  # whatever the network draws
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=not exact):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        with context:
            loss.backward()

    def step(context: AbstractContextManager[Any]) -> float:
        began = time.perf_counter()
        gradients(context)
        optimizer.step()
        return time.perf_counter() - began

    gradients(nullcontext(), exact=True)
    right = _flat(model)
    errors = []
    for context in (nullcontext(), faster_backward(model)):
        gradients(context)
        errors.append(float((_flat(model) - right).norm() / right.norm()))
    taken = [(step(nullcontext()), step(faster_backward(model))) for _ in range(WARM_UP + rounds)][WARM_UP:]
    before, now = (statistics.median(each) for each in zip(*taken, strict=True))
    return before, now, statistics.median(one / two for one, two in taken), errors


def _flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


if __name__ == "__main__":
    main()
