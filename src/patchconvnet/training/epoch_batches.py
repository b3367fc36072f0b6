"""The training images of an epoch: their order, their division over processes and parts, and their augmentation.

Everything random follows from the recipe's seed, the epoch and the step, so that a resumed run sees the same images.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import Tensor

from patchconvnet.data.augmentation import Augmentation, AugmentationConfig
from patchconvnet.data.splits import Split
from patchconvnet.errors import UserError
from patchconvnet.training.recipe import Recipe
from patchconvnet.training.sources import batch_source


class EpochBatches:
    """Batches of a training split, epoch by epoch.

    Args:
        split: the training images.
        recipe: batch size, augmentation, seed, image sizes.
        fabric: which process of how many this is, and its device.

    Attributes:
        steps: batches in an epoch. What does not fill the last one waits for another epoch's order.
        batch_size: images in each, over all processes.
        source: given lists of places in the split, yields their images and labels.

    Raises:
        UserError: there are fewer images than parts of a batch.
    """

    def __init__(self, split: Split, recipe: Recipe, fabric: Fabric):
        self.split, self.recipe, self.fabric = split, recipe, fabric
        self.parts = fabric.world_size * recipe.optimization.accumulate
        self.steps, self.batch_size = _steps(len(split), recipe.batch_size, self.parts)
        self.augmentation = self._augmentation(recipe.augmentation)
        self.source = batch_source(split, recipe, fabric.device, show_progress=fabric.is_global_zero)

    def _augmentation(self, config: AugmentationConfig) -> Augmentation:
        recipe = self.recipe
        smoothing = recipe.optimization.label_smoothing
        return Augmentation(
            config, recipe.preprocessing, len(self.split.class_names), label_smoothing=smoothing, seed=recipe.seed
        )

    def unmixed(self, patch: int, most: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """At most `most` images of an epoch after the last, of full size and without Mixup and CutMix."""
        plain = self._augmentation(replace(self.recipe.augmentation, mixup=0.0, cutmix=0.0))
        batches = max(most // self.batch_size, 1) * self.recipe.optimization.accumulate
        return islice(self.epoch(self.recipe.epochs, patch, plain), batches)

    def epoch(
        self, epoch: int, patch: int, augmentation: Augmentation | None = None, *, first_step: int = 0
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """This process's (images, labels, targets), part after part of every batch.

        Args:
            epoch: counted from 0.
            patch: the network's patch side, of which smaller images in the first epochs are multiples.
            augmentation: instead of the recipe's.
            first_step: the steps before it are left out.
        """
        augmentation = augmentation or self.augmentation
        recipe, seed = self.recipe, self.recipe.seed
        order = torch.randperm(len(self.split), generator=torch.Generator().manual_seed(mix(seed, epoch)))
        accumulate, rank = recipe.optimization.accumulate, self.fabric.global_rank
        count_here = self.batch_size // self.parts
        slices = [
            slice(begin, begin + count_here)
            for part in range(accumulate)
            for begin in [(part * self.fabric.world_size + rank) * count_here]
        ]
        global_batches = order[: self.steps * self.batch_size].split(self.batch_size)
        size = recipe.progressive.size(recipe.preprocessing.size, patch, epoch, recipe.epochs)
        places = [indices[part] for indices in global_batches for part in slices]
        first = first_step * accumulate
        for i, (images, labels) in enumerate(self.source(places[first:]), first):
            step, part = divmod(i, accumulate)
            # every part of a global batch draws the same random numbers and takes its own
            generator = torch.Generator().manual_seed(mix(seed, epoch, step))
            augmented, targets = augmentation(
                images,
                labels,
                indices=global_batches[step],
                epoch=epoch,
                generator=generator,
                batch_slice=slices[part],
            )
            if size != recipe.preprocessing.size:
                augmented = F.interpolate(augmented, size=size, mode="bilinear", antialias=True)
            yield augmented, labels, targets


def _steps(images: int, batch_size: int, parts: int) -> tuple[int, int]:
    """Steps of an epoch, and images in each."""
    if images >= batch_size:
        return images // batch_size, batch_size
    if images < parts:
        raise UserError(f"{images} training images are too few for {parts} equal parts of a batch")
    return 1, images // parts * parts


def mix(*numbers: int) -> int:
    """One seed from several numbers, so that neighbours have nothing in common."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint32)[0])
