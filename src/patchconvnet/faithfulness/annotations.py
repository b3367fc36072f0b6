"""Annotations: where the objects are on the images of a data set, as boxes or masks on the network input."""

import csv
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from patchconvnet.data.geometry import Geometry
from patchconvnet.data.labelled_images import StoredImages
from patchconvnet.data.splits import Split
from patchconvnet.errors import UserError

COLUMNS = ("image", "x0", "y0", "x1", "y1")
Source = str | os.PathLike[str] | Sequence[np.ndarray]


class Located(NamedTuple):
    """An object on the network input: boxes (n, 4) as x0, y0, x1, y1 in its pixels, mask (h, w) bool."""

    boxes: np.ndarray
    mask: np.ndarray


def image_name(split: Split, index: int) -> str:
    """What an image is called: "class/file.png" for a file, its number for one in memory."""
    return split.name(index)


@dataclass(frozen=True, eq=False)
class Annotations:
    """The boxes, the masks or both, of a split's images; made by `read_annotations`.

    Args:
        names: one an image, for messages.
        boxes: (n, 4) an image, or None.
        masks: a file or an (H, W) array an image, or None.
    """

    names: list[str]
    boxes: Sequence[np.ndarray] | None
    masks: Sequence[Path | np.ndarray] | None

    def on_input(self, index: int, geometry: Geometry) -> Located:
        """An image's annotation on its network input.

        Boxes without a mask are filled to be one; a mask without boxes gets its bounding box. What is outside of the
        network input is cut off, so little or nothing of an object may be left.

        Raises:
            UserError: a box is not a box or is outside of the image, a mask is empty or of another size.
        """
        name, (height, width) = self.names[index], geometry.image
        boxes = None if self.boxes is None else _checked_boxes(self.boxes[index], name, height, width)
        if self.masks is not None:
            mask = _checked_mask(self.masks[index], name, height, width)
        else:
            assert boxes is not None
            mask = _filled(boxes, height, width)
        on_input = _mask_on_input(mask, geometry)
        if boxes is None:
            return Located(_bounding_box(on_input), on_input)
        left, top, right, bottom = geometry.box
        h, w = geometry.size
        scale = np.array([w / (right - left), h / (bottom - top)] * 2)
        corners = ((boxes - np.array([left, top, left, top])) * scale).clip(0, [w, h, w, h])
        return Located(corners[(corners[:, 2:] > corners[:, :2]).all(1)], on_input)

    def fingerprint(self) -> int:
        """A number that changes when a box or a mask does (masks in files: when their names do)."""
        value = 0
        for boxes in self.boxes or ():
            value = zlib.crc32(np.ascontiguousarray(boxes, dtype=np.float64).tobytes(), value)
        for mask in self.masks or ():
            content = str(mask).encode() if isinstance(mask, Path) else np.ascontiguousarray(mask).tobytes()
            value = zlib.crc32(content, value)
        return value


def read_annotations(
    split: Split, indices: Sequence[int], boxes: Source | None, masks: Source | None
) -> Annotations | None:
    """The annotations of a split's images.

    Args:
        split: the images.
        indices: which of them need an annotation.
        boxes: a CSV file with the columns image, x0, y0, x1, y1 (pixels of the image, edges at whole numbers, one
            row a box; an image is named by "class/file", by "file", or by its number in the split, for images in
            memory; the column may be called picture), or an array (n, 4) for each image of the split.
        masks: a folder with an image file for each image, not zero where the object is, called NAME_mask.png or
            NAME.png, in folders by class or all in one; or an array (H, W) for each image of the split.

    Returns:
        None where neither boxes nor masks are given.

    Raises:
        UserError: a file or folder is missing or not of that form, or has nothing for an image that needs one.
    """
    if boxes is None and masks is None:
        return None
    names = [image_name(split, index) for index in range(len(split))]
    for what, given in (("boxes", boxes), ("masks", masks)):
        if given is not None and not isinstance(given, str | os.PathLike) and len(given) != len(split):
            raise UserError(f"given {what} for {len(given)} images, but the data has {len(split)}; give one an image.")
    box_list = _read_boxes(Path(boxes), names, indices) if isinstance(boxes, str | os.PathLike) else boxes
    mask_list = _find_masks(Path(masks), split, names, indices) if isinstance(masks, str | os.PathLike) else masks
    return Annotations(names, box_list, mask_list)


