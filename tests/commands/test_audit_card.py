"""`patchconvnet audit --card`: an audit's figures in the model folder, and on the card that the hub shows."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from patchconvnet import PatchConvNet, cli, load
from patchconvnet.models.model_card import CARD_FILE, MARK
from patchconvnet.models.weights import Metadata


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with a model of digits."""
    torch.manual_seed(0)
    model = PatchConvNet(stem_filters=8, stem_stride=1, num_classes=10, embed_dim=8, depth=1)
    model.metadata = Metadata(class_names=[str(k) for k in range(10)], preprocessing={"size": [16, 16]})
    model.save_pretrained(tmp_path / "run" / "best")
    return tmp_path / "run"


def words(folder: Path, out: Path) -> list[str]:
    few = ["--methods", "evidence,centre", "--measures", "deletion", "--limit", "4", "--examples", "1"]
    return ["audit", "--model", str(folder), "--data", "digits", "--card", "--out", str(out), *few]


def test_the_figures_are_those_of_the_report(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = (folder / "best" / "model.safetensors").read_bytes()
    assert cli.main(words(folder, tmp_path / "out")) == 0
    assert str(folder / "best" / CARD_FILE) in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    text = ModelCard.load(folder / "best" / CARD_FILE).text
    assert "on 4 images of digits, test" in text
    for method in report["methods"]:
        figures = method["figures"]["deletion"]
        assert f"| {method['title']} | {figures['mean']:.3f} ± {figures['standard_error']:.3f} |" in text
    model = load(folder)  # whose weights still are those of the checksum
    assert model.metadata.metrics["audit"]["images"] == 4
    assert (folder / "best" / "model.safetensors").read_bytes() == weights


def test_a_persons_own_card_is_left_alone(folder: Path, tmp_path: Path) -> None:
    card = folder / "best" / CARD_FILE
    card.write_text(card.read_text().replace(MARK, "Mine."))
    before = card.read_text()
    assert cli.main(words(folder, tmp_path / "out")) == 0
    assert card.read_text() == before
    assert "deletion" in json.dumps(load(folder).metadata.metrics["audit"]).lower()


@pytest.mark.parametrize("name", ["cifar10", "nowhere"])
def test_what_is_no_model_folder_is_refused_before_anything_is_measured(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(Path(name), tmp_path / "out")) == 2
    assert f"--card writes into a model folder or a run folder, and '{name}' is none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
