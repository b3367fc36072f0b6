"""Run folders and recipes that version 0.1.0 wrote when it still said "pictures" load and go on.

`fixtures/old_run` was written by the code of that time: two epochs of the small digits network of `small_runs`.
"""

import shutil
from pathlib import Path

import pytest
import torch
from small_runs import checkpoint, rows, run, untimed

from patchconvnet import load
from patchconvnet.errors import UserError
from patchconvnet.training.evaluation import evaluate
from patchconvnet.training.recipe import read_recipe
from patchconvnet.training.run_folder import RunFolder
from patchconvnet.training.sources import load_data

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "old_run"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD_RUN, tmp_path / "run"))


def test_its_recipe_is_read_in_todays_words(folder: Path) -> None:
    assert "pictures: 3" in (folder / "recipe.yaml").read_text()
    recipe = read_recipe(folder / "recipe.yaml")
    assert (recipe.monitor.every, recipe.monitor.images) == (2, 3)


def test_a_finished_one_stays_finished(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(read_recipe(folder / "recipe.yaml"), folder, resume="yes")
    assert "top-1 19.42%  top-5 52.75%  calibration error 10.76%  (1,200 images" in capsys.readouterr().out
    assert untimed(folder) == untimed(OLD_RUN)


def test_its_images_are_compared_with_todays(folder: Path) -> None:
    recipe = read_recipe(folder / "recipe.yaml")
    before, now = RunFolder(folder).load_checkpoint()[1]["data"], load_data(recipe).fingerprint()
    assert {name: now[name] for name in before} == before
    state = checkpoint(folder)
    state["data"]["train pictures"] = "397 of others"
    torch.save(state, folder / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match="the train images of digits are not those"):
        run(recipe, folder, resume="yes")


def test_its_model_is_measured_as_then(folder: Path) -> None:
    model = load(folder / "best")
    recipe = read_recipe(folder / "recipe.yaml")
    measured = evaluate(model, load_data(recipe).require("test"), recipe.preprocessing).to_dict()
    then = model.metadata.metrics["test"]
    assert {name: measured[name] for name in then} == pytest.approx(then, rel=1e-4)
    assert measured["top1"] == 0.19416666666666665  # as the old code printed
    assert len(rows(folder)) == 2
