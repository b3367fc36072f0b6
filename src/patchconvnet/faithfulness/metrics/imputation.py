"""Filling removed pixels in from their neighbours: noisy linear imputation, without the noise (Rong et al. 2022).

Each removed pixel becomes the weighted mean of its eight neighbours, 1/6 beside it and 1/12 across, removed ones
included: a sparse linear system for each image (arXiv 2202.00449, section 4.2). Each system is solved on its own,
directly and in float64, on the CPU: the result can depend neither on the other images of a batch nor on a number of
iterations. An iterative solver did both. Eliminating the pixels in the order of a nested dissection of the image keeps
the factors sparse: 0.25 s for nine tenths of 224 × 224 pixels, a third of what SuperLU's best ordering takes.
"""

from functools import lru_cache

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor

from patchconvnet.errors import UserError

NEIGHBOURS = (((0, 1), 1 / 6), ((1, 0), 1 / 6), ((1, 1), 1 / 12), ((1, -1), 1 / 12))  # and the opposite ones
SMALLEST_PART = 16  # pixels; dissecting further gains nothing


def impute(images: Tensor, known: Tensor) -> Tensor:
    """Fill the removed pixels in.

    Args:
        images: (B, C, H, W) float.
        known: (B, H, W) bool, which pixels are kept.

    Returns:
        (B, C, H, W), on the device of `images`: removed pixels are replaced by what their neighbours say.

    Raises:
        UserError: no pixel of an image is kept.
    """
    if not known.flatten(1).any(1).all():
        raise UserError("an image of which no pixel is kept cannot be filled in; keep at least one.")
    height, width = images.shape[-2:]
    order, system = _system(height, width)
    values = images.detach().flatten(2).permute(0, 2, 1).cpu().numpy()[:, order].astype(np.float64)  # (B, P, C)
    kept = known.flatten(1).cpu().numpy()[:, order]  # (B, P)
    for image, there in zip(values, kept, strict=True):
        if there.all():
            continue
        rows = system[~there]
        factors = splu(
            rows[:, ~there].tocsc(), permc_spec="NATURAL", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
        )
        image[~there] = factors.solve(-(rows[:, there] @ image[there]))
    filled = np.empty_like(values)
    filled[:, order] = values
    result = torch.from_numpy(filled).to(images).permute(0, 2, 1).unflatten(2, (height, width))
    return torch.where(known[:, None], images, result)


@lru_cache(maxsize=8)
def _system(height: int, width: int) -> tuple[np.ndarray, sparse.csr_array]:
    """The order of elimination (P,), and the system of all pixels in that order: degree − weights of the neighbours.

    The degree is less at the borders, where neighbours are missing.
    """
    pixels = np.arange(height * width).reshape(height, width)
    ends: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    for (down, right), weight in NEIGHBOURS:
        first = pixels[: height - down, max(0, -right) : width - max(0, right)].ravel()
        second = pixels[down:, max(0, right) : width + min(0, right)].ravel()
        ends += [np.stack([first, second]), np.stack([second, first])]
        weights += [np.full(len(first), weight)] * 2
    around = sparse.csr_array((np.concatenate(weights), np.concatenate(ends, 1)), shape=(pixels.size, pixels.size))
    order = np.concatenate(_dissected(pixels))
    system = sparse.diags_array(around.sum(1)).tocsr() - around
    return order, system[order][:, order]


def _dissected(pixels: np.ndarray) -> list[np.ndarray]:
    """Both halves first, then the line of pixels that parts them (George 1973, SIAM J. Numer. Anal. 10)."""
    if pixels.size <= SMALLEST_PART or min(pixels.shape) < 3:
        return [pixels.ravel()]
    if pixels.shape[0] < pixels.shape[1]:
        pixels = pixels.T
    middle = len(pixels) // 2
    return [*_dissected(pixels[:middle]), *_dissected(pixels[middle + 1 :]), pixels[middle]]
