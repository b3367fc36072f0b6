"""Labelled images: in memory (`Images`), in files (`ImageFiles`), or as rows of a source (`ImageRecords`)."""

import hashlib
import io
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, Self

import torch
from PIL import Image
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from patchconvnet.data.images import as_rgb, read_image
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.errors import UserError

Indices = Tensor | Sequence[int] | slice
MOST_WORKERS, LARGEST_BATCH = 1024, 1_000_000

# python/cpython#112275: a lock of Python's that another thread holds at a fork is never free in the new process
FORK_MAY_STAND_STILL = sys.version_info < (3, 11, 10)
STARTS, SECONDS_TO_START = 3, 30.0  # of workers, where that may be; all have begun within some milliseconds


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

    def place(self, index: int) -> str:
        """Its number, as there is no file."""
        return str(index)

    def name(self, index: int) -> str:
        """Its number, as there is no file."""
        return str(index)

    def image(self, index: int) -> Image.Image:
        """Image `index` as RGB."""
        return as_rgb(Image.fromarray(self.images[index].movedim(0, -1).squeeze(-1).cpu().numpy()))

    def subset(self, indices: Indices) -> Self:
        """The images at `indices`, in that order."""
        chosen = indices if isinstance(indices, slice) else torch.as_tensor(indices, dtype=torch.int64)
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])


class Blocks(NamedTuple):
    """Which rows of a store are read together, for the price of one.

    Attributes:
        of_rows: (rows,) int64, the number of each row's block; rows of a block follow one another.
        megabytes: that are read for a block, on average.
        alone: megabytes that are read for a row without the others of its block, on average; the same where it can't
            be.
    """

    of_rows: Tensor
    megabytes: float
    alone: float


class StoredImages:
    """Images of any shape and kind, each read and decoded when it is asked for; what all kinds of them share.

    Attributes:
        labels: (N,) int64, indices into `class_names`.
        class_names: one name a class.
        blocks: of their store; None where each image is read without the others.
    """

    labels: Tensor
    class_names: list[str]
    blocks: Blocks | None = None

    def encoded(self, index: int) -> Path | bytes:
        """Image `index` as it is stored: its file, or the bytes of one.

        Raises:
            UserError: it cannot be read.
        """
        raise NotImplementedError

    def place(self, index: int) -> str:
        """Where image `index` is, for people: a path, or a file and what of it; no two images are in one place."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """What image `index` is called wherever it is: its folder and file name, such as "cat/01.jpg"."""
        raise NotImplementedError

    def digest(self, index: int) -> str:
        """Of the content of image `index`; see `content_digest`."""
        return content_digest(self.encoded(index))

    def subset(self, indices: Indices) -> Self:
        """The images at `indices`, in that order."""
        raise NotImplementedError

    def joined(self, others: Sequence[Self]) -> Self:
        """These images, and then those of others of the same source."""
        raise NotImplementedError

    def block_numbers(self) -> Tensor | None:
        """(N,) int64, the block that each image is read with; None where each is read without the others."""
        return None

    def order_of_rows(self) -> Tensor | None:
        """(N,) int64, the images as they follow one another in their blocks; None where there are none."""
        return None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.image(index), int(self.labels[index])

    def image(self, index: int) -> Image.Image:
        """Image `index` as RGB.

        Raises:
            UserError: it is gone or has become unreadable.
        """
        return read_image(opened(self.encoded(index), self.place(index)))

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
        places = reading_order(self, batch_size, workers).split(batch_size)
        tensors = self.tensors(preprocessing.canvas)
        read = in_batches(tensors, workers, batch_sampler=[place.tolist() for place in places])
        total = -(-len(self) // batch_size)
        for batch, _, indices in track(read, "Reading images", total, disable=not show_progress, transient=True):
            images[indices] = batch
        return Images(images, self.labels, self.class_names)


@dataclass(frozen=True, eq=False)
class ImageFiles(StoredImages):
    """Images in files of their own, as in a folder.

    Args:
        paths: one file an image.
        labels: (N,) int64, indices into `class_names`.
        class_names: one name a class.
    """

    paths: list[Path]
    labels: Tensor
    class_names: list[str]

    def encoded(self, index: int) -> Path:
        return self.paths[index]

    def place(self, index: int) -> str:
        return str(self.paths[index])

    def name(self, index: int) -> str:
        path = self.paths[index]
        return f"{path.parent.name}/{path.name}"

    def subset(self, indices: Indices) -> Self:
        chosen = _places(indices, len(self))
        return replace(self, paths=[self.paths[index] for index in chosen.tolist()], labels=self.labels[chosen])

    def joined(self, others: Sequence[Self]) -> Self:
        parts = [self, *others]
        return replace(
            self, paths=[path for part in parts for path in part.paths], labels=torch.cat([p.labels for p in parts])
        )


class Store(Protocol):
    """Where a source keeps its images, by row; survives the way into a worker."""

    def encoded(self, row: int) -> Path | bytes:
        """The image of a row: its file, or the bytes of one."""

    def place(self, row: int) -> str:
        """Where that is, for people."""

    def size(self, row: int) -> int:
        """Bytes of the image of a row, found without reading it; −1 where that can't be told."""


