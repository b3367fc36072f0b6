"""Labelled images: in memory (`Images`), as files (`ImageFiles`), and the splits of a data set (`DataSplits`)."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from PIL import Image
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from patchconvnet.data.images import as_rgb, read_image
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.errors import UserError

Indices = Tensor | Sequence[int] | slice
LARGEST_SEED = 2**63  # torch takes no larger ones
MOST_WORKERS, LARGEST_BATCH = 1024, 1_000_000
SplitName = Literal["train", "validation", "test", "all"]


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one shape, held in memory.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, indices into `class_names`.
        class_names: one name a class.
    """

    images: Tensor
    labels: Tensor
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.image(index), int(self.labels[index])

    def image(self, index: int) -> Image.Image:
        """Image `index` as RGB."""
        return as_rgb(Image.fromarray(self.images[index].movedim(0, -1).squeeze(-1).cpu().numpy()))

    def subset(self, indices: Indices) -> Self:
        """The images at `indices`, in that order."""
        chosen = indices if isinstance(indices, slice) else torch.as_tensor(indices, dtype=torch.int64)
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images of any shape and kind, read from their files when they are asked for.

    Args:
        paths: one file an image.
        labels: (N,) int64, indices into `class_names`.
        class_names: one name a class.
    """

    paths: list[Path]
    labels: Tensor
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.image(index), int(self.labels[index])

    def image(self, index: int) -> Image.Image:
        """Image `index` as RGB, read from its file.

        Raises:
            UserError: the file is gone or has become unreadable.
        """
        return read_image(self.paths[index])

    def subset(self, indices: Indices) -> Self:
        """The images at `indices`, in that order."""
        chosen = torch.arange(len(self))[indices] if isinstance(indices, slice) else torch.as_tensor(indices)
        chosen = chosen.to(torch.int64)
        return replace(self, paths=[self.paths[index] for index in chosen.tolist()], labels=self.labels[chosen])

    def tensors(self, transform: Callable[[Image.Image], Tensor]) -> "ImageTensors":
        """The same images as a torch data set of (transform(image), label, index), for a `DataLoader`."""
        return ImageTensors(self, transform)

    def fits_in_memory(self, canvas: tuple[int, int], limit_bytes: int, channels: int = 3) -> bool:
        """Whether `to_memory` with this canvas (height, width) stays within `limit_bytes`."""
        return len(self) * channels * canvas[0] * canvas[1] <= limit_bytes

    def to_memory(
        self, preprocessing: Preprocessing, *, batch_size: int = 64, workers: int = 0, show_progress: bool = False
    ) -> Images:
        """Read every image once and keep it as uint8 pixels of one size, for training from memory.

        Args:
            preprocessing: says how an image gets to the common size, see `Preprocessing.canvas`; use `with_size` for a
                canvas larger than the network input.
            batch_size: images read at a time by one worker.
            workers: processes that read; 0 reads in this one.
            show_progress: whether to draw a progress bar.

        Returns:
            N images of `preprocessing.size`.
        """
        images = torch.empty((len(self), preprocessing.channels, *preprocessing.size), dtype=torch.uint8)
        read = in_batches(self.tensors(preprocessing.canvas), workers, batch_size=batch_size)
        total = -(-len(self) // batch_size)
        for batch, _, indices in track(read, "Reading images", total, disable=not show_progress, transient=True):
            images[indices] = batch
        return Images(images, self.labels, self.class_names)


class ImageTensors(Dataset[tuple[Tensor, int, int]]):
    """Image files as (tensor, label, index); made by `ImageFiles.tensors`."""

    def __init__(self, files: ImageFiles, transform: Callable[[Image.Image], Tensor]) -> None:
        self.files = files
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        image, label = self.files[index]
        return self.transform(image), label, index


def in_batches(tensors: Dataset[Any], workers: int, **options: Any) -> Iterator[Any]:
    """The batches of a `DataLoader`, whose workers' mistakes arrive in their own words and not as a traceback.

    Args:
        tensors: of (tensor, label, index).
        workers: processes that read; 0 reads in this one.
        options: of the `DataLoader`.

    Raises:
        UserError: what reading an image raises; or there can't be so many workers.
    """
    if not 0 <= workers <= MOST_WORKERS:
        raise UserError(f"workers is {workers}; give a number of processes from 0 to {MOST_WORKERS}.")
    loader = DataLoader(
        _Guarded(tensors),
        num_workers=workers,
        collate_fn=_collate,
        generator=torch.Generator(),  # or the loader would draw from, and so change, the global random state
        **options,
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


class _Guarded(Dataset[Any]):
    """A data set whose UserErrors are values, which survive the way from a worker."""

    def __init__(self, inner: Dataset[Any]) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        try:
            return self.inner[index]
        except UserError as error:
            return error


def _collate(items: list[Any]) -> Any:
    errors = [item for item in items if isinstance(item, UserError)]
    return errors[0] if errors else default_collate(items)


Split = Images | ImageFiles


@dataclass(frozen=True, eq=False)
class DataSplits:
    """A data set: its splits, where it has them, under one list of classes.

    Args:
        name: the name it was loaded by.
        class_names: one name a class.
        train, validation, test: the splits; None where there is none.
        skipped: files that were left out because they are not readable images.
        drawn: whether the test split was drawn from a folder that has none of its own.
    """

    name: str
    class_names: list[str]
    train: Split | None = None
    validation: Split | None = None
    test: Split | None = None
    skipped: tuple[Path, ...] = ()
    drawn: bool = False

    def fingerprint(self) -> dict[str, str | list[str]]:
        """What tells these splits from others: the classes; labels, file names and contents of each split's images.

        "all images" is the same however they are divided. "… contents" tells images that were replaced under the same
        name: of a file its size and its first and last 4 KiB count, which take well under 1 ms and differ for any two
        compressed images; of images in memory all pixels.

        Raises:
            UserError: a file cannot be read.
        """
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        every = [key for images in splits.values() if images is not None for key in _keys(images)]
        return {
            "class names": self.class_names,
            **{f"{name} images": _digest([] if split is None else _keys(split)) for name, split in splits.items()},
            **{f"{name} contents": _content_digest(split) for name, split in splits.items()},
            "all images": _digest(sorted(every)),
        }

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
    labels = torch.cat([part.labels for part in parts])
    if isinstance(parts[0], Images):
        pixels = torch.cat([part.images for part in parts if isinstance(part, Images)])
        return Images(pixels, labels, parts[0].class_names)
    paths = [path for part in parts if isinstance(part, ImageFiles) for path in part.paths]
    return ImageFiles(paths, labels, parts[0].class_names)


def _keys(images: Split) -> list[str]:
    """A word for each image: label, class folder and file name, since the whole may be moved; in memory the label."""
    labels = map(str, images.labels.tolist())
    if isinstance(images, Images):
        return list(labels)
    return [f"{k} {p.parent.name}/{p.name}" for k, p in zip(labels, images.paths, strict=True)]


def _digest(words: list[str]) -> str:
    return f"{len(words)} {hashlib.sha256(chr(0).join(words).encode(errors='surrogateescape')).hexdigest()}"


def _content_digest(images: Split | None) -> str:
    if isinstance(images, Images):
        return hashlib.sha256(images.images.contiguous().cpu().numpy().data).hexdigest()
    return _digest([] if images is None else [_file_digest(path) for path in images.paths])


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head, size = file.read(_ENDS), file.seek(0, os.SEEK_END)
            file.seek(max(size - _ENDS, 0))
            return hashlib.sha256(b"%d " % size + head + file.read()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


_ENDS = 4096  # bytes at each end of a file


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
