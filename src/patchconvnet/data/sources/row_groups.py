"""Images whose bytes are in Parquet files, read by row groups or one by one.

The files are local, or on an http server, which is asked for parts of them; no image is kept on disk. Labels and names
are read without the bytes of the images. When all images have been read through once, it is known where most of them
are, see `column_chunks`, and any is read by itself; those that follow one another are read by row groups all the same.
"""

import bisect
import contextlib
import functools
import io
import itertools
import json
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from rich.progress import track

from patchconvnet.data.image_paths import read_heif
from patchconvnet.data.labelled_images import Blocks, content_digest
from patchconvnet.data.readable import is_readable_content
from patchconvnet.data.sources.column_chunks import Place, places_in, unpack
from patchconvnet.data.sources.fetching import cache_folder, is_url, read_part
from patchconvnet.errors import NotOfOneImageError, UserError, first_line
from patchconvnet.files import write_text

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

AT_ONCE = 8  # files or row groups of a server that are asked for together
MOST_AT_ONCE = 512 << 20  # bytes of row groups that are checked together, unless one has more
MOST_HELD = 256 << 20  # bytes of row groups that a process holds, unless two have more
LONGEST_PART = 32 << 20  # bytes of an answer; what breaks off begins again there
NEAR = 8  # rows: two images that were read just before, and were as near as this, are followed by their whole row group
JUST_BEFORE = 16  # images of a process, and of each thread
MAGIC = b"PAR1"


class GroupFile(NamedTuple):
    """A Parquet file.

    Attributes:
        place: its path or address.
        size: bytes.
        version: a word that changes with its content.
        metadata: where its row groups are, as pyarrow's `FileMetaData`.
        kept_as: what it is called whatever its revision, where what is found in it may be kept.
    """

    place: str
    size: int
    version: str
    metadata: Any
    kept_as: str


