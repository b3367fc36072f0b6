"""Is the file the network? Both are asked about the same inputs, and a file that differs is refused."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.deploy.description import Description
from patchconvnet.deploy.exportable import Answers
from patchconvnet.errors import UserError
from patchconvnet.explanation.maps import FLAT, flatness

TOLERANCE = 1e-4  # times the largest value, where that is above 1
HALF_TOLERANCE = 2e-2  # the same in float16
BATCHES = (1, 2, 3)

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def sizes_to_check(about: Description, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Network inputs (height, width) that a file takes: its own, rectangles, the smallest, and random ones."""
    own, sides = about.size, (about.height, about.width)
    sizes = [own]
    if not (about.height.is_fixed and about.width.is_fixed):
        factors = [(1.0, 1.5), (1.3, 0.8), (0.0, 0.5), *rng.uniform(0.5, 1.6, (2, 2)).tolist()]
        for pair in factors:
            lengths = []
            for side, length, factor in zip(sides, own, pair, strict=True):
                wanted = max(side.least, round(length * factor) // side.step * side.step)
                lengths.append(length if side.is_fixed else wanted)
            sizes.append((lengths[0], lengths[1]))
    return list(dict.fromkeys(sizes))


def made_images(channels: int, rng: np.random.Generator) -> list[Image.Image]:
    """Images for where none are given: smooth colours with edges and noise, upright, wide and high."""
    images = []
    for height, width in ((240, 240), (180, 333), (311, 150)):
        coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((width, height), 3)
        values = np.asarray(coarse).astype(np.int64)
        values[height // 3 : height // 2, width // 4 :] = rng.integers(0, 256, 3)
        noisy = (values + rng.integers(-12, 13, values.shape)).clip(0, 255).astype(np.uint8)
        images.append(Image.fromarray(noisy).convert("L" if channels == 1 else "RGB"))
    return images


def compare(
    run: Run, answers: Answers, about: Description, images: Sequence[Image.Image], *, tolerance: float = TOLERANCE
) -> dict[str, Any]:
    """Ask the file and the network about random inputs of many sizes and about images.

    Args:
        run: the file: prepared batch → outputs by name.
        answers: the network.
        about: the file's description.
        images: real images where there are some.
        tolerance: the largest difference that is taken for rounding, times the largest value where that is above 1;
            evidence must sum to the file's own logits to 1e-4 of that in any case.

    Returns:
        What was compared and the largest differences, for the description.

    Raises:
        UserError: the file answers otherwise than the network.
    """
    rng = np.random.default_rng(0)
    differences: dict[str, float] = {}
    flat = []
    tried = 0

    def check(given: np.ndarray, tensor: torch.Tensor, what: str) -> dict[str, np.ndarray]:
        nonlocal tried
        with torch.no_grad():
            wanted = dict(zip(answers.outputs, (values.numpy() for values in answers(tensor)), strict=True))
        try:
            found = run(given)
        except Exception as error:
            raise UserError(f"the exported file fails for {what}: {str(error)[:300]}; nothing was kept") from error
        for name, values in wanted.items():
            _note(differences, name, found[name], values, what, tolerance)
        if about.evidence == "exact":
            sums = found["evidence"].sum((2, 3), dtype=np.float64)
            bias = np.array(about.bias, np.float32)
            _note(differences, "sum of evidence", sums + bias, found["logits"], what, TOLERANCE)
        tried += len(given)
        return found

    like = next(answers.parameters()).dtype
    sizes = sizes_to_check(about, rng)
    channels = about.preprocessing.channels
    if about.input == "image":
        for size in sizes:
            for batch in (about.batch,) if about.batch else BATCHES:
                given = rng.normal(size=(batch, channels, *size)).astype(np.float32)
                check(given, torch.from_numpy(given).to(like), f"an input of {size[0]} × {size[1]}")
    for image in images:
        for size in sizes if about.input == "image" else [about.size]:
            prepared, given = _prepared(about, about.preprocessing.with_size(size), image)
            count = about.batch or 1
            found = check(np.stack([given] * count), torch.stack([prepared.to(like)] * count), f"an image at {size}")
            if size == about.size:
                flat.append(flatness(found["attention"][0]) > FLAT or _shared(about))
    return {
        "inputs": tried,
        "images": len(images),
        "sizes": [list(size) for size in sizes],
        "tolerance": tolerance if np.isfinite(tolerance) else None,
        "largest_differences": differences,
        "attention_is_flat": bool(flat) and all(flat),
    }


def _shared(about: Description) -> bool:
    """Whether several queries share one decision, so that their attention says little."""
    return 1 < about.queries != len(about.class_names)


def _prepared(about: Description, preprocessing: Preprocessing, image: Image.Image) -> tuple[torch.Tensor, np.ndarray]:
    """An image as the network takes it, and as the file does."""
    prepared = preprocessing(image)
    if about.input == "image":
        return prepared, prepared.numpy()
    array = np.asarray(image)
    return prepared, array[..., None] if array.ndim == 2 else array


def _note(
    differences: dict[str, float], name: str, found: np.ndarray, wanted: np.ndarray, what: str, tolerance: float
) -> None:
    if found.shape != wanted.shape:
        raise UserError(
            f"the exported file gives {name} of shape {found.shape} for {what}, and the network "
            f"{wanted.shape}; nothing was kept"
        )
    scale = max(1.0, float(np.abs(wanted).max(initial=0)))
    difference = float(np.abs(found.astype(np.float64) - wanted).max(initial=0)) / scale
    differences[name] = max(differences.get(name, 0.0), difference)
    if not difference <= tolerance:
        raise UserError(
            f"the exported file differs from the network by {difference:.2g} in {name} for {what}, and {tolerance:g} "
            "is allowed; nothing was kept"
        )
