"""From the bytes of a stranger's file to pixels, within limits that hold before anything is decoded.

Which format it is says the content. Formats whose readers start other programs (EPS), or read other files, are not
among those that are tried. Of an animation the first frame counts, and no other is decoded.
"""

import functools
import io
import warnings
from collections.abc import Callable
from typing import TypeVar

from PIL import Image

from patchconvnet.data.image_paths import read_heif
from patchconvnet.data.images import as_rgb
from patchconvnet.deploy.server.problems import Problem
from patchconvnet.errors import UserError, first_line

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF")
# A progressive JPEG of a few kilobytes can ask for thousands of passes over all of its pixels.
MOST_SCANNED = 500_000_000  # pixels times passes
T = TypeVar("T")


@functools.cache
def known_formats() -> list[str]:
    """The formats that this installation reads."""
    read_heif()
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def pixels_in(content: bytes, most_pixels: int) -> int:
    """How many pixels an image file has, by its header; nothing is decoded.

    Args:
        content: of the file.
        most_pixels: width × height.

    Raises:
        Problem: it is no image, none of `known_formats`, damaged, or too large.
    """

    def checked(image: Image.Image) -> int:
        pixels = image.width * image.height
        if pixels > most_pixels:
            raise _too_large(f"{image.width} × {image.height}", most_pixels)
        scans = content.count(b"\xff\xda") if image.info.get("progressive") else 1
        if scans * pixels > MOST_SCANNED:
            raise Problem(413, f"the image would have to be decoded in {scans} passes over all of its pixels")
        return pixels

    return _opened(content, checked, most_pixels)


def decode(content: bytes, most_pixels: int) -> Image.Image:
    """An image file, for which `pixels_in` found no fault → upright RGB, as `patchconvnet explain` reads it.

    Raises:
        Problem: it is damaged, or has no pixels that can be used.
    """
    return _opened(content, as_rgb, most_pixels)


def _opened(content: bytes, use: Callable[[Image.Image], T], most_pixels: int) -> T:
    if not content:
        raise Problem(422, "the image is empty: 0 bytes")
    formats = known_formats()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata, and of sizes that are refused
            with Image.open(io.BytesIO(content), formats=formats) as image:
                return use(image)
    except (Problem, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise _too_large("over 178,956,970", most_pixels) from error
    except UserError as error:  # pixels that have no white to be scaled by
        raise Problem(422, f"the image cannot be used: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise Problem(422, f"the file is no image that is known here; known: {', '.join(formats)}") from error
    except Exception as error:  # PIL's readers answer broken files with errors of many types
        raise Problem(422, f"the image is damaged: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = first_line(error)
    return "its reader gave up" if "0x" in text or "/" in text else text[:200]  # no addresses, no paths


def _too_large(size: str, most_pixels: int) -> Problem:
    return Problem(
        413, f"the image has {size} pixels and the limit is {most_pixels / 1e6:g} megapixels; make it smaller"
    )
