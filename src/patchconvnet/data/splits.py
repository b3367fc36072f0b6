"""The splits of a data set (`DataSplits`), what tells them from others, and how images are divided into them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from patchconvnet.data.labelled_images import Images, StoredImages
from patchconvnet.errors import UserError

LARGEST_SEED = 2**63  # torch takes no larger ones
SplitName = Literal["train", "validation", "test", "all"]
SPLIT_NAMES: dict[str, SplitName] = {  # what people call them
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
DEFAULT_SHARE = 0.1  # of images without splits, for validation and for test each


Split = Images | StoredImages


@dataclass(frozen=True, eq=False)
class DataSplits:
    """A data set: its splits, where it has them, under one list of classes.

    Args:
        name: the name it was loaded by.
        class_names: one name a class.
        train, validation, test: the splits; None where there is none.
        skipped: files that were left out because they are not readable images, or what else they are called by.
        drawn: whether the test split was drawn from a folder that has none of its own.
    """

    name: str
    class_names: list[str]
    train: Split | None = None
    validation: Split | None = None
    test: Split | None = None
    skipped: tuple[Path | str, ...] = ()
    drawn: bool = False

    def fingerprint(self) -> dict[str, str | list[str]]:
        """What tells these splits from others: the classes; labels, file names and contents of each split's images.

        "all images" is the same however they are divided, and "all contents" besides whatever they are called, which
        there is for stored images. "… contents" tells images that were replaced under the same
        name: of a file its size and its first and last 4 KiB count, which take well under 1 ms and differ for any two
        compressed images; of images in memory all pixels.

        Raises:
            UserError: a file cannot be read.
        """
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        present = [images for images in splits.values() if images is not None]
        stored = {name: images for name, images in splits.items() if isinstance(images, StoredImages)}
        digests = {name: _digests(images) for name, images in stored.items()}
        every = [key for images in present for key in _keys(images)]
        contents = [
            f"{self.class_names[label]} {digest}"
            for name, words in digests.items()
            for label, digest in zip(stored[name].labels.tolist(), words, strict=True)
        ]
        return {
            "class names": self.class_names,
            **{f"{name} images": _digest([] if split is None else _keys(split)) for name, split in splits.items()},
            **{f"{name} contents": _content_digest(split, digests.get(name, [])) for name, split in splits.items()},
            "all images": _digest(sorted(every)),
            **({"all contents": _digest(sorted(contents))} if digests else {}),
        }

    def reading(self) -> dict[str, int | list[str]]:
        """How many images there are in all, how many of them were read and skipped, and which were skipped."""
        read = sum(len(images) for images in (self.train, self.validation, self.test) if images is not None)
        skipped = list(map(str, self.skipped))
        return {"total": read + len(skipped), "read": read, "skipped": len(skipped), "failed": 0, "left out": skipped}

    def require(self, split: SplitName) -> Split:
        """The split of that name; "all" is the images of all splits together.

        Raises:
            UserError: the data set has none, or the name is not that of a split.
        """
        known = {"train": self.train, "validation": self.validation, "test": self.test}
        if split == "all":
            return _together([images for images in known.values() if images is not None])
        if split not in known:
            raise UserError(f"unknown split {split!r}; known: {', '.join(known)}, all.")
        images = known[split]
        if images is None:
            present = ", ".join(name for name, value in known.items() if value is not None)
            raise UserError(f"data set {self.name!r} has no {split} split; it has: {present}.")
        return images


def _together(parts: list[Split]) -> Split:
    if isinstance(parts[0], Images):
        labels = torch.cat([part.labels for part in parts])
        pixels = torch.cat([part.images for part in parts if isinstance(part, Images)])
        return Images(pixels, labels, parts[0].class_names)
    return parts[0].joined([part for part in parts[1:] if isinstance(part, StoredImages)])


def _keys(images: Split) -> list[str]:
    """A word for each image: label, class folder and file name, since the whole may be moved; in memory the label."""
    labels = images.labels.tolist()
    if isinstance(images, Images):
        return list(map(str, labels))
    return [f"{label} {images.name(index)}" for index, label in enumerate(labels)]


def _digest(words: list[str]) -> str:
    return f"{len(words)} {hashlib.sha256(chr(0).join(words).encode(errors='surrogateescape')).hexdigest()}"


def _digests(images: StoredImages) -> list[str]:
    return [images.digest(index) for index in range(len(images))]


def _content_digest(images: Split | None, digests: list[str]) -> str:
    if isinstance(images, Images):
        return hashlib.sha256(images.images.contiguous().cpu().numpy().data).hexdigest()
    return _digest(digests)


def divided(
    found: Mapping[str, StoredImages],
    name: str,
    where: Path | str,
    *,
    skipped: Sequence[Path | str] = (),
    validation: float | None = None,
    test: float | None = None,
    seed: int = 0,
) -> DataSplits:
    """A data set of images that may come with splits of their own.

    Args:
        found: the images by split; or all of them under "all", of which a stratified choice becomes validation and
            test.
        name: of the data set.
        where: it is, for messages.
        skipped: images that were left out of it.
        validation, test, seed: as for `patchconvnet.data.datasets.load`.

    Raises:
        UserError: a share is asked for that there is already, or that does not fit.
    """
    found, class_names = dict(found), next(iter(found.values())).class_names
    if "all" in found:
        files = found["all"]
        shares = {"validation": validation, "test": test}
        counts = [
            set_aside_count(DEFAULT_SHARE if share is None else share, len(files), what)
            for what, share in shares.items()
        ]
        chosen = stratified_split(files.labels, counts, seed)
        for_validation, for_test, for_training = (files.subset(part) if len(part) else None for part in chosen)
        return DataSplits(name, class_names, for_training, for_validation, for_test, tuple(skipped), drawn=True)
    if test is not None:
        raise UserError(f"{where} has its own splits ({', '.join(found)}); leave out the option test.")
    if "validation" in found and validation:  # a recipe's 0 means: take none of the training images
        raise UserError(f"{where} has its own validation split; leave out the option validation.")
    if "train" in found and "validation" not in found:
        count = set_aside_count(DEFAULT_SHARE if validation is None else validation, len(found["train"]), "validation")
        if count:
            chosen_here, rest = stratified_split(found["train"].labels, [count], seed)
            found["validation"], found["train"] = found["train"].subset(chosen_here), found["train"].subset(rest)
    train, for_validation, for_test = (found.get(split) for split in ("train", "validation", "test"))
    return DataSplits(name, class_names, train, for_validation, for_test, tuple(skipped))


def set_aside_count(share: float, total: int, what: str) -> int:
    """How many of `total` images a share means: a fraction below 1, a number of images from 1 on, 0 for none.

    Raises:
        UserError: negative, a broken number, or no image would be left over.
    """
    if share < 0 or (share >= 1 and share != int(share)):
        raise UserError(f"{what} is {share}; give a fraction below 1, a whole number of images, or 0 for none.")
    count = int(share) if share >= 1 else round(share * total)
    if 0 < share < 1:
        count = max(count, 1)
    if count >= total and count > 0:
        raise UserError(f"{what} is {share}, which takes {count} of {total} images; leave some to train on.")
    return count


def stratified_split(labels: Tensor, counts: Sequence[int], seed: int) -> list[Tensor]:
    """Split images at random so that each part has the classes in the proportions of the whole.

    Args:
        labels: (N,) int64.
        counts: images of each part that is set aside; every class keeps at least one image in the remainder.
        seed: the same seed gives the same parts.

    Returns:
        One index tensor a part, in the order of `counts`, and then the remainder; each sorted.

    Raises:
        UserError: the classes are too small for that many images.
    """
    if not 0 <= seed < LARGEST_SEED:
        raise UserError(f"the seed of the split is {seed}; it must be 0 or more, and below {LARGEST_SEED}.")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    remaining = [order[labels[order] == label] for label in labels.unique()]
    sizes = torch.tensor([len(members) for members in remaining], dtype=torch.float64)
    parts = []
    for count in counts:
        exact = count * sizes / sizes.sum()
        taken = torch.tensor([len(members) - 1 for members in remaining]).minimum(exact.long())
        # The images lost to rounding down go to the classes that lost most (largest remainder).
        for index in (exact - taken).argsort(descending=True, stable=True).tolist() * 2:
            if taken.sum() < count and taken[index] < len(remaining[index]) - 1:
                taken[index] += 1
        if taken.sum() < count:
            raise UserError(
                f"{count} images cannot be set aside from {len(labels)} in {len(sizes)} classes, "
                "since each class must keep one to train on; ask for fewer."
            )
        pairs = list(zip(remaining, taken.tolist(), strict=True))
        parts.append(torch.cat([members[:number] for members, number in pairs]).sort().values)
        remaining = [members[number:] for members, number in pairs]
    return [*parts, torch.cat(remaining).sort().values]
