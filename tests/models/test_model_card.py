"""The model card: the hub's block is valid, what is known is said, and a person's own card stays."""

import io
import json
from pathlib import Path

import pytest
import timm
from huggingface_hub import ModelCard
from PIL import Image
from torch import nn

from patchconvnet import load
from patchconvnet.models.model_card import CARD_FILE, EXAMPLE_FILE, MARK


@pytest.fixture
def model() -> nn.Module:
    return timm.create_model("patchconvnet_mini", embed_dim=16, depth=1, num_classes=2)


def test_the_hubs_block_is_parsed_by_the_hubs_library(tmp_path: Path) -> None:
    model = load("cifar10")
    model.save_pretrained(tmp_path)
    reached = round(model.metadata.metrics["test"]["top1"], 4)
    card = ModelCard.load(tmp_path / CARD_FILE)
    assert card.data.library_name == "patchconvnet"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.datasets == ["cifar10"]
    assert card.data.model_name == "patchconvnet on cifar10"
    (top1,) = [one for one in card.data.eval_results if one.metric_name == "Top-1 accuracy"]
    assert (top1.metric_type, top1.metric_value, top1.dataset_split) == ("accuracy", reached, "test")
    assert f"| Top-1 accuracy | test | 10000 | {reached} |" in card.text
    assert "`cifar10` (50,000 for training, 10,000 for testing)" in card.text
    assert "airplane, automobile" in card.text
    assert "not measured on images that it had not learned from" not in card.text


def test_of_a_fresh_model_nothing_is_claimed(model: nn.Module, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / CARD_FILE)
    assert card.data.eval_results is None
    assert "## Measured" not in card.text
    assert "was not measured on images that it had not learned from" in card.text


def test_an_audits_figures_are_on_it(model: nn.Module, tmp_path: Path) -> None:
    figures = {
        "data": "folder:pets, test",
        "images": 40,
        "measures": {"deletion": "low", "pointing": "high"},
        "maps": {"Evidence": {"deletion": {"mean": 0.25, "standard_error": 0.0125}, "pointing": {"mean": None}}},
    }
    model.metadata.metrics = {"audit": figures, "test": {"images": 10, "top1": 0.5}}
    model.metadata.provenance = {"data": {"name": "folder:my pets/"}}
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / CARD_FILE)
    assert "| map | deletion ↓ | pointing ↑ |\n|---|---|---|\n| Evidence | 0.250 ± 0.013 | – |" in card.text
    assert "on 40 images of folder:pets, test" in card.text
    assert card.data.eval_results[0].dataset_type == "folder-my-pets"
    assert card.data.datasets is None  # the hub has none of that name


def test_an_audits_figures_that_are_none_are_left_out(model: nn.Module, tmp_path: Path) -> None:
    for nonsense in (3, {"measures": 3, "maps": [1]}, {"measures": {"a": "b"}, "maps": {"c": {"a": 1}}}):
        model.metadata.metrics = {"audit": nonsense}
        model.save_pretrained(tmp_path)
        assert ModelCard.load(tmp_path / CARD_FILE).data.library_name == "patchconvnet"


def test_an_example_travels_with_the_model(model: nn.Module, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "without")
    assert "![" not in (tmp_path / "without" / CARD_FILE).read_text()
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(file, format="JPEG")
    model.metadata.example = file.getvalue()
    model.save_pretrained(tmp_path / "first")
    again = load(tmp_path / "first")
    again.save_pretrained(tmp_path / "second")
    card = ModelCard.load(tmp_path / "second" / CARD_FILE)
    assert f"]({EXAMPLE_FILE})" in card.text
    assert (tmp_path / "second" / EXAMPLE_FILE).read_bytes() == file.getvalue()
    assert "example" not in json.loads((tmp_path / "second" / "config.json").read_text())
    again.metadata.example = None
    again.save_pretrained(tmp_path / "second")
    assert not (tmp_path / "second" / EXAMPLE_FILE).exists()


def test_a_persons_own_card_stays(model: nn.Module, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    file = tmp_path / CARD_FILE
    text = file.read_text()
    assert MARK in text
    model.metadata.class_names = ["cat", "dog"]
    model.save_pretrained(tmp_path)
    assert "cat, dog." in file.read_text()  # ours is written anew
    file.write_text(text.replace(MARK, "I have measured it on my own cats."))
    model.save_pretrained(tmp_path)
    assert "I have measured it on my own cats." in file.read_text()


def test_names_of_classes_do_not_break_it(model: nn.Module, tmp_path: Path) -> None:
    model.metadata.class_names = ["a | b", "<script>"]
    model.save_pretrained(tmp_path)
    assert r"a \| b, &lt;script>." in ModelCard.load(tmp_path / CARD_FILE).text
