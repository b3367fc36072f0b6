"""Killed at any moment, a run goes on and ends with the bits of one that nobody touched."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from small_runs import assert_same_weights, checkpoint, kept, micro, rows, run, step_losses, untimed

from patchconvnet.training.recipe import Recipe

DEAD = 77  # exit code of a process that dies on purpose


def assert_same_run(one: Path, other: Path) -> None:
    assert_same_weights(kept(one), kept(other))
    assert_same_weights(checkpoint(one)["model"], checkpoint(other)["model"])
    assert untimed(one) == untimed(other)
    assert files(one) == files(other)


def files(folder: Path) -> list[str]:
    """All of a run's but TensorBoard's, of which every start has one of its own."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "tfevents" not in path.name)


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.is_file()]


def epochs_done(folder: Path) -> int:
    return len(rows(folder)) if (folder / "metrics.csv").is_file() else 0


def one_thread() -> dict[str, str]:
    """As this process has, since sums over other numbers of threads round otherwise."""
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}


@pytest.mark.slow
def test_a_real_process_killed_at_random_moments(tmp_path: Path) -> None:
    recipe = micro(
        epochs=40,  # some seconds more than the last kill needs, on a busy machine too
        model={"options": {"drop_path_rate": 0.1}},
        augmentation={"cutout": 3},
        monitor={"every": 15},
        optimization={"ema_decay": 0.9},
    )
    untouched = run(recipe, tmp_path / "untouched")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    folder = tmp_path / "run"
    train = [sys.executable, "-m", "patchconvnet", "train", "--accelerator", "cpu", "--out", "run", "--resume", "auto"]
    chance = random.Random(2)
    moments = [(0, 0.3), *((epoch, chance.uniform(0, 0.4)) for epoch in sorted(chance.sample(range(1, 11), 2)))]
    for (epoch, delay), kind in zip(moments, (signal.SIGKILL, signal.SIGKILL, signal.SIGINT), strict=True):
        process = subprocess.Popen(
            [*train, "--recipe", "recipe.yaml"],
            cwd=tmp_path,
            env=one_thread(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # a shell's background job, which the tests may be, has its children ignore Ctrl-C
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        begun = folder / "recipe.yaml"  # before the first epoch there is nothing else to wait for
        while process.poll() is None and not (begun.is_file() and epochs_done(folder) >= epoch):
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(kind)
        _, errors = process.communicate(timeout=120)
        assert epochs_done(folder) < recipe.epochs, "too late to kill it"
        if kind == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 130, errors
            assert errors == "\npatchconvnet: interrupted; continue with: patchconvnet train --resume auto --out run\n"
    last = subprocess.run(train, cwd=tmp_path, env=one_thread(), capture_output=True, text=True, timeout=600)
    assert last.returncode == 0, last.stderr
    assert last.stderr == ""
    assert "resuming after epoch" in last.stdout
    assert_same_run(folder, untouched)


def dying(recipe: Recipe, folder: Path, before: int) -> None:
    """Train, and die without a word before the `before`-th file is put into its place."""
    count = 0
    replace = os.replace

    def counting(*arguments: os.PathLike[str]) -> None:
        nonlocal count
        count += 1
        if count == before:
            os._exit(DEAD)
        replace(*arguments)

    os.replace = counting  # type: ignore[assignment]
    run(recipe, folder, resume="auto")


def exit_code_of_dying(recipe: Recipe, folder: Path, before: int) -> int | None:
    # not a fork of this process, whose autograd may have threads by now
    clean = multiprocessing.get_context("forkserver")
    clean.set_forkserver_preload(["small_runs"])
    process = clean.Process(target=dying, args=(recipe, folder, before))
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.slow
def test_killed_before_every_single_file(tmp_path: Path) -> None:
    recipe = micro(optimization={"optimizer": "muon", "learning_rate": 0.01, "fallback_learning_rate": 0.03})
    untouched = run(recipe, tmp_path / "untouched")
    before = 1
    while exit_code_of_dying(recipe, folder := tmp_path / str(before), before) == DEAD:
        assert 1 <= len(leftovers(folder)) <= 2  # a model folder's files are both there before one is renamed
        run(recipe, folder, resume="auto")
        assert_same_run(folder, untouched)
        assert len(step_losses(folder)) >= 18
        before += 1
    assert_same_run(folder, untouched)
    assert before > 9  # the recipe, three checkpoints, three tables, a model folder's two files


@pytest.mark.slow
def test_leftovers_do_not_pile_up(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for before in (3, 3, 3, 1):
        assert exit_code_of_dying(micro(), folder, before) == DEAD
        assert len(leftovers(folder)) == 1
    run(micro(), folder, resume="auto")
    assert not leftovers(folder)
