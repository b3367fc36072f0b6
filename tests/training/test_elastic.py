"""Processes, and a whole node, are killed in the middle of an epoch under a real torchrun, which starts all again.

Run as a script, this file is one of the processes: `patchconvnet train`, which counts the images that its weights have
learned from, and dies by its own SIGKILL where it is told to, or waits there to be killed.
"""

import contextlib
import faulthandler
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
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
STANDSTILL = 100  # seconds after which a process says where it stands, and ends
WAITS = "TEST_WAITS"  # the same, for who is killed by others


# One of the processes


def count_and_die() -> None:
    """Let the learner's state hold how often each image was learned from, in which epoch."""
    seen = torch.zeros(EPOCHS, 1024, dtype=torch.int64)
    ends = [(*map(int, end.split(":")), how) for how in (KILLS, WAITS) for end in os.environ.get(how, "").split()]
    update, state, load = Learner.update, Learner.state, Learner.load

    def counting(batches: Iterator[tuple[Tensor, ...]], epoch: int) -> Iterator[tuple[Tensor, ...]]:
        for images, *rest in batches:
            red, green = (images[:, :2].mean((2, 3)) * 255).round().long().unbind(1)
            seen[epoch].index_add_(0, red + 256 * green, torch.ones_like(red))
            yield images, *rest

    def counted_update(self: Learner, batches: Any, step: int, rate: float) -> Any:
        for number, rank, how in ends:
            marker = Path(os.environ[MARKERS], str(number))
            if (number, rank) == (step, dist.get_rank()) and not marker.exists():
                marker.touch()
                if how == WAITS:
                    time.sleep(600)
                os.kill(os.getpid(), signal.SIGKILL)
        return update(self, counting(batches, step // (IMAGES // BATCH)), step, rate)

    def counted_state(self: Learner, parts: Path | None = None) -> dict[str, Any]:
        all_of_them = seen.clone()
        dist.all_reduce(all_of_them)
        return {**state(self, parts), "seen": all_of_them}

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


TRAIN = [str(HERE), "train", "--device=cpu", "--recipe=recipe.yaml", "--out=run", "--resume=auto"]


def torchrun(folder: Path, processes: int, restarts: int = 0, kills: str = "") -> "subprocess.CompletedProcess[str]":
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [sys.executable, *launcher, f"--max-restarts={restarts}", *TRAIN],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1", KILLS: kills, MARKERS: str(folder)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


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
def test_ranks_are_killed_and_the_job_ends_as_if_they_had_not_been(folder: Path, undisturbed: Path) -> None:
    done = torchrun(folder, 2, restarts=2, kills="11:0 44:1")  # not one restart more than kills
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "11").exists()
    assert (folder / "44").exists()
    assert [line for line in done.stdout.splitlines() if line.startswith("resuming")] == [
        "resuming in epoch 1, after 108 of its 360 images",
        "resuming in epoch 2, after 144 of its 360 images",
    ]
    assert_same_weights(checkpoint(folder / "run")["model"], checkpoint(undisturbed)["model"])
    assert_same_weights(kept(folder / "run"), kept(undisturbed))
    assert untimed(folder / "run") == untimed(undisturbed)
    for run in (undisturbed, folder / "run"):
        assert_each_image_once(run)


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """Two network namespaces with a cable between them, 10.203.0.1 and 10.203.0.2."""
    names = [f"patchconvnet-{os.getpid()}-{end}" for end in "ab"]
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and the program ip")
    try:
        for name in names:
            made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
            if made.returncode:
                pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
        ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "address", "add", f"10.203.0.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            lose(name)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def lose(node: str) -> None:
    """Kill all that runs on a node."""
    found = subprocess.run(["ip", "netns", "pids", node], capture_output=True, text=True)
    for pid in found.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def node_torchrun(nodes: list[str], number: int, folder: Path, log: str) -> "subprocess.Popen[bytes]":
    """One of the two launchers; the first node has the rendezvous, and learns in 3 seconds of a node that is lost."""
    rendezvous = f"is_host={1 - number},keep_alive_interval=1,keep_alive_max_attempt=3,join_timeout=120"
    options = [
        "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=test",
        "--rdzv-endpoint=10.203.0.1:29400", f"--rdzv-conf={rendezvous}", f"--local-addr=10.203.0.{number + 1}",
    ]  # fmt: skip
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", WAITS: "44:1", MARKERS: str(folder), "GLOO_SOCKET_IFNAME": "eth0",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }  # fmt: skip
    with (folder / log).open("wb") as output:
        return subprocess.Popen(
            ["ip", "netns", "exec", nodes[number], sys.executable, "-m", "torch.distributed.run", *options, *TRAIN],
            cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip


@pytest.mark.slow
def test_a_node_is_lost_and_comes_back(nodes: list[str], folder: Path, undisturbed: Path) -> None:
    first, second = (node_torchrun(nodes, number, folder, f"log {number}") for number in range(2))
    deadline = time.monotonic() + 120
    while not (folder / "44").exists() and time.monotonic() < deadline:
        assert first.poll() is second.poll() is None, (folder / "log 0").read_text()[-3000:]
        time.sleep(0.05)
    assert (folder / "44").exists()
    lose(nodes[1])
    assert second.wait(10) == -signal.SIGKILL
    again = node_torchrun(nodes, 1, folder, "log 1 again")
    for node, log in ((again, "log 1 again"), (first, "log 0")):
        assert node.wait(200) == 0, (folder / log).read_text()[-3000:]
    logs = {path.name: path.read_text() for path in folder.glob("log *")}
    assert "resuming in epoch 2, after 144 of its 360 images" in logs["log 0"]
    for name, log in logs.items():
        if "Timeout (" in log:  # see docs/faults.md
            warnings.warn(f"{name}: a process stood still and was started again\n{log}", stacklevel=1)
    assert_same_weights(checkpoint(folder / "run")["model"], checkpoint(undisturbed)["model"])
    assert_same_weights(kept(folder / "run"), kept(undisturbed))
    assert untimed(folder / "run") == untimed(undisturbed)
    assert_each_image_once(folder / "run")


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
    faulthandler.dump_traceback_later(STANDSTILL, exit=True)
    count_and_die()
    sys.exit(cli.main(sys.argv[1:]))
