"""One set of images gives the same data set from every source: classes, splits, fingerprint and pixels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from forms import CLASSES, WRITERS, Files, as_csv, write_csv

from patchconvnet.data.datasets import load
from patchconvnet.data.held_out import load_held_out
from patchconvnet.data.labelled_images import ImageRecords
from patchconvnet.data.splits import DataSplits
from patchconvnet.errors import UserError

SPLITS = ("train", "validation", "test")


def assert_same(found: DataSplits, expected: DataSplits) -> None:
    assert found.class_names == expected.class_names
    assert found.fingerprint() == expected.fingerprint()
    for name in SPLITS:
        ours, theirs = found.require(name), expected.require(name)
        assert ours.labels.tolist() == theirs.labels.tolist()
        for index in range(len(theirs)):
            assert np.array_equal(ours.image(index), theirs.image(index)), ours.place(index)


@pytest.mark.parametrize("write", WRITERS)
def test_every_form_gives_the_data_set_of_the_folder(
    write: Callable[[Path, Path, Files], str], folder: Path, shuffled: Files, tmp_path: Path
) -> None:
    name = write(tmp_path, folder, shuffled)
    expected = load(f"folder:{folder}", validation=6, test=0.2, seed=5)
    assert [len(expected.require(name)) for name in SPLITS] == [21, 6, 7]
    found = load(name, validation=6, test=0.2, seed=5)
    assert found.name == name
    assert_same(found, expected)


@pytest.mark.parametrize("write", WRITERS)
def test_the_order_of_a_source_does_not_count(
    write: Callable[[Path, Path, Files], str], folder: Path, shuffled: Files, tmp_path: Path
) -> None:
    for part in ("one", "other"):
        (tmp_path / part).mkdir()
    one, other = write(tmp_path / "one", folder, shuffled), write(tmp_path / "other", folder, shuffled[::-1])
    assert load(one).fingerprint() == load(other).fingerprint()


def test_folders_below_a_class_and_splits_are_kept(folder: Path, shuffled: Files, tmp_path: Path) -> None:
    rows = []
    for i, (path, name) in enumerate(sorted(shuffled)):
        split = ("train", "train", "val", "test")[i % 4]
        copy = tmp_path / "tree" / split / name / ("young" if i % 3 else "") / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
        rows.append({"path": str(copy.relative_to(tmp_path)), "label": name, "split": split})
    table = write_csv(tmp_path / "pets.csv", rows[::-1])
    assert_same(load(f"csv:{table}"), load(f"folder:{tmp_path / 'tree'}"))
    drawn = load(f"csv:{table}?split=", validation=0, test=5)  # the column left unread
    assert [drawn.train is None, drawn.validation is None, len(drawn.require("test"))] == [False, True, 5]


def test_images_without_names_are_known_by_their_contents(folder: Path, shuffled: Files, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for part, files in {"one": shuffled, "other": shuffled[::-1]}.items():
        table = {"bytes": [path.read_bytes() for path, _ in files], "label": [name for _, name in files]}
        pq.write_table(pa.table(table), tmp_path / f"{part}.parquet")
    one, other = (load(f"parquet:{tmp_path / part}.parquet", test=9) for part in ("one", "other"))
    assert_same(one, other)
    expected, found = load(f"folder:{folder}").fingerprint(), one.fingerprint()
    assert found["all contents"] == expected["all contents"]
    assert found["all images"] != expected["all images"]
    trained = {"data": {"name": "folder:elsewhere", "fingerprint": expected}, "recipe": {"data": {}}}
    with pytest.warns(UserWarning, match="its test images may be some that it has learned"):
        load_held_out(one.name, "auto", trained, test=9)


def test_numbers_are_classes_in_their_order(folder: Path, shuffled: Files, tmp_path: Path) -> None:
    rows = [{"path": str(path), "label": str(i % 12)} for i, (path, _) in enumerate(shuffled)]
    table = write_csv(tmp_path / "numbers.csv", rows)
    assert load(f"csv:{table}").class_names == [str(i) for i in range(12)]


def test_records_join_and_divide_as_files_do(folder: Path, shuffled: Files, tmp_path: Path) -> None:
    data = load(as_csv(tmp_path, folder, shuffled))
    every = data.require("all")
    assert isinstance(every, ImageRecords)
    assert len(every) == sum(CLASSES.values())
    assert sorted(every.place(i) for i in range(len(every))) == sorted(str(path) for path, _ in shuffled)
    some = every.subset([4, 2])
    assert [some.name(0), some.name(1)] == [every.name(4), every.name(2)]
    assert some.digests == [every.digests[4], every.digests[2]]


def refuses(name: str, *said: str, **options: object) -> None:
    with pytest.raises(UserError) as caught:
        load(name, **options)
    for words in said:
        assert words in str(caught.value)


def test_mistakes_are_named(folder: Path, shuffled: Files, tmp_path: Path) -> None:
    table = as_csv(tmp_path, folder, shuffled)
    refuses(f"{table}?label=breed", "has no column 'breed'", "path, label")
    refuses(f"{table}?lable=breed", "csv: has no option 'lable'", "label: the column with the classes")
    refuses(f"{table}?label=", "34 of 34 images", "have no class")
    refuses(f"csv:{tmp_path / 'none.csv'}", "there is no file", "csv:FILE")
    refuses("csv:", "names no file")
    refuses(f"csv:{folder}", "is not a file")
    refuses(f"parquet:{tmp_path / 'pets.csv'}", "cannot be read as Parquet")
    refuses(f"parquet:{folder}", "there are no Parquet files in")
    refuses(f"hf:{tmp_path / 'none'}", "cannot be loaded")
    refuses(f"hf:{folder}:tests", "has no split 'tests'; it has train")
    (tmp_path / "classes.txt").write_text("cat\ndog")
    refuses(f"{table}?classes={tmp_path / 'classes.txt'}", "classes that are not among its names of classes: eel")
    rows = [{"path": str(path), "label": name} for path, name in shuffled]
    rows[7]["path"] = str(tmp_path / "gone.jpg")
    refuses(f"csv:{write_csv(tmp_path / 'gap.csv', rows)}", "1 of 34 images", "gone.jpg")
    rows = [{"path": str(path), "label": "cat"} for path, _ in shuffled]
    refuses(f"csv:{write_csv(tmp_path / 'one.csv', rows)}", "has one class only, 'cat'")
    rows = [{"path": str(path), "label": name, "split": "trian"} for path, name in shuffled]
    refuses(f"csv:{write_csv(tmp_path / 'split.csv', rows)}", "the split 'trian'; known: train, val")
    rows = [{"picture_at": str(path), "label": name} for path, name in shuffled]
    refuses(f"csv:{write_csv(tmp_path / 'column.csv', rows)}", "say which of picture_at, label by ?image=COLUMN")
