"""Checkpoints written in the background: training goes on as soon as the state has been copied."""

import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from patchconvnet.errors import UserError


class CheckpointWriter:
    """Writes one checkpoint at a time, in a thread of its own.

    Args:
        write: writes a state to its file, whole or not at all.
    """

    def __init__(self, write: Callable[[Any], None]):
        self._write = write
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def begin(self, state: dict[str, Any]) -> None:
        """Copy a state and write it in the background; waits for the one before.

        Raises:
            UserError: the one before could not be written.
        """
        self.wait()
        self._pending = self._thread.submit(self._write, copied(state))

    def wait(self) -> None:
        """Return when what was begun is on the disk.

        Raises:
            UserError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for what was begun, whatever else went wrong.

        Warns:
            UserWarning: it could not be written.
        """
        try:
            self.wait()
        except UserError as error:
            warnings.warn(str(error), stacklevel=2)
        finally:
            self._thread.shutdown()


def copied(state: Any) -> Any:
    """A copy of nested dicts, lists and tuples whose tensors are in main memory and stay as they are."""
    if isinstance(state, Tensor):
        return state.detach().clone() if state.device.type == "cpu" else state.detach().cpu()
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(copied(value) for value in state)
    return state
