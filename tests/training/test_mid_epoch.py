"""Stopped in the middle of an epoch, a run goes on with the next image and ends with the bits of an undisturbed one."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import (
    assert_same_weights,
    checkpoint,
    from_files,
    kept,
    micro,
    rows,
    run,
    step_losses,
    untimed,
    write_digits,
)

from patchconvnet.data.sources.shard_files import Format
from patchconvnet.data.sources.shards import write_shards
from patchconvnet.errors import UserError
from patchconvnet.training.learner import Learner
from patchconvnet.training.recipe import Recipe
from patchconvnet.training.termination import Terminated, Termination

RECIPES = {
    "everything random": micro(
        model={"options": {"drop_path_rate": 0.2, "drop_rate": 0.2}},
        augmentation={"cutout": 3, "random_erasing": 0.3, "mixup": 0.4, "flip": "alternating"},
        optimization={"ema_decay": 0.9, "accumulate": 2, "clip_gradient": 1.0},
        checkpoint_every="4 steps",
    ),
    "muon": micro(
        optimization={"optimizer": "muon", "learning_rate": 0.01, "fallback_learning_rate": 0.03},
        checkpoint_every="1 step",
    ),
    "lamb in bfloat16": micro(optimization={"optimizer": "lamb"}, precision="bf16-mixed", checkpoint_every="3 steps"),
}


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, how: Any) -> None:
    """Do something before a step, counted from 0 over the whole run."""
    update = Learner.update

    def stopping(learner: Learner, batches: Any, number: int, rate: float) -> Any:
        if number == step:
            how()
        return update(learner, batches, number, rate)

    monkeypatch.setattr(Learner, "update", stopping)


def interrupt() -> None:
    raise KeyboardInterrupt


def assert_same_run(one: Path, other: Path) -> None:
    assert_same_weights(checkpoint(one)["model"], checkpoint(other)["model"])
    assert_same_weights(kept(one), kept(other))
    assert untimed(one) == untimed(other)


@pytest.mark.parametrize("name", list(RECIPES))
def test_stopped_within_epochs_it_ends_with_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, folder = RECIPES[name], tmp_path / "run"
    whole = run(recipe, tmp_path / "whole")
    for step in (5, 10):  # of 6 an epoch: once in the first, once in the second
        with monkeypatch.context() as patch:
            stop_at(patch, step, interrupt)
            with pytest.raises(KeyboardInterrupt):
                run(recipe, folder, resume="auto")
        assert checkpoint(folder)["part"]["images"] > 0
    run(recipe, folder, resume="yes")
    assert "resuming in epoch 2, after " in capsys.readouterr().out
    assert_same_run(folder, whole)
    assert step_losses(folder) == step_losses(whole)  # TensorBoard has those from before the interruption too
    assert checkpoint(folder)["part"] == {}


def test_checkpoints_within_epochs_change_nothing(tmp_path: Path) -> None:
    without, every = (
        run(micro(checkpoint_every=often, model={"options": {"drop_path_rate": 0.2}}), tmp_path / str(often))
        for often in (None, "1 step")
    )
    assert_same_run(without, every)


@pytest.mark.slow
def test_workers_have_no_part_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped with one number of reader processes, continued with another: bit for bit, since they draw no numbers."""

    images = write_digits(tmp_path / "images", 96)

    def recipe(workers: int) -> Recipe:
        augmentation = {"randaugment": "rand-m9-mstd0.5-inc1", "flip": "random"}
        data = {"workers": workers}
        return from_files(images, data=data, augmentation=augmentation, epochs=2, checkpoint_every="2 steps")

    whole, folder = run(recipe(2), tmp_path / "whole"), tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 3, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(recipe(1), folder)
    run(recipe(0), folder, resume="yes")
    assert_same_run(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["tar", "litdata"])
def test_from_shards_it_ends_with_the_bits_of_a_run_from_files(
    format: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip({"tar": "braceexpand", "litdata": "litdata"}[format])
    images = write_digits(tmp_path / "images", 96)
    write_shards(f"folder:{images}", tmp_path / "shards", images_per_shard=20, format=format)
    name = f"{'wds' if format == 'tar' else 'litdata'}:{tmp_path / 'shards'}"

    def recipe(workers: int) -> Recipe:
        return from_files(images, data={"name": name, "workers": workers}, epochs=2, checkpoint_every="2 steps")

    whole, folder = run(from_files(images, epochs=2), tmp_path / "whole"), tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 3, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(recipe(2), folder)
    run(recipe(1), folder, resume="yes")
    assert_same_run(folder, whole)


def test_other_images_are_not_gone_on_with_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = micro(checkpoint_every="4 steps")
    stop_at(monkeypatch, 5, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path)
    state = checkpoint(tmp_path)
    state["part"]["images"] += 1
    torch.save(state, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match="holds 257 images of an epoch of 6 steps of 64; resume it with as many proc"):
        run(recipe, tmp_path, resume="yes")


def test_weights_that_are_not_numbers_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = micro(checkpoint_every="1 step")
    update = Learner.update

    def spoiling(learner: Learner, batches: Any, number: int, rate: float) -> Any:
        result = update(learner, batches, number, rate)
        if number == 3:
            next(learner.plain.parameters()).data.fill_(torch.nan)
        return result

    monkeypatch.setattr(Learner, "update", spoiling)
    with pytest.raises(
        UserError, match=r"not finite numbers after epoch 1, step 4; the checkpoint is that of epoch 1, st"
    ):
        run(recipe, tmp_path)
    assert checkpoint(tmp_path)["part"]["images"] == 3 * 64
    assert all(value.isfinite().all() for value in checkpoint(tmp_path)["model"].values())


# SIGTERM


def test_sigterm_saves_the_step_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, before = micro(checkpoint_every=None), signal.getsignal(signal.SIGTERM)
    whole = run(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 8, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Terminated) as ended:
            run(recipe, tmp_path / "run")
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert (checkpoint(tmp_path / "run")["epoch"], checkpoint(tmp_path / "run")["part"]["images"]) == (1, 3 * 64)
    run(recipe, tmp_path / "run", resume="yes")
    assert_same_run(tmp_path / "run", whole)


def test_a_sigterm_that_reader_processes_get_too_is_no_error() -> None:
    """torchrun and SLURM send it to all of them, and torch's loader then raises an error in the first one's place."""

    def get_it() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            raise RuntimeError("DataLoader worker (pid 14897) is killed by signal: Terminated.")

    with pytest.raises(Terminated), Termination():
        get_it()
    with pytest.raises(RuntimeError, match="something else"), Termination():
        raise RuntimeError("something else")


def test_training_in_a_thread_leaves_signals_alone(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run, args=(micro(epochs=1), tmp_path))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(rows(tmp_path)) == 1


@pytest.mark.slow
def test_a_real_sigterm_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(micro(epochs=4000, checkpoint_every="2 steps").to_yaml())
    command = [sys.executable, "-m", "patchconvnet", "train", "--recipe=recipe.yaml", "--device=cpu", "--out=run"]
    training = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints" / "previous.ckpt").is_file() and time.monotonic() < deadline:
        assert training.poll() is None, training.communicate()
        time.sleep(0.05)
    training.send_signal(signal.SIGTERM)
    _, errors = training.communicate(timeout=60)
    assert training.returncode == 143
    assert errors == "\npatchconvnet: ended by SIGTERM; continue with: patchconvnet train --resume auto --out run\n"
    assert checkpoint(tmp_path / "run")["epoch"] > 0 or checkpoint(tmp_path / "run")["part"]
    assert not list((tmp_path / "run").rglob("*.part"))
