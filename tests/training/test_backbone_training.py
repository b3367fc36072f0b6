"""A timm network trains by a recipe: it gets attention pooling, learns where to look, and is kept as a model folder."""

from pathlib import Path

import pytest
import torch
from small_runs import micro, rows, run

from patchconvnet import load
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.models import AttentionPooled
from patchconvnet.training.recipe import ModelOptions


@pytest.mark.slow
def test_a_timm_network_trains_by_a_recipe(tmp_path: Path) -> None:
    recipe = micro(
        model=ModelOptions("regnetx_002", options={"pooling": "additive", "drop_path_rate": 0.1}),
        preprocessing=Preprocessing(size=(64, 64), mean=(0.3,) * 3, std=(0.38,) * 3),
        augmentation={"random_crop_padding": 4},
        monitor={"every": 1},
        epochs=2,
    )
    folder = run(recipe, tmp_path / "run")
    assert len(rows(folder)) == 2
    assert (folder / "attention" / "epoch_002.png").is_file()
    model = load(folder / "best")
    assert isinstance(model, AttentionPooled)
    assert model.config.options == {"drop_path_rate": 0.1}
    assert model.metadata.class_names == [str(digit) for digit in range(10)]
    assert model.metadata.metrics["test"]["top1"] > 0.1
    assert model.pooling.query.abs().max() > 0

    # and goes on from the folder, with other options
    again = micro(
        model=ModelOptions(str(folder / "best"), options={"attn_drop_rate": 0.1}),
        preprocessing=recipe.preprocessing,
        epochs=1,
        optimization={"learning_rate": 1e-9},
    )
    kept = load(run(again, tmp_path / "again") / "best")
    assert kept.config.attn_drop_rate == 0.1
    assert torch.allclose(kept.pooling.query, model.pooling.query, atol=1e-6)
