"""Fine-tuning: a fitted head first, then all weights, and what may keep them from going too far."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from small_runs import MICRO, checkpoint, kept, micro, run

from patchconvnet import load, train
from patchconvnet.cli import main
from patchconvnet.errors import UserError
from patchconvnet.training.probing import class_weights
from patchconvnet.training.recipe import ProbeOptions, read_recipe

FINETUNE = replace(MICRO, method="finetune", probe=ProbeOptions(views=1, queries=4))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_it_begins_with_a_fitted_head_and_moves_the_backbone(tmp_path: Path) -> None:
    # the head is fitted to what batch norm's kept statistics give
    gently = replace(FINETUNE.optimization, freeze_batch_norm=True, learning_rate=1e-3)
    tuned = run(replace(FINETUNE, epochs=1, optimization=gently), tmp_path / "tuned")
    plain = run(micro(epochs=1), tmp_path / "plain")
    assert float(rows(tuned)[0]["val_top1"]) > float(rows(plain)[0]["val_top1"]) + 0.2
    assert load(tuned / "best").config.pooling == "additive_sliced"


def test_a_resumed_run_is_not_probed_again(tmp_path: Path) -> None:
    whole = run(replace(FINETUNE, epochs=2), tmp_path / "whole")
    stamp = rows(whole)
    run(replace(FINETUNE, epochs=2), whole, resume="auto")
    assert rows(whole) == stamp


def test_frozen_statistics_stay_and_others_move(tmp_path: Path) -> None:
    fresh = run(micro(epochs=1), tmp_path / "first")
    start = {"name": str(fresh / "best"), "options": {}}
    for freeze in (True, False):
        onwards = micro(epochs=1, optimization={"freeze_batch_norm": freeze})
        folder = run(replace(onwards, model=replace(onwards.model, **start)), tmp_path / str(freeze))
        before, after = kept(fresh), kept(folder)
        names = [name for name in before if name.endswith("running_mean")]
        assert names
        assert all(torch.equal(before[name], after[name]) for name in names) is freeze


def test_patience_ends_a_run_that_no_longer_gains(tmp_path: Path) -> None:
    # a rate of next to nothing: the first epoch stays the best
    recipe = replace(micro(epochs=9, optimization={"learning_rate": 1e-12}), patience=2)
    folder = run(recipe, tmp_path / "run")
    assert len(rows(folder)) == checkpoint(folder)["best_epoch"] + 3 < 9
    assert "test" in load(folder / "best").metadata.metrics


def test_balanced_classes_count_alike() -> None:
    weights = class_weights(torch.tensor([0, 0, 0, 1]), 2)
    torch.testing.assert_close(weights, torch.tensor([4 / 6, 2.0]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimization": {"layer_decay": 0.0}}, "layer_decay must be above 0 and at most 1, not 0.0"),
        ({"patience": 0}, "patience must be at least 1 epoch"),
    ],
)
def test_mistakes_are_refused_in_words(changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        micro(**changes)


def test_the_shipped_recipe_finetunes() -> None:
    recipe = read_recipe("finetune")
    assert (recipe.method, recipe.model.name) == ("finetune", "imagenet")
    assert recipe.optimization.freeze_batch_norm


def long_images(folder: Path) -> Path:
    """Images three times as wide as high, whose class is the colour of their right end, outside of a centre crop."""
    generator = np.random.default_rng(0)
    for name, colour in (("blue", (30, 30, 220)), ("red", (220, 30, 30))):
        (folder / name).mkdir(parents=True)
        for k in range(40):
            values = generator.integers(90, 166, (32, 96, 3), dtype=np.uint8)
            values[:, 64:] = colour
            Image.fromarray(values).save(folder / name / f"{k}.png")
    return folder


def test_what_a_crop_cuts_off_a_letterbox_sees(tmp_path: Path) -> None:
    data = {"name": f"folder:{long_images(tmp_path / 'images')}", "validation": 0.25, "test": 0.25}
    gently = replace(FINETUNE.optimization, freeze_batch_norm=True, learning_rate=1e-4)
    top1 = {}
    for resize in ("crop", "letterbox"):
        changes = {"data": data, "preprocessing": {"size": [32, 32], "resize": resize}, "batch_size": 8}
        best = train(replace(FINETUNE, epochs=1, optimization=gently), tmp_path / resize, **changes)
        network = load(best)
        assert network.preprocessing["resize"] == resize
        top1[resize] = network.metadata.metrics["test"]["top1"]
    assert top1["letterbox"] == 1
    assert top1["crop"] < 0.85


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_another_resize_needs_no_crop_ratio(resize: str, capsys: pytest.CaptureFixture[str]) -> None:
    for recipe in ("finetune", "probe"):
        assert read_recipe(recipe, {"preprocessing.resize": resize}).preprocessing.crop_ratio == 1
        assert main(["train", "--recipe", recipe, "--preprocessing.resize", resize, "--print_config"]) == 0
        printed = yaml.safe_load(capsys.readouterr().out)
        assert (printed["preprocessing"]["resize"], printed["preprocessing"]["crop_ratio"]) == (resize, 1.0)
    with pytest.raises(UserError, match="has no meaning with resize"):
        read_recipe("finetune", {"preprocessing.resize": resize, "preprocessing.crop_ratio": 0.9})
    assert read_recipe("finetune").preprocessing.crop_ratio == 0.875
