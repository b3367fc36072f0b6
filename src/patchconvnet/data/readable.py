"""Images that cannot be read, found before anything is made of a data set: named, and left out or refused."""

import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TypeVar

from PIL import Image
from rich.progress import track

from patchconvnet.data.images import MOST_PIXELS, as_rgb
from patchconvnet.data.labelled_images import StoredImages, opened
from patchconvnet.errors import UserError

T = TypeVar("T")
U = TypeVar("U")
Images = TypeVar("Images", bound=StoredImages)


def leave_out_unreadable(
    found: Mapping[str, Images], root: Path, *, strict: bool, show_progress: bool, max_bad: str | None = None
) -> tuple[dict[str, Images], tuple[Path | str, ...]]:
    """Leave out the unreadable files of a folder, with one warning for all of them, or one error where `strict`.

    Args:
        found: images by split.
        root: the folder that they are in.
        strict: whether one is too many.
        show_progress: whether to draw a progress bar.
        max_bad: how many may be left out; see `allowed`.

    Returns:
        The readable images by split, and where the others are.

    Raises:
        UserError: if `strict`, an image is unreadable; more are than `max_bad`; or a class is left without images.
    """
    everything = [(images, index) for images in found.values() for index in range(len(images))]
    readable = in_threads(lambda at: is_readable(*at), everything, "Checking images", show_progress)
    if all(readable):
        return dict(found), ()
    skipped = tuple(
        Path(images.place(index)) for (images, index), good in zip(everything, readable, strict=True) if not good
    )
    names = listed([str(path.relative_to(root)) for path in skipped])
    message = f"{len(skipped)} of {len(everything)} files in {root} are not readable images: {names}"
    if strict:
        raise UserError(f"{message}; repair or remove them, or leave out strict to skip them.")
    if max_bad is not None:
        check_budget(len(skipped), len(everything), max_bad, message)
    answers = iter(readable)
    kept = {
        split: images.subset([index for index in range(len(images)) if next(answers)])
        for split, images in found.items()
    }
    for split, images in found.items():
        lost = set(images.labels.tolist()) - set(kept[split].labels.tolist())
        if lost:
            names = ", ".join(images.class_names[label] for label in sorted(lost)[:5])
            raise UserError(f"no readable images are left in class folder {names} of {root}; {message}.")
    warnings.warn(f"{message}; skipped.", stacklevel=4)
    return kept, skipped


def is_readable(images: StoredImages, index: int) -> bool:
    """Whether image `index` will be read; see `is_readable_content`."""
    try:
        encoded = images.encoded(index)
    except UserError:
        return False
    return is_readable_content(encoded, images.place(index))


def is_readable_content(encoded: Path | bytes, place: str) -> bool:
    """Whether an encoded image will be read; a JPEG is tried at an eighth of its size, which finds cut ones too.

    Args:
        encoded: its file, or the bytes of one.
        place: what it is called.
    """
    try:
        with Image.open(opened(encoded, place)) as image:
            if image.width * image.height > MOST_PIXELS:
                return False
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            as_rgb(image)
    except MemoryError:
        raise
    except Exception:  # PIL's readers answer broken files with errors of many types
        return False
    return True


def check_budget(bad: int, total: int, max_bad: str | None, message: str) -> None:
    """Refuse more images that cannot be read than may be left out.

    Args:
        bad: images that cannot be read.
        total: images in all.
        max_bad: a share such as "0.1%", or a number; None for not one.
        message: says which they are.

    Raises:
        UserError: there are too many, or `max_bad` is neither.
    """
    most = allowed(max_bad or "0", total)
    if bad > most:
        raise UserError(
            f"{message}; of {total} images {total - bad} can be read, {most} may be skipped and {bad} failed. Repair "
            f"or remove them, or allow as many to be left out: --max-bad {bad}, or a share such as --max-bad 0.1%."
        )


def allowed(max_bad: str, total: int) -> int:
    """How many of `total` images "0.1%" or "20" are, rounded down.

    Raises:
        UserError: it is neither.
    """
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*%", max_bad.strip())
    if found and float(found[1]) <= 100:
        return int(float(found[1]) * total / 100 + 1e-9)
    if re.fullmatch(r"\d{1,15}", max_bad.strip()):
        return int(max_bad)
    raise UserError(f"max_bad is {max_bad!r}; give a share of the images such as 0.1%, or a number of them.")


def in_threads(function: Callable[[T], U], items: Sequence[T], title: str, show_progress: bool) -> list[U]:
    """What a function says of each item, with a progress bar; PIL decodes outside of Python's lock."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        chunks = [items[start : start + 100] for start in range(0, len(items), 100)]
        answers = pool.map(lambda chunk: [function(item) for item in chunk], chunks)
        return list(chain.from_iterable(track(answers, title, len(chunks), disable=not show_progress, transient=True)))


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first names, and dots for the others."""
    names = list(names)
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
