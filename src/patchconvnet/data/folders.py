"""A folder of images as a data set: one folder a class, whole or under train/, val/ and test/.

    PATH/cat/…, PATH/dog/…                      one tree: a seeded stratified choice becomes validation and test
    PATH/train/cat/…, PATH/val/cat/…, PATH/test/cat/…   splits of its own

Images may be in folders below a class's folder. Hidden files and operating systems' leftovers are passed over; other
files that are left out are counted and named.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from patchconvnet.data.image_paths import (
    LeftOut,
    class_name,
    closed_folder,
    images_below,
    is_image,
    is_junk,
    read_heif,
)
from patchconvnet.data.labelled_images import ImageFiles
from patchconvnet.data.readable import leave_out_unreadable
from patchconvnet.data.splits import SPLIT_NAMES, DataSplits, divided
from patchconvnet.errors import UserError


def load_folder(
    path: Path,
    *,
    validation: float | None = None,
    test: float | None = None,
    seed: int = 0,
    strict: bool = False,
    max_bad: str | None = None,
    show_progress: bool = False,
) -> DataSplits:
    """The images under `path`, each checked once for being readable.

    The other arguments are those of `patchconvnet.data.datasets.load`.

    Raises:
        UserError: there is no such folder, it holds no class folders or only one, a class is without images, val/ or
            test/ has a class that train/ has not, a share is asked for that does not fit, or, if `strict`, an image is
            unreadable.
    """
    if not path.exists():
        raise UserError(f"there is no folder {path}; give folder:PATH with one folder a class in it.")
    if not path.is_dir():
        raise UserError(f"{path} is a file; give folder:PATH with one folder a class in it.")
    read_heif()
    trees = _split_folders(path)
    folder_names = _class_folders(trees.get("train") or next(iter(trees.values()))) if trees else _class_folders(path)
    left_out = LeftOut()
    found = {split: _find(tree, folder_names, left_out) for split, tree in (trees or {"all": path}).items()}
    beside = [folder for folder in _folders(path) if trees and folder.name.lower() not in SPLIT_NAMES]
    beside = [folder for folder in beside if any(images_below(folder, LeftOut()))]
    left_out.warn(path, _names(beside))
    readable, skipped = leave_out_unreadable(found, path, strict=strict, show_progress=show_progress, max_bad=max_bad)
    return divided(readable, f"folder:{path}", path, skipped=skipped, validation=validation, test=test, seed=seed)


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir() and not is_junk(entry.name))
    except OSError as error:
        raise closed_folder(error) from error


def _names(folders: Sequence[Path]) -> list[str]:
    return [folder.name for folder in folders]


def _split_folders(path: Path) -> dict[str, Path]:
    """The train, validation and test folders of `path`; empty where its folders are classes."""
    folders = _folders(path)
    trees: dict[str, Path] = {}
    for folder in folders:
        split = SPLIT_NAMES.get(folder.name.lower())
        if split is None:
            continue
        if split in trees:
            raise UserError(f"{path} has two {split} folders, {trees[split].name} and {folder.name}; keep one.")
        trees[split] = folder
    # Among folders of other names, "test" or "val" without train/, and "train" without folders in it, are classes too.
    if "train" in trees and (len(trees) == len(folders) or _folders(trees["train"])):
        return trees
    return trees if len(trees) == len(folders) else {}


def _class_folders(path: Path) -> list[str]:
    names = _names(_folders(path))
    if not names:
        raise UserError(f"{path} holds no class folders; put the images of each class into a folder of its name.")
    if len(names) == 1:
        raise UserError(f"{path} holds one class folder only, {names[0]!r}; a classifier needs at least two.")
    return names


def _find(path: Path, folder_names: list[str], left_out: LeftOut) -> ImageFiles:
    """All files under a tree's class folders that are images by their name."""
    folders = _folders(path)
    if not folders:
        raise UserError(
            f"{path} holds no class folders; put its images into folders of their classes' names, or remove it."
        )
    unknown = [folder.name for folder in folders if folder.name not in folder_names]
    if unknown:
        raise UserError(
            f"{path} has classes that the training folder lacks: {', '.join(map(class_name, unknown[:5]))}."
        )
    left_out.loose += sum(is_image(entry) for entry in path.iterdir() if entry.is_file() and not is_junk(entry.name))
    paths: list[Path] = []
    labels: list[int] = []
    empty = []
    for folder in folders:
        images = sorted(images_below(folder, left_out))
        if not images:
            empty.append(folder.name)
        paths += images
        labels += [folder_names.index(folder.name)] * len(images)
    if empty:
        found = "; ".join(left_out.kinds())
        raise UserError(
            f"no images in class folder {', '.join(map(class_name, empty[:5]))} of {path}"
            + (f" (files of other kinds: {found})" if found else "")
            + "; put images into it, or remove it."
        )
    return ImageFiles(paths, torch.tensor(labels, dtype=torch.int64), [class_name(name) for name in folder_names])
