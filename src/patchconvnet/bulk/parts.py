"""The folder of predictions: `predict.json`, and one Parquet file for each part of the work.

A part is there as a whole or not at all, and holds the same images whenever it is made: that is all that an interrupted
run needs to go on without a missing or a double row, on one machine or on many.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from patchconvnet.errors import UserError, first_line, shortened
from patchconvnet.files import write_atomic, write_text

if TYPE_CHECKING:
    import pyarrow

DESCRIPTION = "predict.json"
FORMAT = 1
MOST_NAMED = 100  # images that could not be predicted, in predict.json; all are in the column `error`
SAME = ("format", "model", "data", "settings")  # of predict.json: what a run that goes on must share


class PartsFolder:
    """Where predictions are written.

    Args:
        folder: made where it does not exist.
        about: what decides the predictions: model, data and settings, as plain values.

    Raises:
        UserError: the folder holds predictions of another model, other data or other settings, or cannot be written.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]):
        self.folder = folder
        self._about = {"format": FORMAT, **json.loads(json.dumps(about))}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:  # ValueError: a name with a null byte
            raise UserError(f"cannot write to {folder}: {first_line(error)}") from error
        if (folder / DESCRIPTION).exists():
            self._check_same(read_description(folder))
        elif found := next(folder.glob("part-*.parquet"), None):
            raise UserError(f"{folder} holds {found.name} but no {DESCRIPTION}; give another folder with --out")
        else:
            self._describe({"finished": False})

    def done(self) -> set[int]:
        """Numbers of the parts that are there."""
        return {int(path.stem.removeprefix("part-")) for path in part_files(self.folder)}

    def has(self, number: int) -> bool:
        """Whether a part is there."""
        return self._path(number).exists()

    def write(self, number: int, table: "pyarrow.Table") -> None:
        """Write one part, aside first and then renamed.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        import pyarrow.parquet

        path = self._path(number)
        try:
            write_atomic(path, lambda part: pyarrow.parquet.write_table(table, part, compression="zstd"))
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {first_line(error)}; the files beside it are whole, and the same command goes "
                "on with the others"
            ) from error

    def progress(self) -> tuple[int, int]:
        """Images that have a row, and those among them that could not be predicted."""
        rows = failed = 0
        for path in part_files(self.folder):
            total, bad = counted(path)
            rows, failed = rows + total, failed + bad
        return rows, failed

    def finish(self, count: int, seconds: float) -> int:
        """Check that every image has its row, and say so in `predict.json`; returns how many could not be predicted.

        Raises:
            UserError: parts are missing.
        """
        rows, failed = self.progress()
        if rows != count:
            raise UserError(
                f"{self.folder} has {rows:,} rows for {count:,} images; run the same command again for the others"
            )
        named: list[dict[str, str]] = []
        for table in tables(self.folder, ["id", "error"]) if failed else ():
            pairs = zip(table["id"].to_pylist(), table["error"].to_pylist(), strict=True)
            named += [{"id": name, "error": error} for name, error in pairs if error is not None]
            if len(named) >= MOST_NAMED:
                break
        self._describe(
            {"finished": True, "failed": {"images": failed, "first": named[:MOST_NAMED]}, "seconds": seconds}
        )
        return failed

    def _describe(self, state: Mapping[str, Any]) -> None:
        write_text(self.folder / DESCRIPTION, json.dumps({**self._about, **state}, indent=2) + "\n")

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:08d}.parquet"

    def _check_same(self, before: Mapping[str, Any]) -> None:
        for what in SAME:
            if before.get(what) == self._about[what]:
                continue
            then, now = before.get(what), self._about[what]
            if isinstance(then, dict):
                keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
                then, now = ({key: values.get(key) for key in keys} for values in (then, now))
                then, now = (", ".join(f"{key} {shortened(value)}" for key, value in v.items()) for v in (then, now))
            raise UserError(
                f"{self.folder} holds predictions of another {what} ({then}), and this would be {now}; give another "
                "folder with --out, or the same options to go on"
            )


def read_description(folder: Path) -> dict[str, Any]:
    """What `predict.json` says.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = folder / DESCRIPTION
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no predictions: there is no {path}; write some with patchconvnet predict"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"{path} is not of this version of patchconvnet")
    return about


def part_files(folder: Path) -> list[Path]:
    """The parts that are there, in order."""
    return sorted(folder.glob("part-*.parquet"))


def counted(path: Path) -> tuple[int, int]:
    """Rows of a part, and those among them with an error; read from its footer alone.

    Raises:
        UserError: the file is damaged.
    """
    about = _opened(path).metadata
    place = about.schema.names.index("error")
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    return about.num_rows, sum(g.num_rows - g.column(place).statistics.null_count for g in groups)


def tables(folder: Path, columns: Sequence[str]) -> "Iterator[pyarrow.Table]":
    """Some columns of each part, one after the other.

    Raises:
        UserError: a part is damaged, or has no such column.
    """
    for path in part_files(folder):
        try:
            yield _opened(path).read(columns=list(columns))
        except (OSError, KeyError) as error:
            raise UserError(f"{path} cannot be read: {first_line(error)}") from error


def _opened(path: Path) -> "pyarrow.parquet.ParquetFile":
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}; remove it, and predict makes it again") from error


def lists(values: np.ndarray, rows: np.ndarray, kind: Any) -> "pyarrow.ListArray":
    """A column of lists, null where a row has none.

    Args:
        values: (N, length), of the rows that have one.
        rows: (R,) bool, which of all rows these are.
        kind: pyarrow's type of the values.
    """
    import pyarrow

    ends = np.concatenate([[0], np.cumsum(rows)]) * values.shape[1]
    offsets = pyarrow.array(ends.astype(np.int32), mask=np.concatenate([~rows, [False]]))
    return pyarrow.ListArray.from_arrays(offsets, pyarrow.array(values.reshape(-1), kind))


def check_pyarrow() -> None:
    """Say what to install where pyarrow is missing.

    Raises:
        UserError: it is.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError("predictions are written with pyarrow: pip install 'patchconvnet[bulk]'") from error
