"""Seconds from a typed command to its end: `patchconvnet --help`, and `explain` of one photograph in a warm cache.

OMP_NUM_THREADS=2 python benchmarks/startup.py PHOTO [--model imagenet] [--rounds 3] [--cifar10 ROOT]

With --cifar10, also those of `train --recipe cifar10_default` until its first step begins, the data set being at ROOT.

Prints the shortest of the rounds and its processor seconds, which a busy machine changes less, and what importing torch
and timm takes of it, below which no command that asks a network can be.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--model", default="imagenet")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cifar10", type=Path)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        explain = ["-m", "patchconvnet", "explain", str(a.photo), "--model", a.model, "--out", folder]
        commands = {
            "patchconvnet --help": ["-m", "patchconvnet", "--help"],
            "import torch": ["-c", "import torch"],
            "import torch, torchvision, timm": ["-c", "import timm"],
            "import torch, torchvision": ["-c", "import torchvision"],
            "import patchconvnet.explanation.figures": ["-c", "import patchconvnet.explanation.figures"],
            "explain": explain,
            "explain --view own": [*explain, "--view", "own"],
            "explain --only json,overlay": [*explain, "--only", "json,overlay"],
        }
        print("| command | seconds | processor seconds |\n|---|---|---|")
        for name, words in commands.items():
            wall, processor = min(seconds([sys.executable, *words]) for _ in range(a.rounds))
            print(f"| {name} | {wall:.2f} | {processor:.2f} |", flush=True)
        if a.cifar10:
            wall = min(until_first_step(a.cifar10, Path(folder, f"run{i}")) for i in range(a.rounds))
            print(f"| train, until its first step begins | {wall:.2f} | |")


def seconds(words: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of a command.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def until_first_step(root: Path, out: Path) -> float:
    """Seconds until `train` has said on how many threads it computes, which is the last thing before its first step."""
    words = ["-m", "patchconvnet", "train", "--recipe", "cifar10_default", "--data.root", str(root), "--out", str(out)]
    measures_threads = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-u", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=measures_threads,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        said = next((line for line in process.stdout if line.startswith("computing on")), None)
        seconds = time.perf_counter() - started
        process.kill()
    if said is None:
        raise RuntimeError("the training has not begun")
    return seconds


if __name__ == "__main__":
    main()
