"""Data sets that `litdata` wrote, with its `optimize` or with `patchconvnet shard --format litdata`.

A sample is whatever fields its writer chose; which of them are the image and the class is found as the columns of a
table are. litdata's reader gives any sample without the others, in our order: its shuffling is not used. Fields of
other kinds than images, texts and numbers are not decoded, so nothing that was pickled is ever run.
"""

import bisect
import functools
import io
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from patchconvnet.data.sources.columns import chosen_columns, class_names
from patchconvnet.data.sources.fetching import fetched, is_url, patience_of
from patchconvnet.data.sources.listing import Listing, split_of
from patchconvnet.data.sources.losses import Losses
from patchconvnet.data.sources.names import SourceName, missing_package
from patchconvnet.data.sources.shard_index import INDEX_FILE, check_yes_or_no, parsed_index, read_index
from patchconvnet.errors import UserError, first_line

MAPPED = 64  # chunks that a thread keeps mapped
ENCODED = ("bytes", "jpeg", "image", "file")  # litdata's names for the bytes of a file
DECODED = ("str", "text", "bool", "int", "float", "json", "tensor", "numpy", "pil")


class Chunk(NamedTuple):
    """One file.

    Attributes:
        file: its name.
        number: its place in litdata's index.
        begin: the number of its first sample.
        samples: how many it has.
        size: bytes.
    """

    file: str
    number: int
    begin: int
    samples: int
    size: int


@dataclass(frozen=True, eq=False)
class ChunkStore:
    """Images in chunks of litdata.

    Args:
        folder: of the chunks and their index.
        chunks: those that there are.
        formats: of the fields, by litdata's names.
        image: the field with the images.
    """

    folder: Path
    chunks: list[Chunk]
    formats: list[str]
    image: str
    _opened: "_Readers" = field(default_factory=lambda: _Readers(), init=False, repr=False)

    def encoded(self, row: int) -> bytes:
        return _encoded(self.sample(row).get(self.image), self.place(row), self.image)

    def size(self, row: int) -> int:
        value = self.sample(row).get(self.image)
        value = value.get("bytes") if isinstance(value, Mapping) else value
        return len(value) if isinstance(value, bytes | memoryview) else -1

    def place(self, row: int) -> str:
        chunk, sample = self._chunk(row)
        return f"{self.folder / chunk.file}::{sample}"

    def sample(self, row: int) -> dict[str, Any]:
        """The fields of a row; of one that is no dictionary they are called 0, 1, ….

        Raises:
            UserError: it cannot be read.
        """
        from litdata.streaming.sampler import ChunkedIndex

        try:
            chunk, place = self._chunk(row)
            value = self._opened.table_row(self, chunk, place)
            if value is None:
                index = ChunkedIndex(index=chunk.begin + place, chunk_index=chunk.number)
                value = self._opened.reader(self).read(index)
        except MemoryError:
            raise
        except Exception as error:  # of litdata, and of what it reads with
            raise UserError(f"cannot read {self.place(row)}: {first_line(error)}") from error
        if isinstance(value, Mapping):
            return {str(key): each for key, each in value.items()}
        return {str(place): each for place, each in enumerate(value if isinstance(value, list | tuple) else [value])}

    def __len__(self) -> int:
        return self._begins[-1]

    @functools.cached_property
    def _begins(self) -> list[int]:
        return [0, *accumulate(chunk.samples for chunk in self.chunks)]

    def _chunk(self, row: int) -> tuple[Chunk, int]:
        """Which one a row is in, and where in it."""
        place = bisect.bisect_right(self._begins, row) - 1
        return self.chunks[place], row - self._begins[place]


class _Readers:
    """litdata's readers, for each thread and process its own, since they keep where they are; a copy begins with none.

    Samples of bytes, texts and numbers alone are written by litdata as an Arrow table, of which its reader decodes 256
    rows to give one: with JPEG files of 28 kB 0.17 ms, against 0.02 ms in a tar file. So that row is taken here.
    """

    def __init__(self) -> None:
        self._local, self._process = threading.local(), os.getpid()

    def reader(self, store: ChunkStore) -> Any:
        """The reader of all chunks."""
        own = self._own()
        if "reader" not in own:
            own["reader"] = _reader(store)
        return own["reader"]

    def table_row(self, store: ChunkStore, chunk: Chunk, place: int) -> dict[str, Any] | None:
        """A sample of a chunk that is a table; None where it is none."""
        tables = self._own().setdefault("tables", {})
        if chunk.number not in tables:
            tables[chunk.number] = _table(store.folder / chunk.file)
        if tables[chunk.number] is None:
            return None
        reader, ends = tables[chunk.number]
        batch = bisect.bisect_right(ends, place)
        rows = reader.get_batch(batch)
        (row,) = rows.slice(place - (ends[batch] - len(rows)), 1).to_pylist()
        return dict(row)

    def _own(self) -> dict[str, Any]:
        if self._process != os.getpid():  # forked
            self._local, self._process = threading.local(), os.getpid()
        return self._local.__dict__

    def __reduce__(self) -> tuple[type["_Readers"], tuple[()]]:
        return _Readers, ()


