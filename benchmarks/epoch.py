"""A whole epoch through `patchconvnet train` against the bare training step times the number of steps.

    python benchmarks/epoch.py [--steps 100]

The recipe is `keras_example`, its images random ones of CIFAR-10's size in a folder. What the command adds to the
steps is reading, augmentation, metrics, the learning rate, progress; at an epoch's end validation (its forward passes
counted at their bare time too), TensorBoard's curves, attention figures (every epoch here, every fifth in the recipe),
table, checkpoint and, where it is the best, the model folder. These ends weigh 312 / steps times as much as with the
example's 312 steps. Bare steps and trainings alternate, and each training is compared with the bare steps just before
and after it: over minutes a machine drifts by more than what the command adds.
"""

import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from example_training import BATCH, SIZE, network, training_step
from measuring import arguments, report, row, spread
from PIL import Image

from patchconvnet.hardware import fastest_dtype, keep_freed_memory

AIM = 1.05
EPOCHS = 3  # of each training; the first one is warm-up
BARE_STEPS, BARE_FORWARDS = 20, 4  # of each turn; their mean counts, as it is a mean that the training reports


def write_images(folder: Path, count: int) -> None:
    random = np.random.default_rng(0)
    for label in range(10):
        (folder / f"class_{label}").mkdir(parents=True)
        for i in range(count // 10):
            Image.fromarray(random.integers(0, 256, (32, 32, 3), "uint8")).save(folder / f"class_{label}" / f"{i}.png")


def bare_calls() -> tuple[Callable[[], None], Callable[[], None]]:
    """A training step, and a forward pass in evaluation, of one batch."""
    dtype = fastest_dtype(torch.device("cpu"))
    model = network().eval()
    images = torch.rand(BATCH, 3, SIZE, SIZE)

    def forward() -> None:
        with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            model(images)

    return training_step(network(), dtype), forward


def seconds_of(call: Callable[[], None], times: int) -> list[float]:
    call()
    call()
    measured = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        measured.append(time.perf_counter() - started)
    return measured


def train(images: Path, run: Path, threads: int) -> list[dict[str, float]]:
    """The run's curves. Its seconds go from one epoch's row to the next's, with all that is written in between."""
    subprocess.run(
        [
            sys.executable, "-m", "patchconvnet", "train", "--recipe", "keras_example",
            "--data.name", f"folder:{images}", "--data.validation", "null", "--epochs", str(EPOCHS),
            "--monitor.every", "1", "--out", str(run),
        ],
        check=True,
        stdout=sys.stderr,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    with open(run / "metrics.csv") as lines:
        return [{k: float(v) for k, v in line.items() if v} for line in csv.DictReader(lines)]


def main() -> None:
    parser = arguments(__doc__, rounds=2)
    parser.add_argument("--steps", type=int, default=100, help="of an epoch")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    keep_freed_memory()
    validation = a.steps * BATCH // 4 // 10 * 10  # as in the example, a quarter of what is trained on
    of_steps, of_epochs = [], []  # ratios
    measured: dict[str, list[float]] = {"bare step": [], "bare forward": [], "epoch": []}
    step, forward = bare_calls()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        write_images(images / "train", a.steps * BATCH + 9)
        write_images(images / "val", validation)
        before = seconds_of(step, BARE_STEPS), seconds_of(forward, BARE_FORWARDS)
        for turn in range(a.rounds):
            curves = train(images, Path(folder) / f"run{turn}", a.threads)
            after = seconds_of(step, BARE_STEPS), seconds_of(forward, BARE_FORWARDS)
            bare_step, bare_forward = (float(np.mean(one + two)) for one, two in zip(before, after, strict=True))
            training = a.steps * bare_step
            whole = training + validation / BATCH * bare_forward
            epochs = [now["seconds"] - last["seconds"] for last, now in pairwise(curves)]
            of_steps += [a.steps * BATCH / now["images_per_second"] / training for now in curves[1:]]
            of_epochs += [seconds / whole for seconds in epochs]
            measured["bare step"].append(bare_step)
            measured["bare forward"].append(bare_forward)
            measured["epoch"] += epochs
            before = after
    rows = [
        row(
            "an epoch's training steps through `patchconvnet train`",
            "the bare step × steps",
            AIM,
            spread(of_steps),
            at_most=True,
        ),
        row(
            f"a whole epoch of {a.steps} steps, with validation, curves, attention figures and checkpoint",
            "the bare step × steps + the bare forward × validation batches",
            AIM,
            spread(of_epochs),
            at_most=True,
        ),
    ]
    report(rows, {name: float(np.median(values)) for name, values in measured.items()}, {"steps": a.steps})


if __name__ == "__main__":
    main()
