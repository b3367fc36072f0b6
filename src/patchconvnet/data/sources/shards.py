"""Any data set as tar files: written in parallel, each whole or not at all, so that a killed writing goes on.

The files are as `webdataset` lays them out, so other programs read them too; `index.json` beside them has the names of
the classes, the splits, and the size and checksum of each file.
"""

import io
import json
import os
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from patchconvnet.data import datasets
from patchconvnet.data.images import read_image
from patchconvnet.data.labelled_images import Images, opened
from patchconvnet.data.readable import allowed
from patchconvnet.data.sources.tars import INDEX_FILE, digest_of
from patchconvnet.data.splits import DataSplits, Split
from patchconvnet.errors import UserError, first_line
from patchconvnet.files import LOCK_FILE, aside, locked_folder, write_atomic, write_text

PLAN_FILE = "plan.json"
QUALITY = 95  # of a JPEG that was resized


class Shard(NamedTuple):
    """One tar file: which images of which split it has."""

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
    workers: int = 2,
    max_bad: str | None = None,
    show_progress: bool = False,
    on_shard: Callable[[int, int], None] | None = None,
) -> Written:
    """Write a data set as tar files into a folder, or go on with it.

    Args:
        name: of the data set, as for `patchconvnet.data.datasets.load`.
        out: the folder.
        root: as for `load`.
        resize: length of the shorter side that larger images get; by default the bytes of their files are kept.
        images_per_shard: images in one tar file.
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
    allowed(max_bad or "0", 1)  # refused although there may be no bad image
    data = datasets.load(name, root=root, validation=0, max_bad=max_bad, show_progress=show_progress)
    parts: dict[str, Split] = {"all": data.require("all")} if data.drawn or name == "digits" else _own_splits(data)
    shards = [shard for split, images in parts.items() for shard in _planned(split, len(images), images_per_shard)]
    fingerprint = {k: v for k, v in data.fingerprint().items() if k in ("class names", "all images", "all contents")}
    plan = {"fingerprint": fingerprint, "resize": resize, "images_per_shard": images_per_shard}
    _check_folder(out)
    with locked_folder(out, "writing of shards"):
        _claim(out, plan)
        return _write_all(data, parts, shards, out, resize, workers, on_shard)


def _write_all(
    data: DataSplits,
    parts: dict[str, Split],
    shards: list[Shard],
    out: Path,
    resize: int | None,
    workers: int,
    on_shard: Callable[[int, int], None] | None,
) -> Written:
    records = {shard.file: out / f".{shard.file}.json" for shard in shards}
    open_shards = [shard for shard in shards if not _is_written(out / shard.file, records[shard.file])]
    done = len(shards) - len(open_shards)
    with ThreadPoolExecutor(workers) as pool:  # reading, decoding and checksums leave Python's lock
        jobs = [
            pool.submit(_write, out / shard.file, records[shard.file], parts[shard.split], shard, resize)
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
    index: dict[str, Any] = {
        "class_names": data.class_names,
        "splits": "all" not in parts,
        "images": sum(map(len, parts.values())),
        "reading": data.reading(),
        "resize": resize,
        "shards": [json.loads(records[shard.file].read_text()) for shard in shards],
    }
    write_text(out / INDEX_FILE, json.dumps(index, indent=1) + "\n")
    return Written(index["images"], len(shards), done)


def _own_splits(data: DataSplits) -> dict[str, Split]:
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    return {name: images for name, images in splits.items() if images is not None}


def _planned(split: str, count: int, size: int) -> list[Shard]:
    """A split's shards; its images are mixed, for readers that take them one after another."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).split(size)
    return [Shard(f"{split}-{number:05}.tar", split, places.tolist()) for number, places in enumerate(order)]


def _claim(out: Path, plan: dict[str, Any]) -> None:
    """Begin a folder, or make sure that it is of the same data and options."""
    _check_folder(out)
    path = out / PLAN_FILE
    if path.is_file():
        try:
            before = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged: {first_line(error)}; give another folder.") from error
        if before != plan:
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


def _write(path: Path, record: Path, images: Split, shard: Shard, resize: int | None) -> None:
    def write(part: Path) -> None:
        with tarfile.open(part, "w") as archive:
            used: set[str] = set()
            for place in shard.places:
                content, ending = _content(images, place, resize)
                label = images.class_names[int(images.labels[place])]
                name = _member_name(images, place, label)
                name = f"{name}~{place}" if name in used else name
                used.add(name)
                _add(archive, f"{name}.{ending}", content)
                _add(archive, f"{name}.cls", label.encode())

    write_atomic(path, write)
    about = {"file": path.name, "split": shard.split, "images": len(shard.places), "bytes": path.stat().st_size}
    write_text(record, json.dumps({**about, "sha256": digest_of(path)}))


def _member_name(images: Split, place: int, label: str) -> str:
    """Class, folder and file name; a dot would end a key, so it is written as %2E."""
    name = f"{place:08}" if isinstance(images, Images) else images.name(place).removeprefix(f"{label}/")
    return f"{label}/{name}".replace("%", "%25").replace(".", "%2E")


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


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
