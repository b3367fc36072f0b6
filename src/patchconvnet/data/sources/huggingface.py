"""Data sets that Hugging Face's `datasets` reads: of the hub, a local folder, or one written by `save_to_disk`.

They are kept as Arrow files, of which any row is read without the others; `datasets` keeps what it has converted in
its own cache ($HF_HOME).
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchconvnet.data.image_paths import file_size
from patchconvnet.data.readable import listed
from patchconvnet.data.sources.columns import chosen_columns, class_names
from patchconvnet.data.sources.listing import Listing, split_of
from patchconvnet.data.sources.names import SourceName, missing_package
from patchconvnet.errors import UserError, first_line

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True, eq=False)
class ArrowStore:
    """Images in a column of a `datasets.Dataset`.

    Args:
        rows: that data set, with this column alone, undecoded.
        column: the images: bytes, paths, or records of both.
        where: the data set, for messages.
        folder: that relative paths are in.
    """

    rows: "datasets.Dataset"
    column: str
    where: str
    folder: Path

    def encoded(self, row: int) -> Path | bytes:
        value = self.rows[row][self.column]
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            return self.folder / value
        if not isinstance(value, bytes) or not value:
            raise UserError(f"{self.place(row)} holds no image")
        return value

    def place(self, row: int) -> str:
        return f"{self.where} row {row}"

    def size(self, row: int) -> int:
        return self._sizes[row]

    @functools.cached_property
    def _sizes(self) -> list[int]:
        """Of all images: of bytes from Arrow's offsets, without the bytes."""
        import pyarrow
        import pyarrow.compute

        sizes: list[int] = []
        for table in self.rows.with_format("arrow").iter(batch_size=10_000):
            column = table[self.column].combine_chunks()
            column = column.chunk(0) if isinstance(column, pyarrow.ChunkedArray) else column
            paths = pyarrow.nulls(len(column))
            if pyarrow.types.is_struct(column.type):
                column, paths = column.field("bytes"), column.field("path")
            elif pyarrow.types.is_string(column.type):
                column, paths = pyarrow.nulls(len(column), pyarrow.binary()), column
            lengths = pyarrow.compute.binary_length(column).to_pylist()
            sizes += [
                file_size(self.folder / path) if path and length is None else -1 if length is None else length
                for length, path in zip(lengths, paths.to_pylist(), strict=True)
            ]
        return sizes


def read_hf(source: SourceName, root: str | os.PathLike[str] | None) -> Listing:
    """A data set of the hub, or a local one; of all its splits, or of the one that the name ends with.

    Raises:
        UserError: there is none, it cannot be read or lacks a column, or the package for it is missing.
    """
    with _hugging_face(source) as datasets:
        name, split = _name_and_split(source, root)
        if Path(name, "dataset_info.json").is_file() or Path(name, "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name)
        parts = dict(loaded) if isinstance(loaded, Mapping) else {str(loaded.split or "train"): loaded}
        if split is not None:
            if split not in parts:
                raise UserError(f"{source.place} has no split {split!r}; it has {listed(map(str, parts))}.")
            parts = {split: parts[split]}
        one = len(parts) == 1  # then it is divided as a folder without splits is
        splits = None if one else [split_of(str(its), name) for its, part in parts.items() for _ in range(len(part))]
        rows = datasets.concatenate_datasets(list(parts.values()))
        return _listing(rows, source.options, name, Path(), splits, class_names(source, root))


def of_parquet(files: Sequence[Path], source: SourceName, where: str, names: list[str] | None) -> Listing:
    """The images whose bytes are in Parquet files.

    Raises:
        UserError: they cannot be read or lack a column, or the package for them is missing.
    """
    with _hugging_face(source) as datasets:
        rows = datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train")
        return _listing(rows, source.options, where, files[0].parent, None, names)


def _listing(
    rows: "datasets.Dataset",
    options: Mapping[str, str],
    where: str,
    folder: Path,
    splits: Sequence[str] | None,
    names: list[str] | None,
) -> Listing:
    import datasets

    chosen = chosen_columns(rows.column_names, options, where)
    image, label = chosen["image"], chosen.get("label")
    if isinstance(rows.features[image], datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))
    if names is None and label and isinstance(rows.features[label], datasets.ClassLabel):
        names = list(rows.features[label].names)
    if "split" in chosen:
        splits = [split_of(str(word), where) for word in rows[chosen["split"]]]
    return Listing(
        where=where,
        store=ArrowStore(rows.select_columns([image]), image, where, folder),
        paths=list(map(str, rows[chosen["name"]])) if "name" in chosen else _paths(rows, image),
        labels=[None if v is None else v if isinstance(v, int) else str(v) for v in rows[label]]
        if label
        else [None] * len(rows),
        splits=splits,
        class_names=names,
    )


def _paths(rows: "datasets.Dataset", image: str) -> list[str | None]:
    """What the images are called, without reading their bytes."""
    import pyarrow

    column = rows.with_format("arrow")[image] if rows._indices is not None else rows.data.column(image)
    chunks = column.chunks if isinstance(column, pyarrow.ChunkedArray) else [column]
    if pyarrow.types.is_struct(chunks[0].type) if chunks else False:
        return [path for chunk in chunks for path in chunk.field("path").to_pylist()]
    if pyarrow.types.is_string(chunks[0].type) if chunks else False:
        return [path for chunk in chunks for path in chunk.to_pylist()]
    return [None] * len(rows)


def _name_and_split(source: SourceName, root: str | os.PathLike[str] | None) -> tuple[str, str | None]:
    """The data set's name or folder, and the split after a colon."""
    path = source.path(root)
    if path.is_dir():
        return str(path), None
    name, colon, split = source.place.rpartition(":")
    if not colon:
        return source.place, None
    folder = source._replace(place=name).path(root)
    return (str(folder) if folder.is_dir() else name), split


@contextlib.contextmanager
def _hugging_face(source: SourceName) -> Iterator[Any]:
    """The package, quiet; what goes wrong in it becomes a sentence.

    Raises:
        UserError: it is missing, or whatever it says.
    """
    try:
        import datasets
    except ImportError as error:
        raise missing_package(source.kind, error) from error
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield datasets
    except UserError:
        raise
    except Exception as error:  # of many libraries: its builders', pyarrow's, the hub's
        causes = str(error.__cause__ or "").partition("\n")[0]
        why = first_line(error) + (f" ({causes})" if causes and causes not in str(error) else "")
        raise UserError(f"{source.kind}:{source.place} cannot be loaded: {why}") from error
    finally:
        if shown:
            datasets.enable_progress_bars()
