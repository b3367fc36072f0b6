"""Any data set as shards: files of many images, written in parallel, each whole or not at all, so that a killed
writing goes on.

They are tar files as `webdataset` lays them out, or chunks of `litdata`, so other programs read them too; `index.json`
beside them has the names of the classes, the splits, and the size and checksum of each file.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from patchconvnet.data import datasets
from patchconvnet.data.images import read_image
from patchconvnet.data.labelled_images import Images, StoredImages, opened, reading_order
from patchconvnet.data.readable import allowed
from patchconvnet.data.sources.litdata_chunks import check_litdata
from patchconvnet.data.sources.shard_files import WRITERS, Format, Sample, litdata_index
from patchconvnet.data.sources.shard_index import INDEX_FILE, PLAN_FILE, digest_of
from patchconvnet.data.splits import DataSplits, Split
from patchconvnet.errors import UserError, first_line
from patchconvnet.files import LOCK_FILE, aside, locked_folder, write_atomic, write_text

RECORDED = ("file", "split", "images", "bytes", "sha256")  # in index.json, of each shard
QUALITY = 95  # of a JPEG that was resized
MOST_IN_MEMORY = 256 << 20  # bytes of a shard that is written, for each worker, where its images are read in blocks


class Shard(NamedTuple):
    """One file: which images of which split it has."""

    file: str
    split: str
    places: list[int]


class Written(NamedTuple):
    """images, shards: in all. already: shards that an earlier call had written."""

    images: int
    shards: int
    already: int


def write_shards(
    name: str,
    out: Path,
    *,
    root: str | os.PathLike[str] | None = None,
    resize: int | None = None,
    images_per_shard: int = 1000,
    format: Format = "tar",
    workers: int = 2,
    max_bad: str | None = None,
    show_progress: bool = False,
    on_shard: Callable[[int, int], None] | None = None,
) -> Written:
    """Write a data set as shards into a folder, or go on with it.

    Args:
        name: of the data set, as for `patchconvnet.data.datasets.load`.
        out: the folder.
        root: as for `load`.
        resize: length of the shorter side that larger images get; by default the bytes of their files are kept.
        images_per_shard: images in one file.
        format: "tar", or "litdata", which needs the package of that name.
        workers: threads that read, resize and write.
        max_bad: how many unreadable images may be left out, as for `load`.
        show_progress: whether to draw a progress bar while the images are checked.
        on_shard: called with the number of shards done and of all.

    Returns:
        How much there is now.

    Raises:
        UserError: the data set cannot be loaded, the folder holds another one or cannot be written, another process
            writes into it, or a number does not fit.
    """
    for what, value, most in (("workers", workers, 1024), ("images_per_shard", images_per_shard, 10**7)):
        if not 1 <= value <= most:
            raise UserError(f"{what} is {value}; it must be from 1 to {most:,}.")
    if resize is not None and not 1 <= resize <= 10_000:
        raise UserError(f"resize is {resize}; give the shorter side in pixels, from 1 to 10,000.")
    if format not in WRITERS:
        raise UserError(f"format is {format!r}; it can be {' or '.join(WRITERS)}.")
    if format == "litdata":
        check_litdata("--format litdata")
    allowed(max_bad or "0", 1)  # refused although there may be no bad image
    data = datasets.load(name, root=root, validation=0, max_bad=max_bad, show_progress=show_progress)
    parts: dict[str, Split] = {"all": data.require("all")} if data.drawn or name == "digits" else _own_splits(data)
    shards = [shard for split, images in parts.items() for shard in _planned(split, images, images_per_shard, format)]
    fingerprint = {k: v for k, v in data.fingerprint().items() if k in ("class names", "all images", "all contents")}
    plan: dict[str, Any] = {
        "fingerprint": fingerprint,
        "resize": resize,
        "images_per_shard": images_per_shard,
        "format": format,
    }
    if any(isinstance(images, StoredImages) and images.blocks for images in parts.values()):
        plan["mixed"] = hashlib.sha256(json.dumps([shard.places for shard in shards]).encode()).hexdigest()
    _check_folder(out)
    with locked_folder(out, "writing of shards"):
        _claim(out, plan)
        return _write_all(data, parts, shards, out, plan, workers, on_shard)


def _write_all(
    data: DataSplits,
    parts: dict[str, Split],
    shards: list[Shard],
    out: Path,
    plan: dict[str, Any],
    workers: int,
    on_shard: Callable[[int, int], None] | None,
) -> Written:
    for left in out.glob(".*.part.*"):  # by a kill
        shutil.rmtree(left, ignore_errors=True)
    records = {shard.file: out / f".{shard.file}.json" for shard in shards}
    open_shards = [shard for shard in shards if not _is_written(out / shard.file, records[shard.file])]
    done = len(shards) - len(open_shards)
    with ThreadPoolExecutor(workers) as pool:  # reading, decoding and checksums leave Python's lock
        jobs = [
            pool.submit(_write, out / shard.file, records[shard.file], parts[shard.split], shard, plan)
            for shard in open_shards
        ]
        try:
            for number, job in enumerate(jobs, done + 1):
                job.result()
                if on_shard:
                    on_shard(number, len(shards))
        except OSError as error:
            raise UserError(f"cannot write into {out}: {first_line(error)}") from error
        finally:
            pool.shutdown(cancel_futures=True)
    written = [json.loads(records[shard.file].read_text()) for shard in shards]
    index: dict[str, Any] = {
        "class_names": data.class_names,
        "splits": "all" not in parts,
        "images": sum(map(len, parts.values())),
        "reading": data.reading(),
        "resize": plan["resize"],
        "shards": [{key: value for key, value in record.items() if key in RECORDED} for record in written],
        **(litdata_index(written, plan["images_per_shard"]) if plan["format"] == "litdata" else {}),
    }
    write_text(out / INDEX_FILE, json.dumps(index, indent=1) + "\n")
    return Written(index["images"], len(shards), done)


def _own_splits(data: DataSplits) -> dict[str, Split]:
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    return {name: images for name, images in splits.items() if images is not None}


def _planned(split: str, images: Split, size: int, format: Format) -> list[Shard]:
    """A split's shards; its images are mixed, for readers that take them one after another.

    Of images that are read in blocks the blocks are mixed, and then the images of each shard, so that hardly a block is
    read for two shards.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(images), generator=generator)
    numbers = images.block_numbers() if isinstance(images, StoredImages) else None
    parts = list(order.split(size))
    if numbers is not None:
        turns = torch.randperm(int(numbers.max()) + 1, generator=generator)
        parts = list(order[turns[numbers[order]].argsort(stable=True)].split(size))
        parts = [part[torch.randperm(len(part), generator=generator)] for part in parts]
    ending, _ = WRITERS[format]
    return [Shard(f"{split}-{number:05}.{ending}", split, places.tolist()) for number, places in enumerate(parts)]


