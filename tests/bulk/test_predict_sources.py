"""`patchconvnet predict` of tables, tar files and Hugging Face data sets; of two at once, and of a full disk."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from small_work import CLASSES, ids_of, make_images, make_model, rows_of

from patchconvnet.bulk.parts import part_files
from patchconvnet.cli import main

COMMAND = [sys.executable, "-m", "patchconvnet", "predict"]
COUNT = 75
pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("bulk") / "model")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With one that is no image."""
    folder = make_images(tmp_path_factory.mktemp("bulk_images") / "images", COUNT - 1)
    (folder / "c" / "bad.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def expected(model: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of the folder."""
    return rows(model, images, tmp_path_factory.mktemp("expected") / "out")


def rows(model: Path, data: str | Path, out: Path, *words: str) -> list[dict[str, Any]]:
    asked = ["predict", "--model", model, "--data", data, "--out", out, "--maps", "evidence", "--part-size", "20"]
    assert main([*map(str, asked), *words]) == 0
    return sorted(rows_of(out).to_pylist(), key=lambda row: row["id"])


def files_of(images: Path) -> list[Path]:
    """In no order that a folder would have."""
    return sorted(images.rglob("*.png"), key=lambda path: path.name[::-1])


def as_csv(images: Path, out: Path, labels: bool) -> str:
    with (out / "images.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"] if labels else ["path"])
        for path in files_of(images):
            where = path if labels else os.path.relpath(path, out)
            writer.writerow([where, path.parent.name] if labels else [where])
    return f"csv:{out / 'images.csv'}"


def as_parquet(images: Path, out: Path, labels: bool) -> str:
    table: dict[str, list[Any]] = {"bytes": [], "name": [], "label": []}
    for path in files_of(images):
        table["bytes"].append(path.read_bytes())
        table["name"].append(f"{path.parent.name}/{path.name}")
        table["label"].append(path.parent.name)
    if not labels:
        del table["label"]
    pyarrow.parquet.write_table(pyarrow.table(table), out / "images.parquet", row_group_size=7)
    return f"parquet:{out / 'images.parquet'}"


def as_hf(images: Path, out: Path, labels: bool) -> str:
    pictures = [{"bytes": path.read_bytes(), "path": f"{path.parent.name}/{path.name}"} for path in files_of(images)]
    table: dict[str, list[Any]] = {"image": pictures, "label": [path.parent.name for path in files_of(images)]}
    if not labels:
        del table["label"]
    (out / "hub").mkdir()
    pyarrow.parquet.write_table(pyarrow.table(table), out / "hub" / "train-00000-of-00001.parquet")
    return f"hf:{out / 'hub'}"


