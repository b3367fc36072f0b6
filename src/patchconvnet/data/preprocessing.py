"""Image → network input: the one definition that training, evaluation, explanation, export and serving share.

Pixels are divided by 255 in float32 *before* they are resized, pixel centres lie at half-integers (both as in the Keras
example, keras.io "Augmenting convnets with aggregated attention"), and one torch resize serves every way in, so an
image gives the same tensor whether it comes as a file, a PIL image, an array or a row of a batch. Where there is no
PyTorch, `array` does the same in NumPy, to rounding (`data/resizing.py`).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
from PIL import Image

from patchconvnet.data.geometry import Geometry
from patchconvnet.data.images import ImageLike, pixel_array, pixels
from patchconvnet.data.resizing import Interpolation, resize
from patchconvnet.errors import UserError

if TYPE_CHECKING:  # the runtime of exported models does without PyTorch
    from torch import Tensor

Resize = Literal["stretch", "crop", "letterbox"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MOST_RESIZED = 64_000_000  # pixels of a network input, or of an image that is to be cut: 770 MB as float32 RGB


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image on its way to the network: resize, cut, normalise.

    Args:
        size: (height, width) of the network input in pixels.
        resize: "stretch" resizes to `size` whatever the image's shape; "crop" resizes until the image covers
            `size / crop_ratio` and cuts the centre out; "letterbox" resizes until the whole image fits into `size`
            and fills the border with `mean`, which is zero to the network.
        crop_ratio: share of the covering image's side that the centre cut keeps, in (0, 1]; only for "crop".
        interpolation: "bilinear", "bicubic" or "nearest".
        antialias: whether shrinking averages over all pixels that fall together, as PIL does; not for "nearest".
        mean: subtracted, one value a channel, for pixel values in 0..1. Its length is the number of channels.
        std: divided by, one value a channel.

    Raises:
        UserError: a value is outside of what is described above.
    """

    size: tuple[int, int]
    resize: Resize = "stretch"
    crop_ratio: float = 1.0
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std"):  # lists, as YAML and JSON bring them, become tuples
            object.__setattr__(self, name, _as_tuple(name, getattr(self, name)))
        if len(self.size) != 2 or any(not isinstance(side, int) or side < 1 for side in self.size):
            raise UserError(f"preprocessing size is {self.size}; it must be two whole numbers, (height, width).")
        if math.prod(self.size) > MOST_RESIZED:
            raise UserError(
                f"preprocessing size is {self.size}, more than {MOST_RESIZED:,} pixels; give a smaller one."
            )
        for name, allowed in (("resize", get_args(Resize)), ("interpolation", get_args(Interpolation))):
            if getattr(self, name) not in allowed:
                raise UserError(f"preprocessing {name} is {getattr(self, name)!r}; known: {', '.join(allowed)}.")
        if not 0 < self.crop_ratio <= 1:
            raise UserError(f"preprocessing crop_ratio is {self.crop_ratio}; it must be above 0 and at most 1.")
        if self.crop_ratio != 1 and math.prod(self.size) / self.crop_ratio**2 > MOST_RESIZED:
            raise UserError(
                f"preprocessing crop_ratio {self.crop_ratio} enlarges images to more than {MOST_RESIZED:,} pixels; "
                "give a larger one."
            )
        if self.crop_ratio != 1 and self.resize != "crop":
            raise UserError(
                f"preprocessing crop_ratio {self.crop_ratio} has no meaning with resize {self.resize!r}; "
                "leave it at 1 or set resize to 'crop'."
            )
        if self.antialias and self.interpolation == "nearest":
            raise UserError("preprocessing antialias has no meaning with 'nearest' interpolation; set it to false.")
        if not self.mean or len(self.mean) != len(self.std):
            raise UserError(
                f"preprocessing has {len(self.mean)} mean and {len(self.std)} std values; give one of each a channel."
            )
        if any(not 0 <= value <= 1 for value in self.mean) or any(not 0 < value <= 1 for value in self.std):
            raise UserError(
                f"preprocessing mean {self.mean} and std {self.std} must lie in 0..1 (std above 0); "
                "divide values for pixels of 0..255 by 255."
            )

    @property
    def channels(self) -> int:
        """Number of channels of the network input."""
        return len(self.mean)

    def __call__(self, image: ImageLike) -> "Tensor":
        """One image → (C, h, w) float32.

        Args:
            image: a PIL image of any mode, or an array or tensor of one image as `patchconvnet.data.images.pixels`
                reads it.

        Raises:
            UserError: it is not an image, or too long and thin to be resized.
        """
        return self.batch(pixels(image, self.channels)[None])[0]

    def batch(self, images: "Tensor") -> "Tensor":
        """Images of one shape, (B, C, H, W) uint8 on any device → (B, C, h, w) float32 on the same device."""
        return self.normalise(self.resized(images))

    def canvas(self, image: ImageLike) -> "Tensor":
        """One image → (C, h, w) uint8, resized and not normalised: how images of all shapes are kept in memory.

        "crop" keeps the largest centre part here, whatever `crop_ratio`; that cut follows in `batch`.
        """
        import torch

        whole = replace(self, crop_ratio=1.0)
        return whole.resized(pixels(image, self.channels)[None])[0].mul_(255).round_().to(torch.uint8)

    def resized(self, images: "Tensor") -> "Tensor":
        """The first half of `batch`: (B, C, H, W) uint8 → (B, C, h, w) float32 in 0..1, not yet normalised."""
        import torch

        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != self.channels:
            raise UserError(
                f"given images of type {images.dtype} and shape {tuple(images.shape)}; needed are uint8 values of "
                f"shape (batch, {self.channels}, height, width)."
            )
        geometry = self.checked_geometry(*images.shape[-2:])
        (height, width), (top, left) = self.size, geometry.offset
        covers = images.shape[-2] >= height and images.shape[-1] >= width
        is_cut_only = geometry.resized == geometry.image and covers
        if is_cut_only:  # before anything is computed of what is cut off
            images = images[:, :, top : top + height, left : left + width]
        # One memory layout for all, since torch resizes other layouts with other kernels, which round otherwise.
        values = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        if is_cut_only:
            return values
        if geometry.resized != geometry.image:
            mode = "nearest-exact" if self.interpolation == "nearest" else self.interpolation
            values = torch.nn.functional.interpolate(values, geometry.resized, mode=mode, antialias=self.antialias)
            if self.interpolation == "bicubic":
                values.clamp_(0, 1)  # bicubic overshoots at edges, where PIL's uint8 would be cut off as well
        return self._cut(values, geometry)

    def normalise(self, values: "Tensor") -> "Tensor":
        """The second half of `batch`: (B, C, h, w) float32 in 0..1 → (values − mean) / std, of the same shape."""
        if all(value == 0 for value in self.mean) and all(value == 1 for value in self.std):
            return values
        mean = values.new_tensor(self.mean).view(-1, 1, 1)
        std = values.new_tensor(self.std).view(-1, 1, 1)
        return (values - mean).div_(std)

    def array(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """One image → (C, h, w) float32, as a call gives it (to 6e-7 before normalisation), without PyTorch.

        Args:
            image: a PIL image of any mode, or an array of one image.

        Raises:
            UserError: as for a call.
        """
        values = pixel_array(image, self.channels)
        geometry = self.checked_geometry(*values.shape[1:])
        values = values.astype(np.float32, order="C") / np.float32(255)
        if geometry.resized != geometry.image:
            values = resize(values, geometry.resized, self.interpolation, self.antialias)
            if self.interpolation == "bicubic":
                values = values.clip(0, 1)
        (height, width), (top, left) = self.size, geometry.offset
        mean, std = (np.array(channel, np.float32)[:, None, None] for channel in (self.mean, self.std))
        if values.shape[1] < height or values.shape[2] < width:  # letterbox
            framed = np.repeat(np.repeat(mean, height, 1), width, 2)
            framed[:, -top : -top + values.shape[1], -left : -left + values.shape[2]] = values
            values = framed
        else:
            values = values[:, top : top + height, left : left + width]
        return np.ascontiguousarray((values - mean) / std)

    def checked_geometry(self, height: int, width: int) -> Geometry:
        """As `geometry`.

        Raises:
            UserError: the image is so long and thin that it would be resized beyond `MOST_RESIZED` pixels.
        """
        geometry = self.geometry(height, width)
        if math.prod(geometry.resized) > MOST_RESIZED:
            raise UserError(
                f"an image of {width} × {height} pixels is too long and thin for resize 'crop', which would make it "
                f"{geometry.resized[1]} × {geometry.resized[0]}; crop it first, or use resize 'stretch' or 'letterbox'."
            )
        return geometry

    def geometry(self, height: int, width: int) -> Geometry:
        """Where the network input lies on an image of `height` × `width` pixels."""
        target_height, target_width = self.size
        resized, offset = self.size, (0, 0)
        if self.resize == "crop":
            cover_height, cover_width = (math.floor(side / self.crop_ratio) for side in self.size)
            if cover_height * width >= cover_width * height:
                resized = (cover_height, cover_height * width // height)
            else:
                resized = (cover_width * height // width, cover_width)
            offset = (round((resized[0] - target_height) / 2), round((resized[1] - target_width) / 2))
        elif self.resize == "letterbox":
            scale = min(target_height / height, target_width / width)
            resized = (max(1, round(height * scale)), max(1, round(width * scale)))
            offset = (-((target_height - resized[0]) // 2), -((target_width - resized[1]) // 2))
        return Geometry(image=(height, width), resized=resized, offset=offset, size=self.size)

    def with_size(self, size: int | tuple[int, int]) -> Self:
        """The same preprocessing for another network input: (height, width), or one number for a square."""
        return replace(self, size=(size, size) if isinstance(size, int) else size)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and YAML; `from_dict` reads them back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            UserError: a key is unknown, `size` is missing, or a value is not allowed.
        """
        known = [field.name for field in fields(cls)]
        unknown = [key for key in values if key not in known]
        if unknown:
            raise UserError(f"preprocessing has unknown keys {', '.join(unknown)}; known: {', '.join(known)}.")
        if "size" not in values:
            raise UserError("preprocessing has no size; give it as [height, width].")
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"preprocessing {dict(values)} holds a value of the wrong type: {error}.") from error

    @classmethod
    def from_pretrained_cfg(cls, cfg: Mapping[str, Any]) -> Self:
        """The preprocessing that a timm model's `pretrained_cfg` dict asks for in evaluation."""
        channels, height, width = cfg.get("input_size", (3, 224, 224))
        modes: dict[str, Resize] = {"center": "crop", "squash": "stretch", "border": "letterbox"}
        resize = modes.get(cfg.get("crop_mode") or "center", "crop")
        interpolations: dict[str, Interpolation] = {"bicubic": "bicubic", "nearest": "nearest"}
        interpolation = interpolations.get(cfg.get("interpolation") or "", "bilinear")
        return cls(
            size=(height, width),
            resize=resize,
            crop_ratio=(cfg.get("crop_pct") or 0.875) if resize == "crop" else 1.0,
            interpolation=interpolation,
            antialias=interpolation != "nearest",
            mean=tuple(cfg.get("mean") or IMAGENET_MEAN[:channels]),
            std=tuple(cfg.get("std") or IMAGENET_STD[:channels]),
        )

    def _cut(self, values: "Tensor", geometry: Geometry) -> "Tensor":
        (height, width), (top, left) = self.size, geometry.offset
        if values.shape[-2] < height or values.shape[-1] < width:  # letterbox
            mean = values.new_tensor(self.mean).view(1, -1, 1, 1)
            framed = mean.expand(values.shape[0], -1, height, width).contiguous()
            framed[:, :, -top : -top + values.shape[-2], -left : -left + values.shape[-1]] = values
            return framed
        return values[:, :, top : top + height, left : left + width].contiguous()


def _as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise UserError(f"preprocessing {name} is {value!r}; give it as a list of numbers.")
    return tuple(value)
