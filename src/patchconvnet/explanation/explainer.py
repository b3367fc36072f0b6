"""`explain(model, image)` → `Explanation`: what a network says of an image, where it looked, and what spoke for it."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from patchconvnet.data.preprocessing import ImageLike, Preprocessing, as_rgb, pixels, read_image
from patchconvnet.errors import UserError
from patchconvnet.explanation.evidence import Look, look
from patchconvnet.explanation.explanation import Explanation
from patchconvnet.explanation.maps import class_index
from patchconvnet.explanation.patch_grid import Grid, patch_grid, resample
from patchconvnet.models.modes import evaluation_mode

Source = ImageLike | str | os.PathLike[str]


def explain(
    model: nn.Module,
    image: Source,
    *,
    preprocessing: Preprocessing | None = None,
    size: int | tuple[int, int] | None = None,
    target: int | str | None = None,
    classes: Sequence[int | str] = (),
    top: int = 5,
    refine: int = 0,
    name: str | None = None,
) -> Explanation:
    """What a network says about an image, where it looked, and what spoke for it.

    Args:
        model: a network with a pooling head of this package, on any device; its mode is left as it was.
        image: a path, a PIL image, a uint8 array (H, W[, C]) or a uint8 tensor (C, H, W).
        preprocessing: from image to network input; by default the model's own.
        size: another network input, (height, width) or one number for a square; a larger one gives a finer grid.
        target: the class to ask about, by name or index; by default the predicted one.
        classes: further classes whose evidence is wanted, for heads without exact evidence and with over 100 classes.
        top: how many classes figures and reports list.
        refine: n ≥ 1 gives maps of n × n values a patch, averaged over n × n shifts by parts of a patch and both flips,
            for 2·n² forward passes more; logits stay those of the plain pass.
        name: what to call the image; by default its file's name without the ending.

    Raises:
        UserError: an unreadable image, an unknown class, a model without maps, or an option out of its range.

    Example:
        >>> explanation = explain(PatchConvNet.from_pretrained("runs/pets/best"), "cat.jpg")
        >>> explanation.predicted.name, explanation.map_for().shape
        ('cat', (12, 12))
    """
    return explain_batch(
        model,
        [image],
        preprocessing=preprocessing,
        size=size,
        target=target,
        classes=classes,
        top=top,
        refine=refine,
        names=None if name is None else [name],
    )[0]


@torch.no_grad()
def explain_batch(
    model: nn.Module,
    images: Sequence[Source],
    *,
    preprocessing: Preprocessing | None = None,
    size: int | tuple[int, int] | None = None,
    target: int | str | None = None,
    classes: Sequence[int | str] = (),
    top: int = 5,
    refine: int = 0,
    names: Sequence[str] | None = None,
) -> list[Explanation]:
    """`explain` for several images of any shapes, in one forward pass.

    Args: as `explain`; names: one an image.

    Raises:
        UserError: as `explain`.
    """
    if not images:
        return []
    if top < 1:
        raise UserError(f"top is {top}; it must be 1 or more.")
    if names is not None and len(names) != len(images):
        raise UserError(f"given {len(names)} names for {len(images)} images; give one for each image.")
    preprocessing = preprocessing or preprocessing_of(model)
    if size is not None:
        preprocessing = preprocessing.with_size(size)
    class_names = class_names_of(model)
    wanted = tuple(class_index(class_names, c) for c in (*classes, *(() if target is None else (target,))))

    read = [read_image(image) if isinstance(image, str | os.PathLike) else image for image in images]
    like = next(model.parameters())
    inputs = torch.stack([preprocessing(original) for original in read]).to(like.device, like.dtype)
    with evaluation_mode(model):
        plain = look(model, inputs, wanted, top)
        grid = patch_grid(model, preprocessing.size, (plain.attention.shape[2], plain.attention.shape[3]))
        attention, evidence = _numpy(plain.attention), _numpy(plain.evidence)
        if refine:
            grid, attention, evidence = _refined(model, inputs, plain, grid, refine)
    logits, bias, chosen = _numpy(plain.logits), _numpy(plain.bias), plain.classes.tolist()

    explanations = []
    for i, (image, source) in enumerate(zip(images, read, strict=True)):
        original = _as_image(source)
        explanations.append(
            Explanation(
                name=names[i] if names is not None else _name(image, i),
                image=original,
                class_names=class_names,
                logits=logits[i],
                bias=bias,
                attention=attention[i],
                evidence=evidence[i],
                evidence_classes=tuple(chosen[i]),
                exact=plain.exact and not refine,
                grid=grid,
                geometry=preprocessing.geometry(original.height, original.width),
                target=None if target is None else class_index(class_names, target),
                top=min(top, len(class_names)),
                refine=refine,
            )
        )
    return explanations


def _refined(
    model: nn.Module, inputs: Tensor, plain: Look, grid: Grid, refine: int
) -> tuple[Grid, np.ndarray, np.ndarray]:
    """Maps averaged over shifts by parts of a patch and both flips, on a grid `refine` times as fine both ways."""
    height, width = inputs.shape[2:]
    step = (round(grid.step[0]), round(grid.step[1]))
    if not 1 <= refine <= min(step):
        raise UserError(f"refine is {refine}; it must lie between 1 and {min(step)}, the pixels of a patch.")
    shape = (-(-height * refine // step[0]), -(-width * refine // step[1]))
    fine_step = (step[0] / refine, step[1] / refine)
    fine = Grid(shape, fine_step, (fine_step[0] / 2, fine_step[1] / 2))
    shifts = [[math.floor((i + 0.5) * s / refine - s / 2) for i in range(refine)] for s in step]
    border = (max(map(abs, shifts[1])), max(map(abs, shifts[0])))
    padded = nn.functional.pad(inputs, (border[0], border[0], border[1], border[1]), mode="replicate")

    maps: np.ndarray = np.zeros(())
    asked = tuple(sorted(set(plain.classes.flatten().tolist())))
    for down in shifts[0]:
        for right in shifts[1]:
            shifted = padded[:, :, border[1] + down :, border[0] + right :][:, :, :height, :width]
            for flipped in (False, True):
                seen = look(model, shifted.flip(-1) if flipped else shifted, asked, top=0)
                at = grid.mirrored(width) if flipped else grid
                both = torch.cat([seen.attention, seen.evidence_of(plain.classes)], 1)
                values = _numpy(both.flip(-1) if flipped else both)
                # each patch's share goes to refine² finer ones, and there are 2·refine² passes
                maps = maps + resample(values, at.moved(down, right), fine) / (2 * refine**4)
    attention, evidence = np.split(maps.astype(np.float32), [plain.attention.shape[1]], axis=1)
    # interpolation changes sums a little at the borders; attention keeps the plain pass's, so that it is a share still
    attention *= _numpy(plain.attention).sum((2, 3), keepdims=True) / attention.sum((2, 3), keepdims=True)
    return fine, attention, evidence


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """A model's own preprocessing: that of its model folder, or the one its variant is registered with.

    Raises:
        UserError: it has neither.
    """
    stored = getattr(getattr(model, "metadata", None), "preprocessing", None)
    if stored:
        return Preprocessing.from_dict(stored)
    registered = getattr(model, "pretrained_cfg", None)
    if registered:
        return Preprocessing.from_pretrained_cfg(registered)
    raise UserError("this model does not say how images become its input; give `preprocessing`.")


def class_names_of(model: nn.Module) -> list[str]:
    """A model's class names, or "class 0", "class 1" … where it has none.

    Raises:
        UserError: it has more names than classes, or fewer.
    """
    stored = getattr(getattr(model, "metadata", None), "class_names", None)
    count = int(getattr(model, "num_classes", 0))
    if stored and len(stored) != count:
        raise UserError(
            f"this model has {count} classes and {len(stored)} class names; mend `model.metadata.class_names`."
        )
    return list(stored) if stored else [f"class {k}" for k in range(count)]


def _as_image(source: ImageLike) -> Image.Image:
    if isinstance(source, Image.Image):
        return as_rgb(source)
    return Image.fromarray(pixels(source, 3).movedim(0, -1).cpu().numpy())


def _name(image: Source, index: int) -> str:
    return Path(image).stem if isinstance(image, str | os.PathLike) else f"image_{index}"


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()
