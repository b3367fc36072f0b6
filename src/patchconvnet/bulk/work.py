"""What there is to predict: images in a fixed order, each with a name of its own and, where it is known, a label.

A folder is walked anew each time it is asked for, so that its images are never all held at once; of a source the names
of its images are held.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from patchconvnet.data.image_paths import LeftOut, class_name, file_size, images_below, read_heif
from patchconvnet.data.images import read_image
from patchconvnet.data.labelled_images import StoredImages, opened, reading_order
from patchconvnet.data.sources.listing import Listing, name_of, place_of_class
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
            digest.update(f"{self._id(path)}\0{file_size(path)}\0".encode())
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


class ListedWork:
    """The images of a source, in its own order; with labels where it has classes that the model knows.

    A row is called as the image's file in a folder of classes is, "cat/01.jpg", or by its place where the source has no
    names or has the same one twice.

    Args:
        listing: what the source lists.
        name: of the source.
        class_names: of the model.
        split: of those that the source has; "all" for all of its images.

    Raises:
        UserError: there are no images.
    """

    def __init__(self, listing: Listing, name: str, class_names: Sequence[str], split: SplitName = "all"):
        self.name = name if split == "all" else f"{name}, {split}"
        self._store = listing.store
        read_heif()
        places = {known: index for index, known in enumerate(class_names)}
        own = {known: index for index, known in enumerate(listing.class_names or ())}
        splits = listing.splits
        self._rows = [row for row in range(len(listing.labels)) if split == "all" or (splits and splits[row] == split)]
        self.count = len(self._rows)
        if not self.count:
            raise UserError(f"there are no images in {self.name}.")
        classes = []
        for row in self._rows:
            label = listing.labels[row]
            at = place_of_class(label, own, numbered=True) if listing.class_names else None
            word = listing.class_names[at] if listing.class_names and at is not None else label
            classes.append("" if word is None else class_name(str(word)))
        self._labels = [places.get(each, NO_LABEL) for each in classes]
        names = [self._name(row, listing.paths[row], its) for row, its in zip(self._rows, classes, strict=True)]
        used = Counter(names)
        self._ids = [
            each if used[each] == 1 else class_name(self._store.place(row))
            for row, each in zip(self._rows, names, strict=True)
        ]
        about = [self.name, list(class_names), *([listing.version] if listing.version else ())]
        digest = hashlib.sha256(json.dumps(about).encode())
        for row, each, label in zip(self._rows, self._ids, self._labels, strict=True):
            digest.update(f"{each}\0{label}\0{self._store.size(row)}\0".encode())
        self.fingerprint = digest.hexdigest()

    def items(self) -> Iterator[Item]:
        """See `Work`."""
        for row, name, label in zip(self._rows, self._ids, self._labels, strict=True):
            yield Item(name, label, row)

    def read(self, item: Item) -> Image.Image:
        """See `Work`."""
        row = int(item.source)
        return read_image(opened(self._store.encoded(row), self._store.place(row)))

    def _name(self, row: int, path: str | None, its_class: str) -> str:
        if not path:
            return class_name(self._store.place(row))
        return class_name(name_of(path, its_class, "")) if its_class else class_name(path)


class SplitWork:
    """The images of one split of a data set, with labels where the model knows their classes.

    They come in the order that they are best read in.

    Args:
        data: the data set.
        split: the split's name.
        class_names: of the model.
    """

    def __init__(self, data: DataSplits, split: SplitName, class_names: Sequence[str]):
        places = {known: index for index, known in enumerate(class_names)}
        self._places = [places.get(known, NO_LABEL) for known in data.class_names]
        self.name = f"{data.name}, {split}"
        self._split = data.require(split)
        self._prefix = f"{data.name}/{split}/"
        self.count = len(self._split)
        self._order = reading_order(self._split, self.count).tolist()
        digests = [self.name, data.fingerprint(), *([self._order] if self._order != sorted(self._order) else ())]
        self.fingerprint = hashlib.sha256(json.dumps(digests).encode()).hexdigest()

    def items(self) -> Iterator[Item]:
        """See `Work`."""
        labels = self._split.labels.tolist()
        for index in self._order:
            yield Item(self._id(index), self._places[labels[index]], index)

    def read(self, item: Item) -> Image.Image:
        """See `Work`."""
        return self._split.image(int(item.source))

    def _id(self, index: int) -> str:
        if isinstance(self._split, StoredImages):
            return class_name(self._split.place(index))
        return f"{self._prefix}{index}"


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
