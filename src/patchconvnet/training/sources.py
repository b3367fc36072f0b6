"""What a recipe names: its data, its network, and its training images on the device, from memory or files."""

import difflib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch
from torch import Tensor

from patchconvnet.data import datasets
from patchconvnet.data.labelled_images import StoredImages, in_batches
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.data.splits import DataSplits, Split
from patchconvnet.errors import UserError
from patchconvnet.models import AttentionClassifier, imagenet, load, with_attention_pooling
from patchconvnet.models.mirror import MirrorSymmetry
from patchconvnet.models.stem import PooledStem
from patchconvnet.models.weights import shipped_models
from patchconvnet.training.recipe import Recipe

Batch = tuple[Tensor, Tensor]

LITTLE, MANY_TIMES = 0.5, 4  # megabytes for an image, and as many times its size: more is worth a warning
WHITENING_PIXELS = 5_000_000  # looked at to whiten: some 5,000 images of CIFAR-10's size


def load_data(recipe: Recipe, *, show_progress: bool = False) -> DataSplits:
    """The data set that a recipe names.

    Raises:
        UserError: there is none, or the options don't fit it.
    """
    d = recipe.data
    return datasets.load(
        d.name,
        root=d.root,
        validation=d.validation,
        test=d.test,
        seed=d.seed,
        strict=d.strict,
        max_bad=d.max_bad,
        show_progress=show_progress,
    )


def build_model(recipe: Recipe, num_classes: int) -> AttentionClassifier:
    """The network that a recipe names, for `num_classes` and for as many channels as its preprocessing gives.

    Raises:
        UserError: there is no such network, or it does not take these options.
    """
    m = recipe.model
    if taken := {"num_classes", "pretrained"} & m.options.keys():
        raise UserError(
            f"model.options can't hold {taken.pop()}: num_classes follows from the data, pretrained is a field of model"
        )
    model = _build(recipe, num_classes)
    if model.config.pooling == "none":
        raise UserError(f"{m.name} with pooling 'none' gives no classes to train; choose another pooling")
    return model


def _build(recipe: Recipe, num_classes: int) -> AttentionClassifier:
    m = recipe.model
    if _is_model(m.name):
        model = load(m.name, **m.options)
        if model.num_classes != num_classes:
            model.reset_classifier(num_classes)
        return model
    if not timm.is_model(m.name):
        ours = timm.list_models("patchconvnet*")
        close = difflib.get_close_matches(m.name, timm.list_models()) or ours
        raise UserError(
            f"unknown model {m.name!r}; it is neither a model folder nor a network of ours or timm's, "
            f"such as {', '.join(close)}"
        )
    options = {"in_chans": recipe.preprocessing.channels, **m.options}
    if not m.name.startswith("patchconvnet"):
        return with_attention_pooling(m.name, num_classes=num_classes, pretrained=m.pretrained, **options)
    try:
        return timm.create_model(m.name, pretrained=m.pretrained, num_classes=num_classes, **options)
    except RuntimeError as error:  # timm's, about a tag that the variant does not have
        raise UserError(f"cannot build {m.name!r}: {error}; published: {_tags(m.name)}") from error
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"cannot build {m.name!r} with options {m.options}: {error}") from error


