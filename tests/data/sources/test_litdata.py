"""litdata: of its own writer in every form that a sample can have, from a server, damaged; and what we write for it."""

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forms import CLASSES, Files
from PIL import Image
from serving import Served
from test_sources import assert_same, refuses

from patchconvnet.data.datasets import load
from patchconvnet.data.labelled_images import StoredImages, in_batches
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.data.sources.shards import write_shards

litdata = pytest.importorskip("litdata", reason="litdata is not installed")


def with_bytes(path: Path, name: str) -> Any:
    return {"name": f"{name}/{path.name}", "image": path.read_bytes(), "label": name}


def with_numbers_and_other_fields(path: Path, name: str) -> Any:
    fields = {"jpeg": path.read_bytes(), "file": f"{name}/{path.name}", "class": list(CLASSES).index(name)}
    return fields | {"caption": {"words": [name]}, "embedding": np.zeros(3)}


def without_names(path: Path, name: str) -> Any:
    return (path.read_bytes(), name)


def of_hugging_face(path: Path, name: str) -> Any:
    return {"image": {"bytes": path.read_bytes(), "path": path.name}, "label": name, "name": path.name}


def write(out: Path, files: Files, sample: Callable[[Path, str], Any], size: int = 7, **options: Any) -> Path:
    """With the writer that litdata's optimize has in each of its processes."""
    from litdata.streaming import Cache

    cache = Cache(str(out), chunk_size=size, **options)
    for i, file in enumerate(files):
        cache[i] = sample(*file)
    cache.done()
    cache.merge()
    return out


@pytest.mark.parametrize(
    ("sample", "options"),
    [(with_bytes, ""), (with_numbers_and_other_fields, "?image=jpeg&name=file&classes={}"), (of_hugging_face, "")],
)
def test_every_form_gives_the_data_set_of_the_folder(
    sample: Callable[[Path, str], Any], options: str, folder: Path, shuffled: Files, tmp_path: Path
) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    place = write(tmp_path / "out", shuffled, sample)
    expected = load(f"folder:{folder}", validation=6, test=0.2, seed=5)
    found = load(f"litdata:{place}{options.format(tmp_path / 'classes.txt')}", validation=6, test=0.2, seed=5)
    assert_same(found, expected)


def test_samples_without_names_are_known_by_their_contents(folder: Path, shuffled: Files, tmp_path: Path) -> None:
    one, other = (
        write(tmp_path / "one", shuffled, without_names),
        write(tmp_path / "other", shuffled[::-1], without_names),
    )
    refuses(f"litdata:{one}", "say which of 0, 1 by ?image=COLUMN")
    found = load(f"litdata:{one}?image=0&label=1")
    assert_same(found, load(f"litdata:{other}?image=0&label=1"))
    assert found.fingerprint()["all contents"] == load(f"folder:{folder}").fingerprint()["all contents"]


def test_pixels_of_pil_and_labels_in_tensors(shuffled: Files, tmp_path: Path) -> None:
    pixels = {path.name: np.asarray(Image.open(path).convert("RGB")) for path, _ in shuffled}

    def sample(path: Path, name: str) -> Any:
        label = torch.tensor(list(CLASSES).index(name))
        return {"image": Image.fromarray(pixels[path.name]), "label": label, "name": path.name}

    found = load(f"litdata:{write(tmp_path / 'out', shuffled, sample)}").require("all")
    assert found.class_names == ["0", "1", "2"]
    assert len(found) == len(pixels)
    for i in range(len(found)):
        assert np.array_equal(found.image(i), pixels[found.name(i).split("/")[1]])


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_what_was_pickled_is_not_run(shuffled: Files, tmp_path: Path) -> None:
    made = tmp_path / "made"
    place = write(tmp_path / "out", shuffled, lambda path, name: {**with_bytes(path, name), "meta": Touch(made)})
    assert "pickle" in json.loads((place / "index.json").read_text())["config"]["data_format"]
    assert len(load(f"litdata:{place}").require("all")) == len(shuffled)
    refuses(f"litdata:{place}?image=meta", "has no image in its field 'meta'")
    refuses(f"litdata:{place}?label=meta", "neither a text nor a number")
    assert not made.exists()
    litdata.StreamingDataset(str(place))[0]  # which shows that it would have been
    assert made.exists()


