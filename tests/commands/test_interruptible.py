"""Ctrl-C counts where Python would ignore what it raises."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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


def test_ctrl_c_during_an_import_leaves_no_semaphores_behind(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    script = (
        "import multiprocessing\n"
        "from patchconvnet.commands.terminal import interruptible\n"
        "with interruptible():\n"
        "    queue = multiprocessing.get_context('spawn').Queue()\n"
        "    import slow\n"
    )
    began = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert began.stdout is not None
    assert began.stdout.readline() == "importing\n"
    began.send_signal(signal.SIGINT)
    _, errors = began.communicate(timeout=60)
    assert began.returncode == 130
    assert errors.strip() == "patchconvnet: interrupted"