def _claim(out: Path, plan: dict[str, Any]) -> None:
    """Begin a folder, or make sure that it is of the same data and options."""
    _check_folder(out)
    path = out / PLAN_FILE
    if path.is_file():
        try:
            before = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged: {first_line(error)}; give another folder.") from error
        if {"format": "tar", **before} != plan:
            raise UserError(f"{out} holds shards of other images or of other options; give another folder.")
        return
    write_text(path, json.dumps(plan) + "\n")


def _check_folder(out: Path) -> None:
    """Refuse what is neither empty nor holds shards, before anything is written into it."""
    if not out.exists() or (out / PLAN_FILE).is_file():
        return
    if not out.is_dir() or {file.name for file in out.iterdir()} - {LOCK_FILE, aside(out / PLAN_FILE).name}:
        raise UserError(f"{out} is not an empty folder; give a new one.")


def _is_written(path: Path, record: Path) -> bool:
    try:
        return bool(path.stat().st_size == json.loads(record.read_text())["bytes"])
    except (OSError, KeyError, ValueError):
        return False


def _write(path: Path, record: Path, images: Split, shard: Shard, plan: dict[str, Any]) -> None:
    _, write = WRITERS[plan["format"]]
    told: dict[str, Any] = {}
    with _contents(images, shard.places, plan["resize"], path.parent) as contents:
        samples = _samples(images, shard.places, contents)
        write_atomic(path, lambda part: told.update(write(part, samples)))
    about = {"file": path.name, "split": shard.split, "images": len(shard.places), "bytes": path.stat().st_size}
    write_text(record, json.dumps({**about, "sha256": digest_of(path), **told}))


@contextlib.contextmanager
def _contents(
    images: Split, places: list[int], resize: int | None, folder: Path
) -> Iterator[Callable[[int], tuple[bytes, str]]]:
    """The bytes and the ending of each image of a shard.

    Those that are read in blocks are all read before, block by block, and put into memory, or into a file that is gone
    with this process.
    """
    if not (isinstance(images, StoredImages) and images.blocks):
        yield lambda place: _content(images, place, resize)
        return
    with tempfile.SpooledTemporaryFile(MOST_IN_MEMORY, dir=str(folder)) as spool:
        found: dict[int, tuple[int, int, str]] = {}
        for at in reading_order(images.subset(places), len(places)).tolist():
            content, ending = _content(images, places[at], resize)
            found[places[at]] = (spool.tell(), len(content), ending)
            spool.write(content)

        def content_of(place: int) -> tuple[bytes, str]:
            begin, size, ending = found[place]
            spool.seek(begin)
            return spool.read(size), ending

        yield content_of


def _samples(images: Split, places: list[int], contents: Callable[[int], tuple[bytes, str]]) -> Iterator[Sample]:
    used: set[str] = set()
    for place in places:
        content, ending = contents(place)
        label = int(images.labels[place])
        class_name = images.class_names[label]
        name = f"{place:08}" if isinstance(images, Images) else images.name(place).removeprefix(f"{class_name}/")
        name = f"{name}~{place}" if f"{class_name}/{name}" in used else name
        used.add(f"{class_name}/{name}")
        yield Sample(name, content, ending, label, class_name)


def _content(images: Split, place: int, resize: int | None) -> tuple[bytes, str]:
    file = io.BytesIO()
    if isinstance(images, Images):
        images.image(place).save(file, "PNG")
        return file.getvalue(), "png"
    encoded = images.encoded(place)
    if resize is not None:
        image = read_image(opened(encoded, images.place(place)))
        if min(image.size) > resize:
            scale = resize / min(image.size)
            size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
            image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0).save(file, "JPEG", quality=QUALITY)
            return file.getvalue(), "jpg"
    content = encoded if isinstance(encoded, bytes) else encoded.read_bytes()
    ending = images.name(place).rpartition(".")[2].lower()
    return content, ending
