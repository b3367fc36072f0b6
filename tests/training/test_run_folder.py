"""Run folders: one training at a time, damage that is noticed, and runs made longer."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_runs import MICRO, assert_same_weights, checkpoint, kept, micro, rows, run, untimed

from patchconvnet import files
from patchconvnet.data import datasets
from patchconvnet.errors import UserError
from patchconvnet.training import run_folder
from patchconvnet.training.optimization import learning_rate
from patchconvnet.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs whose best one is made to be the second."""
    folder = run(MICRO, tmp_path_factory.mktemp("finished"))
    state = checkpoint(folder)
    state["best_epoch"] = 1
    torch.save(state, folder / "checkpoints" / "last.ckpt")
    config = json.loads((folder / "best" / "config.json").read_text())
    config["metrics"]["epoch"] = 2
    (folder / "best" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """The run, with its last checkpoint alone."""
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    (copy / "checkpoints" / "previous.ckpt").unlink()
    return copy


# One training at a time


def training(cwd: Path) -> subprocess.Popen[str]:
    command = ["train", "--accelerator", "cpu", "--out", "run", "--resume", "auto", "--recipe", "recipe.yaml"]
    return subprocess.Popen(
        [sys.executable, "-m", "patchconvnet", *command],
        cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_a_second_training_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(micro(epochs=4000).to_yaml())
    first = training(tmp_path)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file() and time.monotonic() < deadline:
            assert first.poll() is None, first.communicate()
            time.sleep(0.05)
        second = training(tmp_path)
        said, errors = second.communicate(timeout=120)
        assert second.returncode == 2, said
        assert errors.startswith(f"patchconvnet: another training (process {first.pid} on ")
        assert "is writing into run; wait for its end" in errors
        assert errors.count("\n") == 1
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    folder = RunFolder(tmp_path / "run")
    folder.open(micro(epochs=4000), "yes")  # the dead one's lock is gone with it
    folder.close()


def test_without_locks_there_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    folder = RunFolder(tmp_path / "run")
    with pytest.warns(UserWarning, match="has no file locks .*, so nothing keeps a second training"):
        folder.open(MICRO, "no")
    folder.close()


# Damage


def test_a_finished_run_with_a_damaged_model_is_not_called_good(folder: Path) -> None:
    weights = folder / "best" / "model.safetensors"
    whole = weights.read_bytes()
    for content in (b"ab", whole[:5000], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
        weights.write_bytes(content)
        with pytest.raises(
            UserError, match=r"model\.safetensors .*; the checkpoint holds epoch 3, not the best one, 2\."
        ):
            run(MICRO, folder, resume="yes")
        assert weights.read_bytes() == content


def test_a_damaged_model_is_followed_by_the_best_of_later_epochs(folder: Path) -> None:
    (folder / "best" / "model.safetensors").write_bytes(b"ab")
    with pytest.warns(UserWarning, match="The best of the epochs that follow is kept instead"):
        run(micro(epochs=4), folder, resume="yes")
    assert json.loads((folder / "best" / "config.json").read_text())["metrics"]["epoch"] == 4
    assert kept(folder)


def flip_a_bit_of_the_weights(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content = bytearray(file.read_bytes())
    content[largest.header_offset + largest.file_size // 2] ^= 0x40
    file.write_bytes(content)


def test_a_flipped_bit_in_the_checkpoint_is_noticed(folder: Path) -> None:
    flip_a_bit_of_the_weights(folder / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt is damaged \(the checksum of .*; begin a new run"):
        run(MICRO, folder, resume="yes")


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_damaged_checkpoint_is_followed_by_the_one_before(damage: str, tmp_path: Path) -> None:
    """And the good one is not given up for the damaged one when the next is written."""
    recipe = micro(checkpoint_every="4 steps")  # so that the one before is of the middle of the last epoch
    whole = run(recipe, tmp_path / "whole")
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    last, previous = (folder / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    assert torch.load(previous, weights_only=True)["part"]["images"] == 4 * 64
    if damage == "flipped":
        flip_a_bit_of_the_weights(last)
    else:
        last.unlink()
    before = previous.read_bytes()
    opened = RunFolder(folder)
    opened.open(recipe, "yes")
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged \(.*\); going on from the one before it, .*previous"):
        _, state = opened.load_checkpoint()
    opened.save_checkpoint(state)
    assert previous.read_bytes() == before
    opened.close()
    last.write_bytes(last.read_bytes()[:5000])
    with pytest.warns(UserWarning, match="going on from the one before it"):
        run(recipe, folder, resume="yes")
    assert_same_weights(checkpoint(folder)["model"], checkpoint(whole)["model"])
    assert_same_weights(kept(folder), kept(whole))
    assert untimed(folder) == untimed(whole)


def test_both_checkpoints_damaged(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    for name in ("last", "previous"):
        flip_a_bit_of_the_weights(folder / "checkpoints" / f"{name}.ckpt")
    with pytest.raises(
        UserError, match=r"last\.ckpt is damaged .*, and .*previous\.ckpt is damaged .*; begin a new run"
    ):
        run(MICRO, folder, resume="yes")


def test_times_of_files_and_of_the_clock_decide_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(micro(epochs=2), tmp_path / "whole")
    folder = run(micro(epochs=1), tmp_path / "run")
    previous = shutil.copy(finished / "checkpoints" / "last.ckpt", folder / "checkpoints" / "previous.ckpt")
    os.utime(folder / "checkpoints" / "last.ckpt", (0, 0))  # the newest is the oldest by its time
    os.utime(previous, (4e9, 4e9))
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() - 20 * 365 * 86400)  # the clock is set back by 20 years
    run(micro(epochs=2), folder, resume="yes")
    assert [row["epoch"] for row in rows(folder)] == ["1", "2"]
    assert checkpoint(folder)["epoch"] == checkpoint(whole)["epoch"] == 2
    assert float(rows(folder)[1]["seconds"]) > float(rows(folder)[0]["seconds"])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda s: s["model"].update({"head.bias": torch.zeros(3)}),
            r"does not fit the network: it has 'head.bias' of",
        ),
        (lambda s: s["model"].pop("head.bias"), "does not fit the network: it lacks 'head.bias'"),
        (lambda s: s["model"]["head.bias"].fill_(torch.nan), "is damaged: head.bias has values that are not finite"),
        (lambda s: s.update(optimizer={"state": {}, "param_groups": []}), "does not fit this run's optimizer"),
        (lambda s: s.pop("optimizer"), "does not fit this run's optimizer"),
        (lambda s: s.pop("history"), "is damaged .'history'"),
        (lambda s: s.update(epoch="three"), "is damaged .epoch is of type str"),
        (lambda s: s.update(epoch=2), "is damaged .it holds 3 rows of 2 epochs"),
        (lambda s: s.clear(), "is damaged"),
    ],
)
def test_a_checkpoint_of_something_else_is_a_sentence(damage: object, words: str, folder: Path) -> None:
    state = checkpoint(folder)
    damage(state)  # type: ignore[operator]
    torch.save(state, folder / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match=words):
        run(MICRO, folder, resume="yes")


class Payload:
    """Unpickled, it would make a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_what_is_pickled_in_a_checkpoint_is_not_run(folder: Path, tmp_path: Path) -> None:
    state, file = checkpoint(folder), tmp_path / "made by the payload"
    torch.save({**state, "threads": Payload(file)}, folder / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt is damaged"):
        run(MICRO, folder, resume="yes")
    assert not file.exists()
    torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False)
    assert file.exists()  # it would have been


def test_an_image_replaced_under_its_name_is_noticed(tmp_path: Path) -> None:
    for i in range(12):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (i, 0, 0)).save(path)
    before = datasets.load(f"folder:{tmp_path / 'images'}", validation=2, test=2).fingerprint()
    assert datasets.load(f"folder:{tmp_path / 'images'}", validation=2, test=2).fingerprint() == before
    Image.new("RGB", (40, 40), (99, 0, 0)).save(tmp_path / "images" / "a" / "0.bmp")  # of the same size in bytes
    after = datasets.load(f"folder:{tmp_path / 'images'}", validation=2, test=2).fingerprint()
    changed = {name for name in before if before[name] != after[name]} - {"all contents"}
    assert len(changed) == 1
    assert changed < {"train contents", "validation contents", "test contents"}
    assert before["all contents"] != after["all contents"]


def test_it_says_how_many_images_were_read(tmp_path: Path) -> None:
    counts = json.loads((run(micro(), tmp_path / "run") / "reading.json").read_text())
    assert counts["read"] + counts["skipped"] + counts["failed"] == counts["total"] > 0


# Longer runs


def test_a_finished_run_can_be_made_longer(finished: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    longer = micro(epochs=5)
    run(longer, folder, resume="yes")
    assert "the run's length changes from 3 to 5 epochs: the learning rate follows the schedule of 5" in (
        capsys.readouterr().out
    )
    table = rows(folder)
    assert table[:3] == rows(finished)
    for row in table[3:]:
        expected = learning_rate(longer.optimization, int(row["step"]) - 1, 5 * 6)
        assert float(row["learning_rate"]) == pytest.approx(expected)
    assert checkpoint(folder)["extensions"] == [[3, 5]]
    assert run_folder.read_recipe(folder / "recipe.yaml").epochs == 5
    metadata = json.loads((folder / "best" / "config.json").read_text())
    if metadata["metrics"]["epoch"] > 3:
        assert metadata["provenance"]["extensions"] == [[3, 5]]
    run(longer, folder, resume="yes")
    assert "this run is finished, with epoch 5 of 5" in capsys.readouterr().out
    with pytest.raises(UserError, match="has done 5 epochs, and 4 are asked for; give --epochs 5 or more"):
        run(micro(epochs=4), folder, resume="yes")
