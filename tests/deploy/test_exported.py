"""An exported file is loaded, explained and evaluated as a network is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import patchconvnet
from patchconvnet import UserError, explain, load
from patchconvnet.cli import main
from patchconvnet.data.labelled_images import Images
from patchconvnet.deploy.onnx_export import export_onnx
from patchconvnet.explanation.evidence import forward_with_maps
from patchconvnet.models.weights import Metadata

pytestmark = pytest.mark.slow  # exports
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "cifar10.onnx"
    export_onnx(load("cifar10"), path)
    return path


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_load_gives_the_networks_answers(file: Path, images: torch.Tensor) -> None:
    network, exported = load("cifar10"), load(str(file))
    image = torch.rand(2, 3, 40, 32)
    for ours, theirs in zip(exported(image, return_evidence=True), network(image, return_evidence=True), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
    ours, theirs = explain(exported, images[0].numpy()), explain(network, images[0].numpy())
    assert (ours.grid, ours.class_names, ours.exact) == (theirs.grid, theirs.class_names, theirs.exact)
    np.testing.assert_allclose(ours.evidence, theirs.evidence, rtol=0, atol=TOLERANCE)
    finer = explain(exported, images[0].numpy(), refine=2)
    np.testing.assert_allclose(finer.attention, explain(network, images[0].numpy(), refine=2).attention, atol=TOLERANCE)
    with pytest.raises(UserError, match="holds no forward pass"):
        ours.without((0, 0, 16, 16))


def test_evaluate_counts_the_same(file: Path, images: torch.Tensor) -> None:
    names = load("cifar10").class_names
    split = Images(images, torch.arange(12) % 10, names)
    ours, theirs = (patchconvnet.evaluate(model, split, show_progress=False) for model in (str(file), "cifar10"))
    assert ours.confusion.tolist() == theirs.confusion.tolist()
    assert ours.loss == pytest.approx(theirs.loss, abs=1e-5)


def test_the_command_explains_from_the_file(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    words = ["explain", str(tmp_path / "a.png"), str(tmp_path / "b.png"), f"--out={tmp_path / 'out'}"]
    assert main([*words, f"--model={file}", "--only=json,overlay"]) == 0
    assert "skipped" in capsys.readouterr().out
    assert main([*words, "--model=cifar10", f"--out={tmp_path / 'network'}", "--only=json,overlay"]) == 0
    ours, theirs = ((tmp_path / folder / "predictions.csv").read_text() for folder in ("out", "network"))
    names, values = (zip(*(line.split(",") for line in text.splitlines()[1:]), strict=True) for text in (ours, theirs))
    for a, b in zip(list(names)[2:], list(values)[2:], strict=True):
        np.testing.assert_allclose(np.array(a, float), np.array(b, float), atol=1e-5)
    assert main([*words, f"--model={file}", "--device=cuda"]) == 2
    assert "--device cuda needs the network itself" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--refine=2"], ["--view=whole"], ["--without=0,0,90,60;150,60,210,120"]])
def test_the_command_answers_from_the_file_as_from_the_network(options: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("patchconvnet_mini", embed_dim=16, depth=1, num_classes=3)
    network.metadata = Metadata(["cat", "dog", "ship"], {"size": [64, 64], "resize": "crop", "crop_ratio": 0.8})
    network.save_pretrained(tmp_path / "model")
    export_onnx(load(tmp_path / "model"), tmp_path / "m.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (120, 210, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = []
    for model in ("m.onnx", "model"):
        out = tmp_path / f"out_{model}"
        words = ["explain", str(tmp_path / "a.png"), f"--model={tmp_path / model}", f"--out={out}", "--only=json,map"]
        assert main([*words, *options]) == 0
        found.append((json.loads((out / "a.json").read_text()), np.load(out / "a_map.npy")))
    (ours, our_map), (theirs, their_map) = found
    np.testing.assert_allclose(our_map, their_map, rtol=0, atol=TOLERANCE)
    assert ours["grid"] == theirs["grid"]
    assert ours["input"] == theirs["input"]
    assert ("without" in ours) == ("without" in theirs) == options[0].startswith("--without")
    for part in ("classes", "without"):
        for one, other in zip(*(flat(record.get(part)) for record in (ours, theirs)), strict=True):
            assert one == (pytest.approx(other, abs=TOLERANCE) if isinstance(other, float) else other)


def flat(value: Any) -> list[Any]:
    """All plain values within tables and lists, with the tables' keys."""
    if isinstance(value, dict):
        return [each for key in value for each in (key, *flat(value[key]))]
    return [each for item in value for each in flat(item)] if isinstance(value, list) else [value]


def test_first_order_evidence_of_the_likeliest_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("patchconvnet_micro", pooling="class_attention", num_classes=120, depth=2).eval()
    about = export_onnx(network, tmp_path / "m.onnx")
    assert (about.evidence, about.evidence_classes) == ("first order", 5)
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    ours, theirs = explain(load(tmp_path / "m.onnx"), image), explain(network, image, view="own")
    assert ours.evidence_classes == theirs.evidence_classes
    assert not ours.exact
    np.testing.assert_allclose(ours.evidence, theirs.evidence, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(list(ours.remainder.values()), list(theirs.remainder.values()), atol=TOLERANCE)
    maps = forward_with_maps(load(tmp_path / "m.onnx"), torch.rand(1, 3, 64, 64))
    others = sorted(set(range(120)) - set(maps.classes[0].tolist()))
    with pytest.raises(UserError, match="likeliest classes only"):
        maps.evidence_of(torch.tensor([others[:1]]))
