"""The CIFAR-10 model that ships in the package is what its `config.json` says it is."""

from pathlib import Path

import pytest
from skimage import data

from patchconvnet import PatchConvNet
from patchconvnet.data import datasets
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.explanation import explain
from patchconvnet.models.weights import SHIPPED, shipped_models
from patchconvnet.training.evaluation import evaluate

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def model() -> PatchConvNet:
    return PatchConvNet.from_pretrained("cifar10")


def test_it_is_small_and_says_where_it_comes_from(model: PatchConvNet) -> None:
    assert shipped_models() == ["cifar10"]
    assert sum(path.stat().st_size for path in (SHIPPED / "cifar10").iterdir()) <= 4_000_000
    metadata = model.metadata
    assert metadata.class_names == CIFAR10
    images = metadata.provenance["data"]
    assert {name: images[name] for name in ("name", "train", "test")} == {
        "name": "cifar10", "train": 50_000, "test": 10_000,
    }  # fmt: skip
    for key in ("recipe", "date", "patchconvnet", "seconds", "devices"):
        assert metadata.provenance[key]
    assert metadata.metrics["test"]["top1"] >= 0.85


def test_its_log_is_there_and_ends_with_its_last_epoch(model: PatchConvNet) -> None:
    log = (SHIPPED / "cifar10" / "metrics.csv").read_text().splitlines()
    assert len(log) - 1 == model.metadata.provenance["recipe"]["epochs"]


@pytest.mark.slow
def test_it_reaches_the_stated_accuracy(model: PatchConvNet, cifar10_root: Path) -> None:
    cifar10 = datasets.load("cifar10", root=cifar10_root, validation=0, download=False)
    stated = model.metadata.provenance["data"]["fingerprint"]
    assert {name: cifar10.fingerprint()[name] for name in stated} == stated
    result = evaluate(model, cifar10.require("test"), Preprocessing.from_dict(model.metadata.preprocessing))
    stated = model.metadata.metrics["test"]
    assert result.count == stated["images"] == 10_000
    assert result.top1 == pytest.approx(stated["top1"], abs=0.0005)
    assert result.top5 == pytest.approx(stated["top5"], abs=0.0005)
    assert result.calibration_error == pytest.approx(stated["calibration_error"], abs=0.002)
    assert stated["calibration_error"] < 0.05  # 0.11 before its temperature was fitted


def test_it_sees_a_cat_in_a_photograph_of_one(model: PatchConvNet) -> None:
    explanation = explain(model, data.chelsea())
    assert explanation.predicted.name == "cat"
    assert explanation.exact
    total = explanation.evidence_for("cat").sum() + explanation.bias[3]
    assert total == pytest.approx(explanation.logits[3], rel=1e-4)