def test_any_row_of_a_table_of_many_batches(shuffled: Files, tmp_path: Path) -> None:
    """Bytes, texts and numbers alone are written as an Arrow table, in batches of 256."""
    many = [(path, name, i) for i, (path, name) in enumerate(shuffled * 20)]
    place = write(
        tmp_path / "out", many,
        lambda path, name, i: {"image": path.read_bytes(), "label": name, "name": f"{i}-{path.name}"}, size=600,
    )  # fmt: skip
    assert (place / "chunk-0-0.bin").read_bytes().endswith(b"LDARW01\0")
    images = load(f"litdata:{place}").require("all")
    assert isinstance(images, StoredImages)
    assert len(images) == len(many) > 600
    for at in torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist():
        path, name, _ = many[int(images.name(at).split("/")[1].partition("-")[0])]
        assert (images.encoded(at), images.name(at).split("/")[0]) == (path.read_bytes(), name)


def test_shards_give_the_data_set_of_the_folder(folder: Path, shuffled: Files, tmp_path: Path) -> None:
    write_shards(f"folder:{folder}", tmp_path / "shards", images_per_shard=10, format="litdata")
    expected = load(f"folder:{folder}", validation=6, test=0.2, seed=5)
    assert_same(load(f"litdata:{tmp_path / 'shards'}?verify=yes", validation=6, test=0.2, seed=5), expected)
    for i, (path, name) in enumerate(sorted(shuffled)):
        copy = tmp_path / "tree" / ("train", "train", "val", "test")[i % 4] / name / "young.ones" / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    write_shards(f"folder:{tmp_path / 'tree'}", tmp_path / "own", format="litdata")
    assert_same(load(f"litdata:{tmp_path / 'own'}"), load(f"folder:{tmp_path / 'tree'}"))


def test_litdata_itself_reads_the_shards(
    folder: Path, shuffled: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)  # where the images' names are those of files, which litdata's writer would read
    write_shards(f"folder:{folder}", tmp_path / "shards", images_per_shard=10, format="litdata")
    found = {each["name"]: each for each in litdata.StreamingDataset(str(tmp_path / "shards"))}
    assert len(found) == len(shuffled)
    for path, name in shuffled:
        assert found[f"{name}/{path.name}"]["image"] == path.read_bytes()
        assert found[f"{name}/{path.name}"]["label"] == list(CLASSES).index(name)


def test_shards_are_resized_once_and_checked(folder: Path, tmp_path: Path) -> None:
    write_shards(f"folder:{folder}", tmp_path / "small", resize=12, images_per_shard=20, format="litdata")
    every = load(f"litdata:{tmp_path / 'small'}?verify=yes").require("all")
    assert {min(every.image(i).size) for i in range(len(every))} == {12}
    path = tmp_path / "small" / "all-00001.bin"
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)
    refuses(f"litdata:{tmp_path / 'small'}?verify=yes", "all-00001.bin", "another size or checksum")
    path.write_bytes(content[:-51])
    refuses(f"litdata:{tmp_path / 'small'}", "all-00001.bin is cut off or damaged")
    path.unlink()
    refuses(f"litdata:{tmp_path / 'small'}", "lacks all-00001.bin")
    with pytest.raises(ValueError, match="other images or of other options"):
        write_shards(f"folder:{folder}", tmp_path / "small", resize=12, images_per_shard=20)


def test_any_order_in_processes_and_threads(folder: Path, tmp_path: Path) -> None:
    write_shards(f"folder:{folder}", tmp_path / "shards", images_per_shard=3, format="litdata")
    images = load(f"litdata:{tmp_path / 'shards'}").require("all")
    assert isinstance(images, StoredImages)
    expected = [images.encoded(i) for i in range(len(images))]  # read in this process first, then in forked ones
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    mixed = images.subset(order).tensors(Preprocessing(size=(8, 8)).canvas)
    alone, forked = (
        {int(order[i]): image for batch, _, places in in_batches(mixed, workers, batch_size=4)
         for image, i in zip(batch, places, strict=True)}
        for workers in (0, 2)
    )  # fmt: skip
    assert sorted(forked) == list(range(len(images)))
    assert all(torch.equal(forked[i], alone[i]) for i in forked)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(images.encoded, range(len(images)))) == expected
    copied = pickle.loads(pickle.dumps(images))  # on its way into a process that is not forked
    assert [copied.encoded(i) for i in range(len(images))] == expected


