"""Data sets by name: contents, splits, a real download from a local server, and refusals."""

import hashlib
import io
import pickle
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100

from patchconvnet.data.datasets import load
from patchconvnet.data.labelled_images import Images
from patchconvnet.data.sources.fetching import default_root
from patchconvnet.errors import UserError


def memory(split: object) -> Images:
    assert isinstance(split, Images)
    return split


def test_digits() -> None:
    splits = load("digits")
    parts = [memory(splits.require(split)) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [1257, 270, 270]
    assert splits.class_names == list("0123456789")
    images = torch.cat([part.images for part in parts])
    assert images.shape == (1797, 3, 8, 8)
    assert images.dtype == torch.uint8
    assert (images.min(), images.max()) == (0, 255)
    # All of scikit-learn's images with their labels, each in one split.
    original = load_digits()
    expected = sorted(
        (row.tobytes(), label)
        for row, label in zip((original.data * 255 / 16).round().astype(np.uint8), original.target, strict=True)
    )
    labels = torch.cat([part.labels for part in parts]).tolist()
    found = sorted((image[1].numpy().tobytes(), label) for image, label in zip(images, labels, strict=True))
    assert found == expected
    for part in parts[1:]:
        assert part.labels.bincount().min() >= 26


def test_digits_split_is_seeded() -> None:
    first, same, other = (memory(load("digits", seed=seed).test).images for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert load("digits", validation=0).validation is None


def test_cifar10(cifar10_root: Path) -> None:
    splits = load("cifar10", root=cifar10_root, download=False)
    train, validation, test = (memory(splits.require(split)) for split in ("train", "validation", "test"))
    assert [len(part) for part in (train, validation, test)] == [40_000, 10_000, 10_000]
    assert splits.class_names[:5] == ["airplane", "automobile", "bird", "cat", "deer"]
    assert test.labels.bincount().tolist() == [1000] * 10
    original = CIFAR10(cifar10_root)
    for index in (0, 39_999, 40_000, 49_999):
        part, place = (train, index) if index < 40_000 else (validation, index - 40_000)
        assert np.array_equal(np.asarray(part.image(place)), original.data[index])
        assert part.labels[place] == original.targets[index]
    whole = load("cifar10", root=cifar10_root / "cifar-10-batches-py", validation=0, download=False)
    assert whole.validation is None
    images = memory(whole.train).images
    assert len(images) == 50_000
    means = torch.stack([images[:, channel].float().mean() / 255 for channel in range(3)])
    torch.testing.assert_close(means, torch.tensor([0.4914, 0.4822, 0.4465]), rtol=0, atol=1e-4)
    assert len(load("cifar10", root=cifar10_root, validation=0.1, download=False).require("validation")) == 5000


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """CIFAR-10 and CIFAR-100 of 20 + 10 images on a local server, in archives laid out as the real ones.

    Gives the folder that the server shows.
    """
    served = tmp_path / "served"
    served.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(served))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    generator = np.random.default_rng(0)
    for reader, key, meta_key, classes in (
        (CIFAR10, "labels", "label_names", 10),
        (CIFAR100, "fine_labels", "fine_label_names", 100),
    ):
        members: dict[str, bytes] = {}
        for name, count in (("one", 10), ("two", 10), ("test", 10)):
            data = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
            labels = generator.integers(0, classes, count).tolist()
            members[name] = pickle.dumps({"data": data, key: labels})
        members["meta"] = pickle.dumps({meta_key: [f"class {number}" for number in range(classes)]})
        with tarfile.open(served / reader.filename, "w:gz") as archive:
            for name, content in members.items():
                entry = tarfile.TarInfo(f"{reader.base_folder}/{name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        digests = {name: hashlib.md5(content).hexdigest() for name, content in members.items()}
        monkeypatch.setattr(reader, "url", f"http://127.0.0.1:{server.server_port}/{reader.filename}")
        monkeypatch.setattr(reader, "tgz_md5", hashlib.md5((served / reader.filename).read_bytes()).hexdigest())
        monkeypatch.setattr(reader, "train_list", [[name, digests[name]] for name in ("one", "two")])
        monkeypatch.setattr(reader, "test_list", [["test", digests["test"]]])
        monkeypatch.setattr(reader, "meta", {"filename": "meta", "key": meta_key, "md5": digests["meta"]})
    yield served
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_is_downloaded_once(
    name: str,
    classes: int,
    small_cifar: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATCHCONVNET_DATA", str(tmp_path / "cache"))
    splits = load(name, validation=4)
    assert "100%" in capfd.readouterr().err  # the progress bar
    assert [len(splits.require(split)) for split in ("train", "validation", "test")] == [16, 4, 10]
    assert len(splits.class_names) == classes
    for archive in small_cifar.iterdir():
        archive.unlink()
    again = load(name, validation=4)
    assert torch.equal(memory(again.train).images, memory(splits.train).images)
    assert (tmp_path / "cache" / f"{name[:5]}-{name[5:]}-python.tar.gz").is_file()


def test_a_broken_download_is_told_and_the_next_one_mends_it(small_cifar: Path, tmp_path: Path) -> None:
    archive = small_cifar / CIFAR10.filename
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cifar10 could not be downloaded .* must hold the folder cifar-10-batches-py"):
        load("cifar10", root=tmp_path / "data", validation=0)
    archive.write_bytes(whole)
    assert len(load("cifar10", root=tmp_path / "data", validation=0).require("train")) == 20


def test_missing_cifar_is_told(small_cifar: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cifar10 is missing or damaged there: .* Say where it lies with root"):
        load("cifar10", root=tmp_path / "data", download=False)
    (small_cifar / CIFAR10.filename).unlink()
    with pytest.raises(UserError, match=r"could not be downloaded \(HTTP Error 404"):
        load("cifar10", root=tmp_path / "data")


def test_default_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATCHCONVNET_DATA", "~/images")
    assert default_root() == Path.home() / "images"
    monkeypatch.delenv("PATCHCONVNET_DATA")
    assert default_root() == Path.home() / ".cache" / "patchconvnet"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "cifar11",
            r"unknown dataset 'cifar11'; known: cifar10, cifar100, digits, folder:PATH, .* Did you mean 'cifar10'\?",
        ),
        ("digit", r"Did you mean 'digits'\?"),
        ("xyz", r"known: cifar10, .*, folder:PATH, csv:FILE, parquet:FILE, hf:NAME, wds:PATTERN, litdata:FOLDER\.$"),
        ("tests", r"Did you mean 'folder:tests'\?"),
        ("folder:", "names no folder"),
    ],
)
def test_unknown_names_are_refused_in_words(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        load(name)


def test_options_that_do_not_fit_are_refused_in_words(small_cifar: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cifar10 has its own test set"):
        load("cifar10", test=0.1)
    with pytest.raises(UserError, match="validation is 20, which takes 20 of 20 images"):
        load("cifar10", root=tmp_path, validation=20)
