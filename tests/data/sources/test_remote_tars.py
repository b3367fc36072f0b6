"""Tar files of a server, read without being kept; its folders; and what it is that goes away and comes back."""

import threading
import time
from pathlib import Path

import pytest
import torch
from forms import Files
from serving import Served, process_of
from test_sources import assert_same, refuses
from test_tars import write_tars

from patchconvnet.data.datasets import load
from patchconvnet.data.labelled_images import StoredImages, in_batches
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.data.sources.shards import write_shards

PATTERN = "tars/pets-{000..002}.tar"


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_without_keeping_it_is_the_same_data_set(folder: Path, shuffled: Files, tmp_path: Path, served: Served) -> None:
    write_tars(tmp_path / "tars", shuffled)
    name, cache = f"wds:{served.url}/{PATTERN}?keep=no", tmp_path / "cache"
    found = load(name, root=cache, validation=6, test=0.2, seed=5)
    assert_same(found, load(f"folder:{folder}", validation=6, test=0.2, seed=5))
    assert size_of(cache) < size_of(tmp_path / "tars") / 10  # names and places alone
    served.handler.asked.clear()
    load(name, root=cache)
    assert [asked for _, asked in served.handler.asked] == ["bytes=0-511"] * 3  # whether they are the same
    assert_same(load(f"wds:{served.url}/moved/{PATTERN}?keep=no", root=cache), load(f"folder:{folder}"))
    write_tars(tmp_path / "others", shuffled[:3] * 3)
    (tmp_path / "others" / "pets-001.tar").replace(tmp_path / "tars" / "pets-001.tar")
    every = found.require("all")
    (row,) = [i for i in range(len(every)) if every.place(i).endswith(f"::{shuffled[1][1]}/{shuffled[1][0].stem}")]
    with pytest.raises(ValueError, match=r"pets-001.tar has changed since it was read through"):
        every.image(row)


def test_a_server_that_is_gone_for_a_while_costs_no_image(
    folder: Path, shuffled: Files, tmp_path: Path, served: Served
) -> None:
    served.stop()  # for one in a process that can be killed
    write_tars(tmp_path / "tars", shuffled)
    name = f"wds:{served.url}/{PATTERN}?keep=no&patience=20"
    with process_of(tmp_path, served.port) as process:
        images = load(name, root=tmp_path / "cache").require("all")
        assert isinstance(images, StoredImages)
        expected = load(f"folder:{folder}").require("all")
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        tensors = images.subset(order).tensors(Preprocessing(size=(8, 8)).canvas)
        batches = in_batches(tensors, 2, batch_size=2)
        read = [next(batches)]
        process.kill()
        process.wait()
    restart = threading.Timer(1.5, served.start)
    began = time.monotonic()
    restart.start()
    read += list(batches)
    assert time.monotonic() - began > 1  # it had to wait
    restart.join()
    places = torch.cat([order[at] for _, _, at in read])
    assert sorted(places.tolist()) == list(range(len(images)))
    labels = torch.cat([labels for _, labels, _ in read])
    assert torch.equal(labels, expected.labels[places])


def test_a_server_that_stays_away_ends_reading_in_a_sentence(shuffled: Files, tmp_path: Path, served: Served) -> None:
    write_tars(tmp_path / "tars", shuffled)
    images = load(f"wds:{served.url}/{PATTERN}?keep=no&patience=0.3", root=tmp_path / "cache").require("all")
    served.stop()
    with pytest.raises(ValueError, match=r"pets-00\d.tar cannot be fetched: nothing for 0.3 seconds"):
        images.image(0)
    served.start()


@pytest.mark.parametrize("keep", ["yes", "no"])
def test_a_folder_of_a_server_has_its_splits_and_may_lack_a_shard(
    keep: str, shuffled: Files, tmp_path: Path, served: Served
) -> None:
    for i, (path, name) in enumerate(sorted(shuffled)):
        copy = tmp_path / "tree" / ("train", "train", "val", "test")[i % 4] / name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    write_shards(f"folder:{tmp_path / 'tree'}", tmp_path / "own", images_per_shard=6)
    name = f"wds:{served.url}/own?keep={keep}&patience=0.2"
    assert_same(load(name, root=tmp_path / "cache"), load(f"folder:{tmp_path / 'tree'}"))
    (tmp_path / "own" / "train-00002.tar").replace(tmp_path / "gone.tar")
    refuses(name, "train-00002.tar cannot be fetched: 404", root=tmp_path / "other")
    refuses(name, "404", "of 34 images 5 may be skipped, and 6 would be", root=tmp_path / "other", max_bad="5")
    with pytest.warns(UserWarning, match=r"6 of 34 images .*/train-00002\.tar::0, .*; skipped"):
        found = load(name, root=tmp_path / "other", max_bad="20%")
    reading = found.reading()
    assert [reading[key] for key in ("total", "read", "skipped", "failed")] == [34, 28, 6, 0]
    assert reading["left out"] == [f"{served.url}/own/train-00002.tar::{i}" for i in range(6)]
    assert (len(found.require("train")), len(found.require("test"))) == (12, 8)


def test_mistakes_are_named(folder: Path, shuffled: Files, tmp_path: Path, served: Served) -> None:
    write_tars(tmp_path / "tars", shuffled)
    name, cache = f"wds:{served.url}/{PATTERN}?keep=no", tmp_path / "cache"
    refuses(f"{name}ne", "keep is 'none'; it can be yes or no", root=cache)
    path = tmp_path / "tars" / "pets-001.tar"
    whole = path.read_bytes()
    for length in (len(whole) // 2, len(whole) // 2 // 512 * 512, 700):
        path.write_bytes(whole[:length])
        refuses(name, "pets-001.tar is cut off", root=cache)
    path.write_bytes(b"no tar file" * 100)
    refuses(name, "pets-001.tar is cut off, damaged or no tar file", root=cache)
    path.write_bytes(whole)
    served.handler.whole_files_only = True
    refuses(name, "sends whole files only; leave out keep=no", root=cache)
    (tmp_path / "tars" / "index.json").write_text("{}")
    refuses(f"wds:{served.url}/tars", "is not a folder of patchconvnet shard; give wds:PATTERN", root=cache)
    refuses("wds:http://here:port/a.tar", "is no address", root=cache)
