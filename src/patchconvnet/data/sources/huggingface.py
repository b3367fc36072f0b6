"""Data sets that Hugging Face's `datasets` reads: of the hub, a local folder, or one written by `save_to_disk`.

They are kept as Arrow files, of which any row is read without the others; `datasets` keeps what it has converted in
its own cache ($HF_HOME). With keep=no its Parquet files stay on the hub, and their row groups are read from there.
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
from patchconvnet.data.sources.fetching import patience_of, persistently
from patchconvnet.data.sources.listing import Listing, split_of
from patchconvnet.data.sources.names import SourceName, missing_package
from patchconvnet.data.sources.row_groups import RowGroupStore, open_files, read_columns, schema_of
from patchconvnet.data.sources.shard_index import check_yes_or_no
from patchconvnet.errors import UserError, first_line

if TYPE_CHECKING:
    import datasets
    import pyarrow

CONVERTED = "refs/convert/parquet"  # the branch on which the hub keeps data sets of other formats as Parquet


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
    check_yes_or_no(source.options, "keep")
    patience = patience_of(source.options)
    with _hugging_face(source) as datasets:
        name, split = _name_and_split(source, root)
        saved = Path(name, "dataset_info.json").is_file() or Path(name, "dataset_dict.json").is_file()
        if source.options.get("keep") == "no" and not saved:
            return _not_kept(source, name, split, patience, root)
        loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
        parts = _chosen(
            dict(loaded) if isinstance(loaded, Mapping) else {str(loaded.split or "train"): loaded}, split, source
        )
        splits = _splits({its: len(part) for its, part in parts.items()}, name)
        rows = datasets.concatenate_datasets(list(parts.values()))
        return _listing(rows, source.options, name, Path(), splits, class_names(source, root))


def _chosen(parts: Mapping[str, Any], split: str | None, source: SourceName) -> dict[str, Any]:
    """All splits, or the one that the source's name ends with."""
    if split is None:
        return dict(parts)
    if split not in parts:
        raise UserError(f"{source.place} has no split {split!r}; it has {listed(map(str, parts))}.")
    return {split: parts[split]}


def _splits(counts: Mapping[str, int], where: str) -> list[str] | None:
    """Of each row; None of a single split, which is divided as a folder without splits is."""
    if len(counts) == 1:
        return None
    return [split_of(str(split), where) for split, count in counts.items() for _ in range(count)]


def _not_kept(
    source: SourceName, name: str, split: str | None, patience: float, root: str | os.PathLike[str] | None
) -> Listing:
    """The images of a data set's Parquet files, which are read where they are."""
    import datasets

    found, features = _parquet_files(name, patience)
    parts = _chosen(found, split, source)
    files = open_files([place for places in parts.values() for place in places], patience)
    if not files:
        raise UserError(f"{name} has no Parquet files.")
    schema = schema_of(files[0])
    features = features or datasets.Features.from_arrow_schema(schema)
    chosen = chosen_columns(schema.names, source.options, name)
    image, label = chosen["image"], chosen.get("label")
    content, path = _inside(schema.field(image).type, image, name)
    names = class_names(source, root)
    if names is None and label and isinstance(features.get(label), datasets.ClassLabel):
        names = list(features[label].names)
    wanted = [chosen[what] for what in ("label", "name", "split") if what in chosen]
    if path and "name" not in chosen:
        wanted.append(path)
    store = RowGroupStore(files, content, name, patience)
    total = sum(file.metadata.num_rows for file in files)
    values: dict[str, list[Any]] = {}
    if wanted:
        table = read_columns(files, list(dict.fromkeys(wanted)), patience)
        values = {column: table.column(column).to_pylist() for column in table.column_names}
    if "name" in chosen:
        paths: list[str | None] = list(map(str, values[chosen["name"]]))
    else:
        paths = [record and record["path"] for record in values[image]] if path else [None] * total
    ends = iter(files)
    counts = {its: sum(next(ends).metadata.num_rows for _ in places) for its, places in parts.items()}
    return Listing(
        where=name,
        store=store,
        paths=paths,
        labels=[None if v is None else v if isinstance(v, int) else str(v) for v in values[label]]
        if label
        else [None] * total,
        splits=[split_of(str(word), name) for word in values[chosen["split"]]]
        if "split" in chosen
        else _splits(counts, name),
        class_names=names,
        digests=lambda show_progress: store.digests(root, show_progress),
        blocks=store.blocks,
        version=" ".join(f"{file.size} {file.version}" for file in files),
    )


