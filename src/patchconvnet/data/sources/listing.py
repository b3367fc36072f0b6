"""What a source lists becomes a data set, in which images have the order, names and splits that a folder gives them.

A folder's images are ordered by class and file name, and so are these, whatever order their source has them in: the
same seed then sets aside the same images. An image is called by its class and file name, as in "cat/01.jpg"; where a
source has no names, by its content.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from patchconvnet.data.image_paths import class_name, read_heif
from patchconvnet.data.labelled_images import Blocks, ImageRecords, Store, content_digest
from patchconvnet.data.readable import check_budget, in_threads, is_readable_content, listed
from patchconvnet.data.splits import SPLIT_NAMES, DataSplits, SplitName, divided
from patchconvnet.errors import UserError


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of a source, in its own order.

    Args:
        where: the source, for messages.
        store: holds the images, each in the row that is its number here.
        paths: what each is called, or None.
        labels: the class of each, as the source has it: a name, a number, or None.
        splits: the split of each; None where the source has no splits.
        class_names: what the source calls its classes, in their order, or None.
        digests: of the content of each, if they were all read on the way; or what finds them faster than one by one,
            and is told whether to draw a progress bar; empty for one that is not readable.
        lost: images beside these that cannot be had, as of a shard that a server does not send.
        blocks: of the store's rows, where it reads many for the price of one; asked for after the digests.
        version: a word that changes with the images, where the store does not know their sizes.
    """

    where: str
    store: Store
    paths: Sequence[str | None]
    labels: Sequence[str | int | None]
    splits: Sequence[str] | None = None
    class_names: list[str] | None = None
    digests: Sequence[str] | Callable[[bool], Sequence[str]] | None = None
    lost: Sequence[str] = ()
    blocks: Callable[[], Blocks] | None = None
    version: str = ""

    def data_set(
        self,
        name: str,
        *,
        validation: float | None = None,
        test: float | None = None,
        seed: int = 0,
        max_bad: str | None = None,
        show_progress: bool = False,
    ) -> DataSplits:
        """The images as a data set, each of them checked once for being readable.

        The arguments are those of `patchconvnet.data.datasets.load`.

        Raises:
            UserError: more images are unreadable than `max_bad`, one has no class, there are less than two classes, or
                a share is asked for that does not fit.
        """
        read_heif()
        class_names, labels = self._classes()
        images, bad = self._images(class_names, labels, show_progress)
        bad += self.lost
        if bad:
            total = len(self.labels) + len(self.lost)
            message = f"{len(bad)} of {total} images in {self.where} are not readable images: {listed(bad)}"
            check_budget(len(bad), total, max_bad, message)
            warnings.warn(f"{message}; skipped.", stacklevel=3)
            if lost := sorted(set(labels) - set(images.labels.tolist())):
                raise UserError(
                    f"no readable images are left of class {listed(class_names[i] for i in lost)}; {message}."
                )
        if self.splits is None:
            found = {"all": images}
        else:
            splits = [self.splits[row] for row in images.rows.tolist()]
            present = [split for split in ("train", "validation", "test") if split in splits]
            found = {split: images.subset([i for i, its in enumerate(splits) if its == split]) for split in present}
        return divided(found, name, self.where, skipped=bad, validation=validation, test=test, seed=seed)

    def _classes(self) -> tuple[list[str], list[int]]:
        """The names of the classes, and of each image which of them it has."""
        missing = [row for row, label in enumerate(self.labels) if label is None or label == ""]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(self.labels)} images in {self.where} have no class, "
                f"such as {self.store.place(missing[0])}; give each a class, or remove it."
            )
        names = self.class_names or class_order({str(label) for label in self.labels})
        if len(names) < 2:
            raise UserError(
                f"{self.where} has {f'one class only, {names[0]!r}' if names else 'no images'}; a classifier needs at "
                "least two classes."
            )
        places = {name: place for place, name in enumerate(names)}
        found = [place_of_class(label, places, numbered=self.class_names is not None) for label in self.labels]
        unknown = sorted({str(label) for label, place in zip(self.labels, found, strict=True) if place is None})
        if unknown:
            raise UserError(f"{self.where} has classes that are not among its names of classes: {listed(unknown)}.")
        if self.splits is not None:
            in_training = {place for place, split in zip(found, self.splits, strict=True) if split == "train"}
            lacking = sorted({names[place] for place in found if place is not None and place not in in_training})
            if in_training and lacking and self.class_names is None:
                raise UserError(f"{self.where} has classes that its training images lack: {listed(lacking)}.")
        return [class_name(name) for name in names], [place for place in found if place is not None]

    def _images(self, class_names: list[str], labels: list[int], show_progress: bool) -> tuple[ImageRecords, list[str]]:
        """All readable images in the order of a folder, and where the others are."""
        rows = torch.arange(len(labels))
        digests = self._digests(show_progress)
        good = [row for row, found in enumerate(digests) if found is not None]
        names = {row: name_of(self.paths[row], class_names[labels[row]], digests[row] or "") for row in good}
        # by the digest where two are called alike, so that the source's own order never counts
        order = sorted(good, key=lambda row: (labels[row], names[row].split("/"), digests[row]))
        images = ImageRecords(
            self.store,
            rows[order],
            [names[row] for row in order],
            torch.tensor(labels, dtype=torch.int64)[order],
            class_names,
            [digests[row] or "" for row in order],
            None if self.blocks is None else self.blocks(),
        )
        return images, [self.store.place(row) for row, found in enumerate(digests) if found is None]

    def _digests(self, show_progress: bool) -> list[str | None]:
        """Of the content of each image; None for one that is not readable."""
        if self.digests is not None:
            known = self.digests(show_progress) if callable(self.digests) else self.digests
            return [digest or None for digest in known]

        def digest(row: int) -> str | None:
            try:
                encoded = self.store.encoded(row)
                return content_digest(encoded) if is_readable_content(encoded, self.store.place(row)) else None
            except UserError:
                return None

        return in_threads(digest, range(len(self.labels)), "Checking images", show_progress)


