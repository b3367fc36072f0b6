"""Which column of a table is what, by its name or by an option; and the names of the classes in a file beside."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from patchconvnet.data.readable import listed
from patchconvnet.data.sources.listing import read_class_names
from patchconvnet.data.sources.names import SourceName
from patchconvnet.errors import UserError

# what columns are called where no option says it
USUAL_COLUMNS = {
    "image": (
        "image",
        "path",
        "file",
        "file_name",
        "filename",
        "file_path",
        "image_path",
        "img",
        "bytes",
        "jpg",
        "png",
    ),
    "label": ("label", "class", "target", "category", "labels", "cls"),
    "name": ("name", "image_name", "__key__"),
    "split": ("split",),
}


def chosen_columns(columns: Sequence[str], options: Mapping[str, str], where: str) -> dict[str, str]:
    """Which column is what: as the options say, or by its usual name.

    Args:
        columns: the table's.
        options: of the source's name.
        where: the table, for messages.

    Returns:
        By "image", "label", "name" and "split", those that there are; the first always.

    Raises:
        UserError: an option names a column that there is not, or there is none for the images.
    """
    chosen = {}
    shown = listed(columns, 12) or "none"
    for what, usual in USUAL_COLUMNS.items():
        if given := options.get(what):
            if given not in columns:
                raise UserError(f"{where} has no column {given!r}; its columns: {shown}.")
            chosen[what] = given
        elif what not in options:  # an empty option means: none of them
            found = [name for name in usual if name in columns]
            chosen |= {what: found[0]} if found else {}
    if "image" not in chosen:
        raise UserError(f"{where} has no column {USUAL_COLUMNS['image'][0]!r}; say which of {shown} by ?image=COLUMN.")
    return chosen


def class_names(source: SourceName, root: str | os.PathLike[str] | None) -> list[str] | None:
    """The names of the classes in the file that the source's name gives, if any.

    Raises:
        UserError: it cannot be read.
    """
    file = source.options.get("classes")
    return read_class_names(Path(os.path.expanduser(Path(root or "", file)))) if file else None
