"""A whole epoch through `patchconvnet train` against the bare training step times the number of steps.

    python benchmarks/epoch.py [--steps 40]

The recipe is `keras_example`, its pictures random ones of CIFAR-10's size in a folder. What the command adds to the
steps is reading, augmentation, metrics, the learning rate, progress; at an epoch's end validation (its forward passes
counted at their bare time too), TensorBoard's curves, attention pictures (every epoch here, every fifth in the recipe),
table, checkpoint and, where it is the best, the model folder. These ends weigh 312 / steps times as much as with the
example's 312 steps.
"""

import csv
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from example_training import BATCH, SIZE, network, training_step
from measuring import arguments, report, row, spread
from PIL import Image

from patchconvnet.models.fusion import fastest_dtype
from patchconvnet.training.machine import keep_freed_memory

AIM = 1.05
EPOCHS = 5  # the first one is warm-up


def write_pictures(folder: Path, count: int) -> None:
    random = np.random.default_rng(0)
    for label in range(10):
        (folder / f"class_{label}").mkdir(parents=True)
        for i in range(count // 10):
            Image.fromarray(random.integers(0, 256, (32, 32, 3), "uint8")).save(folder / f"class_{label}" / f"{i}.png")


def bare(steps: int) -> tuple[list[float], list[float]]:
    """Seconds of training steps, and of forward passes in evaluation, of one batch."""
    dtype = fastest_dtype(torch.device("cpu"))
    step, model = training_step(network(), dtype), network().eval()
    images = torch.rand(BATCH, 3, SIZE, SIZE)

    def forward() -> None:
        with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            model(images)

    return seconds_of(step, steps), seconds_of(forward, max(steps // 4, 3))


def seconds_of(call, times: int) -> list[float]:
    call()
    call()
    measured = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        measured.append(time.perf_counter() - started)
    return measured


def train(pictures: Path, run: Path, threads: int) -> list[dict[str, float]]:
    """The run's curves. Its seconds go from one epoch's row to the next's, with all that is written in between."""
    subprocess.run(
        [
            sys.executable, "-m", "patchconvnet", "train", "--recipe", "keras_example",
            "--data.name", f"folder:{pictures}", "--data.validation", "null", "--epochs", str(EPOCHS),
            "--monitor.every", "1", "--out", str(run),
        ],
        check=True,
        stdout=sys.stderr,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    with open(run / "metrics.csv") as lines:
        return [{k: float(v) for k, v in line.items() if v} for line in csv.DictReader(lines)]


def main() -> None:
    parser = arguments(__doc__, rounds=12)
    parser.add_argument("--steps", type=int, default=40, help="of an epoch")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    keep_freed_memory()
    validation = a.steps * BATCH // 4 // 10 * 10  # as in the example, a quarter of what is trained on
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        write_pictures(pictures / "train", a.steps * BATCH + 9)
        write_pictures(pictures / "val", validation)
        before = bare(a.rounds)
        curves = train(pictures, Path(folder) / "run", a.threads)
        after = bare(a.rounds)
    step, forward = (float(np.median([*one, *two])) for one, two in zip(before, after, strict=True))
    expected_training = a.steps * step
    expected = expected_training + validation / BATCH * forward
    trainings = [a.steps * BATCH / now["images_per_second"] for now in curves[1:]]
    epochs = [now["seconds"] - last["seconds"] for last, now in pairwise(curves)]
    rows = [
        row(
            "an epoch's training steps through `patchconvnet train`",
            "the bare step × steps",
            AIM,
            spread([seconds / expected_training for seconds in trainings]),
            at_most=True,
        ),
        row(
            f"a whole epoch of {a.steps} steps, with validation, curves, attention pictures and checkpoint",
            "the bare step × steps + the bare forward × validation batches",
            AIM,
            spread([seconds / expected for seconds in epochs]),
            at_most=True,
        ),
    ]
    report(rows, {"bare step": step, "bare forward": forward, "epoch": float(np.median(epochs))}, {"steps": a.steps})


if __name__ == "__main__":
    main()
