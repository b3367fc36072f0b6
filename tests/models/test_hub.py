"""Downloads: the first of several files, the cache, and servers that do not answer."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from patchconvnet import UserError
from patchconvnet.models import hub


def test_the_first_file_that_is_there(hub_server: Any) -> None:
    hub_server.repositories["someone/apples"] = {"pytorch_model.bin": b"old", "config.json": b"{}"}
    path = hub.fetch("someone/apples", "model.safetensors", "pytorch_model.bin")
    assert path.read_bytes() == b"old"
    assert hub.fetch("someone/apples@" + "1" * 40, "config.json").read_bytes() == b"{}"
    with pytest.raises(UserError, match=r"someone/apples on the hub has no model\.safetensors or b\.bin, so it is no"):
        hub.fetch("someone/apples", "model.safetensors", "b.bin")
    with pytest.raises(UserError, match="there is no folder 'someone/pears', and no such model to be had from the hub"):
        hub.fetch("someone/pears", "config.json")
    with pytest.raises(UserError, match="neither a folder nor a hub id"):
        hub.fetch("some one/pears", "config.json")


def test_what_is_in_the_cache_needs_no_hub(
    hub_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    hub_server.repositories["someone/apples"] = {"config.json": b"{}"}
    path = hub.fetch("someone/apples", "config.json")
    request.getfixturevalue("silent_hub")
    monkeypatch.setattr(hub, "LIMIT", 0.5)
    assert hub.fetch("someone/apples", "config.json") == path
    request.getfixturevalue("unreachable_hub")
    assert hub.fetch("someone/apples", "config.json") == path


def test_a_silent_hub_holds_nobody(
    silent_hub: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub, "LIMIT", 3.0)
    start = time.monotonic()
    with pytest.raises(hub.Unreachable) as caught, caplog.at_level(logging.WARNING):
        hub.fetch("someone/apples", "config.json")
    assert 3 <= time.monotonic() - start < 5
    assert f"waited 3 seconds for {silent_hub} to send config.json of someone/apples, and nothing came" in str(
        caught.value
    )
    assert f"waiting for {silent_hub} to send config.json" in caplog.text


def test_a_download_that_goes_on_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "LIMIT", 0.4)

    def slow() -> str:
        with open(tmp_path / "file.incomplete", "wb", buffering=0) as file:
            for _ in range(10):
                time.sleep(0.15)
                file.write(b"more")
        return "done"

    assert hub.patiently(slow, "a slow server", tmp_path) == "done"


def test_errors_of_the_work_are_raised(tmp_path: Path) -> None:
    def broken() -> None:
        raise OSError("no route to host")

    with pytest.raises(OSError, match="no route to host"):
        hub.patiently(broken, "a broken server", tmp_path)


LOAD = "import patchconvnet; patchconvnet.load('someone/apples')"


@pytest.mark.slow
def test_a_word_after_two_seconds_and_an_end_at_once(silent_hub: str, tmp_path: Path) -> None:
    """In a process of its own: what a person sees, and Ctrl-C while the server is silent."""
    environment = {**os.environ, "HF_ENDPOINT": silent_hub, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    process = subprocess.Popen([sys.executable, "-c", LOAD], env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    word = process.stderr.readline()
    assert re.match(f"waiting for {silent_hub} to send config.json of someone/apples", word)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert time.monotonic() - start < 17  # of the twenty that it would wait; ending Python takes up to twelve when busy
    assert process.returncode != 0
