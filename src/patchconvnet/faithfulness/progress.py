"""What an audit will take, estimated before it starts, and how far it is: a bar on a terminal, lines elsewhere."""

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from torch import Tensor, nn

from patchconvnet.faithfulness.methods import Method
from patchconvnet.faithfulness.metrics import Metric
from patchconvnet.faithfulness.passes import answers
from patchconvnet.faithfulness.settings import AuditSettings
from patchconvnet.progress_bar import progress_bar

SECONDS_BETWEEN_LINES = 10.0
SHARE_BETWEEN_LINES = 0.05
TRUSTED_SHARE = 0.05  # of the work, after which its own pace is a better guide than the estimate


@dataclass(frozen=True)
class Cost:
    """Estimated seconds.

    Attributes:
        prediction: for an image.
        maps: for an image, by method: the map and what is measured on it.
        mosaics: for a mosaic, by cells of its side and method.
        repeated: for an image, by method: what is measured on many maps of it.
    """

    prediction: float = 0.0
    maps: dict[str, float] = field(default_factory=dict)
    mosaics: dict[int, dict[str, float]] = field(default_factory=dict)
    repeated: dict[str, float] = field(default_factory=dict)

    def total(self, predicted: int, explained: int, mosaics: int, repeated: int) -> float:
        """For so many images and mosaics of each size."""
        return (
            predicted * self.prediction
            + explained * sum(self.maps.values())
            + mosaics * sum(sum(costs.values()) for costs in self.mosaics.values())
            + repeated * sum(self.repeated.values())
        )

    def of(self, results: Iterable[tuple[Any, ...]]) -> float:
        """Of results that are there already, by their keys (kind, method, cells, image)."""
        found = 0.0
        for kind, method, cells, _ in results:
            if kind == "prediction":
                found += self.prediction
            elif kind == "mosaics":
                found += self.mosaics.get(cells, {}).get(method, 0.0)
            else:
                found += (self.maps if kind == "maps" else self.repeated).get(method, 0.0)
        return found


def seconds_of_a_pass(model: nn.Module, images: Tensor, forward_batch: int = 256) -> float:
    """Measured: one forward pass of one image among (B, C, H, W), as an audit makes many, after one to warm up."""
    spent = []
    for _ in range(2):
        start = time.perf_counter()
        answers(model, images, forward_batch)
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        spent.append(time.perf_counter() - start)
    return min(spent) / len(images)


def estimated_cost(
    second: float,
    slow_second: float,
    size: tuple[int, int],
    settings: AuditSettings,
    methods: Sequence[Method],
    metrics: Sequence[Metric],
) -> Cost:
    """Passes, counted, times the seconds of one.

    Args:
        second: that `seconds_of_a_pass` measured of the network as it is asked.
        slow_second: the same of the network that gives gradients.
        size: (height, width) of the network input.
    """
    options = settings.options
    by_stage = {
        stage: [metric for metric in metrics if metric.stage == stage] for stage in ("maps", "mosaics", "repeated")
    }
    asked = sum(metric.passes(settings.steps) for metric in by_stage["maps"])
    solved = sum(metric.seconds_per_pixel for metric in by_stage["maps"]) * size[0] * size[1]
    maps = sum(metric.maps for metric in by_stage["repeated"])
    made = {
        method.name: method.passes(options) * (slow_second if method.differentiates else second) for method in methods
    }  # seconds of a map
    return Cost(
        prediction=second,
        maps={method.name: made[method.name] + second * asked + solved for method in methods},
        mosaics={
            n: {
                method.name: made[method.name] * n * n * (1 if method.all_classes_at_once else n * n)
                for method in methods
            }
            for n in sorted({metric.cells for metric in by_stage["mosaics"]})
        },
        repeated={method.name: made[method.name] * maps for method in methods if maps and settings.robust(method.name)},
    )


class Progress:
    """How far an audit is, and the time left.

    Args:
        show: whether to write anything.
        cost: what its parts are estimated to take.
        total: seconds that all of it is estimated to take; may be set until it starts.
        console: where to write; standard output by default.
    """

    def __init__(self, show: bool, cost: Cost, total: float = 0.0, console: Console | None = None):
        self.cost, self.total, self.done = cost, total, 0.0
        self.show = show
        self.console = console or Console(highlight=False)
        self.started = self.written = self.advanced = time.monotonic()
        self.written_share = 0.0
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.clock = threading.Thread(target=self._tick, daemon=True)
        self.there = 0.0
        self.doing = ""
        self.bar = progress_bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            shown=show,
        )
        self.task = self.bar.add_task("", total=total, left="")

    def started_after(self, there: float) -> Self:
        """For an audit that is continued: work of that cost is there already."""
        self.there = min(there, self.total)
        return self

    def __enter__(self) -> Self:
        if self.show:
            rest = ", for what is not measured yet" if self.there else ""
            self.console.print(f"estimated time: {duration(self.total - self.there)}{rest}", soft_wrap=True)
        self.started = self.written = self.advanced = time.monotonic()
        self.bar.start()
        if self.show:
            self.clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        if self.show:
            self.clock.join()
        self.bar.stop()

    def at(self, doing: str) -> None:
        """Say what is being done."""
        self.doing = doing
        self._write()

    def advance(self, cost: float) -> None:
        """Work of that cost was done."""
        self.done = min(self.done + cost, self.total)
        self.advanced = time.monotonic()
        self._write()

    def skip(self, cost: float) -> None:
        """Work of that cost is there already, or can't be done."""
        self.total = max(self.total - cost, self.done)
        self._write()

    @property
    def seconds_left(self) -> float:
        """By the pace so far; by the estimate while too little is done to know the pace."""
        left = self.total - self.done
        if self.done < TRUSTED_SHARE * self.total or not self.done:
            return left
        at_this_pace = (self.advanced - self.started) / self.done * left
        return max(at_this_pace - (time.monotonic() - self.advanced), 0.0)

    def _tick(self) -> None:
        """Write while one thing takes long, such as the maps of a method of many passes."""
        while not self.over.wait(SECONDS_BETWEEN_LINES):
            self._write()

    def _write(self) -> None:
        with self.lock:
            self._write_alone()

    def _write_alone(self) -> None:
        left = f"{duration(self.seconds_left)} left"
        self.bar.update(self.task, description=self.doing, total=self.total, completed=self.done, left=left)
        if not self.show or self.console.is_terminal:
            return
        now, share = time.monotonic(), self.done / self.total if self.total else 1.0
        if now - self.written >= SECONDS_BETWEEN_LINES or share - self.written_share >= SHARE_BETWEEN_LINES:
            self.written, self.written_share = now, share
            self.console.print(f"{share:4.0%}  {self.doing}, {left}", soft_wrap=True)


def duration(seconds: float) -> str:
    """In words: "less than a second", "12 s", "3 min", "2 h 5 min"."""
    if seconds < 1:
        return "less than a second"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
