"""Which files are images, by their names or their first bytes, and finding them below folders and by patterns."""

import glob
import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from PIL import Image

from patchconvnet.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".jp2"}
IMAGE_SUFFIXES |= {".ppm", ".pgm", ".pbm", ".pnm"}
# kinds of images that Pillow reads with another package only, and how to have them read
OTHER_IMAGES = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "pip install 'patchconvnet[heif]' to read them"),
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".raf"), "export raw photographs as JPEG"),
    ".svg": "export drawings as PNG",
}
# what lies beside images without being one: not worth a word
COMPANIONS = frozenset(
    (".txt", ".csv", ".json", ".md", ".xml", ".html", ".yaml", ".yml", ".npy", ".mat", ".log", ".py")
)
SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini"))
SYSTEM_FOLDERS = frozenset(("__macosx", "@eadir", "$recycle.bin", "system volume information"))


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
        left_out = LeftOut()
        if not str(source):
            raise UserError("an empty word is no image, folder or pattern; '.' is this folder")
        if "\0" in str(source):
            raise UserError(f"{class_name(str(source))!r} is not a file name.")
        path = Path(os.path.expanduser(source))
        if path.is_file():
            paths = [path]
        elif path.is_dir():
            paths = sorted(images_below(path, left_out))
        else:
            matches = [match for name in glob.glob(str(path), recursive=True) if (match := Path(name)).is_file()]
            paths = sorted(match for match in matches if is_image(match))
            left_out.endings.update(match.suffix.lower() for match in matches if match not in paths)
            if not paths and not glob.has_magic(str(path)):
                raise UserError(f"there is no image or folder {source}.")
        if not paths:
            others = "; ".join(left_out.kinds())
            raise UserError(f"no images in {source}; it has {others or 'no files'}.")
        left_out.warn(path)
        found.update(dict.fromkeys(paths))
    return list(found)


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


class LeftOut:
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


def images_below(folder: Path, left_out: LeftOut, *, in_order: bool = False) -> Iterator[Path]:
    """The images in a folder and in those below it.

    Args:
        left_out: is told of the other files.
        in_order: whether to go through each folder by name, so that every walk gives them in the same order; as the
            system lists them otherwise.

    Raises:
        UserError: a folder cannot be opened.
    """

    def closed(error: OSError) -> None:
        raise closed_folder(error) from error

    for parent, folders, files in os.walk(folder, onerror=closed):
        folders[:] = [name for name in folders if not is_junk(name)]
        if in_order:
            folders.sort()
            files.sort()
        for name in files:
            if is_junk(name):
                continue
            if is_image(Path(parent, name)):
                yield Path(parent, name)
            else:
                left_out.endings[os.path.splitext(name)[1].lower()] += 1


def file_size(path: Path) -> int:
    """Bytes of a file; −1 where there is none, as of a link to nowhere."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def is_image(path: Path) -> bool:
    """Whether a file is an image by its name, or else by its first bytes."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES or suffix in OTHER_IMAGES:
        return suffix in IMAGE_SUFFIXES
    try:
        with Image.open(path):
            return True
    except Exception:  # PIL's readers answer foreign files with errors of many types
        return False


def is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS or name.lower() in SYSTEM_FILES


def closed_folder(error: OSError) -> UserError:
    return UserError(
        f"cannot open the folder {error.filename}: {error.strerror or error}; allow reading it, or remove it."
    )
