"""Which images are in a tar file as `webdataset` lays them out, and where: any is read without the others then.

Members of one key are one sample, `cat/01.jpg` and `cat/01.cls`. A sample's class is in its member .cls (a number or a
name), in a field of its .json, or else its key's folder.

The package `webdataset` itself reads tar files only from beginning to end, and passes over a cut one in silence or ends
with it; so Python's own tarfile is used, which says where each member is.
"""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from patchconvnet.data.image_paths import IMAGE_SUFFIXES
from patchconvnet.data.labelled_images import content_digest
from patchconvnet.data.readable import is_readable_content
from patchconvnet.data.sources.fetching import cache_folder, read_part
from patchconvnet.errors import UserError, first_line
from patchconvnet.files import write_text

BLOCK = 512  # bytes, of which a tar file has many
AHEAD = 4 << 20  # bytes of a server's file that are asked for together


class Member(NamedTuple):
    """An image in a tar file, or a sample that has none.

    Attributes:
        key: of its sample.
        ending: of the image's name after the key; empty if there is no image.
        offset, size: where the image is; 0 if there is none.
        label: its class, or None.
        digest: of its content, where that has been read; empty if it is not a readable image.
    """

    key: str
    ending: str
    offset: int
    size: int
    label: str | None
    digest: str | None = None


def local_members(path: Path, field: str | None) -> list[Member]:
    """Of a file.

    Args:
        path: of the file.
        field: of each sample's .json that has the class, if any has.

    Raises:
        UserError: it is cut off, damaged, or no tar file.
    """
    found: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with path.open("rb") as raw:
            raw.seek(max(raw.seek(0, os.SEEK_END) - BLOCK, 0))
            whole = not any(raw.read(BLOCK))  # a tar file ends with empty blocks
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if at := _key_and_ending(member):
                    found.setdefault(at[0], {})[at[1]] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise _damaged(str(path), error) from error
    if not whole:
        raise _cut(str(path))

    def content(place: tuple[int, int]) -> bytes:
        with path.open("rb") as file:
            file.seek(place[0])
            return file.read(place[1])

    return [
        Member(key, ending, *sample.get(ending, (0, 0)), _label(key, field, sample, content))
        for key, sample in found.items()
        for ending in [_image_of(sample)]
    ]


def remote_members(
    url: str, field: str | None, patience: float, root: str | os.PathLike[str] | None
) -> tuple[list[Member], int]:
    """Of a file of a server, which is read once from beginning to end and not kept; what was found in it is.

    Args:
        url: of the file.
        field: as for `local_members`.
        patience, root: as for `fetching.fetched`.

    Returns:
        The members with digests, and the length of the file.

    Raises:
        UserError: it cannot be fetched, is cut off, damaged, or no tar file.
    """
    stream = _Remote(url, patience)
    kept = cache_folder(url, root) / f"members-{field or 'cls'}.json"
    try:
        known = json.loads(kept.read_text())
        if [known["bytes"], known["version"]] == [stream.total, stream.version]:
            return [Member(*each) for each in known["members"]], stream.total
    except (OSError, KeyError, TypeError, ValueError):
        pass  # read it again
    places: dict[str, dict[str, tuple[int, int]]] = {}
    words: dict[tuple[int, int], bytes] = {}
    digests: dict[tuple[int, int], str] = {}
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                if at := _key_and_ending(member):
                    key, ending = at
                    place = (member.offset_data, member.size)
                    places.setdefault(key, {})[ending] = place
                    file = archive.extractfile(member)
                    content = file.read() if file else b""
                    if ending in ("cls", "json"):
                        words[place] = content
                    elif _image_of({ending: place}):
                        good = is_readable_content(content, f"{url}::{key}")
                        digests[place] = content_digest(content) if good else ""
    except (tarfile.TarError, EOFError) as error:
        raise _damaged(url, error) from error
    if any(stream.rest()[-BLOCK:]):
        raise _cut(url)
    members = []
    for key, sample in places.items():
        ending = _image_of(sample)
        place = sample.get(ending, (0, 0))
        members.append(
            Member(key, ending, *place, _label(key, field, sample, words.__getitem__), digests.get(place, ""))
        )
    write_text(kept, json.dumps({"bytes": stream.total, "version": stream.version, "members": members}))
    return members, stream.total


class _Remote(io.RawIOBase):
    """A server's file, for reading it from beginning to end; asked for in parts, each of which is asked for again."""

    def __init__(self, url: str, patience: float) -> None:
        self._url, self._patience, self._next, self._buffer = url, patience, 0, b""
        first = read_part(url, 0, BLOCK, patience)
        self.total, self.version = first.total, first.version

    def read(self, size: int = -1) -> bytes:
        while self._next < self.total and (size < 0 or len(self._buffer) < size):
            self._buffer += self._asked()
        taken = self._buffer if size < 0 else self._buffer[:size]
        self._buffer = self._buffer[len(taken) :]
        return taken

    def rest(self) -> bytes:
        """The last bytes of the file."""
        begin = max(self.total - BLOCK, 0)
        return read_part(self._url, begin, BLOCK, self._patience).content

    def _asked(self) -> bytes:
        part = read_part(self._url, self._next, min(AHEAD, self.total - self._next), self._patience)
        if (part.total, part.version) != (self.total, self.version) or not part.content:
            raise UserError(f"{self._url} has changed while it was read; start again.")
        self._next += len(part.content)
        return part.content


def _key_and_ending(member: tarfile.TarInfo) -> tuple[str, str] | None:
    folder, _, base = member.name.removeprefix("./").rpartition("/")
    stem, dot, ending = base.partition(".")
    if not (member.isfile() and stem and dot):
        return None
    return (f"{folder}/{stem}" if folder else stem), ending.lower()


def _image_of(sample: dict[str, tuple[int, int]]) -> str:
    return next((ending for ending in sample if f".{ending.rpartition('.')[2]}" in IMAGE_SUFFIXES), "")


def _label(
    key: str,
    field: str | None,
    sample: dict[str, tuple[int, int]],
    content: Callable[[tuple[int, int]], bytes],
) -> str | None:
    def text(ending: str) -> str:
        return content(sample[ending]).decode("utf-8", "replace").strip()

    if "cls" in sample and field is None:
        return text("cls")
    if field is not None:
        try:
            return str(json.loads(text("json"))[field])
        except (KeyError, TypeError, ValueError):
            return None
    folder, slash, _ = key.rpartition("/")
    return folder.rpartition("/")[2] if slash else None


def _damaged(where: str, error: Exception) -> UserError:
    return UserError(
        f"{where} is cut off, damaged or no tar file ({first_line(error)}); write or fetch it again. "
        "Compressed ones have to be unpacked to .tar."
    )


def _cut(where: str) -> UserError:
    return UserError(f"{where} is cut off: it does not end as a tar file does; write or fetch it again.")
