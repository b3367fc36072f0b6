"""Images whose bytes are in Parquet files, read by row groups, which is the least that can be read of such a file.

The files are local, or on an http server, which is asked for parts of them; nothing is kept on disk. Labels and names
are read without the bytes of the images.
"""

import bisect
import contextlib
import functools
import io
import itertools
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich.progress import track

from patchconvnet.data.image_paths import read_heif
from patchconvnet.data.labelled_images import Blocks, content_digest
from patchconvnet.data.readable import is_readable_content
from patchconvnet.data.sources.fetching import cache_folder, is_url, read_part
from patchconvnet.errors import UserError, first_line
from patchconvnet.files import write_text

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

AT_ONCE = 8  # files or row groups of a server that are asked for together
MOST_AT_ONCE = 1 << 30  # bytes of row groups that are checked together, unless one has more
MOST_HELD = 256 << 20  # bytes of row groups that a process holds, unless two have more
LONGEST_PART = 32 << 20  # bytes of an answer; what breaks off begins again there
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
    """

    files: list[GroupFile]
    column: str
    where: str
    patience: float
    _held: "_Held" = field(default_factory=lambda: _Held(), init=False, repr=False)

    def encoded(self, row: int) -> bytes:
        group = bisect.bisect_right(self._starts, row) - 1
        value = self._held.get(group, lambda: self._read(group))[row - self._starts[group]].as_py()
        if not value:
            raise UserError(f"{self.place(row)} holds no image")
        return bytes(value)

    def place(self, row: int) -> str:
        return f"{self.where} row {row}"

    def size(self, row: int) -> int:
        """Only its row group's is known."""
        return -1

    def blocks(self) -> Blocks:
        """The row groups."""
        rows = torch.tensor([self._of_group(group).num_rows for group in range(len(self._groups))], dtype=torch.int64)
        numbers = torch.arange(len(rows)).repeat_interleave(rows)
        return Blocks(numbers, sum(self._bytes(group) for group in range(len(rows))) / max(len(rows), 1) / 1e6)

    def digests(self, root: str | os.PathLike[str] | None, show_progress: bool) -> list[str]:
        """Of the content of each image, empty for one that is not readable; each row group is read once.

        Those of a server's files are kept, so that a later start has not to read the images again.

        Args:
            root: as for `fetching.cache_folder`.
            show_progress: whether to draw a progress bar.

        Raises:
            UserError: a file cannot be read.
        """
        read_heif()
        found = {number: known for number, file in enumerate(self.files) if (known := self._known(file, root))}
        groups = [group for group, (file, _) in enumerate(self._groups) if file not in found]
        largest = max(map(self._bytes, groups), default=1)
        fresh: dict[int, list[str]] = {}
        with ThreadPoolExecutor(max(1, min(AT_ONCE, MOST_AT_ONCE // max(largest, 1)))) as pool:
            answers = pool.map(self._digests_of, groups)
            for group, digests in zip(
                groups,
                track(answers, "Checking images", len(groups), disable=not show_progress, transient=True),
                strict=True,
            ):
                number = self._groups[group][0]
                fresh.setdefault(number, []).extend(digests)
                if len(fresh[number]) == self.files[number].metadata.num_rows:
                    found[number] = fresh.pop(number)
                    self._keep(self.files[number], root, found[number])
        return [digest for number in range(len(self.files)) for digest in found.get(number, ())]

    def _digests_of(self, group: int) -> list[str]:
        place = self.place(self._starts[group])
        contents = (value.as_py() or b"" for value in self._read(group))
        return [content_digest(each) if is_readable_content(each, place) else "" for each in contents]

    def _kept(self, file: GroupFile, root: str | os.PathLike[str] | None) -> Path | None:
        """Where the digests of a file are kept; those of a local one, or one that may change unseen, are not."""
        if not (file.kept_as and file.version):
            return None
        return cache_folder(file.kept_as, root) / f"digests-{self.column}.json"

    def _known(self, file: GroupFile, root: str | os.PathLike[str] | None) -> list[str] | None:
        kept = self._kept(file, root)
        with contextlib.suppress(OSError, KeyError, TypeError, ValueError):  # read it again
            about = json.loads(kept.read_text()) if kept else {}
            if [about["bytes"], about["version"], len(about["digests"])] == [
                file.size, file.version, file.metadata.num_rows,
            ]:  # fmt: skip
                return list(about["digests"])
        return None

    def _keep(self, file: GroupFile, root: str | os.PathLike[str] | None, digests: list[str]) -> None:
        if kept := self._kept(file, root):
            write_text(kept, json.dumps({"bytes": file.size, "version": file.version, "digests": digests}))

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
        about = self._of_group(group)
        chunks = (about.column(i) for i in range(about.num_columns))
        return sum(chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema == self.column)

    def _read(self, group: int) -> "pyarrow.ChunkedArray":
        import pyarrow.compute

        file, number = self._groups[group]
        with _opened(self.files[file], self.patience) as opened:  # threads of pyarrow's would not survive a fork
            column = opened.read_row_group(number, columns=[self.column], use_threads=False).column(0)
        return pyarrow.compute.struct_field(column, "bytes") if pyarrow.types.is_struct(column.type) else column


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
        with _opened(file, patience) as opened:
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
        with _opened(file, patience, pre_buffer=True) as opened:  # columns that lie side by side in one request
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


@contextlib.contextmanager
def _opened(file: GroupFile, patience: float, **options: Any) -> "Iterator[pyarrow.parquet.ParquetFile]":
    """A file for pyarrow; what goes wrong with it becomes a sentence."""
    import pyarrow.parquet

    try:
        if is_url(file.place):
            source: Any = _RemoteFile(file, patience)
        else:
            if (file.size, file.version) != _size_and_version(file.place):
                raise _changed(file.place)
            source = file.place
        with pyarrow.parquet.ParquetFile(source, metadata=file.metadata, **options) as opened:
            yield opened
    except UserError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file.place} cannot be read as Parquet: {first_line(error)}") from error


def _size_and_version(path: str) -> tuple[int, str]:
    try:
        about = os.stat(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return about.st_size, str(about.st_mtime_ns)


def _changed(place: str) -> UserError:
    return UserError(f"{place} has changed since it was opened; start again.")


def _headers(url: str) -> Mapping[str, str]:
    """Who asks, for a private data set of the hub; no other server is told."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers() if url.startswith(f"{constants.ENDPOINT}/") else {}


class _RemoteFile(io.RawIOBase):
    """A server's file as pyarrow takes it; any part is asked for when it is read."""

    def __init__(self, file: GroupFile, patience: float) -> None:
        self._file, self._patience, self._next = file, patience, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._next

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._next = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._next, os.SEEK_END: self._file.size}[whence]
        return self._next

    def read(self, size: int = -1) -> bytes:
        place, total, version = self._file[:3]
        end = total if size < 0 else min(self._next + size, total)
        parts = []
        while self._next < end:
            wanted = min(end - self._next, LONGEST_PART)
            part = read_part(place, self._next, wanted, self._patience, _headers(place))
            if (part.total, part.version) != (total, version) or len(part.content) != wanted:
                raise _changed(place)
            parts.append(part.content)
            self._next += wanted
        return parts[0] if len(parts) == 1 else b"".join(parts)


class _Held:
    """The row groups that were read last: of this process `MOST_HELD` bytes, but at least two, and each thread's own.

    So threads that go through the rows side by side read each group once, and one that is slower than the others does
    not lose its own. What is pickled, or another process after a fork, begins with none.
    """

    def __init__(self) -> None:
        self._begin()

    def __reduce__(self) -> tuple[type["_Held"], tuple[()]]:
        return _Held, ()

    def _begin(self) -> None:
        self._process, self._lock, self._own = os.getpid(), threading.Lock(), threading.local()
        self._groups: OrderedDict[int, Future[Any]] = OrderedDict()

    def get(self, group: int, read: Any) -> "pyarrow.ChunkedArray":
        """A row group; what `read` gives if it is not here."""
        if self._process != os.getpid():  # a lock may have been held in the moment of the fork
            self._begin()
        if getattr(self._own, "group", None) != group:
            self._own.values = self._shared(group, read)
            self._own.group = group
        return self._own.values

    def _shared(self, group: int, read: Any) -> "pyarrow.ChunkedArray":
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
