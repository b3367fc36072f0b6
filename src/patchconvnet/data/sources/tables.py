"""Images listed in a table: a CSV or Parquet file with a column of paths, or a Parquet file that holds their bytes."""

import csv
import glob
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchconvnet.data.image_paths import file_size
from patchconvnet.data.sources.columns import chosen_columns, class_names
from patchconvnet.data.sources.listing import Listing, split_of
from patchconvnet.data.sources.names import SourceName, missing_package
from patchconvnet.errors import UserError, first_line

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class PathStore:
    """Images in files of their own, listed by a table.

    Args:
        table: the file that lists them.
        paths: one an image, relative to the table's folder or whole.
    """

    table: Path
    paths: list[str]

    def encoded(self, row: int) -> Path:
        return Path(os.path.expanduser(self.table.parent / self.paths[row]))

    def place(self, row: int) -> str:
        return str(self.encoded(row))

    def size(self, row: int) -> int:
        return file_size(self.encoded(row))


def read_csv(source: SourceName, root: str | os.PathLike[str] | None) -> Listing:
    """The images that a CSV file lists, one a row, under a row with the names of the columns.

    Raises:
        UserError: the file cannot be read or lacks a column.
    """
    path = source.path(root)
    _check_file(path, source)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV: {error}") from error
    chosen = chosen_columns(columns, source.options, str(path))
    incomplete = [number for number, row in enumerate(rows, 2) if None in row or row[chosen["image"]] in (None, "")]
    if incomplete:
        raise UserError(
            f"row {incomplete[0]} of {path} has no path in its column {chosen['image']!r}, or more values than the "
            "first row has names."
        )
    values = {what: [row[column] for row in rows] for what, column in chosen.items()}
    return _of_paths(path, source, values, class_names(source, root))


def read_parquet(source: SourceName, root: str | os.PathLike[str] | None) -> Listing:
    """The images that a Parquet file lists or holds; a folder or pattern of such files is one table.

    Raises:
        UserError: there is none, it cannot be read or lacks a column, or the package for it is missing.
    """
    path = source.path(root)
    files = parquet_files(path, source)
    schema = _schema(files[0])
    chosen = chosen_columns(schema.names, source.options, str(path))
    if not _is_text(schema.field(chosen["image"]).type):
        from patchconvnet.data.sources.huggingface import of_parquet

        return of_parquet(files, source, str(path), class_names(source, root))
    import pyarrow
    import pyarrow.parquet

    try:
        tables = [pyarrow.parquet.read_table(file, columns=list(chosen.values()), partitioning=None) for file in files]
        table = pyarrow.concat_tables(tables)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {first_line(error)}") from error
    values = {what: table.column(column).to_pylist() for what, column in chosen.items()}
    if None in values["image"]:
        raise UserError(f"row {values['image'].index(None)} of {path} has no path in its column {chosen['image']!r}.")
    return _of_paths(files[0], source, values, class_names(source, root) or _stored_names(schema, chosen))


def parquet_files(path: Path, source: SourceName) -> list[Path]:
    """The files of a table: the one of that path, those in that folder, or those of that pattern.

    Raises:
        UserError: there are none.
    """
    if path.is_dir():
        files = sorted(path.glob("**/*.parquet"))
    elif glob.has_magic(str(path)) and not path.exists():
        files = sorted(map(Path, glob.glob(str(path), recursive=True)))
    else:
        _check_file(path, source)
        files = [path]
    if not files:
        raise UserError(f"there are no Parquet files in {path}.")
    return files


def _of_paths(table: Path, source: SourceName, values: Mapping[str, list[Any]], names: list[str] | None) -> Listing:
    paths = list(map(str, values["image"]))
    splits = values.get("split")
    return Listing(
        where=str(table),
        store=PathStore(table, paths),
        paths=list(map(str, values["name"])) if "name" in source.options else paths,
        labels=values.get("label", [None] * len(paths)),
        splits=None if splits is None else [split_of(str(word), str(table)) for word in splits],
        class_names=names,
    )


def _check_file(path: Path, source: SourceName) -> None:
    if not path.exists():
        raise UserError(f"there is no file {path}; give {source.kind}:FILE with one image a row.")
    if not path.is_file():
        raise UserError(f"{path} is not a file; give {source.kind}:FILE with one image a row.")


def _schema(path: Path) -> "pyarrow.Schema":
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing_package("parquet", error) from error
    try:
        return pyarrow.parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {first_line(error)}") from error


def _is_text(kind: "pyarrow.DataType") -> bool:
    import pyarrow

    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def _stored_names(schema: "pyarrow.Schema", chosen: Mapping[str, str]) -> list[str] | None:
    """The names of the classes that Hugging Face's datasets writes into a Parquet file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return list(map(str, features[chosen["label"]]["names"]))
    except (KeyError, TypeError, ValueError):
        return None