def test_a_server_whose_chunk_is_gone(folder: Path, tmp_path: Path, served: Served) -> None:
    write_shards(f"folder:{folder}", tmp_path / "shards", images_per_shard=10, format="litdata")
    name = f"litdata:{served.url}/shards"
    assert_same(load(name, root=tmp_path / "cache"), load(f"folder:{folder}"))
    (tmp_path / "shards" / "all-00003.bin").unlink()
    refuses(name, "all-00003.bin cannot be fetched: 404", root=tmp_path / "other")
    refuses(name, "of 34 images 3 may be skipped, and 4 would be", root=tmp_path / "other", max_bad="3")
    with pytest.warns(UserWarning, match=r"4 of 34 images .*/all-00003\.bin::3; skipped"):
        data = load(name, root=tmp_path / "other", max_bad="4")
    assert {k: data.reading()[k] for k in ("total", "read", "skipped")} == {"total": 34, "read": 30, "skipped": 4}


def test_mistakes_are_named(folder: Path, shuffled: Files, tmp_path: Path) -> None:
    place = write(tmp_path / "out", shuffled, with_bytes)
    index = json.loads((place / "index.json").read_text())
    refuses(f"litdata:{place}?image=picture", "has no column 'picture'; its columns: name, image, label")
    refuses(f"litdata:{place}?image=label", "has no image in its field 'label'")
    refuses(f"litdata:{place}?picture=image", "litdata: has no option 'picture'")
    refuses("litdata:s3://bucket/pets", "reads folders of this machine and of http:// and https:// servers, not s3://")
    refuses(f"litdata:{tmp_path / 'none'}", "there is no folder", "litdata:FOLDER")
    refuses(f"litdata:{folder}", "has no index.json")
    for change, said in (
        ({"compression": "zstd"}, "has compressed chunks"),
        ({"encryption": {"level": "sample"}}, "is encrypted"),
        ({"item_loader": "TokensLoader"}, "is for litdata's TokensLoader"),
    ):
        (place / "index.json").write_text(json.dumps(index | {"config": index["config"] | change}))
        refuses(f"litdata:{place}", said)
    outside = [{**index["chunks"][0], "filename": "../chunk-0-0.bin"}]
    (place / "index.json").write_text(json.dumps(index | {"chunks": outside}))
    refuses(f"litdata:{place}", "index.json", "is damaged: chunk '../chunk-0-0.bin'")
    (place / "index.json").write_text("{")
    refuses(f"litdata:{place}", "index.json is damaged")
    write_shards(f"folder:{folder}", tmp_path / "tars")
    refuses(f"litdata:{tmp_path / 'tars'}", "is one of tar files: give wds:")
    refuses(f"wds:{write(tmp_path / 'chunks', shuffled, with_bytes)}", "there are no tar files")


@pytest.mark.slow
def test_a_killed_writing_goes_on(tmp_path: Path) -> None:
    for i in range(240):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((200, 200), 80).save(path)
    out = tmp_path / "shards"
    command = [
        sys.executable, "-m", "patchconvnet", "shard", "--data", f"folder:{tmp_path / 'images'}", "--out", str(out),
        "--format", "litdata", "--images-per-shard", "2", "--resize", "150", "--workers", "4",
    ]  # fmt: skip
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.bin"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    shards = {path: path.stat().st_mtime_ns for path in out.glob("*.bin")}
    assert 5 <= len(shards) < 120
    refuses(f"litdata:{out}", "is not finished; run the same patchconvnet shard again")
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "240 images in 120 chunks of litdata" in done.stdout
    kept = [path for path, written in shards.items() if path.stat().st_mtime_ns == written]
    assert len(kept) >= len(shards) - 4  # but those whose record was not written yet
    assert not [path for path in out.iterdir() if ".part" in path.name]
    data = load(f"litdata:{out}?verify=yes")
    assert data.fingerprint()["all images"] == load(f"folder:{tmp_path / 'images'}").fingerprint()["all images"]
