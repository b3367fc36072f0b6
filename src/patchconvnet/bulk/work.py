"""What there is to predict: images in a fixed order, each with a name of its own and, where it is known, a label.

A folder is walked anew each time it is asked for, so that its images are never all held at once.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from patchconvnet.data.image_paths import LeftOut, class_name, images_below, read_heif
from patchconvnet.data.images import read_image
from patchconvnet.data.labelled_images import StoredImages
from patchconvnet.data.splits import SPLIT_NAMES, DataSplits, SplitName
from patchconvnet.errors import UserError

NO_LABEL = -1


class Item(NamedTuple):
    """One image.

    Attributes:
        id: what no other image of the work is called.
        label: index of its class; −1 where it has none.
        source: where `Work.read` finds it.
    """

    id: str
    label: int
    source: str | int


class Part(NamedTuple):
    """Images that follow one another, whose predictions are one file."""

    number: int
    items: list[Item]


class Work(Protocol):
    """Images in a fixed order.

    Attributes:
        name: what the data is called.
        count: how many images there are.
        fingerprint: differs for other images, other names or another order.
    """

    name: str
    count: int
    fingerprint: str

    def items(self) -> Iterator[Item]:
        """All images, in the same order each time."""

    def read(self, item: Item) -> Image.Image:
        """One of them as RGB, upright.

        Raises:
            UserError: it cannot be read.
        """


class FolderWork:
    """All images below a folder, with labels where folders have the names of the model's classes.

    Args:
        folder: is looked through once, for their number and their names and sizes.
        class_names: of the model; `FOLDER/cat/1.jpg` and `FOLDER/test/cat/1.jpg` are of class cat.

    Raises:
        UserError: there is no such folder, it cannot be opened, or it holds no images.
    """

    def __init__(self, folder: Path, class_names: Sequence[str]):
        self.name = f"folder:{folder}"
        if not folder.is_dir():
            raise UserError(
                f"{folder} is a file; give the folder it is in." if folder.exists() else f"there is no folder {folder}."
            )
        self._folder = folder.absolute()
        self._labels = {name: index for index, name in enumerate(class_names)}
        read_heif()
        digest, self.count, left_out = hashlib.sha256(), 0, LeftOut()
        for path in images_below(self._folder, left_out, in_order=True):
            digest.update(f"{self._id(path)}\0{_size(path)}\0".encode())
            self.count += 1
        if not self.count:
            raise UserError(f"no images in {folder}; it has {'; '.join(left_out.kinds()) or 'no files'}.")
        left_out.warn(folder)
        self.fingerprint = digest.hexdigest()

    def items(self) -> Iterator[Item]:
        """See `Work`."""
        for path in images_below(self._folder, LeftOut(), in_order=True):
            yield Item(self._id(path), self._label(path), os.fspath(path))

    def read(self, item: Item) -> Image.Image:
        """See `Work`."""
        return read_image(str(item.source))

    def _id(self, path: Path) -> str:
        return "/".join(map(class_name, path.relative_to(self._folder).parts))  # what no text can hold is written out

    def _label(self, path: Path) -> int:
        folders = [class_name(name) for name in path.relative_to(self._folder).parts[:-1]]
        if folders and folders[0].lower() in SPLIT_NAMES and folders[0] not in self._labels:
            folders = folders[1:]
        return self._labels.get(folders[0], NO_LABEL) if folders else NO_LABEL


class SplitWork:
    """The images of one split of a data set, each with its label.

    Args:
        data: the data set.
        split: the split's name.
    """

    def __init__(self, data: DataSplits, split: SplitName):
        self.name = f"{data.name}, {split}"
        self._split = data.require(split)
        self._prefix = f"{data.name}/{split}/"
        self.count = len(self._split)
        digests = [self.name, data.fingerprint()]
        self.fingerprint = hashlib.sha256(json.dumps(digests).encode()).hexdigest()

    def items(self) -> Iterator[Item]:
        """See `Work`."""
        for index, label in enumerate(self._split.labels.tolist()):
            yield Item(self._id(index), label, index)

    def read(self, item: Item) -> Image.Image:
        """See `Work`."""
        return self._split.image(int(item.source))

    def _id(self, index: int) -> str:
        if isinstance(self._split, StoredImages):
            return class_name(self._split.place(index))
        return f"{self._prefix}{index}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a link to nowhere, whose row will say so
        return -1


def parts_of(work: Work, size: int, done: "frozenset[int] | set[int]" = frozenset()) -> Iterator[Part]:
    """The work in parts of `size` images, without those that are done."""
    items, number = work.items(), 0
    while chunk := list(islice(items, size)):
        if number not in done:
            yield Part(number, chunk)
        number += 1


def describe(work: Work) -> dict[str, Any]:
    """What tells this work from another, as plain values."""
    return {"name": work.name, "images": work.count, "fingerprint": work.fingerprint}
