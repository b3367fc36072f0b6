"""Processes are killed in the middle of an epoch under a real torchrun, which starts the others again by itself.

Run as a script, this file is one of the processes: `patchconvnet train`, which counts the images that its weights have
learned from, and dies by its own SIGKILL where it is told to.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from small_runs import LAYER_NORM, assert_same_weights, checkpoint, from_files, kept, step_losses, untimed, write_digits
from torch import Tensor

from patchconvnet import cli
from patchconvnet.training.launch import is_loss_of_a_process
from patchconvnet.training.learner import Learner
from patchconvnet.training.recipe import Recipe

HERE = Path(__file__)
IMAGES, EPOCHS, BATCH = 360, 2, 12  # to train on: 30 steps an epoch, of a batch for 2 and for 3 processes
MARKERS, KILLS = "TEST_MARKERS", "TEST_KILLS"  # "step:rank step:rank": who dies before which step, once


# One of the processes


def count_and_die() -> None:
    """Let the learner's state hold how often each image was learned from, in which epoch."""
    seen = torch.zeros(EPOCHS, 1024, dtype=torch.int64)
    kills = [tuple(map(int, kill.split(":"))) for kill in os.environ.get(KILLS, "").split()]
    update, state, load = Learner.update, Learner.state, Learner.load

    def counting(batches: Iterator[tuple[Tensor, ...]], epoch: int) -> Iterator[tuple[Tensor, ...]]:
        for images, *rest in batches:
            red, green = (images[:, :2].mean((2, 3)) * 255).round().long().unbind(1)
            seen[epoch].index_add_(0, red + 256 * green, torch.ones_like(red))
            yield images, *rest

    def counted_update(self: Learner, batches: Any, step: int, rate: float) -> Any:
        for number, rank in kills:
            marker = Path(os.environ[MARKERS], str(number))
            if (number, rank) == (step, dist.get_rank()) and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return update(self, counting(batches, step // (IMAGES // BATCH)), step, rate)

    def counted_state(self: Learner) -> dict[str, Any]:
        all_of_them = seen.clone()
        dist.all_reduce(all_of_them)
        return {**state(self), "seen": all_of_them}

    def counted_load(self: Learner, found: dict[str, Any], origin: str) -> None:
        load(self, found, origin)
        if dist.get_rank() == 0:
            seen.copy_(found["seen"])

    Learner.update, Learner.state, Learner.load = counted_update, counted_state, counted_load  # type: ignore[method-assign,assignment]


# The tests


def recipe(images: Path) -> Recipe:
    return from_files(
        images,
        data={"workers": 1},
        model=LAYER_NORM,
        preprocessing={"mean": (0.0,) * 3, "std": (1.0,) * 3},
        augmentation={"random_crop_padding": 0},
        batch_size=BATCH,
        epochs=EPOCHS,
        checkpoint_every="3 steps",
    )


def torchrun(folder: Path, processes: int, restarts: int = 0, kills: str = "") -> "subprocess.CompletedProcess[str]":
    """A job, started again from outside if it stands still, as docs/faults.md asks for: gloo may not connect again."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    train = [str(HERE), "train", "--device=cpu", "--recipe=recipe.yaml", "--out=run", "--resume=auto"]
    words = [sys.executable, *launcher, f"--max-restarts={restarts}", *train]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", KILLS: kills, MARKERS: str(folder)}
    for _ in range(3):
        with subprocess.Popen(
            words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        ) as job:  # fmt: skip
            try:
                told = job.communicate(timeout=150)
                return subprocess.CompletedProcess(words, job.returncode, *told)
            except subprocess.TimeoutExpired:
                for pid in _family(job.pid):  # torchrun gives its processes sessions of their own
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
    pytest.fail("three jobs in a row stood still")


def _family(pid: int) -> list[int]:
    """A process and all that came from it."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = children.read_text().split() if children.exists() else []
    return [pid, *(each for child in found for each in _family(int(child)))]


@pytest.fixture
def folder(tmp_path: Path, images: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(recipe(images).to_yaml())
    return tmp_path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("images"), IMAGES + 24, ids=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "recipe.yaml").write_text(recipe(images).to_yaml())
    done = torchrun(folder, 2)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


def assert_each_image_once(run: Path) -> None:
    seen = checkpoint(run)["seen"]
    assert seen.sum(1).tolist() == [IMAGES] * EPOCHS
    assert set(seen.unique().tolist()) == {0, 1}
    assert torch.equal(seen[0], seen[1])  # and not those of validation and test


@pytest.mark.slow
def test_a_rank_is_killed_and_the_job_ends_as_if_it_had_not_been(folder: Path, undisturbed: Path) -> None:
    done = torchrun(folder, 2, restarts=4, kills="44:1")  # connecting again may fail, see docs/faults.md
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "44").exists()
    assert "resuming in epoch 2, after 144 of its 360 images" in done.stdout
    assert_same_weights(checkpoint(folder / "run")["model"], checkpoint(undisturbed)["model"])
    assert_same_weights(kept(folder / "run"), kept(undisturbed))
    assert untimed(folder / "run") == untimed(undisturbed)
    for run in (undisturbed, folder / "run"):
        assert_each_image_once(run)


def test_a_lost_process_is_told_from_other_errors() -> None:
    """What gloo said where the first process noticed before torchrun ended it."""
    lost = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:28457"
    assert is_loss_of_a_process(RuntimeError(lost))
    assert is_loss_of_a_process(dist.DistNetworkError("the client socket has timed out"))
    assert not is_loss_of_a_process(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.slow
def test_three_kills_and_another_number_of_processes(folder: Path, undisturbed: Path) -> None:
    for kill in ("5:1", "11:0", "19:1"):
        assert torchrun(folder, 2, kills=kill).returncode == 1
        assert (folder / kill.partition(":")[0]).exists()
    assert checkpoint(folder / "run")["part"]["images"] == 18 * BATCH
    second = torchrun(folder, 3)
    assert second.returncode == 0, second.stderr[-3000:]
    assert "resuming in epoch 1, after 216 of its 360 images" in second.stdout
    assert_each_image_once(folder / "run")
    assert step_losses(folder / "run") == pytest.approx(step_losses(undisturbed), abs=1e-5)


if __name__ == "__main__":
    count_and_die()
    sys.exit(cli.main(sys.argv[1:]))
