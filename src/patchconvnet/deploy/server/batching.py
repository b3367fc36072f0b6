"""Images of different requests share forward passes: what has gathered while one pass runs is the next one.

Nobody waits for a batch to fill: under little load an image goes alone and at once, under much the batches grow.
"""

import asyncio
import contextlib
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from patchconvnet.deploy.server.classifier import Classifier, Outputs, rows_of
from patchconvnet.deploy.server.metrics import Metrics
from patchconvnet.deploy.server.problems import overloaded


@dataclass
class _Waiting:
    """One image's network input, and who waits for what becomes of it."""

    values: np.ndarray
    target: int | None
    top: int
    answer: asyncio.Future[Outputs]
    since: float


class BatchQueue:
    """A bounded queue before one thread that computes.

    Args:
        classifier: that computes.
        batch: images in one forward pass, at most.
        length: images that may wait.
        metrics: that count.
    """

    def __init__(self, classifier: Classifier, batch: int, length: int, metrics: Metrics):
        self._classifier, self._batch, self._length, self._metrics = classifier, batch, length, metrics
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "compute")
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to compute, after one pass that warms up."""
        datatype = {"FP32": np.float32, "UINT8": np.uint8}[self._classifier.signature.datatype]
        shape = [side if side > 0 else 64 for side in self._classifier.signature.input_shape]
        example = np.zeros((1, *shape), datatype)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._classifier.run, example)
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Compute what waits, then end."""
        while self._waiting:
            await asyncio.sleep(0.01)
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._thread.shutdown()

    async def run(self, batch: np.ndarray, target: int | None = None, top: int = 5) -> list[Outputs]:
        """Network inputs (B, …) of one request → the outputs of each.

        Raises:
            Problem: too many images wait.
        """
        if len(self._waiting) + len(batch) > self._length:
            self._metrics.refused.inc()
            raise overloaded()
        loop = asyncio.get_running_loop()
        entries = [_Waiting(values, target, top, loop.create_future(), time.perf_counter()) for values in batch]
        self._waiting.extend(entries)
        self._metrics.queue_length.set(len(self._waiting))
        self._arrived.set()
        try:
            return await asyncio.gather(*(entry.answer for entry in entries))
        finally:
            for entry in entries:  # of a request whose time has run out; those that wait still are not computed
                entry.answer.cancel()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            entries = self._next()
            if not entries:
                self._arrived.clear()
                continue
            self._metrics.batch_images.observe(len(entries))
            began = time.perf_counter()
            for entry in entries:
                self._metrics.queue_seconds.observe(began - entry.since)
            try:
                answers = await loop.run_in_executor(self._thread, self._compute, entries)
            except Exception as error:  # these requests fail, and the server goes on
                for entry in entries:
                    if not entry.answer.done():
                        entry.answer.set_exception(error)
                continue
            self._metrics.batch_seconds.observe(time.perf_counter() - began)
            for entry, answer in zip(entries, answers, strict=True):
                if not entry.answer.done():
                    entry.answer.set_result(answer)

    def _next(self) -> list[_Waiting]:
        """The images that go together: of one shape, in the order in which they came."""
        entries: list[_Waiting] = []
        while self._waiting and len(entries) < self._batch:
            if entries and self._waiting[0].values.shape != entries[0].values.shape:
                break
            entry = self._waiting.popleft()
            if not entry.answer.done():
                entries.append(entry)
        self._metrics.queue_length.set(len(self._waiting))
        return entries

    def _compute(self, entries: list[_Waiting]) -> list[Outputs]:
        classes = sorted({entry.target for entry in entries if entry.target is not None})
        top = max(entry.top for entry in entries)
        outputs = self._classifier.run(np.stack([entry.values for entry in entries]), classes, top)
        return [rows_of(outputs, index) for index in range(len(entries))]
