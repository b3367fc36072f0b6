"""`evaluate --predictions` finds what `evaluate` finds, without the network."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_work import make_images, make_model

from patchconvnet.bulk.measured import evaluate_predictions
from patchconvnet.cli import main


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("measured")
    make_model(root / "model")
    make_images(root / "images", 140)
    return root


def test_predictions_evaluate_like_the_network(world: Path, tmp_path: Path) -> None:
    model, data = str(world / "model"), f"folder:{world / 'images'}"
    asked = ["--model", model, "--data", data]
    assert main(["evaluate", *asked, "--split", "all", "--workers", "0", "--out", str(tmp_path / "asked")]) == 0
    assert main(["predict", *asked, "--out", str(tmp_path / "predicted"), "--part-size", "33"]) == 0
    shutil.rmtree(tmp_path / "reread", ignore_errors=True)
    assert main(["evaluate", "--predictions", str(tmp_path / "predicted"), "--out", str(tmp_path / "reread")]) == 0
    first, second = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("asked", "reread"))
    assert first["images"] == second["images"] == 140
    assert 0 < first["top1"] < first["top5"] < 1
    for name in ("top1", "top5", "balanced_accuracy", "macro_f1", "classes"):
        assert first[name] == second[name], name
    for name in ("loss", "calibration_error"):
        assert first[name] == pytest.approx(second[name], abs=1e-5)
    tables = [(tmp_path / name / "confusion.csv").read_text() for name in ("asked", "reread")]
    assert tables[0] == tables[1]


def test_one_split_of_a_folder(world: Path, tmp_path: Path) -> None:
    data = f"folder:{world / 'images'}"
    asked = ["--model", str(world / "model"), "--data", data, "--split", "test"]
    assert main(["predict", *asked, "--out", str(tmp_path / "predicted")]) == 0
    assert main(["evaluate", *asked, "--workers", "0", "--out", str(tmp_path / "asked")]) == 0
    evaluation, about = evaluate_predictions(tmp_path / "predicted")
    expected = json.loads((tmp_path / "asked" / "evaluation.json").read_text())
    assert evaluation.count == expected["images"] == about["data"]["images"] == 14
    assert evaluation.top1 == expected["top1"]
    assert evaluation.confusion.dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--top": "2"}, "predict with --top 5"),
        ({"--data": "unnamed"}, "images without a label"),
        ({"--data": "damaged"}, "could not be predicted"),
    ],
)
def test_what_is_not_enough_is_refused(
    world: Path, tmp_path: Path, change: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path / "unnamed", 8, ["elsewhere"])
    make_images(tmp_path / "damaged", 8)
    (tmp_path / "damaged" / "a" / "x.png").write_bytes(b"x")
    options = {"--model": str(world / "model"), "--data": str(world / "images"), "--out": str(tmp_path / "out")}
    options |= {key: str(tmp_path / value) if key == "--data" else value for key, value in change.items()}
    assert main(["predict", *(f"{key}={value}" for key, value in options.items())]) == 0
    assert main(["evaluate", "--predictions", options["--out"]]) == 2
    assert said in capsys.readouterr().err


def test_an_interrupted_run_is_no_evaluation(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--predictions", str(tmp_path)]) == 2
    assert "no predictions" in capsys.readouterr().err
    out = tmp_path / "out"
    asked = ["predict", "--model", str(world / "model"), "--data", str(world / "images"), "--out", str(out)]
    assert main(asked) == 0
    about = json.loads((out / "predict.json").read_text())
    (out / "predict.json").write_text(json.dumps({**about, "finished": False}))
    assert main(["evaluate", f"--predictions={out}"]) == 2
    assert "not complete" in capsys.readouterr().err
    assert main(["evaluate", "--predictions", str(out), "--top", "3"]) == 2
    assert "unknown option --top" in capsys.readouterr().err