def _reader(store: ChunkStore) -> Any:
    from litdata.streaming.item_loader import PyTreeLoader
    from litdata.streaming.reader import BinaryReader
    from litdata.streaming.serializers import Serializer

    class Encoded(Serializer):
        """The bytes as they are, where litdata would decode an image, and with another decoder than ours."""

        def serialize(self, data: Any) -> tuple[bytes, str | None]:
            raise NotImplementedError

        def deserialize(self, data: Any) -> Any:
            return data

        def can_serialize(self, data: Any) -> bool:
            return False

    class Unread(Encoded):
        def deserialize(self, data: Any) -> Any:
            return _NotRead()

    serializers: dict[str, Serializer] = {}
    for word in store.formats:
        kind = word.partition(":")[0]
        if kind in ENCODED:
            serializers[kind] = Encoded()
        elif kind not in DECODED:
            serializers[kind] = Unread()
    loader = PyTreeLoader(batch_decode=0)
    # maps chunks, as nobody deletes them; without it a chunk is read whole for each sample of it
    loader.set_posix_fast(True, keep=MAPPED, willneed=False)
    loader.set_mmap_allowed_chunks({chunk.number for chunk in store.chunks})
    return BinaryReader(str(store.folder), item_loader=loader, serializers=serializers)


def _table(path: Path) -> tuple[Any, list[int]] | None:
    """The reader of a chunk's Arrow table, and where each of its batches ends; None where it has none."""
    try:
        import pyarrow
    except ImportError:  # then litdata has written none
        return None
    from litdata.streaming.item_loader import open_arrow_footer_reader

    found = open_arrow_footer_reader(memoryview(pyarrow.memory_map(str(path)).read_buffer()))
    if found is None or not found[1]:  # none, or a stream, as litdata wrote them before
        return None
    reader = found[0]
    return reader, list(accumulate(len(reader.get_batch(i)) for i in range(reader.num_record_batches)))


class _NotRead:
    """Stands for a value of a kind that is not decoded."""


def check_litdata(what: str) -> None:
    """Refuse what needs litdata where it is not installed.

    Raises:
        UserError: it is not.
    """
    try:
        import litdata.streaming  # noqa: F401
    except ImportError as error:
        raise missing_package(what, error, "litdata") from error


def read_litdata(source: SourceName, root: str | os.PathLike[str] | None, max_bad: str | None = None) -> Listing:
    """The images in a folder of litdata, local or of an http server, from which it is fetched into a cache first.

    Args:
        source: its name.
        root: where a relative path is taken from, and the cache is.
        max_bad: how many images may be in chunks that a server does not send.

    Raises:
        UserError: there is none, it is of another kind, a chunk is cut off or cannot be fetched, it lacks a field, or
            the package for this is missing.
    """
    check_litdata("litdata")
    check_yes_or_no(source.options, "verify")
    patience, where = patience_of(source.options), source.place
    folder = _folder(source, root, patience)
    described, config = _described(parsed_index(folder / INDEX_FILE), where)
    chunks, lost = described, list[str]()
    if is_url(where):
        losses = Losses({_address(where, chunk.file): chunk.samples for chunk in described}, max_bad)
        addresses = [_address(where, chunk.file) for chunk in described]
        paths = [losses.unless_lost(url, functools.partial(fetched, url, root, where, patience)) for url in addresses]
        chunks, lost = [chunk for chunk, path in zip(described, paths, strict=True) if path], losses.places
    _check_sizes(folder, chunks)
    gone = {chunk.file for chunk in described} - {chunk.file for chunk in chunks}
    there = [folder / chunk.file for chunk in chunks]
    ours = read_index(folder, there, verify=source.options.get("verify") == "yes", gone=gone)
    store = ChunkStore(folder, chunks, list(map(str, config["data_format"])), "")
    if not len(store):
        raise UserError(f"there are no samples in {where}.")
    chosen = chosen_columns(list(store.sample(0)), source.options, where)
    store = replace(store, image=chosen["image"])
    _encoded(store.sample(0)[store.image], store.place(0), store.image)
    values: dict[str, list[Any]] = {what: [] for what in ("label", "name", "split")}
    for row in range(len(store)):
        sample = store.sample(row)
        for what, column in values.items():
            column.append(_word(sample.get(chosen[what]), store.place(row), chosen[what]) if what in chosen else None)
    splits = values["split"] if "split" in chosen else None
    if ours.get("splits"):
        of_file = {shard["file"]: shard["split"] for shard in ours["shards"]}
        splits = [of_file[chunk.file] for chunk in chunks for _ in range(chunk.samples)]
    return Listing(
        where=where,
        store=store,
        paths=[None if name is None else str(name) for name in values["name"]],
        labels=values["label"],
        splits=None if splits is None else [split_of(str(word), where) for word in splits],
        class_names=class_names(source, root) or ours.get("class_names"),
        lost=lost,
    )


