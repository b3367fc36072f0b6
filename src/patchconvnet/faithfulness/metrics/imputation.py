"""Filling removed pixels in from their neighbours: noisy linear imputation, without the noise (Rong et al. 2022).

Each removed pixel becomes the weighted mean of its eight neighbours, 1/6 beside it and 1/12 across, removed ones
included: a sparse linear system for each image (arXiv 2202.00449, section 4.2). It is symmetric and positive
definite, so conjugate gradients solve all images of a batch at once, on any device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from patchconvnet.errors import UserError

TOLERANCE = 1e-4  # of the largest value; the noise that follows is 100 times as large
MOST_ITERATIONS = 1000
LOOK_EVERY = 20  # iterations; looking whether it is done makes a device wait


def impute(images: Tensor, known: Tensor) -> Tensor:
    """Fill the removed pixels in.

    Args:
        images: (B, C, H, W).
        known: (B, H, W) bool, which pixels are kept.

    Returns:
        (B, C, H, W): the images, removed pixels exchanged for what their neighbours say.

    Raises:
        UserError: nothing of an image is kept.
    """
    if not known.flatten(1).any(1).all():
        raise UserError("an image of which no pixel is kept cannot be filled in; keep at least one.")
    height, width = images.shape[-2:]
    kept = known[:, None].to(images)
    gone = 1 - kept

    degree = around(images.new_ones(1, 1, height, width))  # less at the borders, where neighbours are missing
    mean = (images * kept).sum((2, 3), keepdim=True) / kept.sum((2, 3), keepdim=True)
    # solve for the difference from the mean of what is kept: the system is the same, and the start is near
    wanted = gone * around((images - mean) * kept)
    filled = torch.zeros_like(images)
    residual = wanted.clone()
    scaled = residual / degree
    direction = scaled.clone()
    power = (residual * scaled).sum((2, 3), keepdim=True)
    enough = TOLERANCE * images.abs().amax((1, 2, 3)).clamp(min=1e-12)
    for iteration in range(MOST_ITERATIONS):
        moved = gone * (degree * direction - around(direction))
        bend = (direction * moved).sum((2, 3), keepdim=True)
        step = torch.where(bend > 0, power / bend, 0.0)
        filled = filled + step * direction
        residual = residual - step * moved
        if iteration % LOOK_EVERY == 0 and bool((step * direction).abs().amax((1, 2, 3)).le(enough * 0.1).all()):
            break
        scaled = residual / degree
        last, power = power, (residual * scaled).sum((2, 3), keepdim=True)
        direction = scaled + torch.where(last > 0, power / last, 0.0) * direction
    return torch.where(known[:, None], images, mean + filled)


def around(values: Tensor) -> Tensor:
    """What the eight neighbours of each pixel of (B, C, H, W) give together; outside of the image there is nothing.

    The weights are ((1, 2, 1), (2, 0, 2), (1, 2, 1)) / 12: (1, 2, 1) down times (1, 2, 1) across, less the middle. By
    sums of slices this takes a fifth of the time of a convolution.
    """
    down = F.pad(values, (0, 0, 1, 1))
    rows = (down[..., :-2, :] + down[..., 2:, :]).add_(values, alpha=2)
    across = F.pad(rows, (1, 1))
    return (across[..., :-2] + across[..., 2:]).add_(rows, alpha=2).sub_(values, alpha=4).div_(12)
