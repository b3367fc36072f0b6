"""SIGTERM, with which schedulers end a job: a training of one process saves itself first, others finish a write."""

import signal
import threading
from types import FrameType
from typing import Any, Self

EXIT_CODE = 128 + signal.SIGTERM


class Terminated(SystemExit):
    """A training was ended by SIGTERM."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class Termination:
    """While it is entered SIGTERM raises `Terminated` at once, or sets `requested` where `deferred` is set.

    A second SIGTERM is not deferred. What goes wrong while `Terminated` is on its way, such as the end of reader
    processes that got the signal too, is left unsaid. Outside of the main thread, which alone gets signals, nothing is
    changed.
    """

    def __init__(self) -> None:
        self.deferred = self.requested = self._raised = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        if self._raised and kind is not None and not issubclass(kind, Terminated):
            raise Terminated from None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.deferred or self.requested:
            self._raised = True
            raise Terminated
        self.requested = True
