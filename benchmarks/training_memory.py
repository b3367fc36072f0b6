"""Peak memory of training: the S60 at 224 pixels, batch 32, beside timm's ResNet-50.

    python benchmarks/training_memory.py [--batch 32]

Each in a separate process: two steps with AdamW, then the process' largest resident size, less what it had before the
first step (libraries and weights). Then the S60's step with and without recomputing, in turns.
"""

import json
import resource
import subprocess
import sys
from functools import partial
from typing import get_args

import timm
import torch
import torch.nn.functional as F
from measuring import Times, arguments, race, ratio, report, row, seconds, spread

import patchconvnet  # noqa: F401  (registers the models)
from patchconvnet.hardware import fastest_dtype
from patchconvnet.models.recomputing import Recompute

WAYS = ("fastest format", "float32", "fastest format, grad checkpointing")
POINTWISE = "fastest format, recompute pointwise"
OURS, RESNET = "patchconvnet_s60", "resnet50"


def print_memory(name: str, way: str, batch: int) -> None:
    dtype = torch.float32 if way == "float32" else fastest_dtype(torch.device("cpu"))
    model = timm.create_model(name).to(memory_format=torch.channels_last).train()
    if way == POINTWISE:
        model.set_grad_checkpointing(pointwise=True)
    else:
        model.set_grad_checkpointing("checkpointing" in way)
    optimizer = torch.optim.AdamW(model.parameters())
    images = torch.rand(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024))


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--memory-of", nargs=2, metavar=("NETWORK", "WAY"), help="print its memory only")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if a.memory_of:
        return print_memory(*a.memory_of, a.batch)
    memory: dict[str, float] = {}
    for name in (OURS, RESNET):
        for way in (*WAYS, POINTWISE)[: 4 if name == OURS else 3]:
            command = [sys.executable, __file__, "--threads", str(a.threads), "--batch", str(a.batch)]
            done = subprocess.run([*command, "--memory-of", name, way], check=True, capture_output=True, text=True)
            memory[f"{name}, {way}"] = json.loads(done.stdout)
    rows = [
        row(
            f"peak training memory, S60 at 224 pixels, batch {a.batch}, {way}",
            "resnet50 of timm, the same way",
            None,
            spread([memory[f"{OURS}, {way}"] / memory[f"{RESNET}, {way}"]]),
        )
        for way in WAYS
    ]
    beside = memory[f"{RESNET}, {WAYS[0]}"]
    rows.append(
        row(
            f"peak training memory, S60 at 224 pixels, batch {a.batch}, {POINTWISE}",
            f"resnet50 of timm, {WAYS[0]}",
            1.6,
            spread([memory[f"{OURS}, {POINTWISE}"] / beside]),
            at_most=True,
        )
    )
    times = steps(a.rounds)
    rows += [
        row(f"training step of S60 at 224 pixels, batch 8, recompute {way}", "none", None, ratio(times, way, "none"))
        for way in ("pointwise", "blocks")
    ]
    report(rows, seconds(times), {"MB": {name: round(size / 1e6) for name, size in memory.items()}})


def steps(rounds: int) -> Times:
    """Seconds of forward and backward pass of the S60, batch 8, by what is recomputed."""
    model = timm.create_model(OURS).to(memory_format=torch.channels_last).train()
    images = torch.rand(8, 3, 224, 224).contiguous(memory_format=torch.channels_last)

    def step(recompute: Recompute) -> None:
        model.recompute = recompute
        with torch.autocast("cpu", fastest_dtype(torch.device("cpu"))):
            loss = model(images).float().square().mean()
        loss.backward()

    return race({way: partial(step, way) for way in get_args(Recompute)}, rounds, warm_up=1)


if __name__ == "__main__":
    main()
