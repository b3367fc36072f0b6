"""NumPy's resizing gives PyTorch's pixels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from patchconvnet.data.resizing import Interpolation, resize

ROUNDING = 6e-7  # of white, with long sums; PyTorch's own kernels for other CPUs differ by as much
SIZES = [
    ((300, 400), (224, 224)),
    ((32, 32), (48, 48)),
    ((57, 57), (57, 31)),
    ((1200, 901), (64, 48)),
    ((100, 3000), (17, 224)),
    ((1, 7), (5, 1)),
]


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize(
    ("interpolation", "antialias"),
    [("bilinear", True), ("bicubic", True), ("bilinear", False), ("bicubic", False), ("nearest", False)],
)
def test_pixels_are_those_of_pytorch(
    old: tuple[int, int], new: tuple[int, int], interpolation: Interpolation, antialias: bool
) -> None:
    values = np.random.default_rng(0).random((3, *old), dtype=np.float32)
    mode = "nearest-exact" if interpolation == "nearest" else interpolation
    wanted = F.interpolate(torch.from_numpy(values)[None], new, mode=mode, antialias=antialias)[0].numpy()
    found = resize(values, new, interpolation, antialias)
    assert found.dtype == np.float32
    if interpolation == "nearest":
        np.testing.assert_array_equal(found, wanted)
    else:
        np.testing.assert_allclose(found, wanted, rtol=0, atol=ROUNDING)
    assert not np.array_equal(found, values[:, : new[0], : new[1]])


@pytest.mark.parametrize(("old", "new"), [(300, 224), (57, 31), (32, 48)])
def test_short_sums_are_equal_to_the_bit(old: int, new: int) -> None:
    values = np.random.default_rng(1).random((3, old, old), dtype=np.float32)
    wanted = F.interpolate(torch.from_numpy(values)[None], (new, new), mode="bilinear", antialias=True)[0].numpy()
    np.testing.assert_array_equal(resize(values, (new, new), "bilinear", True), wanted)
