"""A source's name: `KIND:PLACE?option=value&option=value`, such as `csv:pets.csv?label=breed`."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from patchconvnet.errors import UserError

# what each kind may be told, and what that says
COLUMNS = {
    "image": "the column with the images: paths, or their bytes",
    "label": "the column with the classes",
    "name": "the column with the images' names",
    "split": "the column that says train, validation or test",
    "classes": "a file with the names of the classes, one a line; numbers among the labels count from its first",
}
VERIFY = "yes: compare the files of patchconvnet shard with their checksums"
PATIENCE = "seconds for which a server that does not answer is asked again, 90 by default"
OPTIONS: dict[str, dict[str, str]] = {
    "csv": COLUMNS,
    "parquet": COLUMNS,
    "hf": {
        **COLUMNS,
        "keep": "no: read Parquet files of the hub without keeping them",
        "patience": PATIENCE,
    },
    "wds": {
        "label": "the field of each sample's .json with its class",
        "classes": COLUMNS["classes"],
        "verify": VERIFY,
        "keep": "no: read from a server without keeping its files",
        "patience": PATIENCE,
    },
    "litdata": {
        **COLUMNS,
        "image": "the field with the images",
        "label": "the field with the classes",
        "name": "the field with the images' names",
        "split": "the field that says train, validation or test",
        "verify": VERIFY,
        "patience": PATIENCE,
    },
}
PLACES = {"csv": "FILE", "parquet": "FILE", "hf": "NAME", "wds": "PATTERN", "litdata": "FOLDER"}


class SourceName(NamedTuple):
    """A name, taken apart.

    Attributes:
        kind: one of `OPTIONS`.
        place: the rest of it without its options.
        options: what it says besides.
    """

    kind: str
    place: str
    options: Mapping[str, str]

    def path(self, root: str | os.PathLike[str] | None) -> Path:
        """The place as a file or folder; a relative one from `root` where that is given."""
        return Path(os.path.expanduser(Path(root or "", self.place)))


def is_source(name: str) -> bool:
    """Whether a data set's name is that of a source."""
    return name.partition(":")[0] in OPTIONS and ":" in name


def parsed(name: str) -> SourceName:
    """A source's name, taken apart.

    Raises:
        UserError: it names no place, or an option that there is not.
    """
    kind, _, rest = name.partition(":")
    place, options = rest, {}
    if found := re.fullmatch(r"(.*?)\?(\w+=[^&]*(?:&\w+=[^&]*)*)", rest, re.DOTALL):  # else it is part of a pattern
        place = found[1]
        for word in found[2].split("&"):
            key, _, value = word.partition("=")
            if key not in OPTIONS[kind]:
                known = "; ".join(f"{option}: {meaning}" for option, meaning in OPTIONS[kind].items())
                raise UserError(f"{kind}: has no option {key!r}; it has {known}.")
            options[key] = unquote(value)
    if not place:
        raise UserError(f"data set {name!r} names no {PLACES[kind].lower()}; give {kind}:{PLACES[kind]}.")
    if "\0" in name:
        raise UserError(f"there is no {PLACES[kind].lower()} {place!r}.")
    return SourceName(kind, place, options)


def missing_package(kind: str, error: ImportError, extra: str = "data") -> UserError:
    """For a source or an option whose package is not installed; `kind` is what needs it."""
    package = (error.name or "").partition(".")[0]
    return UserError(f"{kind}: needs the package {package}: pip install 'patchconvnet[{extra}]'")
