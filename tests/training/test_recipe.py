"""Recipes: every shipped one runs, YAML and Python say the same, mistakes are refused in words."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from small_runs import MICRO, micro, run

from patchconvnet.data.labelled_images import Images
from patchconvnet.data.splits import DataSplits
from patchconvnet.errors import UserError
from patchconvnet.training import probing
from patchconvnet.training import run as run_module
from patchconvnet.training.recipe import ProgressiveOptions, Recipe, read_recipe, recipe_path, shipped_recipes


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipe_says_what_it_is_and_how_to_run_it(name: str) -> None:
    comments = [line for line in recipe_path(name).read_text().split("\n\n")[0].splitlines() if line.startswith("#")]
    assert len(comments) > 2
    assert any(f"patchconvnet train --recipe {name}" in line for line in comments)
    assert recipe_path(name).read_text().startswith("#")


LARGE = ("finetune_large", "finetune_s60", "imagenet_s60")  # networks whose step takes seconds


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in shipped_recipes()]
)
def test_shipped_recipe_builds_its_model_and_trains_a_step(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe(name)
    side = 8 if recipe.data.name == "digits" else 32
    images = torch.randint(0, 256, (4, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = Images(images, torch.tensor([0, 1, 0, 1]), ["cat", "dog"])
    for module in (run_module, probing):
        monkeypatch.setattr(module, "load_data", lambda recipe, **_: DataSplits("two", ["cat", "dog"], images, images))
    run(
        replace(
            recipe,
            epochs=1,
            batch_size=4,
            model=replace(recipe.model, pretrained=False),
            monitor=replace(recipe.monitor, every=0),
        ),
        tmp_path,
    )
    assert (tmp_path / "best" / "model.safetensors").is_file()


def test_the_keras_example_is_the_example_without_its_faults() -> None:
    recipe = read_recipe("keras_example")
    assert (recipe.data.name, recipe.data.validation) == ("cifar10", 10_000)
    assert (recipe.epochs, recipe.batch_size, recipe.model.name) == (50, 128, "patchconvnet_keras")
    assert (recipe.augmentation.canvas, recipe.augmentation.flip) == (52, "random")
    p = recipe.preprocessing
    assert (p.size, p.interpolation, p.antialias, p.mean, p.std) == (
        (48, 48),
        "bilinear",
        False,
        (0.0, 0.0, 0.0),
        (1.0, 1.0, 1.0),
    )
    o = recipe.optimization
    assert (o.optimizer, o.learning_rate, o.warmup, o.label_smoothing) == ("adamw", 1e-3, 0.15, 0.0)


def test_yaml_and_back(tmp_path: Path) -> None:
    recipe = micro(
        augmentation={"random_resized_crop_scale": (0.5, 1.0), "random_crop_padding": 0, "canvas": None},
        optimization={"betas": (0.8, 0.9), "clip_gradient": 1.0},
        seed=7,
    )
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    assert read_recipe(file) == recipe
    assert yaml.safe_load(recipe.to_yaml()) == recipe.to_dict()


def test_what_a_file_leaves_out_has_its_default(tmp_path: Path) -> None:
    file = tmp_path / "short.yaml"
    file.write_text("data:\n  name: digits\nepochs: 3\n")
    assert read_recipe(file) == replace(Recipe(), data=replace(Recipe().data, name="digits"), epochs=3)


def test_differences_are_named_by_their_dotted_names() -> None:
    assert MICRO.differences(MICRO) == []
    other = micro(epochs=9, optimization={"learning_rate": 1.0}, model={"options": {"depth": 2}})
    assert MICRO.differences(other) == ["model.options", "optimization.learning_rate", "epochs"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optimisation:\n  learning_rate: 3\n", "optimisation"),
        ("optimization:\n  learning_rat: 3\n", "learning_rat"),
        ("epochs: many\n", "epochs"),
        ("epochs: [3\n  x: }\n", "recipe.yaml"),
        ("preprocessing:\n  size: [0, 3]\n", "size"),
        ("preprocessing:\n  resize: sideways\n", "resize"),
        ("augmentation:\n  canvas: 40\n  random_crop_padding: 4\n", "two ways to crop"),
        ("- a\n- list\n", "recipe.yaml"),
        ("precision: 8-bit\n", "precision"),
        ("optimization:\n  betas: [0.9]\n", "betas"),
    ],
)
def test_what_a_recipe_cannot_have_is_named(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        read_recipe(file)


def test_an_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        UserError,
        match=r"no recipe 'digit': .* one of cifar100_default, cifar10_10min, cifar10_best, cifar10_default, digits",
    ):
        read_recipe("digit")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"batch_size": -4}, "batch_size must be at least 1"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"monitor": {"every": -1}}, "monitor.every must be 0 or more"),
        ({"monitor": {"images": 0}}, "monitor.images must be at least 1"),
        ({"data": {"memory_gb": -1.0}}, "data.memory_gb must be 0 or more"),
        ({"optimization": {"learning_rate": float("nan")}}, "learning_rate must be above 0, not nan"),
        ({"optimization": {"warmup": 1.0}}, "warmup is a share of all steps"),
        ({"optimization": {"clip_gradient": 0.0}}, "clip_gradient must be above 0"),
        ({"optimization": {"momentum": 1.0}}, "momentum must be at least 0 and below 1"),
        ({"optimization": {"label_smoothing": 1.0}}, "label_smoothing must be at least 0 and below 1"),
        ({"optimization": {"ema_decay": 1.0}}, "ema_decay must be between 0 and 1"),
        ({"optimization": {"weight_decay": -0.1}}, "weight_decay must be 0 or more"),
        ({"optimization": {"accumulate": 3}}, "batch_size 64 cannot be divided into 3 equal parts"),
        ({"optimization": {"accumulate": 0}}, "accumulate must be at least 1"),
        ({"progressive": {"start": 0.0}}, "progressive.start is a share"),
        ({"progressive": {"until": 1.5}}, "progressive.until is a share"),
        ({"method": "probe", "model": {"options": {"pooling": "average"}}}, "train, which trains any pooling"),
    ],
)
def test_impossible_values_are_refused_at_once(changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        micro(**changes)


def test_images_grow_patch_by_patch_to_their_full_size() -> None:
    grow = ProgressiveOptions(start=0.5, until=0.5)
    assert [grow.size((32, 48), 4, epoch, 10) for epoch in range(6)] == [
        (16, 24), (16, 28), (20, 32), (24, 36), (28, 40), (32, 48),
    ]  # fmt: skip
    assert ProgressiveOptions().size((30, 31), 4, 0, 10) == (30, 31)
    assert ProgressiveOptions(start=0.1).size((32, 32), 16, 0, 10) == (16, 16)  # never less than a patch
    assert ProgressiveOptions(start=0.9, until=1.0).size((33, 33), 4, 9, 10) == (32, 32)
