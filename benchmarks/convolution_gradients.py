"""What other ways to some gradients of convolutions bring a training step in bfloat16 on this CPU.

    python benchmarks/convolution_gradients.py [--networks patchconvnet_midi …] [--threads 2] [--rounds 7]

Each network's whole step (forward, loss, backward, optimizer) in turn with PyTorch's own gradients and as `train`
computes them, in one process. And how far the gradients of its weights are from those of a step in float32 throughout,
as a share of their length. docs/plan.md's tables, one for each machine, are written from
docs/benchmarks/convolution_gradients.json, where networks that are not measured keep what they have.
"""

import argparse
import json
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from measuring import setup
from plan import PAGE
from run_all import RESULTS, replace_between, write_text

from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.hardware import keep_freed_memory
from patchconvnet.training.convolution_gradients import faster_backward
from patchconvnet.training.optimization import build_optimizer
from patchconvnet.training.recipe import ModelOptions, OptimizationOptions, Recipe
from patchconvnet.training.sources import build_model

KEPT = RESULTS / "convolution_gradients.json"
BEGIN, END = "<!-- gradients: made by benchmarks/convolution_gradients.py -->", "<!-- end of gradients -->"
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS), help="none: only the tables")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    keep_freed_memory()
    kept = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    s = setup()
    where = f"{s['machine']}, {s['threads']} threads, PyTorch {s['torch']}, timm {s['timm']}, {s['date']}"
    for name in a.networks:
        result = {**measured(name, a.rounds), "rounds": a.rounds, "where": where}
        kept.setdefault(s["machine"], {})[name] = result
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
    return "\n\n".join(table(results) for results in kept.values())


def table(results: dict[str, dict[str, Any]]) -> str:
    """One machine's lines, and what they were measured on."""
    lines = [
        "| network | images | step with PyTorch's gradients | as trained | times as fast | gradients off float32's: "
        "before | now |",
        "|---|---|---|---|---|---|---|",
        *(line(name, results[name]) for name in NETWORKS if name in results),
        "",
        *dict.fromkeys(f"Medians of {r['rounds']} rounds on {r['where']}." for r in results.values()),
    ]
    return "\n".join(lines)


def measured(name: str, rounds: int) -> dict[str, float]:
    """Seconds of both steps, the median of their ratios, and both errors."""
    batch, side, classes = NETWORKS[name]
    torch.manual_seed(0)
    options = OptimizationOptions(learning_rate=1e-6)
    recipe = Recipe(
        model=ModelOptions(name=name, pretrained=name == "imagenet"), preprocessing=Preprocessing(size=(side, side)),
        batch_size=batch, optimization=options,
    )  # fmt: skip
    model = build_model(recipe, classes).requires_grad_(True).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, options)
    images = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(classes, (batch,))

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
    return {
        "before": before, "now": now, "ratio": statistics.median(one / two for one, two in taken),
        "error_before": errors[0], "error_now": errors[1],
    }  # fmt: skip


def _flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


if __name__ == "__main__":
    main()
