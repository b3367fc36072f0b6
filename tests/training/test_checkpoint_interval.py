"""When a checkpoint within an epoch is due."""

import pytest
from small_runs import micro

from patchconvnet.errors import UserError
from patchconvnet.training.checkpoint_interval import CheckpointClock, CheckpointInterval


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10min", CheckpointInterval(seconds=600)),
        ("90s", CheckpointInterval(seconds=90)),
        ("1.5 h", CheckpointInterval(seconds=5400)),
        ("500 steps", CheckpointInterval(steps=500)),
        ("1 step", CheckpointInterval(steps=1)),
    ],
)
def test_times_and_steps(text: str, expected: CheckpointInterval) -> None:
    assert CheckpointInterval.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "10", "0min", "-1 steps", "1.5 steps", "5 days", "min", "1e400s", "9" * 400 + "s"]
)
def test_what_is_neither_is_refused_in_words(text: str) -> None:
    with pytest.raises(UserError, match=r"checkpoint_every is .*; give a time such as 10min, 90s or 2h, a number of s"):
        micro(checkpoint_every=text)


def test_steps_are_counted_from_the_beginning_of_the_epoch() -> None:
    clock = CheckpointClock(CheckpointInterval(steps=3), agree=lambda wait: wait)
    assert [done for done in range(1, 11) if clock.is_due(done)] == [3, 6, 9]
    never = CheckpointClock(None, agree=lambda wait: wait)
    assert not any(never.is_due(done) for done in range(1, 11))


@pytest.mark.parametrize("step_seconds", [0.1, 1.0, 40.0, 2000.0])
def test_in_time_on_every_process_after_few_questions(step_seconds: float) -> None:
    """The second process's clock is wrong by a factor; it follows the first's, and seldom asks."""
    now, answers = 0.0, list[int]()

    def record(wait: int) -> int:
        answers.append(wait)
        return wait

    interval = CheckpointInterval(seconds=600)
    first = CheckpointClock(interval, record, lambda: now)
    second = CheckpointClock(interval, lambda wait: answers[-1], lambda: 7 * now)
    due, steps = list[float](), int(6000 / step_seconds)
    for done in range(1, steps + 1):
        now += step_seconds
        saves = first.is_due(done)
        assert second.is_due(done) == saves
        if saves:
            due.append(now)
            first.restart()
            second.restart()
    gaps = [after - before for before, after in zip([0.0, *due], due, strict=False)]
    assert len(due) >= 3
    assert all(600 - 1e-6 <= gap <= 600 + 2 * step_seconds for gap in gaps)
    assert len(answers) <= 30 * len(due)
