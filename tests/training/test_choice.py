"""Which recipe a folder gets, by what is in it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchconvnet.cli import main
from patchconvnet.errors import UserError
from patchconvnet.training.choice import Overview, choose_recipe, look_over
from patchconvnet.training.recipe import read_recipe


def fill(folder: Path, counts: dict[str, int], size: tuple[int, int]) -> Path:
    generator = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def test_a_folder_is_looked_over(tmp_path: Path) -> None:
    overview = look_over(fill(tmp_path, {"a": 4, "b": 12}, (90, 60)))
    assert overview == Overview(tmp_path, {"b": 12, "a": 4}, 90)
    assert (overview.images, overview.uneven) == (16, 3)
    assert str(overview).endswith("16 images of 2 classes (12 of b, 4 of a), 90 pixels on their longer side")


def test_splits_are_no_classes(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"a": 4, "b": 2}, (32, 32))
    fill(tmp_path / "val", {"a": 1, "b": 2}, (32, 32))
    assert look_over(tmp_path).counts == {"a": 5, "b": 4}


def photographs(counts: dict[str, int]) -> Overview:
    return Overview(Path("pets"), counts, 500)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU fine-tuning is chosen")
def test_photographs_get_a_probe() -> None:
    choice = choose_recipe(photographs({"cat": 300, "dog": 200}))
    assert (choice.recipe, choice.changes) == ("probe", {"data.name": "folder:pets"})
    assert "pretrained on ImageNet is frozen" in choice.reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU fine-tuning is chosen")
def test_a_probe_is_weighed_where_classes_are_uneven_and_has_fewer_views_where_memory_ends() -> None:
    assert choose_recipe(photographs({"cat": 301, "dog": 100})).changes["probe.balanced"] == "true"
    assert choose_recipe(photographs({"cat": 8000, "dog": 8000})).changes["probe.views"] == "2"


def test_small_images_are_learned_from_nothing_at_their_own_size() -> None:
    choice = choose_recipe(Overview(Path("icons"), {"a": 500, "b": 500}, 37))
    assert choice.recipe == "small_images"
    assert (choice.changes["preprocessing.size"], choice.changes["epochs"]) == ("[40, 40]", "60")


@pytest.mark.parametrize(
    "overview",
    [photographs({"cat": 300, "dog": 20}), Overview(Path("icons"), {"a": 500, "b": 500}, 37)],
)
def test_the_choice_is_a_recipe_that_can_be_printed(overview: Overview, capsys: pytest.CaptureFixture[str]) -> None:
    choice = choose_recipe(overview)
    recipe = read_recipe(choice.recipe)
    words = [f"--{name}={value}" for name, value in choice.changes.items()]
    assert main(["train", f"--recipe={choice.recipe}", *words, "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert f"name: folder:{overview.folder}" in printed
    assert f"method: {recipe.method}" in printed


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        look_over(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds 3 images in 1 folder; training needs two folders of images or more"):
        look_over(fill(tmp_path, {"only": 3}, (40, 40)))


def test_a_folder_is_all_that_train_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fill(tmp_path / "icons", {"a": 40, "b": 40}, (16, 16))
    out = str(tmp_path / "run")
    assert main(["train", str(folder), "--epochs", "1", "--monitor.every", "0", "--device", "cpu", "--out", out]) == 0
    told = capsys.readouterr()
    assert "80 images of 2 classes" in told.err
    assert "recipe small_images with" in told.err
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()
