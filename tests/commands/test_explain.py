"""A folder's images, explained beside the processes that draw them: the same words and files, an end at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from patchconvnet.cli import main
from patchconvnet.models import Metadata

COUNT = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = timm.create_model("patchconvnet_micro", num_classes=3)
    network.metadata = Metadata(class_names=["a", "b", "c"], preprocessing={"size": [32, 32]})
    return network.save_pretrained(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for k in range(COUNT):
        Image.fromarray(generator.integers(0, 256, (40 + k, 48, 3), dtype=np.uint8)).save(path / f"{k:02d}.png")
    (path / "05b.png").write_text("no image")
    return path


def test_processes_change_neither_words_nor_files(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {}
    for workers in ("0", "2"):
        words = ["explain", str(folder), "--model", str(model), "--only", "json,overlay", "--without", "0,0,20,20"]
        assert main([*words, "--workers", workers, "--out", str(tmp_path / workers)]) == 0
        said[workers] = capsys.readouterr().out.replace(str(tmp_path / workers), "OUT")
    assert said["0"] == said["2"]
    assert f"1 of {COUNT + 1} images could not be explained" in said["2"]
    explained = [line for line in said["2"].splitlines() if "→" in line]
    assert [Path(line.split(":")[0]).stem for line in explained] == [f"{k:02d}" for k in range(COUNT)]
    names = sorted(path.name for path in (tmp_path / "0").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "2").iterdir())
    assert len(names) == 2 * COUNT + 1
    for name in names:
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_a_file_that_cannot_be_written_is_counted(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "07.json").mkdir()  # in the way of one image only
    words = ["explain", str(folder), "--model", str(model), "--only", "json", "--out", str(tmp_path)]
    assert main([*words, "--workers", "2"]) == 0
    assert f"2 of {COUNT + 1} images could not be explained" in capsys.readouterr().out
    assert main([*words, "--workers", "2", "--strict"]) == 2
    assert "05b.png is not a readable image" in capsys.readouterr().err
    assert main([*words, "--workers", "many"]) == 2
    assert "--workers: expected a whole number or one of auto, not" in capsys.readouterr().err
    assert main([*words, "--workers=-1"]) == 2
    assert "workers is -1" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_ends_at_once_and_leaves_no_process(model: Path, folder: Path, tmp_path: Path) -> None:
    many, out = tmp_path / "many", tmp_path / "out"
    many.mkdir()
    for k in range(300):  # it is not done before the signal comes
        os.link(folder / "00.png", many / f"{k:03d}.png")
    words = ["explain", str(many), "--model", str(model), "--out", str(out), "--workers", "2"]
    command = [sys.executable, "-m", "patchconvnet", *words]
    began = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert began.stdout is not None
    while "→" not in (line := began.stdout.readline()):
        assert line
    interrupted = time.perf_counter()
    os.killpg(began.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, err = began.communicate(timeout=60)
    assert began.returncode == 130
    assert err.strip() == "patchconvnet: interrupted"
    assert time.perf_counter() - interrupted < 20
    for _ in range(100):
        try:
            os.killpg(began.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("a process is left")
    assert not list(out.glob(".*.part"))
