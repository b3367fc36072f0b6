"""What examples/ and the Dockerfile hand over: the container's steps in a plain environment, the unit, the Space."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import RepoCard
from PIL import Image
from skimage import data

from patchconvnet import cli, explain, load

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("model") / "model.onnx"
    assert cli.main(["export", "--model", "cifar10", "--out", str(file), "--preprocessing", "inside"]) == 0
    return file


def instructions(stage: int) -> list[tuple[str, str]]:
    """The words of the Dockerfile's stage, one instruction after the other."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    starts = [i for i, line in enumerate(lines) if line.startswith("FROM")] + [len(lines)]
    return [tuple(line.split(maxsplit=1)) for line in lines[starts[stage] : starts[stage + 1]]]  # type: ignore[misc]


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment that the Dockerfile's first stage makes, by its own RUN lines."""
    folder = tmp_path_factory.mktemp("image")
    build, venv = folder / "build", folder / "venv"
    build.mkdir()
    for word, rest in instructions(0):
        if word == "COPY":
            *sources, target = shlex.split(rest)
            for source in sources:
                into = build / target
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, into, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    into = into / Path(source).name if target.endswith("/") else into
                    into.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(ROOT / source, into)
        elif word == "RUN":
            command = rest.replace("/venv", str(venv)).replace("python -m venv", f"{sys.executable} -m venv")
            done = subprocess.run(command, shell=True, cwd=build, capture_output=True, text=True, timeout=600)
            if done.returncode and "pip install" in command and "--requirement" in command:
                pytest.skip(f"its packages cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
            assert done.returncode == 0, f"{command}\n{done.stderr}"
    return venv


@pytest.fixture(scope="module")
def contained(venv: Path, onnx: Path) -> Iterator[str]:
    """The address of the server that the image would run, by the Dockerfile's own words."""
    run = dict(instructions(1))
    words = [*yaml.safe_load(run["ENTRYPOINT"]), *yaml.safe_load(run["CMD"])]
    words = [str(onnx) if word == "/model.onnx" else "0" if word == "8080" else word for word in words]
    words = ["127.0.0.1" if word == "0.0.0.0" else word for word in words]
    environment = {"PATH": f"{venv}/bin:/usr/bin:/bin", "HOME": "/nonexistent", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        words, env=environment, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        said = ""
        assert process.stdout
        for line in process.stdout:
            said += line
            if found := re.search(r"http://\S+", line):
                break
        else:
            raise AssertionError(said)
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{found[0]}/v2/health/ready", timeout=5)
                break
            except OSError:
                time.sleep(0.1)
        yield found[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()


@pytest.mark.slow
def test_the_images_server_answers_without_pytorch(contained: str, venv: Path, tmp_path: Path) -> None:
    import httpx

    assert not list((venv / "lib").glob("python*/site-packages/torch"))
    Image.fromarray(data.chelsea()).save(tmp_path / "cat.png")
    answer = httpx.post(f"{contained}/v1/explain", files={"image": (tmp_path / "cat.png").read_bytes()}, timeout=60)
    expected = explain(load("cifar10"), tmp_path / "cat.png")
    assert answer.json()["predicted"]["name"] == expected.predicted.name
    assert answer.json()["predicted"]["probability"] == pytest.approx(expected.predicted.probability, abs=1e-4)
    assert "<!doctype html>" in httpx.get(f"{contained}/").text
    assert "# TYPE" in httpx.get(f"{contained}/metrics").text


@pytest.mark.slow
def test_the_images_health_check_sees_the_server_and_its_end(contained: str, venv: Path) -> None:
    (_, check) = dict(instructions(1))["HEALTHCHECK"].split("CMD", 1)
    words = yaml.safe_load(check)
    words[0] = f"{venv}/bin/python"
    words[2] = words[2].replace("http://127.0.0.1:8080", contained)
    assert subprocess.run(words, timeout=30).returncode == 0
    words[2] = words[2].replace(contained, "http://127.0.0.1:9")
    assert subprocess.run(words, capture_output=True, timeout=30).returncode != 0


def test_the_image_is_not_root_and_has_no_pytorch() -> None:
    run = dict(instructions(1))
    assert run["USER"] == "10001:10001"
    requirements = (EXAMPLES / "docker" / "requirements.txt").read_text()
    assert "onnxruntime" in requirements
    assert not re.search(r"^(torch|timm)", requirements, re.M)


def test_compose_starts_the_server_beside_prometheus() -> None:
    services = yaml.safe_load((EXAMPLES / "docker" / "compose.yaml").read_text())["services"]
    server = services["patchconvnet"]
    assert (EXAMPLES / "docker" / server["build"] / "Dockerfile").resolve() == ROOT / "Dockerfile"
    assert server["read_only"]
    assert server["cap_drop"] == ["ALL"]
    (scraped,) = yaml.safe_load((EXAMPLES / "docker" / "prometheus.yml").read_text())["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": ["patchconvnet:8080"]}]
    options = set(re.findall(r"--([\w-]+)", " ".join(server["command"])))
    assert options <= known_options()


def test_the_unit_is_one_and_its_options_exist(tmp_path: Path) -> None:
    text = (EXAMPLES / "patchconvnet.service").read_text()
    (start,) = re.findall(r"^ExecStart=(.*)$", text, re.M)
    assert set(re.findall(r"--([\w-]+)", start)) <= known_options()
    if not shutil.which("systemd-analyze"):
        pytest.skip("there is no systemd-analyze to check the unit with")
    program = start.split()[0]
    (tmp_path / "patchconvnet.service").write_text(text.replace(program, "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "patchconvnet.service")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "patchconvnet.service:" not in done.stderr  # a key or a value that it does not know


def known_options() -> set[str]:
    """The options of `patchconvnet serve`."""
    done = subprocess.run(
        [sys.executable, "-m", "patchconvnet", "serve", "--help"], capture_output=True, text=True, timeout=120
    )
    return set(re.findall(r"--([\w-]+)", done.stdout))


def test_the_spaces_block_is_the_hubs() -> None:
    card = RepoCard.load(EXAMPLES / "space" / "README.md")
    assert card.data.sdk == "gradio"
    assert (EXAMPLES / "space" / card.data.app_file).is_file()
    assert len(card.data.short_description) <= 60


@pytest.mark.slow
def test_the_space_answers(tmp_path: Path) -> None:
    """In an environment of its own on top of this one: gradio asks for an older Pillow."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=120)
    (site,) = (venv / "lib").glob("python*/site-packages")
    outer = [entry for entry in sys.path if entry.endswith("site-packages")]
    (site / "outer.pth").write_text("\n".join([*outer, str(ROOT / "src")]))
    python = str(venv / "bin" / "python")
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "gradio"], capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        pytest.skip(f"gradio cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    Image.fromarray(data.chelsea()).save(tmp_path / "cat.png")
    script = f"""
import sys
sys.path.insert(0, {str(EXAMPLES / "space")!r})
import app
from gradio_client import Client, handle_file
_, url, _ = app.demo.launch(prevent_thread_lock=True, server_name="127.0.0.1", quiet=True)
label, image = Client(url, verbose=False).predict(handle_file("cat.png"), "", "auto", api_name="/answer")
print("ANSWER", label["label"], open(image if isinstance(image, str) else image["path"], "rb").read(4) != b"")
try:
    Client(url, verbose=False).predict(handle_file("cat.png"), "unicorn", "auto", api_name="/answer")
except Exception as error:
    print("ERROR", error)
"""
    environment = {**os.environ, "MODEL": "cifar10", "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert "ANSWER cat True" in done.stdout, done.stderr
    assert "ERROR unknown class 'unicorn'" in done.stdout