def _read_boxes(path: Path, names: list[str], indices: Sequence[int]) -> list[np.ndarray]:
    found: dict[str, list[list[float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            # tables written for earlier versions say picture
            reader.fieldnames = ["image" if name == "picture" else name for name in reader.fieldnames or ()]
            if missing := [column for column in COLUMNS if column not in reader.fieldnames]:
                raise UserError(f"{path} has no column {missing[0]!r}; it must have {', '.join(COLUMNS)}.")
            for row in reader:
                found.setdefault(row["image"], []).append([float(row[column]) for column in COLUMNS[1:]])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the boxes in {path} cannot be read: {error}") from error
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} has a row whose box is not four numbers: {error}") from error
    boxes = [np.array(found.get(name, found.get(name.rpartition("/")[2], []))).reshape(-1, 4) for name in names]
    _refuse_missing("box", path, [names[index] for index in indices if not len(boxes[index])], len(indices))
    return boxes


def _find_masks(folder: Path, split: Split, names: list[str], indices: Sequence[int]) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"there is no folder of masks {folder}.")
    needed = set(indices)
    masks, missing = [], []
    for index, name in enumerate(names):
        parent, _, file = name.rpartition("/")
        stem = Path(file).stem
        candidates = [
            folder / place / called for place in (parent, "") for called in (f"{stem}_mask.png", f"{stem}.png")
        ]
        if isinstance(split, StoredImages):  # masks may be beside their images, and an image is no mask
            itself = Path(split.place(index)).resolve()
            candidates = [path for path in candidates if path.resolve() != itself]
        mask = next((path for path in candidates if path.is_file()), None) if index in needed else None
        if mask is None and index in needed:
            missing.append(name)
        masks.append(mask or candidates[0])
    _refuse_missing("mask", folder, missing, len(indices))
    return masks


def _refuse_missing(what: str, place: Path, missing: list[str], count: int) -> None:
    if missing:
        listed = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        hint = ", called like the image with the ending .png or _mask.png" if what == "mask" else ""
        raise UserError(
            f"{place} has no {what} for {len(missing)} of {count} images: {listed}. Every image that is measured "
            f"needs one{hint}."
        )


def _checked_boxes(boxes: np.ndarray, name: str, height: int, width: int) -> np.ndarray:
    boxes = np.asarray(boxes, dtype=np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes):
        raise UserError(f"the boxes of {name} have shape {boxes.shape}; it must be (number, 4), with at least one box.")
    for x0, y0, x1, y1 in boxes.tolist():
        if not (x0 < x1 and y0 < y1):
            raise UserError(f"the box {x0:g}, {y0:g}, {x1:g}, {y1:g} of {name} is empty; it needs x0 < x1 and y0 < y1.")
        if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
            raise UserError(
                f"the box {x0:g}, {y0:g}, {x1:g}, {y1:g} of {name} reaches outside of the image, which is {width} "
                f"pixels wide and {height} high; give boxes in the pixels of the image file."
            )
    return boxes


def _checked_mask(source: Path | np.ndarray, name: str, height: int, width: int) -> np.ndarray:
    if isinstance(source, Path):
        try:
            with Image.open(source) as image:
                mask = np.asarray(image if image.mode in ("1", "L", "P", "I", "I;16") else image.convert("L"))
        except Exception as error:  # PIL's readers answer broken files with errors of many types
            raise UserError(f"the mask {source} is not a readable image: {error}") from error
    else:
        mask = np.asarray(source)
    if mask.shape != (height, width):
        size = " × ".join(str(side) for side in reversed(mask.shape))
        raise UserError(
            f"the mask of {name} is {size} pixels, the image {width} × {height}; a mask must have its image's size."
        )
    if not mask.any():
        raise UserError(f"the mask of {name} is empty: nothing in it is the object. Leave that image out.")
    return mask != 0


def _filled(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels whose centres lie in a box."""
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    mask = np.zeros((height, width), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        mask |= ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))
    return mask


def _mask_on_input(mask: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The mask's value at the centre of each pixel of the network input."""
    (height, width), (h, w) = mask.shape, geometry.size
    left, top, right, bottom = geometry.box
    rows = np.floor(top + (np.arange(h) + 0.5) * (bottom - top) / h).astype(int)
    columns = np.floor(left + (np.arange(w) + 0.5) * (right - left) / w).astype(int)
    seen = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    return mask[rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)] & seen


def _bounding_box(mask: np.ndarray) -> np.ndarray:
    if not mask.any():
        return np.zeros((0, 4))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], dtype=np.float64)
