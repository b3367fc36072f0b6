"""A file answers and explains as the network does, without PyTorch."""

import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from patchconvnet import UserError, explain, load
from patchconvnet.deploy.onnx_export import export_onnx
from patchconvnet.deploy.runtime import OnnxModel

TOLERANCE = 1e-4


def photographs() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(120, 90), (90, 120), (64, 64)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "cifar10.onnx"
    export_onnx(load("cifar10"), path, name="cifar10")
    return path


def test_explanations_are_those_of_the_network(file: Path) -> None:
    images = photographs()
    found = OnnxModel(file, threads=1).explain(images, target="cat", name=["a", "b", "c"])
    wanted = explain(load("cifar10"), images, target="cat", name=["a", "b", "c"])
    for ours, theirs in zip(found, wanted, strict=True):
        for what in ("logits", "bias", "attention", "evidence"):
            np.testing.assert_allclose(getattr(ours, what), getattr(theirs, what), rtol=0, atol=TOLERANCE)
        for what in ("evidence_classes", "exact", "grid", "geometry", "target", "top", "temperature", "class_names"):
            assert getattr(ours, what) == getattr(theirs, what), what
        assert list(ours.to_dict()) == list(theirs.to_dict())
        assert max(map(abs, ours.remainder.values())) < TOLERANCE
        assert ours.subject.name == "cat"
        difference = np.asarray(ours.overlay()).astype(int) - np.asarray(theirs.overlay())
        assert np.abs(difference).max() <= 2


def test_another_size_gives_another_grid(file: Path) -> None:
    model = OnnxModel(file)
    assert model.size == (32, 32)
    found = model.explain(photographs()[:1], size=(48, 64))[0]
    wanted = explain(load("cifar10"), photographs()[0], size=(48, 64))
    assert found.grid == wanted.grid
    assert found.attention.shape == (1, 12, 16)
    np.testing.assert_allclose(found.evidence, wanted.evidence, rtol=0, atol=TOLERANCE)


def test_a_prepared_batch_is_run(file: Path) -> None:
    model = OnnxModel(file)
    prepared, geometry = model.prepare(photographs()[0])
    assert (prepared.dtype, prepared.shape) == (np.float32, (3, 32, 32))
    assert geometry.image == (120, 90)
    answers = model.run(np.stack([prepared, prepared]))
    assert {name: values.shape for name, values in answers.items()} == {
        "logits": (2, 10), "attention": (2, 1, 8, 8), "evidence": (2, 10, 8, 8),
    }  # fmt: skip
    with pytest.raises(UserError, match="this file takes float32 of shape"):
        model.run(prepared)
    with pytest.raises(UserError, match="takes 4 pixels or more"):
        model.run(np.zeros((1, 3, 2, 32), np.float32))


def test_threads_share_a_model(file: Path) -> None:
    model = OnnxModel(file, threads=1)
    images = photographs() * 4
    alone = [model.explain(image)[0].logits for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: model.explain(image)[0].logits, images))
    np.testing.assert_array_equal(alone, together)


