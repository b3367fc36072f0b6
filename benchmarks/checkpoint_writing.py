"""What a checkpoint within an epoch costs a training: written while the loop waits, or in the background.

    python benchmarks/checkpoint_writing.py

The state of PatchConvNet-S60 with LAMB (weights and two moments) is written as training writes it, between real
training steps on this CPU. Turns of some steps without a checkpoint, with one that is waited for, and with one in the
background follow each other; "stands still" is the call alone, "in all" what the whole turn takes longer than one
without a checkpoint, steps that share the processor with the writing included. Results go into
docs/benchmarks/checkpoint_writing.json and the table of docs/scale.md.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import arguments, setup, spread
from plan import network

from patchconvnet.hardware import fastest_dtype, keep_freed_memory
from patchconvnet.training.checkpoint_writer import CheckpointWriter
from patchconvnet.training.optimization import build_optimizer
from patchconvnet.training.recipe import read_recipe
from patchconvnet.training.run_folder import RunFolder

DOCS = Path(__file__).parents[1] / "docs"
RESULTS, PAGE = DOCS / "benchmarks" / "checkpoint_writing.json", DOCS / "scale.md"
BEGIN, END = "<!-- writing: made by benchmarks/checkpoint_writing.py -->", "<!-- end of writing -->"
SIDE, BATCH, STEPS = 224, 4, 5  # pixels, images of a step, steps of a turn
WAYS = {"waited": "the loop waits", "background": "in the background"}


def training() -> tuple[Callable[[], None], Callable[[], dict[str, Any]]]:
    """A step of S60, and what a checkpoint of it holds."""
    model, dtype = network("s60").to(memory_format=torch.channels_last).train(), fastest_dtype(torch.device("cpu"))
    optimizer = build_optimizer(model, read_recipe("imagenet_s60").optimization)
    images = torch.randn(BATCH, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH)

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, lambda: {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def turn(step: Callable[[], None], save: Callable[[], None], end: Callable[[], None]) -> tuple[float, float]:
    """Seconds of the checkpoint's call, and of the whole turn; the writing is over when it ends."""
    began = time.perf_counter()
    save()
    stood = time.perf_counter() - began
    for _ in range(STEPS):
        step()
    end()
    return stood, time.perf_counter() - began


def table(stored: dict[str, Any]) -> str:
    """The page's table."""
    s = stored["setup"]
    lines = [
        f"| a checkpoint of {stored['bytes'] / 1e6:,.0f} MB | the loop stands still, s | lost in all, s |",
        "|---|---|---|",
    ]
    for way, title in WAYS.items():
        cells = [f"{r['median']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in stored[way].values()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join([
        *lines, "",
        f"PatchConvNet-S60 with LAMB; median (quartiles) of {stored['rounds']} turns of {STEPS} steps, which take "
        f"{stored['step']:.2f} s each without a checkpoint ({BATCH} images at {SIDE}). On {s['machine']}, "
        f"{s['threads']} threads, torch {s['torch']}, {s['date']}.",
    ])  # fmt: skip


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--folder", type=Path, help="where to write; on the disk that is to be measured")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    keep_freed_memory()
    step, state = training()
    step()
    with tempfile.TemporaryDirectory(dir=asked.folder) as place:
        folder = RunFolder(Path(place))
        writer = CheckpointWriter(folder.save_checkpoint)
        ways: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
            "none": (lambda: None, lambda: None),
            "waited": (lambda: folder.save_checkpoint(state()), lambda: None),
            "background": (lambda: writer.begin(state()), writer.wait),
        }
        stood: dict[str, list[float]] = {way: [] for way in ways}
        took: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(-1, asked.rounds):
            for way in list(ways)[:: 1 if number % 2 else -1]:
                times = turn(step, *ways[way])
                if number >= 0:
                    stood[way].append(times[0])
                    took[way].append(times[1])
        writer.close()
        size = os.path.getsize(folder.checkpoint)
    stored = {
        "bytes": size, "rounds": asked.rounds, "step": statistics.median(took["none"]) / STEPS, "setup": setup(),
        **{
            way: {
                "stands still": spread(stood[way]),
                "in all": spread([a - b for a, b in zip(took[way], took["none"], strict=True)]),
            }
            for way in WAYS
        },
    }  # fmt: skip
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n")
    page = PAGE.read_text()
    PAGE.write_text(f"{page.split(BEGIN)[0]}{BEGIN}\n\n{table(stored)}\n\n{END}{page.split(END)[1]}")
    print(table(stored))


if __name__ == "__main__":
    main()
