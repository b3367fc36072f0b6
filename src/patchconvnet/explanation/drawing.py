"""Processes that write explanations' figures and overlays beside the network; they load neither torch nor a network."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from patchconvnet.errors import OF_ONE_IMAGE, UserError

if TYPE_CHECKING:
    from patchconvnet.explanation.explanation import Explanation, Saved

MOST_PROCESSES = 64
SECONDS_TO_END = 5.0  # at most, in which a process takes its unfinished file away


def check_processes(asked: int | Literal["auto"]) -> None:
    """Refuse what is not a number of processes.

    Raises:
        UserError: it is below 0, or too large for any machine.
    """
    if asked != "auto" and not 0 <= asked <= MOST_PROCESSES:
        raise UserError(f"workers is {asked}; give a number from 0 to {MOST_PROCESSES}, or auto")


def usable_cores() -> int:
    """Cores that this process may run on, at most `MOST_PROCESSES`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_PROCESSES)


class Drawing:
    """One explanation that is being written."""

    def __init__(self, outcome: "Future[Any] | Any"):
        self._outcome = outcome

    @property
    def done(self) -> bool:
        """Whether `result` would not wait."""
        return not isinstance(self._outcome, Future) or self._outcome.done()

    def result(self) -> "Saved":
        """The files that were written; waits for them.

        Raises:
            UserError: as `Explanation.save`; or the process was ended from outside.
        """
        outcome = self._outcome
        if isinstance(outcome, Future):
            try:
                outcome = outcome.result()
            except BrokenProcessPool as error:
                raise UserError(
                    "a process that draws was ended from outside, perhaps because memory ran out; try --workers 0"
                ) from error
        if isinstance(outcome, _Failure):
            raise outcome.error from outcome.cause
        return outcome


class Drawers:
    """Processes that save explanations; `drawers` makes them and ends them."""

    def __init__(self, pool: ProcessPoolExecutor | None):
        self._pool = pool

    def save(self, explanation: "Explanation", *arguments: Any, **options: Any) -> Drawing:
        """`Explanation.save`, in another process where there are some, and at once where there are none."""
        if self._pool is None:
            return Drawing(_save(explanation, *arguments, **options))
        drawn = replace(explanation, forward_pass=None)  # of which the network is a part
        try:
            return Drawing(self._pool.submit(_save, drawn, *arguments, **options))
        except BrokenProcessPool as error:
            broken: Future[Any] = Future()
            broken.set_exception(error)
            return Drawing(broken)


@contextlib.contextmanager
def drawers(processes: int) -> Iterator[Drawers]:
    """Processes for as long as this lasts; at its end, they finish what they were given, or end at once on an error.

    They are made by a server process where there is one to be had, since a process with threads cannot be copied
    safely, and load what drawing needs while the network is loaded here.

    Args:
        processes: how many; 0 draws in this one.
    """
    if not processes:
        yield Drawers(None)
        return
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["patchconvnet.explanation.figures"])
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin)
    try:
        for _ in range(processes):
            pool.submit(os.getpid)  # starts one
        yield Drawers(pool)
        pool.shutdown()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        ours = set(multiprocessing.active_children()) - others
        for process in ours:
            process.terminate()
        for process in ours:
            process.join(SECONDS_TO_END)
        raise


class _Failure:
    """An error on its way to another process; pickling alone would lose its cause."""

    def __init__(self, error: Exception):
        self.error, self.cause = error, error.__cause__


class _Ended(BaseException):
    """The process is to end, once the unfinished file is away."""


_is_saving = False


def _save(explanation: "Explanation", *arguments: Any, **options: Any) -> Any:
    global _is_saving
    try:
        _is_saving = True
        return explanation.save(*arguments, **options)
    except OF_ONE_IMAGE as error:
        return _Failure(error)
    except _Ended:
        os._exit(1)
    finally:
        _is_saving = False


def _begin() -> None:
    """Load what drawing needs; Ctrl-C is the first process's to answer, and without that nobody works on."""
    import patchconvnet.explanation.figures  # noqa: F401

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end(*_: Any) -> None:
    if _is_saving:
        raise _Ended
    os._exit(1)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