def _folder(source: SourceName, root: str | os.PathLike[str] | None, patience: float) -> Path:
    """Where the index is, once it is on this machine."""
    if is_url(source.place):
        return fetched(_address(source.place, INDEX_FILE), root, source.place, patience).parent
    if "://" in source.place:
        raise UserError(
            f"litdata: reads folders of this machine and of http:// and https:// servers, not {source.place}; copy it "
            "to one of these."
        )
    folder = source.path(root)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give litdata:FOLDER, one that litdata has written.")
    if not (folder / INDEX_FILE).is_file():
        read_index(folder, [], verify=False)  # unfinished
        raise UserError(f"{folder} has no {INDEX_FILE}; give litdata:FOLDER, one that litdata has written.")
    return folder


def _address(base: str, name: str) -> str:
    return f"{base.rstrip('/')}/{name}"


def _check_sizes(folder: Path, chunks: list[Chunk]) -> None:
    for chunk in chunks:
        path = folder / chunk.file
        if not path.is_file():
            raise UserError(f"{folder} lacks {path.name}, which its {INDEX_FILE} names.")
        if (size := path.stat().st_size) != chunk.size:
            raise UserError(
                f"{path} is cut off or damaged: it has {size:,} bytes and not {chunk.size:,}; write or fetch it again."
            )


def _described(index: Mapping[str, Any], where: str) -> tuple[list[Chunk], dict[str, Any]]:
    """The chunks and the configuration of an index, if it is one that can be read here."""
    chunks, config = index.get("chunks"), index.get("config")
    if not isinstance(chunks, list) or not isinstance(config, dict) or not isinstance(config.get("data_format"), list):
        other = "; it is one of tar files: give wds:" if "shards" in index and "class_names" in index else ""
        raise UserError(f"{where} is not one of litdata's folders{other}.")
    reader = config.get("item_loader") or "PyTreeLoader"
    if reader != "PyTreeLoader":
        raise UserError(f"{where} is for litdata's {reader}, which gives no images.")
    if config.get("encryption"):
        raise UserError(f"{where} is encrypted; write it again without.")
    if config.get("compression"):
        raise UserError(f"{where} has compressed chunks; write it again without, as images are compressed already.")
    found, begin = [], 0
    try:
        for number, chunk in enumerate(chunks):
            name, count = chunk["filename"], int(chunk["chunk_size"])
            if Path(name).name != name or count < 1:
                raise ValueError(f"chunk {name!r}")
            found.append(Chunk(name, number, begin, count, int(chunk["chunk_bytes"])))
            begin += count
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the {INDEX_FILE} of {where} is damaged: {first_line(error)}") from error
    return found, config


def _encoded(value: Any, place: str, column: str) -> bytes:
    """An image as the bytes of a file."""
    if isinstance(value, Mapping):  # of Hugging Face's data sets
        value = value.get("bytes")
    if isinstance(value, Image.Image):  # pixels; PNG without compression, the same from every version of Pillow
        file = io.BytesIO()
        value.save(file, "PNG", compress_level=0)
        return file.getvalue()
    if not isinstance(value, bytes | bytearray | memoryview):
        raise UserError(
            f"{place} has no image in its field {column!r}, which would be one of litdata's kinds "
            f"{', '.join(ENCODED)} and pil."
        )
    if not len(value):
        raise UserError(f"{place} has no image")
    return bytes(value)


def _word(value: Any, place: str, column: str) -> str | int | None:
    """A class, a name or a split."""
    if hasattr(value, "item") and getattr(value, "size", None) is not None:  # an array or a tensor of one number
        try:
            value = value.item()
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{place} has more than one number in its field {column!r}") from error
    if isinstance(value, memoryview | bytes):
        value = bytes(value).decode("utf-8", "replace")
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, _NotRead):
        raise UserError(f"{place} has neither a text nor a number in its field {column!r}")
    return value if value is None or isinstance(value, int) else str(value)