@dataclass(frozen=True, eq=False)
class RowGroupStore:
    """Images in a column of Parquet files; survives a fork and the way into another process.

    Args:
        files: in the order of their rows.
        column: with the bytes, such as "image.bytes".
        where: the data set, for messages.
        patience: seconds for which a server that does not answer is asked again.

    Raises:
        UserError: a file lacks the column.
    """

    files: list[GroupFile]
    column: str
    where: str
    patience: float
    _held: "_Held" = field(default_factory=lambda: _Held(), init=False, repr=False)
    _places: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False)  # (rows, 5) of a row group

    def __post_init__(self) -> None:
        for file in self.files:
            if self.column not in (file.metadata.schema.column(i).path for i in range(file.metadata.num_columns)):
                raise UserError(f"{file.place} has no column {self.column!r}, which others of {self.where} have.")

    def encoded(self, row: int) -> bytes:
        group = bisect.bisect_right(self._starts, row) - 1
        values = self._held.get(group, row, lambda: self._read(group), whole=group not in self._places)
        at = row - self._starts[group]
        value = (
            self._read_one(group, Place(*self._places[group][at].tolist())) if values is None else values[at].as_py()
        )
        if not value:
            raise UserError(f"{self.place(row)} holds no image")
        return bytes(value)

    def place(self, row: int) -> str:
        return f"{self.where} row {row}"

    def size(self, row: int) -> int:
        """Only its row group's is known."""
        return -1

    def blocks(self) -> Blocks:
        """The row groups, and what is known by now of reading an image alone."""
        rows = [self._of_group(group).num_rows for group in range(len(self._groups))]
        sizes = [self._bytes(group) for group in range(len(rows))]
        alone = [
            int(self._places[group][:, 1].sum()) if group in self._places else size * count
            for group, (size, count) in enumerate(zip(sizes, rows, strict=True))
        ]
        numbers = torch.arange(len(rows)).repeat_interleave(torch.tensor(rows, dtype=torch.int64))
        return Blocks(numbers, sum(sizes) / max(len(rows), 1) / 1e6, sum(alone) / max(sum(rows), 1) / 1e6)

    def digests(self, root: str | os.PathLike[str] | None, show_progress: bool) -> list[str]:
        """Of the content of each image, empty for one that is not readable; each row group is read once.

        From then on images are read one by one too. What is found in a server's files is kept, so that a later start
        has not to read the images again.

        Args:
            root: as for `fetching.cache_folder`.
            show_progress: whether to draw a progress bar.

        Raises:
            UserError: a file cannot be read.
        """
        read_heif()
        groups_of: list[list[int]] = [[] for _ in self.files]
        for group, (number, _) in enumerate(self._groups):
            groups_of[number].append(group)
        digests: dict[int, list[str]] = {}  # by row group
        unknown: list[int] = []
        for number, file in enumerate(self.files):
            known = self._known(file, root)
            for group, found in zip(groups_of[number], known or (), strict=False):
                digests[group] = self._learned(group, found)
            unknown += groups_of[number] if known is None else []
        largest = max(map(self._bytes, unknown), default=1)
        with ThreadPoolExecutor(max(1, min(AT_ONCE, MOST_AT_ONCE // max(largest, 1)))) as pool:
            answers = pool.map(self._looked_through, unknown)
            shown = track(answers, "Checking images", len(unknown), disable=not show_progress, transient=True)
            of_file: list[list[Any]] = []
            for group, found in zip(unknown, shown, strict=True):
                number, _ = self._groups[group]
                digests[group] = self._learned(group, found)
                of_file.append(found)
                if group == groups_of[number][-1]:
                    self._keep(self.files[number], root, of_file)
                    of_file = []
        return [digest for group in range(len(self._groups)) for digest in digests[group]]

    def _learned(self, group: int, found: list[Any]) -> list[str]:
        """The digests of a row group; its places are remembered."""
        digests, places = found
        if places is not None:
            self._places[group] = np.array(places, np.int64).reshape(len(digests), len(Place._fields))
        return list(digests)

    def _looked_through(self, group: int) -> list[Any]:
        """The digests of a row group's images, and their places in the file, or None."""
        chunk = self._chunk(group)
        begin = _beginning(chunk)
        with _opened(self.files[self._groups[group][0]], self.patience) as opened:
            content = opened.read(begin, chunk.total_compressed_size)
        values = [value.as_py() for value in self._read(group, content)]
        where = self.place(self._starts[group])
        digests = [content_digest(v) if v and is_readable_content(v, where) else "" for v in values]
        places = places_in(content, chunk.compression, values)
        return [digests, places and [place._replace(begin=begin + place.begin) for place in places]]

    def _kept(self, file: GroupFile, root: str | os.PathLike[str] | None) -> Path | None:
        """Where what is found in a file is kept; of a local one, or one that may change unseen, nothing is."""
        if not (file.kept_as and file.version):
            return None
        return cache_folder(file.kept_as, root) / f"rows-{self.column}.json"

    def _known(self, file: GroupFile, root: str | os.PathLike[str] | None) -> list[list[Any]] | None:
        kept = self._kept(file, root)
        with contextlib.suppress(OSError, KeyError, TypeError, ValueError):  # read it again
            about = json.loads(kept.read_text()) if kept else {}
            counts = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            found = [len(digests) for digests, _ in about["groups"]]
            if [about["bytes"], about["version"], found] == [file.size, file.version, counts]:
                return list(about["groups"])
        return None

    def _keep(self, file: GroupFile, root: str | os.PathLike[str] | None, groups: list[list[Any]]) -> None:
        if kept := self._kept(file, root):
            write_text(kept, json.dumps({"bytes": file.size, "version": file.version, "groups": groups}))

    @functools.cached_property
    def _groups(self) -> list[tuple[int, int]]:
        """Which file each row group is in, and which of its groups it is."""
        return [(f, group) for f, file in enumerate(self.files) for group in range(file.metadata.num_row_groups)]

    @functools.cached_property
    def _starts(self) -> list[int]:
        """The first row of each row group."""
        counts = [self._of_group(group).num_rows for group in range(len(self._groups))]
        return [0, *itertools.accumulate(counts)][:-1]

    def _of_group(self, group: int) -> Any:
        file, number = self._groups[group]
        return self.files[file].metadata.row_group(number)

    def _bytes(self, group: int) -> int:
        """Of its images, as they are in the file."""
        return int(self._chunk(group).total_compressed_size)

    def _chunk(self, group: int) -> Any:
        about = self._of_group(group)
        chunks = (about.column(i) for i in range(about.num_columns))
        return next(chunk for chunk in chunks if chunk.path_in_schema == self.column)

    def _read(self, group: int, content: bytes | None = None) -> "pyarrow.ChunkedArray":
        """The images of a row group; `content` is its column chunk, where that has been read already."""
        import pyarrow.compute

        file, number = self._groups[group]
        held = None if content is None else (_beginning(self._chunk(group)), content)
        with _parquet(self.files[file], self.patience, held) as opened:  # threads of pyarrow's would not survive a fork
            column = opened.read_row_group(number, columns=[self.column], use_threads=False).column(0)
        return pyarrow.compute.struct_field(column, "bytes") if pyarrow.types.is_struct(column.type) else column

    def _read_one(self, group: int, place: Place) -> bytes:
        if not place.size:
            return b""
        file = self.files[self._groups[group][0]]
        with _opened(file, self.patience) as opened:
            part = opened.read(place.begin, place.length)
        return unpack(part, self._chunk(group).compression, place)


def open_files(places: Sequence[tuple[str, str]], patience: float) -> list[GroupFile]:
    """What is in Parquet files, of which their ends are read.

    Args:
        places: path or address of each, and its `kept_as`.
        patience: seconds for which a server that does not answer is asked again.

    Raises:
        UserError: one cannot be read, or is no Parquet file.
    """

    def about(place: str, kept_as: str) -> GroupFile:
        if is_url(place):
            first = read_part(place, 0, len(MAGIC), patience, _headers(place))
            file = GroupFile(place, first.total, first.version, None, kept_as)
            if first.content != MAGIC:
                raise UserError(f"{place} is no Parquet file.")
        else:
            file = GroupFile(place, *_size_and_version(place), None, "")
        with _parquet(file, patience) as opened:
            return file._replace(metadata=opened.metadata)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda each: about(*each), places))


def read_columns(files: Sequence[GroupFile], columns: Sequence[str], patience: float) -> "pyarrow.Table":
    """Some columns of all rows, without the others; a part of a column is "image.path".

    Raises:
        UserError: a file cannot be read, or lacks a column.
    """
    import pyarrow

    def rows(file: GroupFile) -> "pyarrow.Table":
        with _parquet(file, patience, pre_buffer=True) as opened:  # columns that lie side by side in one request
            found = opened.read(columns=list(columns), use_threads=False)
        if lacking := {column.partition(".")[0] for column in columns} - set(found.column_names):
            raise UserError(f"{file.place} has no column {min(lacking)!r}.")
        return found

    with ThreadPoolExecutor(AT_ONCE) as pool:
        tables = list(pool.map(rows, files))
    try:
        return pyarrow.concat_tables(tables, promote_options="permissive")
    except pyarrow.ArrowException as error:
        raise UserError(f"the columns {', '.join(columns)} differ between files: {first_line(error)}") from error


def schema_of(file: GroupFile) -> "pyarrow.Schema":
    """A file's columns and what is written about them."""
    return file.metadata.schema.to_arrow_schema()


def _beginning(chunk: Any) -> int:
    """Where a column chunk begins in its file."""
    return min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset)


