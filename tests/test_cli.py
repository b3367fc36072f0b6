"""The command line: what it makes, and that a user's mistake gets a sentence and exit code 2, never a traceback."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from skimage import data

from patchconvnet import PatchConvNet, with_attention_pooling
from patchconvnet.cli import main
from patchconvnet.models import Metadata


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photograph") / "cat.png"
    Image.fromarray(data.chelsea()[:200, :300]).save(path)
    return path


@pytest.fixture(scope="module")
def digits_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network for digits with random weights: good enough to be wrong with."""
    torch.manual_seed(0)
    model: PatchConvNet = timm.create_model("patchconvnet_micro", num_classes=10)
    model.metadata = Metadata(class_names=[str(k) for k in range(10)], preprocessing={"size": [32, 32]})
    return model.save_pretrained(tmp_path_factory.mktemp("model") / "digits")


def answer(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as leaving:  # argparse's way out
        code = int(leaving.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answer(capsys)
    assert code == 0
    for command in ("train", "evaluate", "explain", "models"):
        assert command in out
        code, of_command, _ = answer(capsys, command, "--help")
        assert code == 0
        assert "  patchconvnet " in of_command or command == "models"  # an example on a line of its own


def test_explains_a_rectangle(
    photograph: Path, digits_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = answer(capsys, "explain", photograph, "--model", digits_model, "--out", tmp_path)
    assert code == 0
    assert "cat.png" in out
    record = json.loads((tmp_path / "cat.json").read_text())
    assert record["shown"] == "evidence"  # this model is hardly trained, its attention nearly uniform
    evidence = next(e for e in record["evidence"]["maps"] if e["index"] == record["predicted"]["index"])
    np.testing.assert_allclose(np.load(tmp_path / "cat_map.npy"), evidence["map"], atol=1e-6)
    assert np.shape(evidence["map"]) == (8, 8)
    assert np.sum(record["attention"]["maps"][0]) == pytest.approx(1, abs=1e-5)
    assert Image.open(tmp_path / "cat_overlay.png").size == (300, 200)
    assert Image.open(tmp_path / "cat_overlay.png").mode == "RGBA"
    assert Image.open(tmp_path / "cat_figure.png").size[0] > 400
    assert "cat" in json.dumps(record)


def test_explains_at_another_size_and_for_another_class(
    photograph: Path, digits_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--size", "[48, 64]", "--target", "3", "--refine", "1", "--out", tmp_path)
    code, _, _ = answer(capsys, "explain", photograph, "--model", digits_model, *arguments)
    assert code == 0
    assert np.load(tmp_path / "cat_map.npy").shape == (12, 16)


def test_the_whole_image_is_seen_and_a_map_of_large_patches_refined(
    photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = with_attention_pooling("resnet18", num_classes=3)
    cut = {"size": [96, 96], "resize": "crop", "crop_ratio": 0.7}
    model.metadata = Metadata(class_names=["cat", "dog", "ship"], preprocessing=cut)
    folder = model.save_pretrained(tmp_path / "resnet")

    def record(*options: str) -> dict:
        code, _, err = answer(capsys, "explain", photograph, "--model", folder, "--out", tmp_path, *options)
        assert (code, err) == (0, "")
        return json.loads((tmp_path / "cat.json").read_text())

    refined, plain = record("--view", "own")["grid"], record("--view", "own", "--refine", "0")
    assert (refined["height"], refined["width"], refined["refine"]) == (15, 15, 5)
    assert (plain["grid"]["height"], plain["evidence"]["exact"]) == (3, True)
    assert plain["input"]["box"]["left"] > 50
    assert "crops" not in plain["input"]
    assert record("--only", "json,overlay")["grid"]["refine"] == 0
    whole, finer = record("--refine", "0"), record()["grid"]  # 96 / 0.7 = 137 pixels are 8 values, two to a patch
    assert (whole["grid"]["height"], whole["grid"]["width"]) == (9, 13)
    assert whole["input"]["box"] == {"left": 0, "top": 0, "right": 300, "bottom": 200}
    assert [crop["share"] for crop in whole["input"]["crops"]] == [0.5, 0.25, 0.25]
    assert whole["input"]["crops"][0]["box"] == plain["input"]["box"]
    assert abs(whole["evidence"]["maps"][0]["remainder"]) < 1e-4
    assert finer["refine"] == 2
    assert finer["height"] >= 14
    without = record("--refine", "0", "--without", "0,0,150,200")["without"]
    assert np.array(without["patches"])[4:, 1:5].all()


def test_explains_what_if_a_part_were_gone(
    photograph: Path, digits_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without = ("--without", "0,0,150,100;200,100,300,200")
    code, out, err = answer(capsys, "explain", photograph, "--model", digits_model, *without, "--out", tmp_path)
    assert (code, err) == (0, "")
    assert "(patches taken out)" in out
    assert "(pixels made grey)" in out
    said = json.loads((tmp_path / "cat.json").read_text())["without"]
    assert said["box"] == {"left": 0, "top": 0, "right": 300, "bottom": 200}
    assert np.array(said["patches"], dtype=bool)[:3, :3].all()
    assert not np.array(said["patches"], dtype=bool)[5:, :4].any()
    assert Image.open(tmp_path / "cat_without.png").size[0] > 400


def test_explains_a_folder_and_leaves_out_what_is_no_image(
    photograph: Path, digits_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for target in (folder / "cat.png", folder / "more" / "cat.png"):
        target.write_bytes(photograph.read_bytes())
    (folder / "note.jpg").write_text("not an image")
    out_folder = tmp_path / "out"
    code, out, _ = answer(capsys, "explain", folder, "--model", digits_model, "--out", out_folder)
    assert code == 0
    assert "note.jpg" in out
    assert "1 of 3 images could not be explained" in out
    assert sorted(path.name for path in out_folder.glob("*.json")) == ["cat.json", "more_cat.json"]
    assert (out_folder / "contact_sheet.png").is_file()
    code, _, err = answer(capsys, "explain", folder, "--model", digits_model, "--out", out_folder, "--strict")
    assert code == 2
    assert "note.jpg" in err


def test_evaluates(digits_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answer(capsys, "evaluate", "--model", digits_model, "--data", "digits", "--out", tmp_path)
    assert code == 0
    assert "top-1" in out
    result = json.loads((tmp_path / "evaluation.json").read_text())
    confusion = np.loadtxt(tmp_path / "confusion.csv", delimiter=",", skiprows=1, usecols=range(1, 11))
    assert confusion.sum() == result["images"] == 270
    assert np.trace(confusion) / 270 == pytest.approx(result["top1"])
    assert len((tmp_path / "per_class.csv").read_text().splitlines()) == 11
    assert Image.open(tmp_path / "confusion.png").size[0] > 200


@pytest.mark.slow
def test_evaluates_what_the_training_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--model.name", "patchconvnet_micro", "--model.options", '{"embed_dim": 16, "depth": 1}')
    data = ("--data.validation", "0", "--data.test", "1500", "--data.seed", "7")
    code, _, err = answer(capsys, "train", "--recipe", "digits", *options, *data, "--epochs", "1", "--out", "runs/a")
    assert code == 0, err
    tested = json.loads((tmp_path / "runs/a/best/config.json").read_text())["metrics"]["test"]
    code, _, err = answer(capsys, "evaluate", "--model", "runs/a/best", "--data", "digits")
    assert (code, err) == (0, "")
    evaluated = json.loads((tmp_path / "evaluations/a-best-digits-test/evaluation.json").read_text())
    assert evaluated["images"] == 1500
    assert evaluated["loss"] == pytest.approx(tested["loss"], rel=1e-4)
    code, _, err = answer(capsys, "evaluate", "--model", "runs/a/best", "--data", "digits", "--split", "validation")
    assert code == 2
    assert "no validation split" in err
    with pytest.warns(UserWarning, match="digits is divided otherwise than when the model was trained: its test i"):
        answer(capsys, "evaluate", "--model", "runs/a/best", "--data", "digits", "--test", "300", "--size", "[16, 24]")
    assert (tmp_path / "evaluations/a-best-digits-test-16x24-test_300/evaluation.json").is_file()


@pytest.mark.slow
def test_other_images_than_the_training_had_are_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (20, 20), (i * 20, 0, 0)).save(tmp_path / "pets" / name / f"{i}.png")
    options = ("--model.options", '{"embed_dim": 16, "depth": 1}', "--preprocessing.size", "[16, 16]", "--epochs", "1")
    data = ("--data.name", "folder:pets", "--data.root", tmp_path, "--data.test", "0.4", "--data.seed", "3")
    small = ("--model.name", "patchconvnet_micro", "--model.whiten", "false", "--augmentation.random_crop_padding", "0")
    code, _, err = answer(capsys, "train", "--recipe", "digits", *small, *options, *data, "--out", "runs/a")
    assert code == 0, err
    evaluate = ("evaluate", "--model", "runs/a/best", "--data")
    for name in (("folder:pets",), (f"folder:{tmp_path}/pets",), ("folder:pets", "--root", tmp_path)):
        code, out, err = answer(capsys, *evaluate, *name)
        assert (code, err) == (0, "")
        assert "\n10 images: loss" in out
    moved = (tmp_path / "pets").rename(tmp_path / "moved")  # not known by its name any more, but by its images
    with pytest.warns(UserWarning, match="divided otherwise"):
        answer(capsys, *evaluate, f"folder:{moved}")
    code, _, err = answer(capsys, *evaluate, f"folder:{moved}", "--test", "0.4", "--data_seed", "3")
    assert (code, err) == (0, "")
    (moved / "cat" / "3.png").unlink()
    moved.rename(tmp_path / "pets")
    with pytest.warns(UserWarning, match="not the same images"):
        answer(capsys, *evaluate, "folder:pets")


def test_lists_the_models(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = answer(capsys, "models")
    assert code == 0
    assert "25,231,096" in out
    assert "fb_in21k_ft_in1k_512" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("explain", "nowhere.jpg"), "nowhere.jpg"),
        (("explain", "{photo}", "--model", "no_such_model"), "no_such_model"),
        (("explain", "{photo}", "--model", "{model}", "--target", "elephant"), "elephant"),
        (("explain", "{photo}", "--model", "{model}", "--size", "2"), "smaller than one patch"),
        (("explain", "{photo}", "--model", "{model}", "--without", "1,2,3"), "--without takes left,top,right,bottom"),
        (("explain", "{photo}", "--model", "{model}", "--device", "toaster"), "toaster"),
        (("explain", "{text}", "--model", "{model}"), "none of the 1 images"),
        (("evaluate", "--model", "{model}", "--data", "cifar11"), "cifar10"),
        (("evaluate", "--model", "{model}", "--data", "folder:/no/such/folder"), "/no/such/folder"),
        (("evaluate", "--model", "{model}"), "data"),
        (("evaluate", "--model", "{model}", "--data", "digits", "--batch_size", "0"), "batch_size is 0"),
        (("train", "--recipe", "no_such_recipe"), "digits"),
        (("train", "--recipe", "digits", "--epochs", "0"), "epochs"),
        (("train", "--recipe", "digits", "--epochs", "many"), "epochs"),
        (("train", "--recipe", "digits", "--colour", "red"), "colour"),
        (("train", "--resume"), "--out"),
        (("train", "--resume", "--out", "{empty}"), "nothing to resume"),
        (("train", "--recipe", "digits", "--model.name", "resnext9000", "--out", "{empty}"), "resnext9000"),
        (("train", "--recipe", "digits", "--optimization.momentm", "0.6"), "Did you mean --optimization.momentum?"),
        (
            ("train", "--recipe", "digits", "--optimization.schedule", "cos"),
            "expected one of cosine, linear, not cos",
        ),
        (
            ("train", "--recipe", "digits", "--data.validation", "x"),
            "--data.validation: expected a number or null, not x",
        ),
        (
            ("train", "--epochs", "models.train.x"),
            "expected a whole number, not models.train.x. All options: patchconvnet train --help",
        ),
        (("explain",), "required: images. All options: patchconvnet explain --help"),
        (("explain", "{photo}", "--taget", "cat"), "Did you mean --target?"),
        (("trian",), "Did you mean train?"),
    ],
)
def test_a_mistake_gets_a_sentence(
    arguments: tuple[str, ...],
    words: str,
    photograph: Path,
    digits_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("not an image")
    places = {"photo": photograph, "model": digits_model, "text": text, "empty": tmp_path / "run"}
    code, _, err = answer(capsys, *(argument.format(**places) for argument in arguments))
    assert code == 2
    assert words in err
    assert len(err.splitlines()) <= 3  # no list of all options before it, no traceback
