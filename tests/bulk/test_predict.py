"""`patchconvnet predict` on one machine: what the rows hold, and that a kill costs none and doubles none."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small_work import CLASSES, ids_of, make_images, make_model, rows_of

from patchconvnet import explain, load
from patchconvnet.bulk.parts import part_files
from patchconvnet.cli import main
from patchconvnet.explanation.explainer import preprocessing_of

Answer = tuple[int, str, str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("bulk") / "model")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("bulk_images") / "images", 75)


def predict(capsys: pytest.CaptureFixture[str], *words: str | Path) -> Answer:
    code = main(["predict", *map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize("maps", ["attention", "evidence"])
@pytest.mark.parametrize("pooling", ["additive", "class_attention", "class_attention_multi"])
def test_rows_say_what_explain_says(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pooling: str, maps: str
) -> None:
    model, out = make_model(tmp_path / "model", pooling), tmp_path / "out"
    code, said, _ = predict(
        capsys, "--model", model, "--data", images, "--out", out, "--maps", maps, "--embeddings", "--part-size", 32,
        "--embedding-dtype", "float32", "--top", 3,
    )  # fmt: skip
    assert code == 0
    assert "75 images in 3 files" in said
    table = rows_of(out)
    assert table["id"].to_pylist() == ids_of(images)
    about = json.loads((out / "predict.json").read_text())
    network = load(model)
    explained = explain(network, [images / name for name in table["id"].to_pylist()])
    for row, explanation in zip(table.to_pylist(), explained, strict=True):
        best = explanation.top_classes(3)
        assert row["classes"] == [each.name for each in best]
        assert row["class_indices"] == [each.index for each in best]
        np.testing.assert_allclose(row["probabilities"], [each.probability for each in best], atol=2e-5)
        assert row["label"] == CLASSES[row["label_index"]] == row["id"].split("/")[0]
        assert row["label_loss"] == pytest.approx(-np.log(explanation.probabilities[row["label_index"]]), abs=1e-4)
        assert row["error"] is None
        values = np.array(row[maps]).reshape(about["map_shape"])
        np.testing.assert_allclose(values, explanation.map_for(kind=maps), rtol=2e-3, atol=2e-3)
    with torch.no_grad():
        tensors = torch.stack([preprocessing_of(network)(explanation.image) for explanation in explained])
        expected = network.forward_head(network.forward_features(tensors), pre_logits=True).numpy()
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist()), expected, atol=1e-4)
    assert about["embedding_length"] == expected.shape[1]


def test_bad_images_take_their_own_rows(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(images, folder)
    (folder / "a" / "bad.png").write_bytes(b"no image")
    cut = (folder / "b" / "00001.png").read_bytes()
    (folder / "b" / "cut.png").write_bytes(cut[: len(cut) // 2])
    (folder / "loose.png").write_bytes(cut)
    code, said, _ = predict(
        capsys, "--model", model, "--data", f"folder:{folder}", "--out", out, "--maps", "evidence", "--part-size", 10
    )
    assert code == 0
    assert "2 of them could not be predicted" in said
    rows = {row["id"]: row for row in rows_of(out).to_pylist()}
    assert sorted(rows) == ids_of(folder)
    bad = {name for name, row in rows.items() if row["error"] is not None}
    assert bad == {"a/bad.png", "b/cut.png"}
    for name in bad:
        assert rows[name]["classes"] is rows[name]["probabilities"] is rows[name]["evidence"] is None
        assert "not a readable image" in rows[name]["error"]
    assert rows["loose.png"]["label"] is None
    assert rows["loose.png"]["label_loss"] is None
    assert rows["loose.png"]["probabilities"] == rows["b/00001.png"]["probabilities"]
    about = json.loads((out / "predict.json").read_text())
    assert about["finished"]
    assert about["failed"]["images"] == 2
    assert {each["id"] for each in about["failed"]["first"]} == bad


def test_a_folder_without_any_good_image_is_a_mistake(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(b"")
    code, _, err = predict(capsys, "--model", model, "--data", tmp_path / "images", "--out", tmp_path / "out")
    assert code == 2
    assert "none of the 1 images" in err


def test_other_settings_are_refused(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--model", model, "--data", images, "--out", tmp_path / "out", "--part-size", 50]
    assert predict(capsys, *asked)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in part_files(tmp_path / "out")}
    code, said, _ = predict(capsys, *asked)
    assert code == 0
    assert "75 of 75 images are there already" in said
    assert before == {path: path.stat().st_mtime_ns for path in part_files(tmp_path / "out")}
    code, _, err = predict(capsys, *asked, "--top", 2)
    assert code == 2
    assert "another settings (top 5), and this would be top 2" in err
    code, _, err = predict(capsys, *asked[:-1], 20)
    assert code == 2
    assert "part_size 50" in err
    other = make_model(tmp_path / "other", "class_attention")
    code, _, err = predict(capsys, "--model", other, *asked[2:])
    assert code == 2
    assert "another model" in err
    more = tmp_path / "more"
    shutil.copytree(images, more)
    shutil.copy(more / "a" / "00000.png", more / "a" / "zz.png")
    code, _, err = predict(capsys, *asked[:2], "--data", more, *asked[4:])
    assert code == 2
    assert "another data" in err


@pytest.mark.slow
def test_a_kill_costs_no_row_and_doubles_none(model: Path, tmp_path: Path) -> None:
    images, out = make_images(tmp_path / "images", 1500), tmp_path / "out"
    words = [
        sys.executable, "-m", "patchconvnet", "predict", "--model", model, "--data", images, "--out", out,
        "--part-size", "25", "--threads", "1", "--maps", "evidence",
    ]  # fmt: skip
    kills = 0
    for least in (2, 20):
        running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while len(part_files(out)) < least and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        running.send_signal(signal.SIGKILL)
        _, error = running.communicate()
        kills += running.returncode == -signal.SIGKILL
        assert len(part_files(out)) >= least, error
    assert kills == 2
    left = {path: path.stat().st_ino for path in part_files(out)}
    assert len(left) < 60, "killed before it was done"
    assert not json.loads((out / "predict.json").read_text())["finished"]
    subprocess.run(words, check=True, capture_output=True)
    assert rows_of(out)["id"].to_pylist() == ids_of(images)
    assert {path: path.stat().st_ino for path in left} == left, "parts that were there are not made again"
    assert not [name for name in os.listdir(out) if name.startswith(".")], "nothing half written is left"
    assert json.loads((out / "predict.json").read_text())["finished"]


@pytest.mark.slow
def test_an_exported_file_predicts_the_same(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    file = tmp_path / "model.onnx"
    assert main(["export", "--model", str(model), "--out", str(file)]) == 0
    for name, given in (("torch", model), ("onnx", file)):
        asked = ["--model", given, "--data", images, "--out", tmp_path / name, "--maps", "evidence"]
        assert predict(capsys, *asked)[0] == 0
    ours, theirs = (rows_of(tmp_path / name) for name in ("torch", "onnx"))
    assert ours["classes"].to_pylist() == theirs["classes"].to_pylist()
    for column, tolerance in (("probabilities", 1e-5), ("evidence", 2e-3)):
        values, others = (np.array(table[column].to_pylist(), np.float32) for table in (ours, theirs))
        np.testing.assert_allclose(values, others, atol=tolerance)
    code, _, err = predict(capsys, "--model", file, "--data", images, "--out", tmp_path / "none", "--embeddings")
    assert code == 2
    assert "no embeddings" in err
