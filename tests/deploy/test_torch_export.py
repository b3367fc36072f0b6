"""Exported programs of PyTorch: the network's answers, with nothing of this package but their metadata."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from patchconvnet import cli, load
from patchconvnet.deploy.description import KEY
from patchconvnet.deploy.torch_export import export_torch
from patchconvnet.errors import UserError
from patchconvnet.models import AttentionClassifier, with_attention_pooling

# what somebody without this package does with such a file
ALONE = """
import json, sys
import numpy, torch
extra = {"patchconvnet": ""}
program = torch.export.load(sys.argv[1], extra_files=extra)
image = torch.from_numpy(numpy.load(sys.argv[2]))
logits, attention, evidence = program.module()(image)
assert not any(name.startswith("patchconvnet") for name in sys.modules)
about = json.loads(extra["patchconvnet"])
sums = evidence.sum((2, 3)) + torch.tensor(about["bias"])
print(json.dumps([about["class_names"], logits.tolist(), (sums - logits).abs().max().item()]))
"""


@pytest.fixture(scope="module")
def network() -> AttentionClassifier:
    return load("cifar10")


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 32, 32), (3, 40, 56)], ids=str)
def test_a_program_answers_without_the_package(
    network: AttentionClassifier, size: tuple[int, int, int], tmp_path: Path
) -> None:
    file, image = tmp_path / "cifar10.pt2", tmp_path / "image.npy"
    assert cli.main(["export", "--model", "cifar10", "--to", "torch", "--out", str(file)]) == 0
    batch, height, width = size
    given = torch.randn(batch, 3, height, width)
    np.save(image, given.numpy())
    said = subprocess.run([sys.executable, "-c", ALONE, file, image], check=True, stdout=subprocess.PIPE, text=True)
    names, logits, missing = json.loads(said.stdout)
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(logits), network(given), atol=1e-4, rtol=1e-4)
    assert names == network.class_names
    assert missing < 1e-4


@pytest.mark.slow
def test_it_says_what_it_was_compared_with(network: AttentionClassifier, tmp_path: Path) -> None:
    about = export_torch(network, tmp_path / "a.pt2", name="mine")
    assert about.verification["inputs"] > 10
    assert max(about.verification["largest_differences"].values()) < 1e-4
    extra = {KEY: ""}
    torch.export.load(str(tmp_path / "a.pt2"), extra_files=extra)
    assert json.loads(extra[KEY])["name"] == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]


@pytest.mark.slow
def test_a_program_that_differs_is_not_kept(
    network: AttentionClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_ = torch.export.load

    def another(*args: object, **more: object) -> torch.export.ExportedProgram:
        program = load_(*args, **more)
        with torch.no_grad():
            next(iter(program.state_dict.values())).mul_(1.1)
        return program

    monkeypatch.setattr(torch.export, "load", another)
    with pytest.raises(UserError, match="differs from the network by"):
        export_torch(network, tmp_path / "a.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "a.onnx"], "its name ends with .pt2"),
        (["--out", "a.pt2", "--precision", "int8"], "--to torch writes fp32"),
        (["--out", "a.pt2", "--preprocessing", "inside"], "--to torch writes fp32"),
        (["--out", "a.pt2", "--size", "2"], "give at least that"),
    ],
)
def test_mistakes_are_said(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", "--model", "cifar10", "--to", "torch", *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_compiled_program_answers_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = with_attention_pooling("resnet10t", num_classes=3).eval()
    about = export_torch(network, tmp_path / "a.pt2", size=64, compiled=True)
    assert max(about.verification["largest_differences"].values()) < 1e-4
    loaded = torch._inductor.aoti_load_package(str(tmp_path / "a.pt2"))
    assert json.loads(loaded.get_metadata()[KEY])["evidence"] == "exact"
    given = torch.randn(3, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(given)[0], network(given), atol=1e-4, rtol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]
