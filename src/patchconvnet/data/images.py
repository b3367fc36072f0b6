"""Reading images: files, PIL images and arrays of any usual kind → upright RGB, or uint8 pixels (C, H, W)."""

import os
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, Union

import numpy as np
from PIL import Image, ImageOps

from patchconvnet.errors import UserError

if TYPE_CHECKING:  # images are read without PyTorch too
    from torch import Tensor

ImageLike = Union[Image.Image, np.ndarray, "Tensor"]
Source = ImageLike | str | os.PathLike[str] | BinaryIO
Values = TypeVar("Values", np.ndarray, "Tensor")

MOST_PIXELS = 89_478_485  # of an image file: half a gigabyte while it is decoded and turned
USUAL_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA


def read_image(source: str | os.PathLike[str] | BinaryIO) -> Image.Image:
    """Read an image file of any kind PIL knows as RGB, upright (EXIF), over white where it is transparent.

    Args:
        source: a path or an open binary file.

    Raises:
        UserError: there is no such file, or it is not a readable image; the message names it.
    """
    name = source if isinstance(source, str | os.PathLike) else getattr(source, "name", "the given file")
    if isinstance(source, str | os.PathLike) and not os.path.isfile(source):
        raise UserError(f"there is no image file {os.fspath(source)}.")
    try:
        with Image.open(source) as image:
            if image.width * image.height > MOST_PIXELS:
                size = f"{image.width} × {image.height} pixels"
                raise UserError(f"it has {size} and the limit is {MOST_PIXELS:,}; make it smaller")
            return as_rgb(image)
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} is not a readable image: it is over the limit of {MOST_PIXELS:,} pixels") from error
    except Exception as error:  # PIL's readers answer broken files with errors of many types, SyntaxError among them
        raise UserError(f"{name} is not a readable image: {error}") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """A PIL image as upright RGB: 16-bit grey scaled to 8 bit, transparent parts laid over white.

    Raises:
        UserError: for pixels that are fractions or go beyond 16 bit, which have no white to scale by.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or (image.mode == "I" and np.asarray(image).max() > 65535):
        raise UserError(f"its pixels are numbers of 32 bit (mode {image.mode}); scale them to 8 or 16 bit first")
    if image.mode.startswith("I"):  # 16 bit: PNG gives "I;16", some formats "I"; PIL's own conversion cuts at 255
        values = np.asarray(image).clip(0, 65535).astype(np.uint32)  # 32 bit and in place: large images need memory
        values *= 255
        values += 32767
        values //= 65535
        image = Image.fromarray(values.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB")
    image.info.clear()  # metadata has been heeded, or could not be: damaged EXIF is no error where it is met again
    return image


def pixels(image: ImageLike, channels: int = 3) -> "Tensor":
    """An image → (channels, H, W) uint8 tensor; grey is repeated over the channels, colour made grey for one channel.

    Args:
        image: a PIL image of any mode, or an array or tensor of one image: (H, W), (H, W, C) or (C, H, W) of uint8, or
            of floats in 0..1, which are rounded to 8 bit; C is 1, 3, 4 (RGBA) or `channels`.
        channels: number of channels wanted.

    Raises:
        UserError: the values or the shape are not those of an image, or the shape can be read in two ways.
    """
    import torch

    if isinstance(image, torch.Tensor):
        values = _channels_first(_tensor_as_uint8(image), image, channels)
        if values.shape[0] == channels:
            return values
        image = values.cpu().numpy()
    return torch.from_numpy(pixel_array(image, channels))


def pixel_array(image: Image.Image | np.ndarray, channels: int = 3) -> np.ndarray:
    """`pixels` as an array (channels, H, W), of a PIL image or an array."""
    if not isinstance(image, Image.Image):
        values = _channels_first(_array_as_uint8(image), image, channels)
        if values.shape[0] == channels:
            return values
        last = np.moveaxis(values, 0, -1)
        image = Image.fromarray(np.ascontiguousarray(last[..., 0] if last.shape[-1] == 1 else last))
    image = as_rgb(image)
    if channels not in (1, 3):
        raise UserError(f"an image file has 1 or 3 channels, the network {channels}; give an array with {channels}.")
    if channels == 1:
        image = image.convert("L")
    array = np.array(image)  # (H, W) or (H, W, 3), a copy
    return np.moveaxis(array.reshape(*array.shape[:2], channels), -1, 0)


def to_image(image: ImageLike) -> Image.Image:
    """An image as RGB, upright; arrays as `pixels` reads them."""
    if isinstance(image, Image.Image):
        return as_rgb(image)
    values = pixel_array(image) if isinstance(image, np.ndarray) else pixels(image).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(np.moveaxis(values, 0, -1)))


def _channels_first(values: Values, image: Any, channels: int) -> Values:
    """(H, W), (H, W, C) or (C, H, W) → (C, H, W)."""
    if values.ndim == 2:
        return values[None]
    if values.ndim != 3:
        raise _not_an_image(image, "an image has two axes, or three with its channels")
    if _channel_axis(image, values.shape, channels) == 0:
        return values
    return values.swapaxes(1, 2).swapaxes(0, 1)


def _array_as_uint8(image: np.ndarray) -> np.ndarray:
    if image.dtype.kind not in "buif" or image.dtype.itemsize > 8:  # strings, objects, float128 …
        raise _not_an_image(image, "its values must be uint8, or floats in 0..1")
    if 0 in image.shape:
        raise _not_an_image(image, "it has no pixels")
    if image.dtype == np.uint8:
        return image.copy()
    floating = image.dtype.kind == "f"
    _check_range(image, floating, *((float(image.min()), float(image.max())) if floating else (0.0, 0.0)))
    return np.rint(image * image.dtype.type(255)).astype(np.uint8)


def _tensor_as_uint8(image: "Tensor") -> "Tensor":
    import torch

    values = image.detach()
    if 0 in values.shape:
        raise _not_an_image(image, "it has no pixels")
    if values.dtype == torch.uint8:
        return values
    floating = values.is_floating_point()
    _check_range(image, floating, *((values.amin().item(), values.amax().item()) if floating else (0.0, 0.0)))
    return values.mul(255).round().to(torch.uint8)


def _check_range(image: Any, floating: bool, low: float, high: float) -> None:
    if not floating:
        raise _not_an_image(image, "its values must be uint8, 0..255, or floats in 0..1")
    if not (low >= 0 and high <= 1):  # also for NaN
        hint = "divide by 255, or give uint8" if low >= 0 and high <= 255 else "give it as it is before normalisation"
        raise _not_an_image(image, f"floats must lie in 0..1, and these go from {low:.4g} to {high:.4g}; {hint}")


def _channel_axis(image: Any, shape: tuple[int, ...], channels: int) -> int:
    known = sorted({*USUAL_CHANNELS, channels})
    first, last = shape[0] in known, shape[-1] in known
    if first and last:
        raise _not_an_image(
            image, "it can be (channels, height, width) or (height, width, channels); give it as a PIL image"
        )
    if not (first or last):
        *few, most = map(str, known)
        raise _not_an_image(
            image, f"its first or last axis must be {', '.join(few)} or {most} channels; several images go in a list"
        )
    return 0 if first else -1


def _not_an_image(image: Any, why: str) -> UserError:
    return UserError(f"given an image of type {image.dtype} and shape {tuple(image.shape)}: {why}.")
