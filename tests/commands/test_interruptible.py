"""Ctrl-C counts where Python would ignore what it raises."""

import os
import signal
import time

import pytest

from patchconvnet.commands.terminal import interruptible


class Interrupted:
    """An object during whose end Ctrl-C comes."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)


def interrupted() -> None:
    with interruptible():
        one = Interrupted()
        del one
        time.sleep(10)


def test_ctrl_c_is_not_lost_while_an_object_is_finalized() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