@contextlib.contextmanager
def _parquet(
    file: GroupFile, patience: float, held: tuple[int, bytes] | None = None, **options: Any
) -> "Iterator[pyarrow.parquet.ParquetFile]":
    """A file for pyarrow.

    Args:
        held: a part of it that has been read already, and where that begins.
    """
    import pyarrow.parquet

    with _opened(file, patience) as reading, pyarrow.parquet.ParquetFile(
        _File(reading, held), metadata=file.metadata, **options
    ) as opened:  # fmt: skip
        yield opened


def _size_and_version(path: str) -> tuple[int, str]:
    try:
        about = os.stat(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return about.st_size, str(about.st_mtime_ns)


def _changed(place: str) -> NotOfOneImageError:
    return NotOfOneImageError(f"{place} has changed since it was opened; start again.")


def _headers(url: str) -> Mapping[str, str]:
    """Who asks, for a private data set of the hub; no other server is told."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers() if url.startswith(f"{constants.ENDPOINT}/") else {}


class _Parts:
    """Parts of a file that must be as it was.

    Args:
        file: which.
        patience: seconds for which a server that does not answer is asked again.
    """

    def __init__(self, file: GroupFile, patience: float) -> None:
        self.file, self._patience = file, patience

    def read(self, begin: int, size: int) -> bytes:
        """Some bytes; at the end of the file there are less."""
        if is_url(self.file.place):
            return self._of_server(begin, min(begin + size, self.file.size))
        if (self.file.size, self.file.version) != _size_and_version(self.file.place):
            raise _changed(self.file.place)
        with open(self.file.place, "rb") as file:
            file.seek(begin)
            return file.read(size)

    def _of_server(self, begin: int, end: int) -> bytes:
        place, total, version = self.file[:3]
        parts = []
        while begin < end:
            wanted = min(end - begin, LONGEST_PART)
            part = read_part(place, begin, wanted, self._patience, _headers(place))
            if (part.total, part.version) != (total, version) or len(part.content) != wanted:
                raise _changed(place)
            parts.append(part.content)
            begin += wanted
        return parts[0] if len(parts) == 1 else b"".join(parts)


@contextlib.contextmanager
def _opened(file: GroupFile, patience: float) -> Iterator[_Parts]:
    """Parts of a file; what goes wrong with them becomes a sentence."""
    import pyarrow

    try:
        yield _Parts(file, patience)
    except UserError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file.place} cannot be read as Parquet: {first_line(error)}") from error


class _File(io.RawIOBase):
    """A file as pyarrow takes it; any part is read when it is asked for."""

    def __init__(self, parts: _Parts, held: tuple[int, bytes] | None) -> None:
        self._parts, self._held, self._next = parts, held, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._next

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._next, os.SEEK_END: self._parts.file.size}[whence]
        self._next = begin + offset
        return self._next

    def read(self, size: int = -1) -> bytes:
        size = self._parts.file.size - self._next if size < 0 else size
        begin, held = self._held or (0, b"")
        inside = self._next - begin
        if inside >= 0 and inside + size <= len(held):
            content = held[inside : inside + size]
        else:
            content = self._parts.read(self._next, size)
        self._next += len(content)
        return content


class _Held:
    """The row groups that were read last: of this process `MOST_HELD` bytes, but at least two, and each thread's own.

    So threads that go through the rows side by side read each group once, and one that is slower than the others does
    not lose its own. A group is read once it is clear that it is gone through: its images, or those before them, were
    asked for just before, by this thread or by all together. What is pickled, or another process after a fork, begins
    with none.
    """

    def __init__(self) -> None:
        self._begin()

    def __reduce__(self) -> tuple[type["_Held"], tuple[()]]:
        return _Held, ()

    def _begin(self) -> None:
        self._process, self._lock, self._own = os.getpid(), threading.Lock(), threading.local()
        self._groups: OrderedDict[int, Future[Any]] = OrderedDict()
        self._before: deque[int] = deque(maxlen=JUST_BEFORE)

    def get(
        self, group: int, row: int, read: "Callable[[], pyarrow.ChunkedArray]", *, whole: bool
    ) -> "pyarrow.ChunkedArray | None":
        """A row group; None where one of its images is better read alone.

        Args:
            group: its number.
            row: the image that is wanted.
            read: reads the group.
            whole: whether its images can't be read alone.
        """
        if self._process != os.getpid():  # a lock may have been held in the moment of the fork
            self._begin()
        own = self._own.__dict__
        mine = own.setdefault("before", deque(maxlen=JUST_BEFORE))
        with self._lock:
            follows = any(sum(abs(row - other) <= NEAR for other in before) >= 2 for before in (mine, self._before))
            mine.append(row)
            self._before.append(row)
            here = group in self._groups
        if own.get("group") != group:
            if not (whole or here or follows):
                return None
            own["values"] = self._shared(group, read)
            own["group"] = group
        return own["values"]

    def _shared(self, group: int, read: "Callable[[], pyarrow.ChunkedArray]") -> "pyarrow.ChunkedArray":
        with self._lock:
            future = self._groups.get(group)
            if known := future is not None:
                self._groups.move_to_end(group)
            else:
                future = self._groups[group] = Future()
        if known:
            return future.result()
        try:
            future.set_result(read())
        except BaseException as error:
            with self._lock:
                self._groups.pop(group, None)
            future.set_exception(error)
            raise
        with self._lock:
            while len(self._groups) > 2 and self._bytes() > MOST_HELD:
                self._groups.popitem(last=False)
        return future.result()

    def _bytes(self) -> int:
        return sum(each.result().nbytes for each in self._groups.values() if each.done() and not each.exception())