def whiten(
    model: AttentionClassifier, recipe: Recipe, source: Callable[[list[Tensor]], Iterator[Batch]], count: int
) -> None:
    """Whiten the network's stem by some of the `count` training images; see `PooledStem.whiten`.

    A network that comes with weights, from a folder or published ones, keeps its stem.

    Raises:
        UserError: the network has no pooled stem.
    """
    if _brings_weights(recipe):
        return
    stem = getattr(model, "stem", None)
    if not isinstance(stem, PooledStem):
        raise UserError(
            f"model.whiten is for networks with a pooled stem, such as patchconvnet_mini; {recipe.model.name} has none"
        )
    height, width = recipe.preprocessing.size
    wanted = min(count, max(WHITENING_PIXELS // (height * width), 1))
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(recipe.seed))[:wanted]
    images, _ = next(iter(source([chosen])))
    stem.whiten(recipe.preprocessing.batch(images.cpu()), mirrored=recipe.model.mirror)


def make_symmetric(model: AttentionClassifier, recipe: Recipe) -> None:
    """Give the network weights with the mirror symmetry that training is to keep; after `whiten`.

    Raises:
        UserError: it cannot have it, or comes with weights that have not.
    """
    symmetry = MirrorSymmetry(model)
    if not _brings_weights(recipe):
        symmetry.begin()
    elif symmetry.is_kept():
        symmetry.keep()
    else:
        raise UserError(
            f"model.mirror is for networks that are trained from scratch, or were with it; {recipe.model.name} comes "
            "with weights that are not symmetric"
        )


def _brings_weights(recipe: Recipe) -> bool:
    return recipe.model.pretrained or _is_model(recipe.model.name)


def _is_model(name: str) -> bool:
    """Whether it names weights, too, and not only a network."""
    return Path(name).is_dir() or "/" in name or name in (imagenet.NAME, *shipped_models())


def batch_source(
    split: Split, recipe: Recipe, device: torch.device, *, show_progress: bool
) -> Callable[[list[Tensor]], Iterator[Batch]]:
    """Something that, given lists of places in the data set, yields their (images uint8 (B, C, H, W), labels (B,)).

    Images from files are brought to the size that augmentation takes its part of. They are read once and kept on the
    device while they need no more than the recipe's `data.memory_gb`.
    """
    if isinstance(split, StoredImages):
        files, canvas, d = split, _canvas(recipe), recipe.data
        if not files.fits_in_memory(canvas.size, int(d.memory_gb * 2**30), canvas.channels):
            return lambda places: _from_files(files, canvas, device, places, d.workers)
        split = files.to_memory(canvas, workers=d.workers, show_progress=show_progress)
    images, labels = split.images.to(device), split.labels.to(device)

    def from_memory(places: list[Tensor]) -> Iterator[Batch]:
        for place in places:
            place = place.to(device)
            yield images[place], labels[place]

    return from_memory


def warn_of_blocks(data: DataSplits, recipe: Recipe) -> None:
    """Say what a training costs that reads much more than the images it takes.

    Warns:
        UserWarning: images are read in blocks, and one can't be read for much less than all of its block.
    """
    images, validation, canvas = data.require("train"), data.validation, _canvas(recipe)
    if not (isinstance(images, StoredImages) and images.blocks):
        return
    of_rows, megabytes, alone = images.blocks
    count = int(of_rows[-1]) + 1
    if alone <= max(LITTLE, MANY_TIMES * megabytes * count / len(of_rows)):
        return
    costs = []
    if not images.fits_in_memory(canvas.size, int(recipe.data.memory_gb * 2**30), canvas.channels):
        costs.append(f"training takes images in random order, and reads {alone:,.1f} MB for each")
    if isinstance(validation, StoredImages) and (numbers := validation.block_numbers()) is not None:
        read = min(len(numbers.unique()) * megabytes, len(numbers) * alone)
        costs.append(f"the validation of an epoch reads {read:,.1f} MB of {count * megabytes:,.1f}")
    if costs:
        warnings.warn(
            f"{data.name} is read in groups of about {len(of_rows) / count:,.0f} images, {megabytes:,.1f} MB; "
            f"{'; '.join(costs)}. Bring them into files of which each image is read alone: patchconvnet shard "
            f"--data '{data.name}' --out shards, then train with --data wds:shards.",
            stacklevel=2,
        )


def _canvas(recipe: Recipe) -> Preprocessing:
    a, (height, width) = recipe.augmentation, recipe.preprocessing.size
    if a.random_resized_crop_scale is not None:  # as ImageNet's 256 pixels for 224: a box of them is enlarged less
        return recipe.preprocessing.with_size((height * 8 // 7, width * 8 // 7))
    return recipe.preprocessing.with_size(a.canvas or (height, width))


def _from_files(
    split: StoredImages, canvas: Preprocessing, device: torch.device, places: list[Tensor], workers: int
) -> Iterator[Batch]:
    batches = in_batches(
        split.tensors(canvas.canvas),
        workers,
        batch_sampler=[place.tolist() for place in places],
        pin_memory=device.type == "cuda",
    )
    for images, labels, _ in batches:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _tags(name: str) -> str:
    return ", ".join(timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)) or "none"