def _inside(kind: "pyarrow.DataType", image: str, name: str) -> tuple[str, str | None]:
    """The columns of a Parquet file with the bytes of images and with their names, such as image.bytes and image.path.

    Raises:
        UserError: it has no bytes.
    """
    import pyarrow

    if pyarrow.types.is_struct(kind):
        inside = {kind.field(i).name for i in range(kind.num_fields)}
        if "bytes" in inside:
            return f"{image}.bytes", f"{image}.path" if "path" in inside else None
    elif pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
        return image, None
    raise UserError(
        f"the column {image!r} of {name} has no bytes of images (it is {kind}); say which has by ?image=COLUMN, or "
        "leave out keep=no."
    )


def _parquet_files(name: str, patience: float) -> tuple[dict[str, list[tuple[str, str]]], Any]:
    """A data set's Parquet files by split, as `open_files` takes them, and its features if they are written beside.

    Raises:
        UserError: it has none.
    """
    from datasets.packaged_modules.parquet.parquet import Parquet

    builder = _builder(name, None, patience)
    config, features = builder.config.name, builder.info.features
    if converted := not isinstance(builder, Parquet):
        unlike = f"{name} has no Parquet files (`datasets` reads it as {builder.name})"
        if Path(name).is_dir():
            raise UserError(f"{unlike}; leave out keep=no, or give folder:PATH: local files are not copied.")
        advice = "leave out keep=no; tar files can be read without keeping them by wds:https://…/….tar?keep=no"
        try:
            builder = _builder(name, CONVERTED, patience)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{unlike}, nor has the hub converted it; {advice}.") from error
    found = {str(split): list(map(str, files)) for split, files in (builder.config.data_files or {}).items()}
    parts = {split: [_address(file) for file in files] for split, files in found.items()}
    if converted:
        folders = {kept.removeprefix(f"{name}/") for places in parts.values() for _, kept in places}
        if any(part.startswith("partial-") for folder in folders for part in folder.split("/")):
            raise UserError(f"{unlike}, and the hub has converted only a part of it; {advice}.")
        parts = {
            split: ours
            for split, places in parts.items()
            if (ours := [each for each in places if each[1].startswith(f"{name}/{config}/")])
        }
    return parts, features


def _address(file: str) -> tuple[str, str]:
    """Of a file as `datasets` names it, the path or address, and what it is called whatever its revision."""
    import datasets
    from huggingface_hub import HfFileSystem, hf_hub_url

    if not file.startswith("hf://"):
        return file, ""
    at: Any = HfFileSystem(endpoint=datasets.config.HF_ENDPOINT).resolve_path(file)
    url = hf_hub_url(
        at.repo_id, at.path_in_repo, repo_type=at.repo_type, revision=at.revision, endpoint=datasets.config.HF_ENDPOINT
    )
    return url, f"{at.repo_id}/{at.path_in_repo}"


def _builder(name: str, revision: str | None, patience: float) -> Any:
    """What `datasets` would read a data set with; it looks for its files, and reads none of them."""
    import datasets
    import httpx

    def attempt() -> Any:
        try:
            return datasets.load_dataset_builder(name, revision=revision)
        except Exception as error:
            if why := _no_answer(error):
                raise httpx.TransportError(why) from error
            raise

    return persistently(attempt, f"{datasets.config.HF_ENDPOINT}/datasets/{name}", patience)


def _no_answer(error: BaseException | None) -> str | None:
    """Why the hub could not be asked, if asking again may help; it is told by one of the errors that led to this one.

    They are of the HTTP library that huggingface_hub uses, which differs between its versions.
    """
    while error is not None:
        code = getattr(getattr(error, "response", None), "status_code", None)
        if code is not None:
            return first_line(error) if code >= 500 or code in (408, 429) else None
        if any(kind.__name__ == "TransportError" for kind in type(error).__mro__):
            return first_line(error)
        error = error.__cause__ or error.__context__
    return None


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