def name_of(path: str | None, class_name: str, digest: str) -> str:
    """What an image is called: its path from its class's folder on, or its class and file name, or its digest.

    Args:
        path: whatever the source calls it; a file, a URL, a member of an archive; None or empty if it has no name.
        class_name: of its class.
        digest: of its content.
    """
    if not path:
        return f"{class_name}/{digest[:32]}"
    parts = [part for part in re.split(r"[/\\]+|::", path) if part not in ("", ".")]
    folders = parts[:-1]
    if class_name in folders:
        return "/".join(parts[len(folders) - 1 - folders[::-1].index(class_name) :])
    return f"{class_name}/{parts[-1]}"


def class_order(labels: Iterable[str]) -> list[str]:
    """Classes in the order of their names, as folders have it; in that of their numbers if all of them are numbers."""
    labels = set(labels)
    if all(re.fullmatch(r"\d{1,9}", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def split_of(word: str, where: str) -> SplitName:
    """The split that a source's word means.

    Raises:
        UserError: none.
    """
    split = SPLIT_NAMES.get(word.lower())
    if split is None:
        raise UserError(f"{where} has the split {word!r}; known: {', '.join(SPLIT_NAMES)}.")
    return split


def read_class_names(path: Path) -> list[str]:
    """The names of classes in a file, one a line.

    Raises:
        UserError: it cannot be read, or names one twice.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the names of classes in {path} cannot be read: {error}") from error
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path} names the class {twice[0]!r} twice.")
    return names


def place_of_class(label: str | int | None, places: Mapping[str, int], *, numbered: bool) -> int | None:
    """Where a label is among the classes, or None.

    Args:
        label: a name or a number.
        places: of the names.
        numbered: whether a number that is no name counts from the first of them.
    """
    if str(label) in places:
        return places[str(label)]
    if numbered and re.fullmatch(r"\d{1,9}", str(label)) and int(str(label)) < len(places):
        return int(str(label))
    return None
