"""`review` lists what is worth a look, from what `predict` wrote: against a second way through all rows at once."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_work import CLASSES, make_images, make_model, rows_of

from patchconvnet.bulk.review import review
from patchconvnet.cli import main
from patchconvnet.errors import UserError


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("review")
    images = make_images(root / "images", 60)
    (images / "unlabelled").mkdir()
    for path in sorted((images / "a").iterdir())[:2]:
        shutil.copy(path, images / "unlabelled")
    (images / "b" / "bad.png").write_bytes(b"no image")
    words = ["--model", make_model(root / "model"), "--data", images, "--out", root / "predicted", "--part-size", 13]
    assert main(["predict", *map(str, words)]) == 0
    return root / "predicted"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("count", [7, 1000])
def test_the_lists_are_those_of_all_rows_at_once(count: int, predicted: Path) -> None:
    rows: list[dict[str, Any]] = [row for row in rows_of(predicted).to_pylist() if row["error"] is None]
    found = review(predicted, count)
    assert (found.images, found.labelled, found.failed) == (62, 60, 1)
    wrong = [row for row in rows if row["label"] is not None and row["label"] != row["classes"][0]]
    assert 30 < len(wrong) < 60
    wrong.sort(key=lambda row: -row["label_loss"])
    assert [each.id for each in found.disagreed] == [row["id"] for row in wrong[:count]]
    for ours, row in zip(found.disagreed, wrong, strict=False):
        assert [ours.label, ours.first, ours.second] == [row["label"], *row["classes"][:2]]
        assert [ours.first_probability, ours.second_probability] == row["probabilities"][:2]
        assert ours.label_loss == row["label_loss"]
    rows.sort(key=lambda row: row["probabilities"][0] - row["probabilities"][1])
    assert [each.id for each in found.unsure] == [row["id"] for row in rows[:count]]
    pairs = {(label, other): 0 for label in CLASSES for other in CLASSES}
    for row in wrong:
        pairs[row["label"], row["classes"][0]] += 1
    for pair in found.confusions:
        assert pair.images == pairs[pair.label, pair.predicted] > 0
        assert pair.share == pair.images / sum(row["label"] == pair.label for row in rows)
    assert [pair.images for pair in found.confusions] == sorted(pairs.values(), reverse=True)[: len(found.confusions)]
    assert len(found.confusions) == min(count, sum(number > 0 for number in pairs.values()))


def test_the_command_writes_tables(predicted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["review", "--predictions", str(predicted), "--out", str(tmp_path), "--count", "5"]) == 0
    said = capsys.readouterr().out
    assert "62 images, 60 of them with a label, 1 could not be predicted" in said
    found = review(predicted, 5)
    assert [row["id"] for row in table(tmp_path / "disagreed.csv")] == [each.id for each in found.disagreed]
    unsure = table(tmp_path / "unsure.csv")
    assert [float(row["first_probability"]) for row in unsure] == [each.first_probability for each in found.unsure]
    assert f"{found.disagreed[0].id}: {found.disagreed[0].first} " in said
    assert f"{found.confusions[0].label} taken for {found.confusions[0].predicted}: " in said
    assert len(table(tmp_path / "confused.csv")) == 5


def test_mistakes_are_named(predicted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied = Path(shutil.copytree(predicted, tmp_path / "copy"))
    about = json.loads((copied / "predict.json").read_text())
    for change, said in (({"finished": False}, "is not complete"), ({"settings": {"top": 1}}, "--top 2 or more")):
        (copied / "predict.json").write_text(json.dumps(about | change))
        with pytest.raises(UserError, match=said):
            review(copied)
    for words, said in (
        (["--predictions", str(tmp_path)], "holds no predictions"),
        (["--predictions", str(predicted), "--count", "0"], "count is 0"),
        ([], "--predictions"),
    ):
        assert main(["review", *words, "--out", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
