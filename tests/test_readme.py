"""Every command and every Python snippet that the README shows is typed as it stands."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


# those of the blocks, then those within a sentence
COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
COMMANDS += re.findall(r"`(patchconvnet [^`]+)`", README)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a reader has: a photograph of a cat, and images of two classes (crops of photographs)."""
    folder = tmp_path_factory.mktemp("home")
    Image.fromarray(data.chelsea()).save(folder / "cat.jpg")
    for name, photograph in {"cat": data.chelsea(), "cup": data.coffee()}.items():
        (folder / "my_pictures" / name).mkdir(parents=True)
        for i in range(16):
            top, left = 7 * i, 11 * i
            Image.fromarray(photograph[top : top + 180, left : left + 200]).save(
                folder / "my_pictures" / name / f"{i}.png"
            )
    return folder


def run(words: list[str], cwd: Path) -> str:
    result = subprocess.run(
        words,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert result.returncode == 0, f"{shlex.join(words)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def serve(words: list[str], cwd: Path) -> None:
    """A server is started as written, asked for its page and about a photograph, and stopped."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(words, cwd=cwd, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout
            said = server.stdout.readline()
            address = re.search(r"http://[\w.:]+", said)
            assert address, said
            with urllib.request.urlopen(address[0], timeout=60) as page:
                assert b"<html" in page.read()
            photograph = urllib.request.Request(f"{address[0]}/v1/explain", (cwd / "cat.jpg").read_bytes())
            photograph.add_header("Content-Type", "image/jpeg")
            with urllib.request.urlopen(photograph, timeout=60) as answer:
                assert json.load(answer)["classes"][0]["name"] == "cat"
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
    assert server.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_commands_of_the_readme(home: Path) -> None:
    """In their order, since later ones use what earlier ones leave; the resume goes on with a finished run."""
    assert len(COMMANDS) >= 6
    for command in COMMANDS:
        words = shlex.split(command)
        assert words[0] == "patchconvnet"
        if words[1] == "serve":  # it answers until it is told to stop
            serve([sys.executable, "-m", *words], home)
        else:
            run([sys.executable, "-m", *words], home)
    assert (home / "explanations" / "cat_figure.png").stat().st_size > 10_000
    assert (home / "trust" / "report.html").stat().st_size > 10_000
    assert (home / "runs" / "mine" / "best" / "model.safetensors").is_file()
    assert (home / "runs" / "mine" / "checkpoints" / "features.safetensors").is_file()
    assert (home / "report" / "confusion.csv").is_file()
    assert len(list((home / "maps").glob("*.json"))) == 32
    assert (home / "maps" / "contact_sheet.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("snippet", blocks("python"))
def test_snippets_of_the_readme(snippet: str, home: Path) -> None:
    run([sys.executable, "-c", snippet], home)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 90


@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    """`make demo` without its virtual environment, which this test runs in already."""
    printed = run([sys.executable, str(ROOT / "examples" / "demo.py")], tmp_path)
    accuracy = re.search(r"test set.*top-1 ([\d.]+)%", printed)
    assert accuracy, printed
    assert float(accuracy[1]) >= 97
    figures = re.findall(r"^  (demo/\S+)$", printed, re.MULTILINE)
    assert len(figures) >= 5
    for figure in figures:
        assert Image.open(tmp_path / figure).size[0] > 100