@dataclass(frozen=True, eq=False)
class ImageRecords(StoredImages):
    """Images that a source lists: rows of a table, members of an archive.

    Args:
        store: holds them.
        rows: (N,) int64, which row of the store each image is.
        names: what each is called, as in a folder of classes: "cat/01.jpg".
        labels: (N,) int64, indices into `class_names`.
        class_names: one name a class.
        digests: of each image's content, where they are known.
        blocks: of the store's rows, where it reads many for the price of one.
    """

    store: Store
    rows: Tensor
    names: list[str]
    labels: Tensor
    class_names: list[str]
    digests: list[str] | None = None
    blocks: Blocks | None = None

    def encoded(self, index: int) -> Path | bytes:
        return self.store.encoded(int(self.rows[index]))

    def place(self, index: int) -> str:
        return self.store.place(int(self.rows[index]))

    def name(self, index: int) -> str:
        return "/".join(self.names[index].split("/")[-2:])

    def digest(self, index: int) -> str:
        return super().digest(index) if self.digests is None else self.digests[index]

    def subset(self, indices: Indices) -> Self:
        chosen = _places(indices, len(self))
        places, digests = chosen.tolist(), self.digests
        return replace(
            self,
            rows=self.rows[chosen],
            names=[self.names[index] for index in places],
            labels=self.labels[chosen],
            digests=None if digests is None else [digests[index] for index in places],
        )

    def joined(self, others: Sequence[Self]) -> Self:
        parts = [self, *others]
        digests = [digest for part in parts for digest in part.digests or ()]
        return replace(
            self,
            rows=torch.cat([part.rows for part in parts]),
            names=[name for part in parts for name in part.names],
            labels=torch.cat([part.labels for part in parts]),
            digests=digests if len(digests) == sum(map(len, parts)) else None,
        )

    def block_numbers(self) -> Tensor | None:
        return None if self.blocks is None else self.blocks.of_rows[self.rows]

    def order_of_rows(self) -> Tensor | None:
        return None if self.blocks is None else self.rows.argsort()


def _places(indices: Indices, count: int) -> Tensor:
    chosen = torch.arange(count)[indices] if isinstance(indices, slice) else torch.as_tensor(indices)
    return chosen.to(torch.int64)


def reading_order(
    images: Images | StoredImages, batch_size: int, workers: int = 0, *, rank: int = 0, world_size: int = 1
) -> Tensor:
    """Which image is read when, where their order does not count.

    Images that are read in blocks come block by block, in batches of which the loader's workers take turns: each worker
    gets batches that follow one another, so that hardly a block is read by two.

    Args:
        images: all that are to be read.
        batch_size, workers: of the `DataLoader`; its batches are the parts of that size, in this order.
        rank, world_size: with several processes, each gets its own images.

    Returns:
        (n,) int64, places among the images; none where there are fewer images than processes.
    """
    order = images.order_of_rows() if isinstance(images, StoredImages) else None
    if order is None:
        return torch.arange(len(images))[rank::world_size]
    order = order.tensor_split(world_size)[rank]
    batches, turns = order.split(batch_size), max(workers, 1)
    each, more = divmod(len(batches), turns)
    # the last batch, which may be smaller, must stay the last: its worker is the last of those with one more
    sizes = [each] * (turns - more) + [each + 1] * more
    ends = torch.tensor(sizes).cumsum(0).tolist()
    ours = [batches[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    ours = ours[turns - more :] + ours[: turns - more]
    mixed = [part[turn] for turn in range(each + 1) for part in ours if turn < len(part)]
    return torch.cat(mixed) if mixed else order


def opened(encoded: Path | bytes, place: str) -> Path | BinaryIO:
    """What `read_image` takes: a path as it is, bytes as an open file that is called by its place."""
    if isinstance(encoded, Path):
        return encoded
    file = io.BytesIO(encoded)
    file.name = place
    return file


class ImageTensors(Dataset[tuple[Tensor, int, int]]):
    """Stored images as (tensor, label, index); made by `StoredImages.tensors`."""

    def __init__(self, files: StoredImages, transform: Callable[[Image.Image], Tensor]) -> None:
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
    started = None
    if workers and FORK_MAY_STAND_STILL and "multiprocessing_context" not in options:
        started = _Started() if multiprocessing.get_start_method() == "fork" else None
    loader = DataLoader(
        _Guarded(tensors),
        num_workers=workers,
        collate_fn=_collate,
        generator=torch.Generator(),  # or the loader would draw from, and so change, the global random state
        worker_init_fn=started,
        **options,
    )
    for batch in started.iterator_of(loader) if started else loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


class _Started:
    """How many workers have begun. One that Python's fork left waiting for a lock never does: all are started again."""

    def __call__(self, worker: int) -> None:
        with self._count.get_lock():
            self._count.value += 1

    def iterator_of(self, loader: DataLoader[Any]) -> Any:
        """Of a loader that calls this in its workers."""
        for _ in range(STARTS):
            self._count = multiprocessing.Value("i", 0)  # that of workers which were ended may be locked
            batches: Any = iter(loader)
            until = time.monotonic() + SECONDS_TO_START
            while self._count.value < loader.num_workers and time.monotonic() < until:
                time.sleep(0.002)
            if self._count.value == loader.num_workers:
                return batches
            warnings.warn(
                "processes that read images stood still as they started; they are started again", stacklevel=3
            )
            batches._shutdown_workers()
            for worker in batches._workers:
                worker.kill()
                worker.join()
        return iter(loader)


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


def content_digest(encoded: Path | bytes) -> str:
    """Tells an encoded image from others by its size and its first and last 4 KiB.

    Raises:
        UserError: the file cannot be read.
    """
    if isinstance(encoded, bytes):
        return hashlib.sha256(b"%d " % len(encoded) + encoded[:_ENDS] + encoded[-_ENDS:]).hexdigest()
    path = encoded
    try:
        with path.open("rb") as file:
            head, size = file.read(_ENDS), file.seek(0, os.SEEK_END)
            file.seek(max(size - _ENDS, 0))
            return hashlib.sha256(b"%d " % size + head + file.read()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


_ENDS = 4096  # bytes at each end of a file
