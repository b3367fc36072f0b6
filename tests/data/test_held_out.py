"""A data set is divided as the training divided it; where it can't be, a warning says so."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from patchconvnet.data import datasets
from patchconvnet.data.held_out import load_held_out, warn_if_learned
from patchconvnet.data.splits import DataSplits


def provenance(data: DataSplits, name: str, **options: Any) -> dict[str, Any]:
    """What a training on `data` writes into its model folder."""
    return {
        "recipe": {"data": {"name": name, "root": None, **options}},
        "data": {"name": data.name, "fingerprint": data.fingerprint()},
    }


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (8, 8), (i * 20, 0, 0)).save(tmp_path / "pets" / name / f"{i}.png")
    return tmp_path / "pets"


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def test_the_division_of_the_training_is_repeated() -> None:
    options = {"validation": 0.0, "test": 1500, "seed": 7}
    trained = datasets.load("digits", **options)
    again, _ = load_held_out("digits", "test", provenance(trained, "digits", **options))
    assert torch.equal(again.require("test").images, trained.require("test").images)
    assert again.validation is None


def test_another_division_warns_and_a_model_that_says_nothing_does_not() -> None:
    about = provenance(datasets.load("digits", seed=7), "digits", validation=None, test=None, seed=7)
    with pytest.warns(UserWarning, match="digits is divided otherwise .*: its test images may be some that it has"):
        load_held_out("digits", "test", about, test=300)
    with pytest.warns(UserWarning, match="divided otherwise"):
        warn_if_learned(datasets.load("digits", seed=8), "test", about)
    warn_if_learned(datasets.load("digits", seed=7), "test", about)
    load_held_out("digits", "test", {})


def test_a_folder_is_known_by_its_place_and_by_its_images(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"validation": 0.1, "test": 0.4, "seed": 3}
    about = provenance(datasets.load(f"folder:{pets}", **options), "folder:pets", **options)
    monkeypatch.chdir(pets.parent)
    for name, root in (("folder:pets", None), (f"folder:{pets}", None), ("folder:pets", pets.parent)):
        assert len(load_held_out(name, "test", about, root=root)[0].require("test")) == 10
    moved = pets.rename(pets.parent / "moved")
    with pytest.warns(UserWarning, match="divided otherwise"):
        load_held_out(f"folder:{moved}", "test", about)
    load_held_out(f"folder:{moved}", "test", about, **options)
    (moved / "cat" / "3.png").unlink()
    moved.rename(pets)
    with pytest.warns(UserWarning, match="not the same images"):
        load_held_out("folder:pets", "test", about)
