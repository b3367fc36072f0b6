"""Training images: changed at random per image, in batches, on the training device, from uint8.

A batch costs a few index operations and no loop over images (only RandAugment works image by image, in PIL). All
random numbers are drawn on the CPU for the global batch, of which each process then takes its slice, so that one
process and many see the same images. Reflected crop, alternating flip and cutout are those of airbench
(github.com/KellerJordan/cifar10-airbench); RandAugment, Mixup and CutMix are timm's, random erasing follows timm's.
"""

import contextlib
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup, mixup_target
from torch import Generator, Tensor

from patchconvnet.data.images import pixels
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.errors import UserError

Flip = Literal["none", "random", "alternating"]


@dataclass(frozen=True)
class AugmentationConfig:
    """What is done to training images, in the order in which it is done; by default nothing.

    Args:
        randaugment: timm's RandAugment, such as "rand-m9-mstd0.5-inc1"; slow, since it works on single PIL images.
        canvas: side(s) in pixels, one number or (height, width), that images are resized to before a crop of the
            network's size is taken at a random place (the Keras example: 52, of which 48).
        random_crop_padding: the image, already of the network's size, is moved by up to so many pixels in each
            direction, and what is missing is filled by reflection.
        random_resized_crop_scale: (smallest, largest) share of the image's area that a random box keeps, which is
            then resized to the network's size (ImageNet: 0.08, 1).
        random_resized_crop_ratio: (smallest, largest) width / height of that box.
        flip: mirror left and right: "none", at "random", or "alternating": every image at random in its first epoch
            and then every other epoch, so that two epochs show each image both ways.
        color_jitter: largest relative change j of brightness, contrast and saturation, each drawn from 1 − j to 1 + j.
        cutout: side in pixels of a square set to the mean colour at a random place.
        random_erasing: probability that a box of 2 to 33 % of the area is filled with noise.
        mixup: alpha of Mixup's Beta distribution; 0 for none.
        cutmix: alpha of CutMix's Beta distribution; 0 for none. With both, every batch has one of them, by coin.

    Raises:
        UserError: a value out of its range, or options that contradict each other.
    """

    randaugment: str | None = None
    canvas: int | tuple[int, int] | None = None
    random_crop_padding: int = 0
    random_resized_crop_scale: tuple[float, float] | None = None
    random_resized_crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: Flip = "none"
    color_jitter: float = 0.0
    cutout: int = 0
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        crops = {
            "canvas": self.canvas is not None,
            "random_crop_padding": self.random_crop_padding != 0,
            "random_resized_crop_scale": self.random_resized_crop_scale is not None,
        }
        chosen = [name for name, is_set in crops.items() if is_set]
        if len(chosen) > 1:
            raise UserError(f"augmentation has {' and '.join(chosen)}, which are two ways to crop; keep one of them.")
        if self.flip not in ("none", "random", "alternating"):
            raise UserError(f"augmentation flip is {self.flip!r}; known: none, random, alternating.")
        for name in ("random_crop_padding", "cutout", "mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise UserError(f"augmentation {name} is {getattr(self, name)}; it must not be negative.")
        for name in ("color_jitter", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augmentation {name} is {getattr(self, name)}; it must lie in 0..1.")
        scale, ratio = self.random_resized_crop_scale or (1, 1), self.random_resized_crop_ratio
        if not 0 < scale[0] <= scale[1] <= 1:
            raise UserError(f"augmentation random_resized_crop_scale is {scale}; give two shares, 0 < low ≤ high ≤ 1.")
        if not 0 < ratio[0] <= ratio[1]:
            raise UserError(f"augmentation random_resized_crop_ratio is {ratio}; give two ratios, 0 < low ≤ high.")


class Augmentation:
    """Applies an `AugmentationConfig` to batches.

    Args:
        config: what to do.
        preprocessing: gives the network's size, the resize to it or to the canvas, and the normalisation at the end.
        num_classes: length of the soft targets that Mixup and CutMix make.
        label_smoothing: smoothing of those soft targets; labels that stay indices are the loss's to smooth.
        seed: of the coins of alternating flips.

    Raises:
        UserError: the options do not fit the network's size, or timm does not know the RandAugment string.
    """

    def __init__(
        self,
        config: AugmentationConfig,
        preprocessing: Preprocessing,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.config = config
        self.preprocessing = preprocessing
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.seed = seed
        height, width = preprocessing.size
        if config.canvas is not None:
            canvas = preprocessing.with_size(config.canvas)
            if canvas.size[0] < height or canvas.size[1] < width:
                raise UserError(
                    f"augmentation canvas {canvas.size[0]}×{canvas.size[1]} is smaller than the network's input "
                    f"{height}×{width}; make it at least as large."
                )
            self._before_crop = canvas
        else:
            self._before_crop = preprocessing
        if config.random_crop_padding >= min(height, width):
            raise UserError(
                f"augmentation random_crop_padding is {config.random_crop_padding}, the network's input only "
                f"{height}×{width}; a reflection is narrower than the image."
            )
        if config.cutout > min(height, width):
            raise UserError(
                f"augmentation cutout is {config.cutout}, larger than the network's input {height}×{width}."
            )
        self._rand_augment = None
        if config.randaugment is not None:
            self._rand_augment = _rand_augment(config.randaugment, preprocessing)
        self._mixup = None
        if self.soft_targets:
            self._mixup = Mixup(config.mixup, config.cutmix, label_smoothing=label_smoothing, num_classes=num_classes)

    @property
    def soft_targets(self) -> bool:
        """Whether targets are class probabilities (Mixup, CutMix), label smoothing included, instead of labels."""
        return self.config.mixup > 0 or self.config.cutmix > 0

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        indices: Tensor,
        epoch: int,
        generator: Generator,
        batch_slice: slice | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Training images → network inputs.

        Args:
            images: (B, C, H, W) uint8, this process's images, on the device.
            labels: (B,) int64, on the same device.
            indices: (G,) the whole global batch's places in the data set.
            epoch: counted from 0; decides alternating flips.
            generator: a CPU generator in the same state in every process; all random numbers come from it.
            batch_slice: which part of the global batch `images` is; all of it by default. With Mixup or CutMix, which
                mix neighbours in pairs, it must begin at an even place for the pairs to be those of one process.

        Returns:
            (B, C, h, w) float32, normalised, and (B,) int64 labels or, if `soft_targets`, (B, num_classes) float32.
        """
        config, (height, width) = self.config, self.preprocessing.size
        part = batch_slice or slice(None)
        draw = _Draw(len(indices), part, generator, images.device)
        indices = indices[part]
        if not len(images) == len(labels) == len(indices):
            raise ValueError(f"{len(images)} images and {len(labels)} labels for {len(indices)} places in the batch")

        if self._rand_augment is not None:
            images = self._rand_augmented(images, draw.integers(2**31).tolist())
        if config.flip == "alternating":
            flip = _coins(indices, self.seed).to(images.device) ^ bool(epoch % 2)
        else:
            flip = draw.uniform() < (0.5 if config.flip == "random" else 0.0)

        if config.random_resized_crop_scale is not None:
            scale, ratio = config.random_resized_crop_scale, config.random_resized_crop_ratio
            box = draw.boxes(images.shape[-2], images.shape[-1], scale, ratio, fallback_to_all=True)
            values = _resized_boxes(images.to(torch.float32).div_(255), box, flip, (height, width))
        else:
            values = self._before_crop.resized(images)
            reach = config.random_crop_padding
            if config.canvas is not None:
                top = draw.integers(values.shape[-2] - height + 1)
                left = draw.integers(values.shape[-1] - width + 1)
                values = _window(values, top, left, flip, (height, width))
            elif reach or config.flip != "none":
                top, left = draw.integers(2 * reach + 1) - reach, draw.integers(2 * reach + 1) - reach
                values = _window(values, top, left, flip, (height, width))

        if config.color_jitter:
            low, high = 1 - config.color_jitter, 1 + config.color_jitter
            values = _jittered(values, *(draw.uniform(low, high) for _ in range(3)))
        values = self.preprocessing.normalise(values)
        if config.cutout:
            top, left = draw.integers(height - config.cutout + 1), draw.integers(width - config.cutout + 1)
            side = torch.full_like(top, config.cutout)
            values = values.masked_fill(_inside(top, left, side, side, height, width), 0)
        if config.random_erasing:
            box = draw.boxes(height, width, (0.02, 1 / 3), (0.3, 1 / 0.3))
            erased = _inside(*box, height, width) & (draw.uniform() < config.random_erasing).view(-1, 1, 1, 1)
            values = torch.where(erased, draw.noise((values.shape[1], height, width)), values)
        if self._mixup is None:
            return values, labels
        return self._mixed(values, labels, draw.seed())

    def _rand_augmented(self, images: Tensor, seeds: list[int]) -> Tensor:
        changed = []
        for image, seed in zip(images.cpu(), seeds, strict=True):
            pil_image = Image.fromarray(image.movedim(0, -1).numpy())
            with _seeded(seed):
                changed.append(pixels(self._rand_augment(pil_image), self.preprocessing.channels))  # type: ignore[misc]
        return torch.stack(changed).to(images.device)

    def _mixed(self, values: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """timm's Mixup of neighbours: it mixes a batch with its reverse, so pairs lie from the ends inwards."""
        even = len(values) // 2 * 2
        pairs = torch.arange(even, device=values.device)
        order = torch.cat((pairs[0::2], pairs[1::2].flip(0)))
        smoothed = mixup_target(labels, self.num_classes, 1.0, self.label_smoothing)
        assert self._mixup is not None
        with _seeded(seed):
            mixed, targets = self._mixup(values[order], labels[order])
        back = order.argsort()
        # The last one of an odd batch has no partner and stays itself.
        return torch.cat((mixed[back], values[even:])), torch.cat((targets[back], smoothed[even:]))


class _Draw:
    """Random numbers for the global batch, of which this process gets its part, on its device."""

    def __init__(self, count: int, part: slice, generator: Generator, device: torch.device) -> None:
        self.count, self.part, self.generator, self.device = count, part, generator, device

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        drawn = torch.rand(self.count, generator=self.generator)[self.part]
        return (low + (high - low) * drawn).to(self.device)

    def integers(self, end: int) -> Tensor:
        """(B,) from 0 to `end` − 1."""
        return torch.randint(end, (self.count,), generator=self.generator)[self.part].to(self.device)

    def seed(self) -> int:
        return int(torch.randint(2**31, (), generator=self.generator))

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        """Normal noise, one field for the whole batch: a field an image would cost more than all the rest."""
        return torch.randn(shape, generator=self.generator).to(self.device)

    def boxes(
        self,
        height: int,
        width: int,
        area: tuple[float, float],
        ratio: tuple[float, float],
        fallback_to_all: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes of random area, shape and place, as torchvision and timm draw them: up to ten attempts an image.

        Args:
            height, width: of the image.
            area: (smallest, largest) share of the image's area.
            ratio: (smallest, largest) width / height.
            fallback_to_all: whether the box is the whole image, and not empty, where no attempt fits into it.

        Returns:
            top, left, height, width of each box, (B,) int64.
        """
        shape = (10, self.count)
        areas = height * width * (area[0] + (area[1] - area[0]) * torch.rand(shape, generator=self.generator))
        low, high = math.log(ratio[0]), math.log(ratio[1])
        ratios = torch.exp(low + (high - low) * torch.rand(shape, generator=self.generator))
        heights = (areas / ratios).sqrt().round().long()
        widths = (areas * ratios).sqrt().round().long()
        fits = (heights <= height) & (widths <= width) & (heights > 0) & (widths > 0)
        first = fits.int().argmax(0, keepdim=True)
        found = fits.any(0)
        all_or_nothing = int(fallback_to_all)
        box_height = torch.where(found, heights.gather(0, first)[0], height * all_or_nothing)
        box_width = torch.where(found, widths.gather(0, first)[0], width * all_or_nothing)
        top, left = (
            (torch.rand(self.count, generator=self.generator) * (side - box_side + 1)).long()
            for side, box_side in ((height, box_height), (width, box_width))
        )
        top, left, box_height, box_width = (
            value[self.part].to(self.device) for value in (top, left, box_height, box_width)
        )
        return top, left, box_height, box_width


def _coins(indices: Tensor, seed: int) -> Tensor:
    """A fair coin for each image of the data set, the same in every epoch: one bit of its hash (splitmix64)."""
    bits = (indices.to(torch.int64) + 1 + (seed % 2**20) * 2**40) * -7046029254386353131
    bits = (bits ^ ((bits >> 30) & ((1 << 34) - 1))) * -4658895280553007687
    bits = (bits ^ ((bits >> 27) & ((1 << 37) - 1))) * -7723592293110705685
    return ((bits >> 40) & 1).bool()


def _window(values: Tensor, top: Tensor, left: Tensor, flip: Tensor, size: tuple[int, int]) -> Tensor:
    """From each image its own window, mirrored where `flip`; beyond the edges the image is reflected.

    Args:
        values: (B, C, H, W).
        top, left: (B,) corner of the window, may be negative.
        flip: (B,) bool.
        size: (height, width) of the window.

    Returns:
        (B, C, *size).
    """
    height, width = size
    rows = top[:, None] + torch.arange(height, device=values.device)  # (B, h)
    across = torch.arange(width, device=values.device)
    columns = left[:, None] + torch.where(flip[:, None], width - 1 - across, across)  # (B, w)
    rows, columns = _reflected(rows, values.shape[-2]), _reflected(columns, values.shape[-1])
    count, channels, image_height, image_width = values.shape
    places = (rows[:, :, None] * image_width + columns[:, None, :]).view(count, 1, height * width)
    # A gather over flattened pixels takes a quarter of the time of indexing with rows and columns.
    picked = values.reshape(count, channels, image_height * image_width).gather(2, places.expand(-1, channels, -1))
    return picked.view(count, channels, height, width)


def _reflected(places: Tensor, side: int) -> Tensor:
    """−1 → 1, −2 → 2, side → side − 2: reflection that does not repeat the edge, as torch's "reflect" padding."""
    places = places.abs()
    return torch.where(places >= side, 2 * (side - 1) - places, places)


def _resized_boxes(
    values: Tensor, box: tuple[Tensor, Tensor, Tensor, Tensor], flip: Tensor, size: tuple[int, int]
) -> Tensor:
    """From each image its own box, resized bilinearly to `size` and mirrored where `flip`: (B, C, *size)."""
    height, width = values.shape[-2:]
    top, left, box_height, box_width = (side.to(values.dtype) for side in box)
    mirror = torch.where(flip, -1.0, 1.0)
    zero = torch.zeros_like(top)
    # Affine map from the output's −1..1 to the image's −1..1: half the box's side, and its centre.
    across = torch.stack((mirror * box_width / width, zero, (2 * left + box_width) / width - 1), dim=1)
    down = torch.stack((zero, box_height / height, (2 * top + box_height) / height - 1), dim=1)
    grid = F.affine_grid(torch.stack((across, down), dim=1), [len(values), 1, *size], align_corners=False)
    return F.grid_sample(values, grid, "bilinear", "border", align_corners=False)


def _jittered(values: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Colour jitter of (B, C, h, w) in 0..1 by (B,) factors, with torchvision's formulas, in this order."""
    brightness, contrast, saturation = (factor.view(-1, 1, 1, 1) for factor in (brightness, contrast, saturation))
    values = (values * brightness).clamp_(0, 1)
    grey = _grey(values).mean((1, 2, 3), keepdim=True)
    values = grey.lerp(values, contrast).clamp_(0, 1)
    return _grey(values).lerp(values, saturation).clamp_(0, 1)


def _grey(values: Tensor) -> Tensor:
    if values.shape[1] != 3:
        return values.mean(1, keepdim=True)
    weights = values.new_tensor((0.2989, 0.587, 0.114)).view(1, 3, 1, 1)  # ITU-R 601-2, as torchvision and PIL
    return (values * weights).sum(1, keepdim=True)


def _inside(top: Tensor, left: Tensor, box_height: Tensor, box_width: Tensor, height: int, width: int) -> Tensor:
    """(B, 1, height, width) bool: the pixels inside of each image's box."""
    rows = torch.arange(height, device=top.device) - top[:, None]  # (B, h), counted from the box's edge
    columns = torch.arange(width, device=top.device) - left[:, None]
    in_rows = (rows >= 0) & (rows < box_height[:, None])
    in_columns = (columns >= 0) & (columns < box_width[:, None])
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def _rand_augment(config: str, preprocessing: Preprocessing):  # type: ignore[no-untyped-def]  # timm has no types
    if preprocessing.channels != 3:
        raise UserError(f"augmentation randaugment works on colour images, not on {preprocessing.channels} channels.")
    mean = tuple(round(255 * value) for value in preprocessing.mean)
    hparams = {"translate_const": int(min(preprocessing.size) * 0.45), "img_mean": mean}
    try:
        transform = rand_augment_transform(config, hparams)
    except (AssertionError, ValueError, KeyError) as error:
        raise UserError(
            f"augmentation randaugment is {config!r}, which timm does not know; write it like 'rand-m9-mstd0.5-inc1'."
        ) from error
    for operation in transform.ops:
        if operation.name.startswith("Posterize"):
            operation.level_fn = _at_least_one_bit(operation.level_fn)
    return transform


def _at_least_one_bit(bits: Callable[[float, Any], tuple[int]]) -> Callable[[float, Any], tuple[int]]:
    """At some magnitudes timm keeps 0 bits of a colour, a black image, which Pillow refuses from version 12 on."""
    return lambda magnitude, options: (max(bits(magnitude, options)[0], 1),)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's and numpy's global random numbers, which timm uses, from a seed; afterwards they are as before."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
