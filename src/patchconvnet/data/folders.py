"""A folder of images as a data set: one folder a class, whole or under train/, val/ and test/.

    PATH/cat/…, PATH/dog/…                      one tree: a seeded stratified choice becomes validation and test
    PATH/train/cat/…, PATH/val/cat/…, PATH/test/cat/…   splits of its own

Images may be in folders below a class's folder. Hidden files and operating systems' leftovers are passed over; other
files that are left out are counted and named.
"""

import glob
import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import torch
from PIL import Image
from rich.progress import track

from patchconvnet.data.images import MOST_PIXELS, as_rgb
from patchconvnet.data.splits import DataSplits, ImageFiles, SplitName, set_aside_count, stratified_split
from patchconvnet.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".jp2"}
IMAGE_SUFFIXES |= {".ppm", ".pgm", ".pbm", ".pnm"}
# kinds of images that Pillow reads with another package only, and how to have them read
OTHER_IMAGES = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "pip install 'patchconvnet[heif]' to read them"),
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".raf"), "export raw photographs as JPEG"),
    ".svg": "export drawings as PNG",
}
SPLIT_FOLDERS: dict[str, SplitName] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
# what lies beside images without being one: not worth a word
COMPANIONS = frozenset(
    (".txt", ".csv", ".json", ".md", ".xml", ".html", ".yaml", ".yml", ".npy", ".mat", ".log", ".py")
)
SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini"))
SYSTEM_FOLDERS = frozenset(("__macosx", "@eadir", "$recycle.bin", "system volume information"))
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
    left_out = _LeftOut()
    found = {split: _find(tree, folder_names, left_out) for split, tree in (trees or {"all": path}).items()}
    beside = [folder for folder in _folders(path) if trees and folder.name.lower() not in SPLIT_FOLDERS]
    beside = [folder for folder in beside if any(_images_below(folder, _LeftOut()))]
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


def class_name(folder: str) -> str:
    """The name of the class in a folder: its own, with bytes that are not UTF-8 and control characters written out."""
    text = os.fsencode(folder).decode("utf-8", "backslashreplace")
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)


def read_heif() -> bool:
    """Let Pillow read HEIC and HEIF, if the package for it is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    IMAGE_SUFFIXES.update((".heic", ".heif", ".hif"))
    return True


class _LeftOut:
    """Files that are not taken for images, counted by their endings, so that one sentence can name them."""

    def __init__(self) -> None:
        self.endings: Counter[str] = Counter()
        self.loose = 0

    def kinds(self, but: Collection[str] = ()) -> list[str]:
        """How many of which ending, and what could be done about it."""
        return [
            f"{count} {ending or 'files without an ending'}" + (f" ({hint})" if hint else "")
            for ending, count in self.endings.most_common(5)
            for hint in [OTHER_IMAGES.get(ending)]
            if ending not in but
        ]

    def warn(self, path: Path, folders: Sequence[str] = ()) -> None:
        """Say what was left out of `path`, if anything."""
        parts = self.kinds(but=COMPANIONS)
        if self.loose:
            parts.append(f"{self.loose} images beside the class folders, which have no class")
        if folders:
            parts.append(f"the folders beside its splits: {', '.join(map(class_name, folders[:5]))}")
        if parts:
            warnings.warn(f"left out of {path}: {'; '.join(parts)}", stacklevel=4)


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS or name.lower() in SYSTEM_FILES


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir() and not _is_junk(entry.name))
    except OSError as error:
        raise _closed(error) from error


def _closed(error: OSError) -> UserError:
    return UserError(
        f"cannot open the folder {error.filename}: {error.strerror or error}; allow reading it, or remove it."
    )


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


def _find(path: Path, folder_names: list[str], left_out: _LeftOut) -> ImageFiles:
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
    left_out.loose += sum(_is_image(entry) for entry in path.iterdir() if entry.is_file() and not _is_junk(entry.name))
    paths: list[Path] = []
    labels: list[int] = []
    empty = []
    for folder in folders:
        images = sorted(_images_below(folder, left_out))
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


def _images_below(folder: Path, left_out: _LeftOut) -> Iterator[Path]:
    def closed(error: OSError) -> None:
        raise _closed(error) from error

    for parent, folders, files in os.walk(folder, onerror=closed):
        folders[:] = [name for name in folders if not _is_junk(name)]
        for name in files:
            if _is_junk(name):
                continue
            if _is_image(Path(parent, name)):
                yield Path(parent, name)
            else:
                left_out.endings[os.path.splitext(name)[1].lower()] += 1


def _is_image(path: Path) -> bool:
    """Whether a file is an image by its name, or else by its first bytes."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES or suffix in OTHER_IMAGES:
        return suffix in IMAGE_SUFFIXES
    try:
        with Image.open(path):
            return True
    except Exception:  # PIL's readers answer foreign files with errors of many types
        return False


def find_images(sources: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Image files, for people who name files, folders and patterns.

    Args:
        sources: files, taken as they are; folders, with all images below them; patterns such as `pets/*.jpg`.

    Returns:
        Paths, each once, those of a folder or pattern in alphabetical order.

    Raises:
        UserError: a source that is none of these, or a folder or pattern without images.
    """
    read_heif()
    found: dict[Path, None] = {}
    for source in sources:
        left_out = _LeftOut()
        if not str(source):
            raise UserError("an empty word is no image, folder or pattern; '.' is this folder")
        if "\0" in str(source):
            raise UserError(f"{class_name(str(source))!r} is not a file name.")
        path = Path(os.path.expanduser(source))
        if path.is_file():
            paths = [path]
        elif path.is_dir():
            paths = sorted(_images_below(path, left_out))
        else:
            matches = [match for name in glob.glob(str(path), recursive=True) if (match := Path(name)).is_file()]
            paths = sorted(match for match in matches if _is_image(match))
            left_out.endings.update(match.suffix.lower() for match in matches if match not in paths)
            if not paths and not glob.has_magic(str(path)):
                raise UserError(f"there is no image or folder {source}.")
        if not paths:
            others = "; ".join(left_out.kinds())
            raise UserError(f"no images in {source}; it has {others or 'no files'}.")
        left_out.warn(path)
        found.update(dict.fromkeys(paths))
    return list(found)


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
