"""Requests share forward passes, are told when too many wait, and none of them hurts another."""

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from patchconvnet.deploy.server.batching import BatchQueue
from patchconvnet.deploy.server.budget import Budget
from patchconvnet.deploy.server.classifier import Outputs, Signature, listed_classes
from patchconvnet.deploy.server.metrics import Metrics
from patchconvnet.deploy.server.problems import Problem


class Counting:
    """Answers each image with its own values, as slowly as the test wants, and keeps what it was asked."""

    signature = Signature("image", "FP32", (1,), 1, 1)

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.may_go = threading.Event()
        self.asked: list[tuple[list[int], int]] = []

    def run(self, batch: np.ndarray, classes: Sequence[int] = (), top: int = 5) -> Outputs:
        if self.batches or batch.any():
            self.may_go.wait(10)
        self.batches.append(batch.ravel().tolist())
        self.asked.append((list(classes), top))
        if (batch == 13).any():
            raise RuntimeError("unlucky")
        return {"logits": batch}


def queue_of(classifier: Counting, batch: int = 4, length: int = 6) -> BatchQueue:
    return BatchQueue(classifier, batch, length, Metrics())  # type: ignore[arg-type]


def image(value: float, side: int = 1) -> np.ndarray:
    return np.full((1, side), value, np.float32)


def test_what_gathers_during_a_pass_is_the_next_one() -> None:
    async def work() -> None:
        classifier = Counting()
        queue = queue_of(classifier)
        await queue.start()
        first = asyncio.create_task(queue.run(image(1)))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(queue.run(image(k), target=k, top=k)) for k in range(2, 8)]
        await asyncio.sleep(0.05)
        with pytest.raises(Problem) as full:
            await queue.run(image(9))
        assert full.value.status == 503
        classifier.may_go.set()
        answers = await asyncio.gather(first, *others)
        assert [float(one[0]["logits"][0]) for one in answers] == [1, 2, 3, 4, 5, 6, 7]
        assert classifier.batches[1:] == [[1], [2, 3, 4, 5], [6, 7]]
        assert classifier.asked[2:] == [([2, 3, 4, 5], 5), ([6, 7], 7)]
        await queue.stop()

    asyncio.run(work())


def test_a_pass_that_fails_fails_its_requests_only() -> None:
    async def work() -> None:
        classifier = Counting()
        classifier.may_go.set()
        queue = queue_of(classifier)
        await queue.start()
        with pytest.raises(RuntimeError, match="unlucky"):
            await queue.run(image(13))
        assert (await queue.run(image(2)))[0]["logits"] == 2
        await queue.stop()

    asyncio.run(work())


def test_who_has_given_up_is_not_computed() -> None:
    async def work() -> None:
        classifier = Counting()
        queue = queue_of(classifier)
        await queue.start()
        first = asyncio.create_task(queue.run(image(1)))
        await asyncio.sleep(0.05)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.run(image(2)), 0.1)
        last = asyncio.create_task(queue.run(image(3)))
        classifier.may_go.set()
        await asyncio.gather(first, last)
        assert [2.0] not in classifier.batches
        await queue.stop()

    asyncio.run(work())


def test_shapes_do_not_mix_and_all_is_finished_at_the_end() -> None:
    async def work() -> None:
        classifier = Counting()
        queue = queue_of(classifier)
        await queue.start()
        tasks = [asyncio.create_task(queue.run(image(k, side))) for k, side in ((1, 1), (2, 2), (3, 1))]
        await asyncio.sleep(0.05)
        classifier.may_go.set()
        await asyncio.gather(*tasks)
        await queue.stop()
        assert classifier.batches[1:] == [[1], [2, 2], [3]]

    asyncio.run(work())


def test_a_budget_is_shared_and_waited_for() -> None:
    async def work() -> None:
        budget, order = Budget(10), []

        async def hold(name: str, count: int, seconds: float) -> None:
            async with budget.share(count):
                order.append(name)
                assert budget.used <= 10
                await asyncio.sleep(seconds)

        await asyncio.gather(hold("a", 6, 0.05), hold("b", 6, 0.01), hold("c", 99, 0.01), hold("d", 4, 0.2))
        assert budget.used == 0
        assert order[0] == "a"
        assert sorted(order) == ["a", "b", "c", "d"]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), budget.share(10), budget.share(1):
                pass
        assert budget.used == 0
        assert budget.take(10)
        assert not budget.take(1)

    asyncio.run(work())


def test_classes_of_a_request_are_those_that_it_would_have_alone() -> None:
    logits = np.array([0.0, 5, 3, 4, 1])
    assert listed_classes(logits, None, 2) == [1, 3]
    assert listed_classes(logits, 0, 2) == [0, 1, 3]
    assert listed_classes(logits, 1, 2) == [1, 2, 3]  # as explain() does
    assert listed_classes(logits, None, 99) == [0, 1, 2, 3, 4]
