"""Folders of images: their layouts, what is passed over, and what is refused in which words."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchconvnet.data.datasets import load
from patchconvnet.data.images import read_image
from patchconvnet.data.labelled_images import ImageFiles
from patchconvnet.data.splits import DataSplits
from patchconvnet.errors import UserError

MakeTree = Callable[..., Path]


def write(path: Path, colour: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (colour, 50, 100)).save(path)
    return path


def fill(path: Path, classes: dict[str, int]) -> Path:
    for name, count in classes.items():
        for number in range(count):
            write(path / name / f"{number:03}.png", number)
    return path


def names(splits: DataSplits, split: str) -> list[str]:
    files = getattr(splits, split)
    assert isinstance(files, ImageFiles)
    return [f"{path.parent.name}/{path.name}" for path in files.paths]


def test_one_tree_is_split_by_seed(tmp_path: Path) -> None:
    fill(tmp_path, {"dog": 40, "cat": 60})
    splits = load(f"folder:{tmp_path}", seed=1)
    assert splits.class_names == ["cat", "dog"]
    assert [len(splits.require(split)) for split in ("train", "validation", "test")] == [80, 10, 10]
    assert splits.require("test").labels.bincount().tolist() == [6, 4]
    every = [name for split in ("train", "validation", "test") for name in names(splits, split)]
    assert len(set(every)) == 100
    for split in ("train", "validation", "test"):
        files = splits.require(split)
        assert [name.split("/")[0] for name in names(splits, split)] == [files.class_names[i] for i in files.labels]
    assert names(load(f"folder:{tmp_path}", seed=1), "test") == names(splits, "test")
    assert names(load(f"folder:{tmp_path}", seed=2), "test") != names(splits, "test")
    without = load(f"folder:{tmp_path}", validation=0, test=30)
    assert without.validation is None
    assert (len(without.require("train")), len(without.require("test"))) == (70, 30)


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "Val"])
def test_splits_of_its_own(tmp_path: Path, validation: str) -> None:
    fill(tmp_path / "train", {"a": 3, "b": 4})
    fill(tmp_path / validation, {"a": 1, "b": 2})
    fill(tmp_path / "test", {"b": 5})  # a class may be missing where nothing is learnt
    (tmp_path / "annotations").mkdir()
    splits = load(f"folder:{tmp_path}")
    assert [len(splits.require(split)) for split in ("train", "validation", "test")] == [7, 3, 5]
    assert splits.require("test").labels.tolist() == [1] * 5
    with pytest.raises(UserError, match="has its own validation split"):
        load(f"folder:{tmp_path}", validation=0.2)
    assert len(load(f"folder:{tmp_path}", validation=0).require("validation")) == 3  # none of the training images
    with pytest.raises(UserError, match="leave out the option test"):
        load(f"folder:{tmp_path}", test=0.2)


def test_validation_is_taken_from_train_where_there_is_no_folder_for_it(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"a": 20, "b": 20})
    fill(tmp_path / "test", {"a": 3, "b": 3})
    splits = load(f"folder:{tmp_path}")
    assert splits.require("validation").labels.tolist() == [0, 0, 1, 1]
    assert len(splits.require("train")) == 36
    everything = load(f"folder:{tmp_path}", validation=0)
    assert everything.validation is None
    assert len(everything.require("train")) == 40


def test_only_a_test_folder_is_enough_to_evaluate(tmp_path: Path) -> None:
    fill(tmp_path / "test", {"a": 3, "b": 3})
    splits = load(f"folder:{tmp_path}")
    assert (splits.train, splits.validation, len(splits.require("test"))) == (None, None, 6)


def test_classes_may_be_called_like_splits(tmp_path: Path) -> None:
    fill(tmp_path, {"test": 20, "exam": 20})
    assert load(f"folder:{tmp_path}").class_names == ["exam", "test"]


def test_a_relative_folder_is_taken_from_root(tmp_path: Path) -> None:
    fill(tmp_path / "images", {"a": 20, "b": 20})
    assert len(load("folder:images", root=tmp_path).require("train")) == 32


def test_nested_images_are_found_and_junk_is_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 10, "b": 10})
    write(tmp_path / "a" / "more" / "deep" / "nested.JPG")
    for junk in ("a/.DS_Store", "a/._000.png", "a/Thumbs.db", "a/notes.txt", ".git/x.png", "__MACOSX/a/._x.png"):
        (tmp_path / junk).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / junk).write_bytes(b"junk")
    write(tmp_path / "a" / ".ipynb_checkpoints" / "copy.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = load(f"folder:{tmp_path}", validation=0, test=0)
    assert splits.class_names == ["a", "b"]
    assert len(splits.require("train")) == 21
    assert "deep/nested.JPG" in names(splits, "train")


def spoil(path: Path) -> None:
    """Noise as a JPEG and a PNG, cut in the middle; a text and nothing at all under an image's name."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for name in ("cut.jpg", "cut.png"):
        noise.save(path / name)
        whole = (path / name).read_bytes()
        (path / name).write_bytes(whole[: len(whole) // 2])
    (path / "text.png").write_text("not an image")
    (path / "empty.gif").touch()


def test_unreadable_images_are_named_counted_and_skipped(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 20, "b": 20})
    spoil(tmp_path / "b")
    with pytest.warns(UserWarning, match="4 of 44 files in .* are not readable images: b/cut.jpg, b/cut.png") as record:
        splits = load(f"folder:{tmp_path}")
    assert len(record) == 1
    assert record[0].filename == __file__  # the warning points at whoever loads
    assert sorted(path.name for path in splits.skipped) == ["cut.jpg", "cut.png", "empty.gif", "text.png"]
    assert sum(len(splits.require(split)) for split in ("train", "validation", "test")) == 40
    for split in ("train", "validation", "test"):
        for path in splits.require(split).paths:  # type: ignore[union-attr]
            read_image(path)


def test_unreadable_images_are_an_error_where_strict(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 20, "b": 20})
    spoil(tmp_path / "b")
    with pytest.raises(UserError, match=r"4 of 44 files .* b/cut\.jpg"):
        load(f"folder:{tmp_path}", strict=True)


