"""Fine-tuning: a fitted head first, then all weights, and what may keep them from going too far."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import MICRO, checkpoint, kept, micro, run

from patchconvnet import load
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
