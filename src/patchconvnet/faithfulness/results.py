"""What an audit has measured so far, in a folder: an interrupted audit continues from it, and no other one may use it.

`audit.json` says what is measured, on what, and how; `results.jsonl` gets a line for each result as soon as it is
there.
"""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from patchconvnet.errors import UserError
from patchconvnet.files import write_atomic

FORMAT = 2  # of both files; 1 had other names, and a ROAD that depended on the batch
HEADER_FILE, RESULTS_FILE = "audit.json", "results.jsonl"

Record = dict[str, Any]


class Results:
    """The results of an audit, in memory and on disk.

    Args:
        folder: made where it is missing.
        header: plain values that say what is measured; those of an audit that is continued must be the same.

    Raises:
        UserError: the folder holds an audit of something else, or damaged files, or cannot be written.
    """

    def __init__(self, folder: Path, header: dict[str, Any]):
        self.folder = folder
        self.records: dict[tuple[Any, ...], Record] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / HEADER_FILE).exists():
                self._compare(json.loads((folder / HEADER_FILE).read_text(encoding="utf-8")), header)
                self._read()
            else:
                (folder / RESULTS_FILE).unlink(missing_ok=True)
                text = json.dumps({"format": FORMAT, **header}, indent=2, ensure_ascii=False) + "\n"
                write_atomic(folder / HEADER_FILE, lambda path: path.write_text(text, encoding="utf-8"))
            self._file = (folder / RESULTS_FILE).open("ab")
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(f"the audit in {folder} cannot be read or written: {error}") from error

    def has(self, keys: Iterable[tuple[Any, ...]]) -> bool:
        """Whether all of these results are there; keys as `key_of` makes them."""
        return all(key in self.records for key in keys)

    def add(self, records: list[Record]) -> None:
        """Keep results: all of them on disk before this returns."""
        lines = "".join(json.dumps(_plain(record), separators=(",", ":")) + "\n" for record in records)
        self._file.write(lines.encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        for line in lines.splitlines():
            record = json.loads(line)  # as a resumed audit will read it, so that both report the same figures
            self.records[key_of(record)] = record

    def of_kind(self, kind: str) -> list[Record]:
        """All results of one kind."""
        return [record for record in self.records.values() if record["kind"] == kind]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _compare(self, there: dict[str, Any], here: dict[str, Any]) -> None:
        if there.get("format", 1) != FORMAT:
            raise UserError(
                f"{self.folder} holds an audit of an earlier version, which cannot be continued with this one; its "
                "report stays readable. Choose another folder."
            )
        here = json.loads(json.dumps(here))
        for part in here:
            if there.get(part) == here[part]:
                continue
            old, new = there.get(part), here[part]
            if isinstance(old, dict) and isinstance(new, dict):
                name = next(key for key in {**new, **old} if old.get(key) != new.get(key))
                part, old, new = f"{part} {name}", old.get(name), new.get(name)
            raise UserError(
                f"{self.folder} holds another audit: its {part} is {_short(old)}, now it is {_short(new)}. Continue it "
                "with the same model, data and options, or choose another folder."
            )

    def _read(self) -> None:
        path = self.folder / RESULTS_FILE
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole.splitlines():
            record = json.loads(line)
            self.records[key_of(record)] = record
        if len(whole) < len(content):  # the last line was being written when it was interrupted
            with path.open("r+b") as file:
                file.truncate(len(whole))


def key_of(record: Record) -> tuple[Any, ...]:
    """What a result belongs to: kind, method, cells of the mosaic's side, image or mosaic."""
    return record["kind"], record.get("method"), record.get("n"), record["image"]


def _plain(value: Any) -> Any:
    """Values that JSON can hold: numbers that are not finite become null, the others keep six digits."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
