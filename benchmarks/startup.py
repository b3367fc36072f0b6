"""Seconds from a typed command to its end: `patchconvnet --help`, and `explain` of one photograph in a warm cache.

python benchmarks/startup.py PHOTO [--model imagenet] [--rounds 3]

Prints the shortest of the rounds and its processor seconds, which a busy machine changes less, and what importing torch
and timm takes of it, below which no command that asks a network can be.
"""

import argparse
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
            "explain, plain map": [*explain, "--refine", "0"],
            "explain --only json,overlay": [*explain, "--only", "json,overlay"],
        }
        print("| command | seconds | processor seconds |\n|---|---|---|")
        for name, words in commands.items():
            wall, processor = min(seconds([sys.executable, *words]) for _ in range(a.rounds))
            print(f"| {name} | {wall:.2f} | {processor:.2f} |", flush=True)


def seconds(words: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of a command.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
