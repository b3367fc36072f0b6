"""Finer maps: averaged over shifts of the network input by parts of a patch, and over both flips. NumPy alone."""

import math
from collections.abc import Callable

import numpy as np

from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.errors import UserError
from patchconvnet.explanation.crops import CELLS, View
from patchconvnet.explanation.patch_grid import Grid, resample

BATCH_PIXELS = 16 * 224 * 224  # of a batch's network inputs: beyond, more images at a time are not faster on a CPU
MOST_IN_BATCH = 32
LARGE_PATCH, FINE = 16, 14  # pixels of patches that are worth refining; patches a side of a map that needs none


def batch_size_for(height: int, width: int) -> int:
    """How many network inputs of that size are answered at a time, where nobody says how many."""
    return min(max(BATCH_PIXELS // (height * width), 1), MOST_IN_BATCH)


def refined(
    ask: Callable[[np.ndarray], np.ndarray], inputs: np.ndarray, grid: Grid, attention: np.ndarray, refine: int
) -> tuple[Grid, np.ndarray, np.ndarray]:
    """Maps on a grid `refine` times as fine both ways.

    Args:
        ask: of network inputs, (n·B, C, H, W), n shifts of the B images one after the other: their attention maps and
            behind them their evidence, (n·B, Q + K', h, w).
        inputs: (B, C, H, W) float32.
        grid: of the plain maps.
        attention: (B, Q, h, w), of the plain pass.
        refine: how many times finer.

    Returns:
        The fine grid, attention (B, Q, h', w') and evidence (B, K', h', w').

    Raises:
        UserError: `refine` is not between 1 and the pixels of a patch.
    """
    images, _, height, width = inputs.shape
    step = (round(grid.step[0]), round(grid.step[1]))
    if not 1 <= refine <= min(step):
        raise UserError(f"refine is {refine}; it must be between 1 and {min(step)}, the pixels of a patch.")
    shape = (-(-height * refine // step[0]), -(-width * refine // step[1]))
    fine_step = (step[0] / refine, step[1] / refine)
    fine = Grid(shape, fine_step, (fine_step[0] / 2, fine_step[1] / 2))
    shifts = [[math.floor((i + 0.5) * s / refine - s / 2) for i in range(refine)] for s in step]
    border = (max(map(abs, shifts[0])), max(map(abs, shifts[1])))
    padded = np.pad(inputs, ((0, 0), (0, 0), *((b, b) for b in border)), mode="edge")

    maps: np.ndarray = np.zeros(())
    passes = [(down, right, flipped) for down in shifts[0] for right in shifts[1] for flipped in (False, True)]
    together = max(1, batch_size_for(height, width) // images)
    for chunk in (passes[k : k + together] for k in range(0, len(passes), together)):
        shifted = [
            padded[:, :, border[0] + y : border[0] + y + height, border[1] + x :][..., :width] for y, x, _ in chunk
        ]
        turned = [image[..., ::-1] if flipped else image for image, (*_, flipped) in zip(shifted, chunk, strict=True)]
        both = np.split(ask(np.concatenate(turned)), len(chunk))
        for values, (down, right, flipped) in zip(both, chunk, strict=True):
            at = grid.mirrored(width) if flipped else grid
            placed = resample(values[..., ::-1] if flipped else values, at.moved(down, right), fine)
            # each patch's share goes to refine² finer ones, and there are 2·refine² passes
            maps = maps + placed / (2 * refine**4)
    finer, evidence = np.split(maps.astype(np.float32), [attention.shape[1]], axis=1)
    # interpolation changes sums a little at the borders; attention keeps the plain pass's, so that it is a share still
    finer *= attention.sum((2, 3), keepdims=True) / finer.sum((2, 3), keepdims=True)
    return fine, finer, evidence


def times_finer(patch_size: int, preprocessing: Preprocessing, view: View) -> int:
    """How many times finer than its large patches a map must be to have `FINE` values a side; 0 if it has them.

    A map that is merged of several crops has more values than one crop's, however the image is shaped.

    Args:
        patch_size: pixels of a patch.
        preprocessing: from image to network input.
        view: what of the image is seen.
    """
    if patch_size < LARGE_PATCH:
        return 0
    patches = min(preprocessing.size) // patch_size
    if view == "whole" and preprocessing.crop_ratio < 1:
        patches = int(CELLS * min(preprocessing.size) / preprocessing.crop_ratio / patch_size)
    return 0 if patches >= FINE else -(-FINE // max(patches, 1))
