"""Images in tar files as `webdataset` lays them out: members of one key are one sample, `cat/01.jpg` and `cat/01.cls`.

A sample's class is in its member .cls (a number or a name), in a field of its .json, or else its key's folder. The
files are looked through once, and any image is then read without the others. Files of an http server are fetched into
a cache first: kept whole, they can be trained from as well.

The package `webdataset` itself reads tar files only from beginning to end, and passes over a cut one in silence or ends
with it; so Python's own tarfile is used, which says where each member is.
"""

import hashlib
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from patchconvnet.data.image_paths import IMAGE_SUFFIXES, read_heif
from patchconvnet.data.readable import listed
from patchconvnet.data.sources.columns import class_names
from patchconvnet.data.sources.fetching import fetched
from patchconvnet.data.sources.listing import Listing, split_of
from patchconvnet.data.sources.names import SourceName, missing_package
from patchconvnet.errors import UserError, first_line

INDEX_FILE = "index.json"  # beside tar files that `patchconvnet shard` wrote
BLOCK = 512  # bytes, of which a tar file has many


class Member(NamedTuple):
    """An image in a tar file; without one, `size` is 0."""

    file: int
    key: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarStore:
    """Images in tar files.

    Args:
        files: the tar files.
        members: where each image is.
    """

    files: list[Path]
    members: list[Member]

    def encoded(self, row: int) -> bytes:
        member = self.members[row]
        if not member.size:
            raise UserError(f"{self.place(row)} has no image")
        try:
            with self.files[member.file].open("rb") as file:
                file.seek(member.offset)
                content = file.read(member.size)
        except OSError as error:
            raise UserError(f"cannot read {self.place(row)}: {error.strerror or error}") from error
        if len(content) < member.size:
            raise UserError(f"{self.place(row)} is cut off")
        return content

    def size(self, row: int) -> int:
        return self.members[row].size

    def place(self, row: int) -> str:
        member = self.members[row]
        return f"{self.files[member.file]}::{member.key}"


def read_tars(source: SourceName, root: str | os.PathLike[str] | None) -> Listing:
    """The images in the tar files of a pattern such as `shards/train-{000..099}.tar`, or of a folder of them.

    Raises:
        UserError: there are none, one is cut off or damaged or cannot be fetched, or the package for this is missing.
    """
    read_heif()
    if source.options.get("verify", "no") not in ("yes", "no"):
        raise UserError(f"verify is {source.options['verify']!r}; it can be yes or no.")
    index: dict[str, Any] = {}
    if source.path(root).is_dir():
        folder = source.path(root)
        files = sorted(folder.glob("*.tar"))
        index = _index(folder, files, source.options.get("verify") == "yes")
    else:
        files = [_local(name, root) for name in _expanded(source)]
    if not files:
        raise UserError(f"there are no tar files in {source.place}; give wds:PATTERN.")
    members: list[Member] = []
    labels: list[str | int | None] = []
    names: list[str] = []
    for number, file in enumerate(files):
        for key, sample in _samples(file).items():
            image = next((ending for ending in sample if f".{ending.rpartition('.')[2]}" in IMAGE_SUFFIXES), None)
            offset, size = sample[image] if image else (0, 0)
            members.append(Member(number, f"{key}.{image}" if image else key, offset, size))
            # ours have the whole file name in the key, and the dots, which would end it, as %2E
            names.append(unquote(key) if index else members[-1].key)
            labels.append(_label(file, key, sample, source.options.get("label")))
    splits = None
    if index.get("splits"):
        of_file = {shard["file"]: shard["split"] for shard in index["shards"]}
        splits = [split_of(of_file[files[member.file].name], source.place) for member in members]
    return Listing(
        where=source.place,
        store=TarStore(files, members),
        paths=names,
        labels=labels,
        splits=splits,
        class_names=class_names(source, root) or index.get("class_names"),
    )


def digest_of(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _expanded(source: SourceName) -> list[str]:
    try:
        from braceexpand import braceexpand
    except ImportError as error:
        raise missing_package("wds", error) from error
    try:
        return list(braceexpand(source.place))
    except ValueError as error:
        raise UserError(f"the braces of {source.place!r} do not match: {error}") from error


def _local(name: str, root: str | os.PathLike[str] | None) -> Path:
    if name.startswith(("http://", "https://")):
        return fetched(name, root)
    path = Path(os.path.expanduser(Path(root or "", name)))
    if not path.is_file():
        raise UserError(f"there is no tar file {path}; give wds:PATTERN, such as wds:shards/train-{{000..099}}.tar.")
    return path


def _samples(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """By key, the place and size of each of its members, by their endings."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with path.open("rb") as raw:
            raw.seek(max(raw.seek(0, os.SEEK_END) - BLOCK, 0))
            whole = not any(raw.read(BLOCK))  # a tar file ends with empty blocks
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, _, base = member.name.removeprefix("./").rpartition("/")
                stem, dot, ending = base.partition(".")
                if member.isfile() and stem and dot:
                    key = f"{folder}/{stem}" if folder else stem
                    found.setdefault(key, {})[ending.lower()] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(
            f"{path} is cut off, damaged or no tar file ({first_line(error)}); write or fetch it again. "
            "Compressed ones have to be unpacked to .tar."
        ) from error
    if not whole:
        raise UserError(f"{path} is cut off: it does not end as a tar file does; write or fetch it again.")
    return found


def _label(path: Path, key: str, sample: dict[str, tuple[int, int]], field: str | None) -> str | None:
    def content(ending: str) -> str:
        offset, size = sample[ending]
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size).decode("utf-8", "replace").strip()

    if "cls" in sample and field is None:
        return content("cls")
    if field is not None:
        try:
            return str(json.loads(content("json"))[field])
        except (KeyError, TypeError, ValueError):
            return None
    folder, slash, _ = key.rpartition("/")
    return folder.rpartition("/")[2] if slash else None


def _index(folder: Path, files: list[Path], verify: bool) -> dict[str, Any]:
    """What `patchconvnet shard` wrote about a folder; checked against the files that are there."""
    path = folder / INDEX_FILE
    if not path.is_file():
        if (folder / "plan.json").is_file():
            raise UserError(f"{folder} is not finished; run the same patchconvnet shard again.")
        return {}
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        shards = {shard["file"]: shard for shard in index["shards"]}
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
    return dict(index)
