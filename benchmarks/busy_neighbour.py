"""Training step of the Keras example's network beside one busy process, by how threads wait and how many there are.

    python benchmarks/busy_neighbour.py [--keras-python PATH]

Each way is a process of its own, since OpenMP reads how its threads wait when torch loads it; their steps are timed in
turn, first with the machine quiet and then with a process beside them that keeps one core busy. Keras 3 + TensorFlow,
in its fastest mode of the quiet machine, takes turns with them.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import keras_process
import torch
from measuring import arguments, race, ratio, report, row, seconds

AIM = 2.2  # times the quiet step
AHEAD = 1.3  # of Keras, beside the same process
OURS = "GOMP_SPINCOUNT=0, threads auto"  # as `patchconvnet train` does it
WAYS = {"spinning": None, "GOMP_SPINCOUNT=0": "0"}
COUNTS = ("1", "2", "auto")


class Way:
    """A process that makes training steps when it is asked to.

    Args:
        spincount: GOMP_SPINCOUNT; None leaves the system's.
        threads: a number or auto, which is measured again before every turn.
        steps: of a turn.
    """

    def __init__(self, spincount: str | None, threads: str, steps: int):
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
        }
        if spincount is not None:
            environment["GOMP_SPINCOUNT"] = spincount
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--way", threads, "--steps", str(steps)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.threads: list[int] = []  # of each turn

    def step(self) -> float:
        """Mean seconds of a turn's steps, without the measurement that comes before."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        took, threads = self._answer()
        self.threads.append(threads)
        return took

    def close(self) -> None:
        """End the process."""
        self.process.communicate()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process ended with {self.process.wait()} before it answered")
        return json.loads(line)


def work(threads: str, steps: int) -> None:
    """What the process of one way does: a turn for each line that it is sent."""
    from example_training import network, training_step

    from patchconvnet.hardware import Threads, fastest_dtype, keep_freed_memory

    keep_freed_memory()
    torch.manual_seed(0)
    step = training_step(network(), fastest_dtype(torch.device("cpu")))
    all_threads = torch.get_num_threads()
    for _ in sys.stdin:
        torch.set_num_threads(all_threads)
        count = Threads("auto" if threads == "auto" else int(threads), say=lambda line: None).count
        times = race({"step": step}, steps, warm_up=1)
        print(json.dumps([seconds(times)["step"], count]), flush=True)


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    """A process that computes for as long as this one is there."""
    process = subprocess.Popen([sys.executable, "-c", "import os; me = os.getppid()\nwhile os.getppid() == me: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--way", choices=COUNTS, help="make the steps of one way (for this script's own use)")
    parser.add_argument("--steps", type=int, default=3, help="of a turn, after one that is not timed")
    keras_process.add_option(parser)
    a = parser.parse_args()
    if a.way:
        work(a.way, a.steps)
        return
    load = os.getloadavg()[0]
    ways = {f"{wait}, threads {count}": Way(spin, count, a.steps) for wait, spin in WAYS.items() for count in COUNTS}
    contenders: dict[str, Callable[[], float]] = {name: way.step for name, way in ways.items()}
    about: dict[str, Any] = {}
    if a.keras_python:
        keras = keras_process.KerasNetwork(a.keras_python, a.threads)
        modes = keras.try_modes("step")
        about = {"versions": keras.about, "Keras' modes, seconds": modes}
        contenders["Keras"] = partial(keras.seconds, min(modes, key=modes.__getitem__), "step", a.steps)
    times = race({f"quiet: {name}": turn for name, turn in contenders.items()}, a.rounds, warm_up=0)
    with neighbour():
        times |= race({f"beside: {name}": turn for name, turn in contenders.items()}, a.rounds, warm_up=0)
    for way in ways.values():
        way.close()
    what = "training step of the example's network beside a busy process"
    rows = [
        row(
            what,
            f"the quiet step on two threads: {name}",
            AIM if name == OURS else None,
            ratio(times, f"beside: {name}", "quiet: GOMP_SPINCOUNT=0, threads 2"),
            at_most=True,
        )
        for name in ways
    ]
    ahead = ratio(times, "beside: Keras", f"beside: {OURS}") if a.keras_python else keras_process.MISSING
    rows.append(row(what, "Keras' fastest mode beside one", AHEAD, ahead))
    if a.keras_python:
        slower = ratio(times, "beside: Keras", "quiet: Keras")
        rows.append(row(what, "the quiet step: Keras' fastest mode", None, slower, at_most=True))
    facts = {"threads of each turn": {name: way.threads for name, way in ways.items()}, "load before": load} | about
    report(rows, seconds(times), facts)


if __name__ == "__main__":
    main()
