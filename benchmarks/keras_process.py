"""The Keras side of a comparison: a process of another Python, told what to time (see `keras_network.py`)."""

import argparse
import json
import os
import subprocess
from pathlib import Path
from typing import Any

MODES = ("graph", "xla", "mixed")
MISSING = "left out: no Python with Keras and TensorFlow was named (`--keras-python`)"


class KerasNetwork:
    """The example's network in Keras.

    Args:
        python: an interpreter whose environment has Keras 3 and TensorFlow.
        threads: of TensorFlow's two pools, each.
    """

    def __init__(self, python: str, threads: int):
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name("keras_network.py")), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        self.about: dict[str, Any] = self._answer("ready")

    def seconds(self, mode: str, call: str, count: int = 1) -> float:
        """Mean seconds of `count` calls: a training `step` or a `batch` of 128 images, or `one`."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{mode} {call} {count}\n")
        self.process.stdin.flush()
        return sum(self._answer("seconds")) / count

    def try_modes(self, call: str) -> dict[str, float]:
        """Seconds in each mode; the first two calls, which build it, left out."""
        seconds = {}
        for mode in MODES:
            self.seconds(mode, call, 2)
            seconds[mode] = self.seconds(mode, call, 2)
        return seconds

    def _answer(self, word: str) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:  # Keras may print something in between
            if line.startswith(word + " "):
                return json.loads(line.removeprefix(word))
        raise SystemExit(f"the Keras process ended with {self.process.wait()} before it answered")


def add_option(parser: argparse.ArgumentParser) -> None:
    """`--keras-python`."""
    parser.add_argument(
        "--keras-python",
        default=os.environ.get("KERAS_PYTHON"),
        help="an interpreter with keras and tensorflow (default: $KERAS_PYTHON); without it the comparison is left out",
    )