def as_wds(images: Path, out: Path, labels: bool) -> str:
    """In two tar files; without labels the keys have no folder."""
    for part in range(2):
        with tarfile.open(out / f"images-{part}.tar", "w") as archive:
            for path in files_of(images)[part::2]:
                content = path.read_bytes()
                member = tarfile.TarInfo(f"{path.parent.name}/{path.name}" if labels else path.name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return f"wds:{out}/images-{{0..1}}.tar"


def as_litdata(images: Path, out: Path, labels: bool) -> str:
    pytest.importorskip("litdata", reason="litdata is not installed")
    from litdata.streaming import Cache

    cache = Cache(str(out / "chunks"), chunk_size=7)
    for i, path in enumerate(files_of(images)):
        sample = {"image": path.read_bytes(), "name": f"{path.parent.name}/{path.name}"}
        cache[i] = sample | ({"label": path.parent.name} if labels else {})
    cache.done()
    cache.merge()
    return f"litdata:{out / 'chunks'}"


@pytest.mark.parametrize("write", [as_csv, as_parquet, as_hf, as_wds, as_litdata])
def test_a_source_gives_the_rows_of_the_folder(
    write: Callable[[Path, Path, bool], str], model: Path, images: Path, expected: list[Any], tmp_path: Path
) -> None:
    assert len(expected) == COUNT
    assert [row["id"] for row in expected if row["error"]] == ["c/bad.png"]
    found = rows(model, write(images, tmp_path, True), tmp_path / "out")
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["id"] == theirs["id"]
        assert ours["label"] == theirs["label"] == ours["id"].partition("/")[0]
        assert (ours["error"] is None) == (theirs["error"] is None)
        assert ours["classes"] == theirs["classes"]
        if theirs["error"]:
            continue
        for column in ("probabilities", "label_loss", "evidence"):
            assert ours[column] == pytest.approx(theirs[column], rel=2e-3, abs=1e-5), (ours["id"], column)


@pytest.mark.parametrize("write", [as_csv, as_parquet, as_hf, as_wds, as_litdata])
def test_a_source_needs_no_labels(
    write: Callable[[Path, Path, bool], str], model: Path, images: Path, expected: list[Any], tmp_path: Path
) -> None:
    found = rows(model, write(images, tmp_path, False), tmp_path / "out")
    assert {row["label"] for row in found} == {row["label_loss"] for row in found} == {None}
    by_name = {row["id"].rpartition("/")[2]: row for row in expected}
    assert len({row["id"] for row in found}) == COUNT
    for row in found:
        assert row["classes"] == by_name[row["id"].rpartition("/")[2]]["classes"]


def test_images_called_alike_have_ids_of_their_own(model: Path, images: Path, tmp_path: Path) -> None:
    files = files_of(images)[:6]
    table = [(path, "a", "test") for path in files[:4]] + [(files[4], "a", "train"), (files[0], "zebra", "train")]
    lines = ["path,label,split", *(",".join(map(str, row)) for row in table)]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    found = rows(model, f"csv:{tmp_path / 'a.csv'}", tmp_path / "out")
    assert len({row["id"] for row in found}) == 6
    assert [row["label"] for row in found].count("a") == 5  # a class that the model does not know is no label
    found = rows(model, f"csv:{tmp_path / 'a.csv'}", tmp_path / "test", "--split", "test")
    assert len(found) == 4


def test_another_source_is_not_gone_on_with(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = as_parquet(images, tmp_path, True)
    rows(model, data, tmp_path / "out")
    path = tmp_path / "images.parquet"
    table = pyarrow.parquet.read_table(path)
    changed = [value + b"\0" if i == 7 else value for i, value in enumerate(table["bytes"].to_pylist())]
    pyarrow.parquet.write_table(table.set_column(0, "bytes", pyarrow.array(changed)), path)
    asked = ["--model", model, "--data", data, "--out", tmp_path / "out", "--maps", "evidence", "--part-size", "20"]
    assert main(["predict", *map(str, asked)]) == 2
    assert "another data" in capsys.readouterr().err


def test_a_source_goes_on_after_a_kill(model: Path, images: Path, expected: list[Any], tmp_path: Path) -> None:
    data, out = as_wds(images, tmp_path, True), tmp_path / "out"
    rows(model, data, out)
    part_files(out)[1].unlink()  # as if it had been killed before
    (out / ".part-00000001.parquet.part").write_bytes(b"PAR1")
    found = rows(model, data, out)
    assert [row["id"] for row in found] == [row["id"] for row in expected]
    assert not [name for name in os.listdir(out) if name.startswith(".")]


@pytest.mark.slow
def test_a_second_prediction_into_one_folder_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = make_images(tmp_path / "images", 2000), tmp_path / "out"
    asked = ["--model", model, "--data", images, "--out", out, "--part-size", 10, "--threads", 1]
    first = subprocess.Popen([*COMMAND, *map(str, asked)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not part_files(out) and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)  # so that it cannot end before the second has tried
        os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # a part may be on its way to its name
        before = {path: path.stat().st_ino for path in part_files(out)}
        assert main(["predict", *map(str, asked)]) == 2
        said = capsys.readouterr().err
        assert f"another prediction (process {first.pid} on " in said
        assert f"is writing into {out}; wait for its end" in said
        assert {path: path.stat().st_ino for path in part_files(out)} == before
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert main(["predict", *map(str, asked)]) == 0  # the dead one's lock is gone with it
    assert rows_of(out)["id"].to_pylist() == ids_of(images)


@pytest.mark.slow
def test_a_full_disk_loses_no_finished_part(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file may grow beyond a size, which is what a quota does: enough for the first parts, not for one with maps."""
    out = tmp_path / "out"
    asked = ["--model", model, "--data", images, "--out", out, "--part-size", 20, "--maps", "evidence", "--size", 64]
    assert main(["predict", *map(str, asked)]) == 0
    sizes = [path.stat().st_size for path in part_files(out)]
    whole = rows_of(out)
    for path in part_files(out)[2:]:
        path.unlink()
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({min(sizes) // 2}, resource.RLIM_INFINITY))"
    run = f"{limit}; import sys; from patchconvnet.cli import run_and_exit; run_and_exit()"
    failing = subprocess.run(
        [sys.executable, "-c", run, "predict", *map(str, asked)], capture_output=True, text=True, timeout=120
    )
    assert failing.returncode == 2, failing.stderr
    assert "cannot write" in failing.stderr
    assert "the same command goes on" in failing.stderr
    assert "Traceback" not in failing.stderr
    assert [path.stat().st_size for path in part_files(out)] == sizes[:2]
    assert not [name for name in os.listdir(out) if name.startswith(".")], "nothing half written is left"
    assert main(["predict", *map(str, asked)]) == 0
    assert rows_of(out)["id"].to_pylist() == whole["id"].to_pylist()
    capsys.readouterr()


def test_more_bad_images_than_allowed_stop_it(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--model", model, "--data", images, "--out", tmp_path / "out", "--part-size", 10]
    assert main(["predict", *map(str, asked), "--max-bad", "0"]) == 2
    said = capsys.readouterr().err
    assert "1 images could not be predicted, 0 may fail (--max-bad); the last is c/bad.png" in said
    assert not json.loads((tmp_path / "out" / "predict.json").read_text())["finished"]
    assert "c/bad.png" not in rows_of(tmp_path / "out")["id"].to_pylist()
    assert main(["predict", *map(str, asked), "--max-bad", "2%"]) == 0
    assert len(rows_of(tmp_path / "out")) == COUNT


def test_labels_are_by_the_models_names(model: Path, tmp_path: Path) -> None:
    """A split of a folder whose classes are some of the model's, at other places."""
    folder = make_images(tmp_path / "images", 60, CLASSES[4:])
    found = rows(model, f"folder:{folder}", tmp_path / "out", "--split", "train")
    assert found
    for row in found:
        assert row["label"] == Path(row["id"]).parent.name == CLASSES[row["label_index"]]
