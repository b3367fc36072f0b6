"""`patchconvnet train`: what is typed becomes a recipe, and mistakes become one sentence."""

from pathlib import Path

import pytest
import yaml
from small_runs import MICRO, checkpoint, rows

from patchconvnet.cli import main
from patchconvnet.training.recipe import read_recipe


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(MICRO.to_yaml())
    return tmp_path / "mine.yaml"


def test_any_field_can_be_set_and_the_whole_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--optimization.learning-rate", "0.5", "--epochs=7"]
    assert main(["train", "--recipe", "digits", *words, "--print_config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    digits = read_recipe("digits").to_dict()
    digits["optimization"]["learning_rate"] = 0.5
    digits["epochs"] = 7
    assert {name: value for name, value in shown.items() if name in digits} == digits


def test_the_recipe_comes_first_wherever_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--epochs", "7", "--recipe", "digits"], ["--epochs", "7", "--recipe=digits"]):
        assert main(["train", *words, "--print_config"]) == 0
        shown = yaml.safe_load(capsys.readouterr().out)
        assert (shown["epochs"], shown["data"]["name"]) == (7, "digits")


def test_a_run_and_how_it_goes_on(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    train = ["train", "--out", str(out), "--accelerator", "cpu"]
    assert main([*train, "--recipe", str(recipe_file), "--epochs", "1"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert lines[0] == (
        "patchconvnet_micro (8,638 parameters) on digits, 16×16 pixels: 397 training images, 200 validation, "
        "1,200 test; 10 classes with 39 (0) to 40 (1) each"
    )
    assert lines[2].startswith("epoch 1/1  loss 2.")
    assert lines[3].startswith("test set, model of epoch 1: loss")
    assert lines[-1] == f"model folder: {out / 'best'}"
    assert read_recipe(out / "recipe.yaml").epochs == 1

    assert main([*train, "--recipe", str(recipe_file), "--epochs", "1"]) == 2
    assert "holds a run already; give --resume to continue it" in capsys.readouterr().err
    assert main([*train, "--resume"]) == 0  # with the run's own recipe
    said = capsys.readouterr().out
    assert "this run is finished, with epoch 1 of 1" in said
    assert "resuming" not in said
    assert len(rows(out)) == checkpoint(out)["epoch"] == 1
    assert main([*train, "--resume", "--epochs", "2"]) == 0
    assert "the run's length changes from 1 to 2 epochs" in capsys.readouterr().out
    assert len(rows(out)) == checkpoint(out)["epoch"] == read_recipe(out / "recipe.yaml").epochs == 2
    assert main([*train, "--resume", "--optimization.weight_decay", "0.5"]) == 2
    assert "was begun with other values of optimization.weight_decay" in capsys.readouterr().err
    assert main([*train, "--resume", "--epochs", "1"]) == 2
    assert "has done 2 epochs, and 1 are asked for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipe", "digit"], "no recipe 'digit'"),
        (["--resume"], "--resume needs --out"),
        (["--resume", "--out", "nowhere"], "nothing to resume: there is no nowhere/checkpoints/last.ckpt"),
        (["--data.name", "digit", "--out", "x"], "unknown dataset 'digit'"),
        (["--seed", "12345678901234567890", "--out", "x"], "seed must be 0 or more and below 2⁶³"),
        (["--data.seed", "12345678901234567890", "--out", "x"], "data.seed must be 0 or more and below 2⁶³"),
        (["--optimization.warmup", "3"], "optimization.warmup is a share"),
        (["--recipe", "digits", "--optimization.optimizer", "adamq", "--out", "x"], "unknown optimizer 'adamq'"),
        (["--recipe", "digits", "--devices", "5", "--out", "x"], "batch_size 64 cannot be divided into 5 equal parts"),
        (["--recipe", "digits", "--preprocessing.size", "[0, 8]"], "preprocessing size is (0, 8)"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *words]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"patchconvnet: {said}")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--epochs", "many"], "--epochs: expected a whole number, not many. All options: patchconvnet train --help"),
        (["--optimization.momentm", "1"], "unknown option --optimization.momentm. Did you mean "),
        (["--recipe"], "--recipe needs a value: a file or name"),
        (["--resume", "maybe"], "argument --resume: invalid choice: 'maybe'"),
    ],
)
def test_what_is_no_option_is_refused_in_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"patchconvnet: {said}")
    assert printed.count("\n") == 1
