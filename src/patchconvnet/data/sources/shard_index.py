"""`index.json` of `patchconvnet shard`: the classes and splits, the files, their sizes and checksums."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from patchconvnet.data.readable import listed
from patchconvnet.errors import UserError, first_line

INDEX_FILE = "index.json"
PLAN_FILE = "plan.json"  # is there from the beginning of the writing on


def read_index(folder: Path, files: Sequence[Path], *, verify: bool, gone: Collection[str] = ()) -> dict[str, Any]:
    """What a folder's index says, compared with the files that are there.

    Args:
        folder: that has the index.
        files: the shards in it.
        verify: whether to compare checksums too.
        gone: files that are known to be missing.

    Returns:
        The index; empty where there is none, or one that is not ours.

    Raises:
        UserError: the folder is not finished, a file is missing or not what was written, or the index is damaged.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        if (folder / PLAN_FILE).is_file():
            raise UserError(f"{folder} is not finished; run the same patchconvnet shard again.")
        return {}
    index = parsed_index(path)
    if "shards" not in index:
        return {}
    try:
        shards = {shard["file"]: shard for shard in index["shards"] if shard["file"] not in gone}
        sizes = {name: (folder / name).stat().st_size for name in shards if (folder / name).is_file()}
        if missing := sorted(shards.keys() - sizes.keys()):
            raise UserError(f"{folder} lacks {listed(missing)}, which {path} names.")
        broken = [
            name
            for name, shard in shards.items()
            if sizes[name] != shard["bytes"] or (verify and digest_of(folder / name) != shard["sha256"])
        ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged: {first_line(error)}") from error
    if broken:
        raise UserError(
            f"{listed(broken)} in {folder} is not what was written: another size or checksum; delete it and "
            f"{path.name}, and run the same patchconvnet shard again."
        )
    if strangers := sorted({file.name for file in files} - shards.keys()):
        raise UserError(f"{folder} has {listed(strangers)}, which {path} does not name.")
    return index


def parsed_index(path: Path) -> dict[str, Any]:
    """An index file, of ours or of litdata's.

    Raises:
        UserError: it cannot be read, or is no JSON object.
    """
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {first_line(error)}") from error
    if not isinstance(index, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return index


def digest_of(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_yes_or_no(options: Mapping[str, str], *names: str) -> None:
    """Refuse options that are neither yes nor no.

    Raises:
        UserError: one is not.
    """
    for name in names:
        if options.get(name, "no") not in ("yes", "no"):
            raise UserError(f"{name} is {options[name]!r}; it can be yes or no.")
