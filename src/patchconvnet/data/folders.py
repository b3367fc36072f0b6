"""A folder of images as a data set: one folder a class, whole or under train/, val/ and test/.

    PATH/cat/…, PATH/dog/…                      one tree: a seeded stratified choice becomes validation and test
    PATH/train/cat/…, PATH/val/cat/…, PATH/test/cat/…   splits of its own

Images may be in folders below a class's folder. Hidden files and operating systems' leftovers are passed over; other
files that are left out are counted and named.
"""

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import torch
from PIL import Image
from rich.progress import track

from patchconvnet.data.image_paths import (
    LeftOut,
    class_name,
    closed_folder,
    images_below,
    is_image,
    is_junk,
    read_heif,
)
from patchconvnet.data.images import MOST_PIXELS, as_rgb
from patchconvnet.data.splits import DataSplits, ImageFiles, SplitName, set_aside_count, stratified_split
from patchconvnet.errors import UserError

SPLIT_FOLDERS: dict[str, SplitName] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
DEFAULT_SHARE = 0.1  # of a tree's images, for validation and for test each


def load_folder(
    path: Path,
    *,
    validation: float | None = None,
    test: float | None = None,
    seed: int = 0,
    strict: bool = False,
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
    class_names = [class_name(name) for name in folder_names]
    left_out = LeftOut()
    found = {split: _find(tree, folder_names, left_out) for split, tree in (trees or {"all": path}).items()}
    beside = [folder for folder in _folders(path) if trees and folder.name.lower() not in SPLIT_FOLDERS]
    beside = [folder for folder in beside if any(images_below(folder, LeftOut()))]
    left_out.warn(path, _names(beside))
    found, skipped = _readable(found, path, strict, show_progress)
    if not trees:
        return _split_tree(path, found["all"], skipped, validation, test, seed)

    if test is not None:
        raise UserError(f"{path} has its own splits ({', '.join(trees)}); leave out the option test.")
    if "validation" in found and validation:  # a recipe's 0 means: take none of the training images
        raise UserError(f"{path} has its own validation folder; leave out the option validation.")
    if "train" in found and "validation" not in found:
        count = set_aside_count(DEFAULT_SHARE if validation is None else validation, len(found["train"]), "validation")
        if count:
            chosen, rest = stratified_split(found["train"].labels, [count], seed)
            found["validation"], found["train"] = found["train"].subset(chosen), found["train"].subset(rest)
    return DataSplits(
        name=f"folder:{path}",
        class_names=class_names,
        train=found.get("train"),
        validation=found.get("validation"),
        test=found.get("test"),
        skipped=skipped,
    )


def _split_tree(
    path: Path,
    files: ImageFiles,
    skipped: tuple[Path, ...],
    validation: float | None,
    test: float | None,
    seed: int,
) -> DataSplits:
    shares = {"validation": validation, "test": test}
    counts = [
        set_aside_count(DEFAULT_SHARE if share is None else share, len(files), what) for what, share in shares.items()
    ]
    chosen = stratified_split(files.labels, counts, seed)
    for_validation, for_test, for_training = (files.subset(part) if len(part) else None for part in chosen)
    names = files.class_names
    return DataSplits(f"folder:{path}", names, for_training, for_validation, for_test, skipped, drawn=True)


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
        split = SPLIT_FOLDERS.get(folder.name.lower())
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


def _readable(
    found: dict[str, ImageFiles], root: Path, strict: bool, show_progress: bool
) -> tuple[dict[str, ImageFiles], tuple[Path, ...]]:
    """Leave out the unreadable files, with one warning for all of them, or one error where `strict`."""
    paths = [path for files in found.values() for path in files.paths]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # PIL decodes outside of Python's lock
        chunks = [paths[start : start + 100] for start in range(0, len(paths), 100)]
        checks = pool.map(lambda chunk: [_is_readable(path) for path in chunk], chunks)
        shown = track(checks, "Checking images", len(chunks), disable=not show_progress, transient=True)
        readable = dict(zip(paths, chain.from_iterable(shown), strict=True))
    skipped = tuple(path for path in paths if not readable[path])
    if not skipped:
        return found, ()

    names = ", ".join(str(path.relative_to(root)) for path in skipped[:5]) + (", …" if len(skipped) > 5 else "")
    message = f"{len(skipped)} of {len(paths)} files in {root} are not readable images: {names}"
    if strict:
        raise UserError(f"{message}; repair or remove them, or leave out strict to skip them.")
    kept = {
        split: files.subset([index for index, path in enumerate(files.paths) if readable[path]])
        for split, files in found.items()
    }
    for split, files in found.items():
        lost = set(files.labels.tolist()) - set(kept[split].labels.tolist())
        if lost:
            names = ", ".join(files.class_names[label] for label in sorted(lost)[:5])
            raise UserError(f"no readable images are left in class folder {names} of {root}; {message}.")
    warnings.warn(f"{message}; skipped.", stacklevel=4)
    return kept, skipped


def _is_readable(path: Path) -> bool:
    """Whether `read_image` will read the file; a JPEG is tried at an eighth of its size, which finds cut ones too."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                return False
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            as_rgb(image)
    except MemoryError:
        raise
    except Exception:  # PIL's readers answer broken files with errors of many types
        return False
    return True
