"""`audit --predictions` finds where maps lie as `audit` does, without the network."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_work import make_images, make_model

from patchconvnet.cli import main
from patchconvnet.models import load
from patchconvnet.models.classifier import AttentionClassifier


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stored")
    model = load(str(make_model(root / "fresh")))
    for parameter in model.pooling.parameters():  # or its attention would be uniform
        torch.nn.init.normal_(parameter)
    model.save_pretrained(root / "model")
    make_images(root / "images", 84)
    for number, path in enumerate(sorted((root / "images").rglob("*.png"))):
        mask = np.zeros((20, 18), np.uint8)
        mask[number % 9 : number % 9 + 8, number % 7 : number % 7 + 9] = 255
        target = root / "masks" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(target)
    for maps in ("evidence", "attention"):
        words = ["--model", root / "model", "--data", root / "images", "--out", root / maps, "--maps", maps]
        assert main(["predict", *map(str, words), "--part-size", "30"]) == 0
    return root


def asked(world: Path, out: Path, *words: str) -> list[str]:
    subject = ["--model", str(world / "model"), "--data", f"folder:{world / 'images'}", "--split", "all"]
    return ["audit", *subject, "--masks", str(world / "masks"), "--out", str(out), *words]


@pytest.mark.parametrize("maps", ["evidence", "attention"])
def test_places_are_those_of_an_audit(
    maps: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ("pointing", "energy", "max_box_accuracy", "max_box_accuracy_0.5", "pixel_average_precision")
    settings = [f"--methods=[{maps}]", "--measures=[pointing,energy,boxes,pixels]"]
    assert main(asked(world, tmp_path / "audit", *settings)) == 0
    (method,) = json.loads((tmp_path / "audit" / "report.json").read_text())["methods"]

    def not_asked(*given: object, **named: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(AttentionClassifier, "forward", not_asked)
    assert main(asked(world, tmp_path / "stored", "--predictions", str(world / maps))) == 0
    found = json.loads((tmp_path / "stored" / "places.json").read_text())
    assert found["maps"] == maps
    assert "of 84 images" in capsys.readouterr().out
    for column in wanted:
        expected, ours = method["figures"][column], found["figures"][column]
        assert ours["mean"] == pytest.approx(expected["mean"], abs=2e-3), column
        assert ours["standard_error"] == pytest.approx(expected["standard_error"], abs=2e-3), column
        assert ours["count"] == 84
    assert 0.1 < found["figures"]["energy"]["mean"] < 0.9


def test_mistakes_are_named(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = asked(world, out, "--predictions", str(world / "evidence"))
    place = words.index("--masks")
    unfinished, plain, fewer = (Path(shutil.copytree(world / "evidence", tmp_path / name)) for name in "abc")
    for folder, change in ((unfinished, {"finished": False}), (plain, {"settings": {"maps": "none"}})):
        about = json.loads((folder / "predict.json").read_text())
        (folder / "predict.json").write_text(json.dumps(about | change))
    (fewer / "part-00000001.parquet").unlink()
    for given, said in (
        (words[:place] + words[place + 2 :], "give --boxes or --masks"),
        ([*words[:-1], str(unfinished)], "is not complete"),
        ([*words[:-1], str(plain)], "has no maps; predict with --maps"),
        ([*words[:-1], str(fewer)], "no map of 30 of 84 images"),
        ([*words, "--size", "32"], "other weights or another preprocessing"),
        ([*words, "--quick"], "quick"),
    ):
        assert main(given) == 2, said
        assert said in capsys.readouterr().err
    assert not out.exists()