def test_what_passes_the_check_can_be_read(tmp_path: Path) -> None:
    """Kinds that PIL opens, but whose conversion to RGB is the question."""
    fill(tmp_path, {"a": 5, "b": 5})
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    image = Image.fromarray(noise)
    for mode, name in (
        ("LAB", "lab.tiff"),
        ("CMYK", "cmyk.jpg"),
        ("RGBA", "rgba.webp"),
        ("P", "p.gif"),
        ("1", "bit.bmp"),
    ):
        source = image.convert("RGB")
        (Image.fromarray(noise[..., :3], "LAB") if mode == "LAB" else source.convert(mode)).save(tmp_path / "a" / name)
    Image.new("L", (1, 1)).save(tmp_path / "a" / "one.jpg")  # smaller than the eighth it is checked at
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        splits = load(f"folder:{tmp_path}", validation=0, test=0)
    files = splits.require("train")
    assert isinstance(files, ImageFiles)
    assert "one.jpg" in [path.name for path in files.paths]
    for index in range(len(files)):
        assert files.image(index).mode == "RGB"


def test_a_class_of_unreadable_images_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 3})
    (tmp_path / "b").mkdir()
    spoil(tmp_path / "b")
    with pytest.raises(UserError, match="no readable images are left in class folder b"):
        load(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no folder"),
        (lambda path: path.write_text("a file"), "is a file; give folder:PATH"),
        (lambda path: path.mkdir(), "holds no class folders"),
        (lambda path: write(path / "loose.png"), "holds no class folders"),
        (lambda path: fill(path, {"only": 3}), "one class folder only, 'only'"),
        (lambda path: (fill(path, {"a": 3, "b": 3}) / "c").mkdir(), "no images in class folder c"),
        (
            lambda path: fill(path, {"train/a": 3, "train/b": 3, "test/c": 1}),
            "classes that the training folder lacks: c",
        ),
        (lambda path: (fill(path, {"train/a": 3, "train/b": 3}) / "val").mkdir(), "val holds no class folders"),
        (lambda path: write(fill(path, {"train/a": 3, "train/b": 3}) / "test/1.png"), "test holds no class folders"),
        (lambda path: fill(path, {"train/a": 3, "val/a": 1}), "one class folder only"),
        (lambda path: fill(path, {"train/a": 3, "train/b": 3, "val/a": 1, "valid/a": 1}), "two validation folders"),
        (lambda path: fill(path, {"a": 1, "b": 1}), "each class must keep one"),
    ],
    ids=[
        "missing",
        "file",
        "empty",
        "loose",
        "one class",
        "empty class",
        "other class",
        "empty val",
        "loose test",
        "one in train",
        "two",
        "few",
    ],
)
def test_bad_folders_are_refused_in_words(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "images"
    make(path)
    with pytest.raises(UserError, match=re.escape(message)):
        load(f"folder:{path}")


def test_heic_is_read_with_its_extra_and_foreign_endings_by_their_content(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra heif is not installed")
    fill(tmp_path, {"a": 12, "b": 12})
    pillow_heif.from_pillow(Image.new("RGB", (64, 64), "red")).save(tmp_path / "a" / "photo.HEIC")
    (tmp_path / "b" / "x.dat").write_bytes(next((tmp_path / "b").iterdir()).read_bytes())
    splits = load(f"folder:{tmp_path}")
    assert len(splits.require("all")) == 26


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 12, "b": 12})
    (tmp_path / "a" / "x.cr2").write_bytes(b"raw")
    (next((tmp_path / "b").iterdir())).rename(tmp_path / "loose.png")
    with pytest.warns(
        UserWarning, match=r"1 \.cr2 \(export raw photographs as JPEG\); 1 images beside the class folders"
    ):
        load(f"folder:{tmp_path}")
