"""Images in tar files as `webdataset` lays them out, local or of an http server.

The files are looked through once, and any image is then read without the others. Files of a server are fetched into a
cache first, or, with keep=no, read through without keeping them: each image is then asked for when it is needed.
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from patchconvnet.data.image_paths import read_heif
from patchconvnet.data.sources.columns import class_names
from patchconvnet.data.sources.fetching import fetched, is_url, patience_of, read_part
from patchconvnet.data.sources.listing import Listing, split_of
from patchconvnet.data.sources.losses import Losses
from patchconvnet.data.sources.names import SourceName, missing_package
from patchconvnet.data.sources.shard_index import INDEX_FILE, check_yes_or_no, parsed_index, read_index
from patchconvnet.data.sources.tar_members import Member, local_members, remote_members
from patchconvnet.errors import NotOfOneImageError, UserError

AT_ONCE = 8  # files of a server that are read through


@dataclass(frozen=True)
class TarStore:
    """Images in tar files.

    Args:
        files: the tar files.
        members: which file each image is in, and where in it.
    """

    files: list[Path]
    members: list[tuple[int, Member]]

    def encoded(self, row: int) -> bytes:
        file, member = self.members[row]
        if not member.size:
            raise UserError(f"{self.place(row)} has no image")
        try:
            with self.files[file].open("rb") as opened:
                opened.seek(member.offset)
                content = opened.read(member.size)
        except OSError as error:
            raise UserError(f"cannot read {self.place(row)}: {error.strerror or error}") from error
        if len(content) < member.size:
            raise UserError(f"{self.place(row)} is cut off")
        return content

    def size(self, row: int) -> int:
        return self.members[row][1].size

    def place(self, row: int) -> str:
        file, member = self.members[row]
        return f"{self.files[file]}::{member.key}"


@dataclass(frozen=True)
class RemoteTarStore:
    """Images in tar files of a server, each asked for when it is needed.

    Args:
        files: addresses of the tar files, and their lengths.
        members: which file each image is in, and where in it.
        patience: seconds for which a server that does not answer is asked again.
    """

    files: list[tuple[str, int]]
    members: list[tuple[int, Member]]
    patience: float

    def encoded(self, row: int) -> bytes:
        file, member = self.members[row]
        url, total = self.files[file]
        if not member.size:
            raise UserError(f"{self.place(row)} has no image")
        part = read_part(url, member.offset, member.size, self.patience)
        if part.total != total or len(part.content) < member.size:
            raise NotOfOneImageError(f"{url} has changed since it was read through; start again.")
        return part.content

    def size(self, row: int) -> int:
        return self.members[row][1].size

    def place(self, row: int) -> str:
        file, member = self.members[row]
        return f"{self.files[file][0]}::{member.key}"


class _Shards(NamedTuple):
    """What was found: the files that there are, the members of each, and the index beside them or an empty one."""

    files: list[str]
    members: list[list[Member]]
    about: Mapping[str, Any]
    store: Callable[[list[tuple[int, Member]]], TarStore | RemoteTarStore]
    lost: list[str]


def read_tars(source: SourceName, root: str | os.PathLike[str] | None, max_bad: str | None = None) -> Listing:
    """The images in the tar files of a pattern such as `shards/train-{000..099}.tar`, or of a folder of them.

    Args:
        source: its name.
        root: where a relative path is taken from, and the cache is.
        max_bad: how many images may be in files that a server does not send, where their number is known.

    Raises:
        UserError: there are none, one is cut off or damaged or cannot be fetched, or the package for this is missing.
    """
    read_heif()
    check_yes_or_no(source.options, "verify", "keep")
    patience = patience_of(source.options)
    folder_of_server = is_url(source.place) and not source.place.partition("?")[0].endswith((".tar", "}"))
    if is_url(source.place):
        shards = _of_server(source, root, patience, max_bad, folder=folder_of_server)
    else:
        shards = _of_disk(source, root)
    if not shards.files:
        raise UserError(f"there are no tar files in {source.place}; give wds:PATTERN.")
    members = [(number, member) for number, each in enumerate(shards.members) for member in each]
    # ours have the whole file name in the key, and the dots, which would end it, as %2E
    names = [
        unquote(member.key) if shards.about else f"{member.key}.{member.ending}".removesuffix(".")
        for _, member in members
    ]
    splits = None
    if shards.about.get("splits"):
        of_file = {shard["file"]: shard["split"] for shard in shards.about["shards"]}
        splits = [split_of(of_file[shards.files[number].rpartition("/")[2]], source.place) for number, _ in members]
    known = [member.digest for _, member in members if member.digest is not None]
    return Listing(
        where=source.place,
        store=shards.store(members),
        paths=names,
        labels=[member.label for _, member in members],
        splits=splits,
        class_names=class_names(source, root) or shards.about.get("class_names"),
        digests=known if len(known) == len(members) else None,
        lost=shards.lost,
    )


def _of_disk(source: SourceName, root: str | os.PathLike[str] | None) -> _Shards:
    index: Mapping[str, Any] = {}
    if source.path(root).is_dir():
        folder = source.path(root)
        files = sorted(folder.glob("*.tar"))
        index = read_index(folder, files, verify=source.options.get("verify") == "yes")
    else:
        files = [Path(os.path.expanduser(Path(root or "", name))) for name in _expanded(source.place)]
        if missing := [path for path in files if not path.is_file()]:
            raise UserError(
                f"there is no tar file {missing[0]}; give wds:PATTERN, such as wds:shards/train-{{000..099}}.tar."
            )
    return _on_disk(files, source, index, [])


def _on_disk(files: list[Path], source: SourceName, index: Mapping[str, Any], lost: list[str]) -> _Shards:
    members = [local_members(file, source.options.get("label")) for file in files]
    return _Shards(list(map(str, files)), members, index, lambda found: TarStore(files, found), lost)


def _of_server(
    source: SourceName, root: str | os.PathLike[str] | None, patience: float, max_bad: str | None, *, folder: bool
) -> _Shards:
    """Of the files of a pattern, or of a folder that `patchconvnet shard` wrote."""
    index: dict[str, Any] = {}
    together = source.place if folder else None
    if folder:
        path = fetched(f"{source.place.rstrip('/')}/{INDEX_FILE}", root, together, patience)
        index = parsed_index(path)
        if "shards" not in index or "chunks" in index:
            raise UserError(f"{source.place} is not a folder of patchconvnet shard; give wds:PATTERN.")
        names = [f"{source.place.rstrip('/')}/{shard['file']}" for shard in index["shards"]]
    else:
        names = _expanded(source.place)
    losses = Losses({name: s["images"] for name, s in zip(names, index.get("shards", ()), strict=False)}, max_bad)
    if source.options.get("keep") == "no":
        field = source.options.get("label")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = pool.map(
                lambda url: losses.unless_lost(url, lambda: remote_members(url, field, patience, root)), names
            )
            found = {url: answer for url, answer in zip(names, answers, strict=True) if answer is not None}
        lengths = [(url, total) for url, (_, total) in found.items()]
        return _Shards(
            list(found), [members for members, _ in found.values()], index,
            lambda members: RemoteTarStore(lengths, members, patience), losses.places,
        )  # fmt: skip
    paths = [losses.unless_lost(url, lambda url=url: fetched(url, root, together, patience)) for url in names]  # type: ignore[misc]
    files = [path for path in paths if path is not None]
    if folder:
        gone = {url.rpartition("/")[2] for url, path in zip(names, paths, strict=True) if path is None}
        read_index(path.parent, files, verify=source.options.get("verify") == "yes", gone=gone)
    return _on_disk(files, source, index, losses.places)


def _expanded(place: str) -> list[str]:
    try:
        from braceexpand import braceexpand
    except ImportError as error:
        raise missing_package("wds", error) from error
    try:
        return list(braceexpand(place))
    except ValueError as error:
        raise UserError(f"the braces of {place!r} do not match: {error}") from error
