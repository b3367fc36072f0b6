"""Checkpoints written in the background: what is written is what was, and what goes wrong is said."""

import threading
import time
from typing import Any

import pytest
import torch

from patchconvnet.errors import UserError
from patchconvnet.training.checkpoint_writer import CheckpointWriter, copied


def test_what_is_written_is_what_was_there_when_it_began() -> None:
    written, may_go_on = list[Any](), threading.Event()

    def write(state: Any) -> None:
        assert may_go_on.wait(10)
        written.append(state)

    writer = CheckpointWriter(write)
    weights = torch.ones(3, requires_grad=True)
    state = {"model": {"a": weights}, "groups": [{"lr": 1.0}], "place": (1, 2)}
    writer.begin(state)
    with torch.no_grad():
        weights.zero_()  # the loop goes on while it is written
    state["groups"][0]["lr"] = 0.0
    may_go_on.set()
    writer.wait()
    writer.close()
    assert written[0]["model"]["a"].tolist() == [1, 1, 1]
    assert not written[0]["model"]["a"].requires_grad
    assert (written[0]["groups"], written[0]["place"]) == ([{"lr": 1.0}], (1, 2))


def test_memory_layouts_are_kept() -> None:
    weights = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert copied([weights])[0].stride() == weights.stride()


def test_one_at_a_time_and_the_end_waits() -> None:
    at_once, most = 0, 0

    def write(state: Any) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.05)
        at_once -= 1

    writer = CheckpointWriter(write)
    for _ in range(3):
        writer.begin({})
    writer.close()
    assert (at_once, most) == (0, 1)


def test_a_failure_is_raised_when_it_is_asked_for_and_said_at_the_end() -> None:
    def write(state: Any) -> None:
        raise UserError("the disk is full")

    writer = CheckpointWriter(write)
    writer.begin({})
    with pytest.raises(UserError, match="the disk is full"):
        writer.begin({})
    writer.wait()  # said once
    writer.begin({})
    with pytest.warns(UserWarning, match="the disk is full"):
        writer.close()
