"""How often a training is saved in the middle of an epoch: `10min`, `500 steps`."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from patchconvnet.errors import UserError, shortened

_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_LARGEST = 1_000_000_000  # steps or units of time: more than any training has
_MOST_STEPS_UNASKED = 1000  # between two looks at the clock


@dataclass(frozen=True)
class CheckpointInterval:
    """An interval in steps or in seconds; the other one is None."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> "CheckpointInterval":
        """`10min`, `90s`, `2h` or `500 steps`.

        Raises:
            UserError: it is none of these.
        """
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|steps?)\s*", text)
        if found and 0 < float(found[1]) <= _LARGEST:
            if found[2] in _SECONDS:
                return cls(seconds=float(found[1]) * _SECONDS[found[2]])
            if "." not in found[1]:
                return cls(steps=int(found[1]))
        raise UserError(
            f"checkpoint_every is {shortened(text)}; give a time such as 10min, 90s or 2h, a number of steps such as "
            "'500 steps', or null for checkpoints at the ends of epochs only"
        )


class CheckpointClock:
    """Says after which steps a checkpoint is due; all processes get the same answer.

    Args:
        interval: None for never.
        agree: gives every process the first one's number. With an interval in time it is called every so many steps,
            fewer as the time comes near.
        clock: a time in seconds that is never set back.
    """

    def __init__(
        self,
        interval: CheckpointInterval | None,
        agree: Callable[[int], int],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._interval, self._agree, self._clock = interval or CheckpointInterval(), agree, clock
        self._asked = 0
        self.restart()

    def restart(self) -> None:
        """Count from now on: a checkpoint has been made."""
        self._begun = self._looked = self._clock()
        self._until_look = 1

    def is_due(self, done: int) -> bool:
        """Whether to save after a step.

        Args:
            done: steps of the epoch that are done.
        """
        if self._interval.steps is not None:
            return done % self._interval.steps == 0
        if self._interval.seconds is None:
            return False
        self._until_look -= 1
        if self._until_look > 0:
            return False
        now = self._clock()
        step_seconds = max((now - self._looked) / max(self._asked, 1), 1e-6)
        left = self._interval.seconds - (now - self._begun)
        wait = 0 if left <= 0 else min(max(int(left / 2 / step_seconds), 1), _MOST_STEPS_UNASKED)
        self._asked = self._until_look = self._agree(wait)
        self._looked = now
        return self._until_look == 0