def test_neither_pytorch_nor_matplotlib_is_imported(file: Path, tmp_path: Path) -> None:
    photographs()[0].save(tmp_path / "a.png")
    program = """
import sys
from patchconvnet.deploy.runtime import OnnxModel
found = OnnxModel(sys.argv[1]).explain(sys.argv[2])[0]
found.save(sys.argv[3], only=("overlay", "map", "json"))
print([name for name in ("torch", "torchvision", "timm", "matplotlib", "scipy") if name in sys.modules])
"""
    words = [sys.executable, "-c", program, str(file), str(tmp_path / "a.png"), str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a_overlay.png", "a_map.npy", "a.json"}


def test_an_unreadable_image_among_many_is_named(file: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"images\[1\]: .*bad.png is not a readable image"):
        OnnxModel(file).explain([photographs()[0], tmp_path / "bad.png"])
    with pytest.raises(UserError, match="unknown class 'dogg'; did you mean 'dog'"):
        OnnxModel(file).explain(photographs()[0], target="dogg")


def test_a_file_that_preprocesses_inside_takes_pixels(tmp_path: Path) -> None:
    path = tmp_path / "inside.onnx"
    export_onnx(load("cifar10"), path, preprocessing="inside", images=photographs())
    model = OnnxModel(path)
    prepared, geometry = model.prepare(photographs()[0])
    assert (prepared.dtype, prepared.shape, geometry.image) == (np.uint8, (120, 90, 3), (120, 90))
    for ours, theirs in zip(model.explain(photographs()), explain(load("cifar10"), photographs()), strict=True):
        np.testing.assert_allclose(ours.logits, theirs.logits, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(ours.evidence, theirs.evidence, rtol=0, atol=TOLERANCE)
        assert (ours.grid, ours.geometry) == (theirs.grid, theirs.geometry)
    with pytest.raises(UserError, match="export it again with --size 64x64"):
        model.explain(photographs(), size=64)


@pytest.mark.slow
def test_a_half_model_stays_one(tmp_path: Path) -> None:
    network = timm.create_model("patchconvnet_mini", embed_dim=16, depth=1, num_classes=3).eval().half()
    about = export_onnx(network, tmp_path / "m.onnx")
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float16}
    assert about.verification["largest_differences"]["logits"] < TOLERANCE  # beside the same weights in float32


BOX = (20, 10, 70, 60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pooling", "inside"), [("additive", False), ("additive", True), ("additive_multi", False), ("average", False)]
)
def test_what_if_a_part_were_gone_is_answered_as_by_the_network(pooling: str, inside: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("patchconvnet_mini", embed_dim=16, depth=1, num_classes=3, pooling=pooling).eval()
    for name, parameter in network.named_parameters():
        if name.startswith("pooling."):  # attention that is far from uniform
            torch.nn.init.normal_(parameter, std=2)
    network.metadata.preprocessing = {"size": [48, 64]}
    export_onnx(network, tmp_path / "m.onnx", preprocessing="inside" if inside else "outside")
    image = photographs()[1]
    ours, theirs = OnnxModel(tmp_path / "m.onnx").explain(image)[0].without(BOX), explain(network, image).without(BOX)
    np.testing.assert_array_equal(ours.patches, theirs.patches)
    np.testing.assert_array_equal(ours.pixels, theirs.pixels)
    assert ours.greyed.tobytes() == theirs.greyed.tobytes()
    np.testing.assert_allclose(ours.logits, theirs.logits, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(ours.greyed_logits, theirs.greyed_logits, rtol=0, atol=TOLERANCE)
    assert np.abs(ours.logits - explain(network, image).logits).max() > 10 * TOLERANCE  # or nothing was compared


@pytest.mark.parametrize("options", [{"refine": 2}, {"refine": 3, "size": (40, 56)}, {"view": "whole"}])
def test_refined_maps_and_whole_images_are_those_of_the_network(file: Path, options: dict[str, Any]) -> None:
    found = OnnxModel(file).explain(photographs(), **options)
    wanted = explain(load("cifar10"), photographs(), **options)
    for ours, theirs in zip(found, wanted, strict=True):
        for what in ("logits", "attention", "evidence"):
            np.testing.assert_allclose(getattr(ours, what), getattr(theirs, what), rtol=0, atol=TOLERANCE)
        for what in ("exact", "grid", "geometry", "refine"):
            assert getattr(ours, what) == getattr(theirs, what), what
    box = (0, 0, 40, 40)  # the patches are those of the plain maps
    ours, theirs = found[0].without(box), wanted[0].without(box)
    np.testing.assert_array_equal(ours.patches, theirs.patches)
    np.testing.assert_allclose(ours.logits, theirs.logits, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(ours.greyed_logits, theirs.greyed_logits, rtol=0, atol=TOLERANCE)


@pytest.mark.slow
def test_what_does_not_follow_from_the_files_answers_is_refused(tmp_path: Path) -> None:
    network = timm.create_model("patchconvnet_mini", embed_dim=16, depth=1, num_classes=120, pooling="class_attention")
    network.metadata.preprocessing = {"size": [64, 64], "resize": "crop", "crop_ratio": 1.0}
    export_onnx(network.eval(), tmp_path / "a.onnx")
    export_onnx(network, tmp_path / "b.onnx", preprocessing="inside", evidence="none")
    first, inside = OnnxModel(tmp_path / "a.onnx"), OnnxModel(tmp_path / "b.onnx")
    with pytest.raises(UserError, match="does not tell what it would answer without a part of the image"):
        first.explain(photographs()[0])[0].without((0, 0, 40, 40))
    with pytest.raises(UserError, match="likeliest classes only, which differ between shifted images"):
        first.explain(photographs()[0], refine=2)
    with pytest.raises(UserError, match="cannot refine maps: it preprocesses images itself"):
        inside.explain(photographs()[0], refine=2)
    with pytest.raises(UserError, match="cannot see whole images: it cuts the centre out of images itself"):
        inside.explain(photographs()[0], view="whole")
    with pytest.raises(UserError, match="unknown view 'half'; known: own, whole"):
        inside.explain(photographs()[0], view="half")
    assert inside.explain(photographs()[0])[0].crops == ()  # what it can do is what it does by default
    with pytest.raises(UserError, match="cannot see whole images: it gives evidence for each crop's likeliest classes"):
        first.explain(photographs()[0], view="whole")


@pytest.mark.slow
def test_an_environment_without_pytorch_explains(file: Path, tmp_path: Path) -> None:
    """As docs/exporting.md has it: the package without its dependencies, and the runtime's."""
    root = Path(__file__).parents[2]
    page = (root / "docs" / "exporting.md").read_text()
    installs = [shlex.split(line.split("#")[0]) for line in page.splitlines() if line.startswith("pip install ")]
    package, runtime, command, _ = [words for words in installs if "patchconvnet[export]" not in words]
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        alone = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}  # without PYTHONPATH
        alone |= {name: value for name, value in os.environ.items() if "PIP" in name or "proxy" in name.lower()}
        return subprocess.run([python, *words], capture_output=True, text=True, timeout=600, cwd=tmp_path, env=alone)

    packages = [str(root) if word == "patchconvnet" else word for word in package[2:]]
    for wanted in (packages, runtime[2:], command[2:]):
        done = run("-m", "pip", "install", "--quiet", *wanted)
        if done.returncode and "No matching distribution" in done.stderr:
            pytest.skip(f"no package index to install from: {done.stderr[-200:]}")
        assert done.returncode == 0, done.stderr
    assert run("-c", "import torch").returncode == 1
    photographs()[0].save(tmp_path / "a.png")
    program = (
        "import sys; from patchconvnet.deploy.runtime import OnnxModel as M; print(M(sys.argv[1]).explain('a.png'))"
    )
    done = run("-c", program, str(file))
    assert done.returncode == 0, done.stderr
    wanted_name = explain(load("cifar10"), photographs()[0]).predicted.name
    assert wanted_name in done.stdout
    words = ["-m", "patchconvnet", "explain", "a.png", f"--model={file}", "--out=out"]
    done = run(*words)
    assert (done.returncode, "figures need matplotlib" in done.stderr) == (2, True), done.stderr
    done = run(*words, "--only=overlay,map,json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "a_overlay.png").is_file()
    done = run("-m", "patchconvnet", "explain", "a.png", "--model=cifar10", "--only=json")
    assert (done.returncode, "needs PyTorch" in done.stderr) == (2, True), done.stderr
