"""Real processes: outputs that cannot encode, a full disk, nobody who reads, Ctrl-C at once, closed folders."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hostile_files import make

pytestmark = pytest.mark.slow
ENCODINGS = ("cp1252", "latin-1", "ascii", "cp437", "utf-16")
COMMANDS = (
    ["--help"],
    ["train", "--help"],
    ["models"],
    ["explain", "images/good.png", "images/日本.png", "--model", "model", "--only", "json"],
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("terminals")
    make(root)
    return root


def run(world: Path, words: list[str], **options: object) -> "subprocess.CompletedProcess[bytes]":
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": world, "timeout": 300, **options}
    return subprocess.run([sys.executable, "-m", "patchconvnet", *words], check=False, **settings)  # type: ignore[call-overload]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_what_an_encoding_lacks_is_written_otherwise(
    world: Path, tmp_path: Path, words: list[str], encoding: str
) -> None:
    words = [*words, "--out", str(tmp_path)] if words[0] == "explain" else words
    done = run(world, words, env={**os.environ, "PYTHONIOENCODING": encoding})
    output = (done.stdout + done.stderr).decode(encoding, "replace")
    assert done.returncode == 0, output
    assert "Traceback" not in output
    assert "->" in output or "→" in output or words[0] != "explain"


def test_a_training_ends_well_in_ascii(world: Path, tmp_path: Path) -> None:
    words = ["train", "--recipe", "recipes/small.yaml", "--out", str(tmp_path / "run")]
    done = run(world, words, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert b"16x16 pixels" in done.stdout


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["models", "--help"], ["models"]])
def test_a_full_disk_is_a_sentence(world: Path, words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = run(world, words, stdout=full)
    assert done.returncode == 2
    assert done.stderr.decode() == "patchconvnet: cannot write: No space left on device\n"


def test_nobody_who_reads_is_no_mistake(world: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run(world, ["--help"], stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.5, 2.5, 4.0])
@pytest.mark.parametrize("words", [["explain", "images/good.png", "--model", "model"], ["models"]], ids=lambda w: w[0])
def test_ctrl_c_ends_at_once(world: Path, tmp_path: Path, words: list[str], seconds: float) -> None:
    words = [*words, "--out", str(tmp_path)] if words[0] == "explain" else words
    process = subprocess.Popen(
        [sys.executable, "-m", "patchconvnet", *words], cwd=world, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode in (0, 130), told  # it may have been ready
    assert b"Traceback" not in told
    assert process.returncode == 0 or told == b"\npatchconvnet: interrupted\n"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to act as another user")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "--model", "model", "--data", "folder:data/closed"], "cannot open the folder data/closed/b"),
        (["explain", "data/closed", "--model", "model"], "cannot open the folder data/closed/b"),
        (["explain", "images/good.png", "--model", "model", "--out", "no_entry"], "cannot write to no_entry"),
    ],
)
def test_a_closed_folder_is_called_closed(tmp_path: Path, words: list[str], said: str) -> None:
    world = tmp_path / "world"
    make(world)
    (world / "data" / "flat").rename(world / "data" / "closed")
    (world / "data" / "closed" / "b").chmod(0)
    (world / "no_entry").mkdir(mode=0o700)
    for folder in (tmp_path, *tmp_path.parents):
        if not os.stat(folder).st_mode & 0o001:
            pytest.skip(f"another user may not enter {folder}")
    words = words if "--out" in words else [*words, "--out", "elsewhere"]
    done = run(world, words, user=65534)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr.decode()
    assert b"Traceback" not in done.stderr
