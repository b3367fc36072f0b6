"""Many image files explained: they are decoded ahead in threads, while the network answers for a batch of them.

A batch is answered a few images at a time on each core's thread: no core waits for another within a pass.
What cannot be read or explained takes its own place in the answers, and nobody else's.
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from patchconvnet.errors import OF_ONE_IMAGE
from patchconvnet.explanation.explainer import Opened, Question, answer, open_image
from patchconvnet.explanation.explanation import Explanation
from patchconvnet.explanation.refining import batch_size_for
from patchconvnet.hardware import Threads
from patchconvnet.models.passes import for_each, images_at_once

MOST_HELD = 64_000_000  # pixels of images as they were, decoded and waiting: 192 MB


def explain_files(
    model: nn.Module,
    paths: Sequence[Path],
    names: Sequence[str],
    question: Question,
    *,
    readers: int = 1,
    threads: Threads | None = None,
) -> Iterator[Explanation | Exception]:
    """One answer for each file, in their order: its explanation, or what stood in the way.

    Args:
        model: the network.
        paths: the files.
        names: what to call each image.
        question: what is asked of all.
        readers: threads that decode, each of which computes on one core.
        threads: is told how long batches take.
    """
    *_, like = model.parameters()
    preprocessing = question.preprocessing
    batch_size = batch_size_for(*preprocessing.size)
    few = images_at_once(torch.empty(1, preprocessing.channels, *preprocessing.size, device=like.device), batch_size)
    if like.device.type == "cpu":
        batch_size = max(batch_size, few * torch.get_num_threads())  # that each core has some
    room = _Room(MOST_HELD)
    with readers_on_one_core(readers) as ahead, closing(room):
        reading: deque[Future[Opened]] = deque()
        waiting, place = iter(zip(paths, names, strict=True)), 0
        batch: list[Opened | Exception] = []
        while True:
            while len(reading) < 2 * batch_size and (file := next(waiting, None)) is not None:
                reading.append(ahead.submit(_read, room, place + len(reading), *file, question))
            if reading:
                batch.append(_result(reading.popleft(), room, place))
                place += 1
            opened = [each for each in batch if isinstance(each, Opened)]
            if not reading or len(opened) == batch_size or sum(map(_pixels, opened)) >= MOST_HELD:
                if threads:
                    threads.begin()
                parts = _divided(opened, few)
                answered = for_each(lambda part: _answers(model, part, question), parts, like.device)
                answers = (one for part in answered for one in part)
                if threads and len(opened) == batch_size:
                    threads.step()
                yield from (next(answers) if isinstance(each, Opened) else each for each in batch)
                batch = []
            if not reading:
                return


class _Room:
    """For so many pixels: who would add more waits, unless all others wait for what it brings."""

    def __init__(self, most: int):
        self._most, self._held = most, 0
        self._needed: float = 0  # the place of the one that is waited for
        self._changed = threading.Condition()

    def enter(self, place: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._held < self._most or place <= self._needed)

    def add(self, pixels: int) -> None:
        with self._changed:
            self._held += pixels
            self._changed.notify_all()

    def need(self, place: float) -> None:
        with self._changed:
            self._needed = place
            self._changed.notify_all()

    def close(self) -> None:
        """Let everybody in: nobody takes anything out any more."""
        self.need(float("inf"))


@contextmanager
def readers_on_one_core(readers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that decode; torch computes on one core in each, as otherwise each would have a team of its own.

    The number is a thread's own, but for that of some matrix products, which this thread sets again. At the end what
    has not begun is given up.
    """
    ahead = ThreadPoolExecutor(readers, thread_name_prefix="reader")
    before, ready = torch.get_num_threads(), threading.Barrier(readers + 1)

    def alone() -> None:
        torch.set_num_threads(1)
        ready.wait()

    try:
        for _ in range(readers):
            ahead.submit(alone)
        ready.wait()
        torch.set_num_threads(before)
        yield ahead
    finally:
        ahead.shutdown(wait=False, cancel_futures=True)


def _read(room: _Room, place: int, path: Path, name: str, question: Question) -> Opened:
    room.enter(place)
    opened = open_image(path, question, None, name)
    room.add(_pixels(opened))
    return opened


def _result(reading: "Future[Opened]", room: _Room, place: int) -> Opened | Exception:
    room.need(place)
    try:
        opened = reading.result()
    except OF_ONE_IMAGE as error:
        return error
    room.add(-_pixels(opened))
    return opened


def _divided(opened: list[Opened], most: int) -> list[list[Opened]]:
    """Images in parts, in order, of at most as many network inputs, or of one image where it has more by itself."""
    parts: list[list[Opened]] = []
    inputs = most
    for one in opened:
        if inputs + len(one.crops) > most:
            parts.append([])
            inputs = 0
        parts[-1].append(one)
        inputs += len(one.crops)
    return parts


def _pixels(opened: Opened) -> int:
    return opened.image.width * opened.image.height


def _answers(model: nn.Module, opened: list[Opened], question: Question) -> list[Any]:
    """Explanations; where the batch fails each image is asked alone, so that only the faulty ones are errors."""
    try:
        return list(answer(model, opened, question))
    except OF_ONE_IMAGE as error:
        return [error] if len(opened) == 1 else [one for each in opened for one in _answers(model, [each], question)]
