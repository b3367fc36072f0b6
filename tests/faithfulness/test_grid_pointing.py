"""Mosaics and grid pointing by hand; an uninformative map is a miss."""

import pytest
import torch

from patchconvnet.faithfulness.metrics.grid_pointing import grid_pointing, mosaic


def test_mosaic_lies_row_by_row():
    images = torch.arange(4.0).view(1, 4, 1, 1, 1).expand(1, 4, 3, 2, 5)
    whole = mosaic(images)
    assert whole.shape == (1, 3, 4, 10)
    assert whole[0, 0, ::2, ::5].tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("n", [2, 3])
def test_grid_pointing_by_hand(n):
    generator = torch.Generator().manual_seed(n)
    maps = torch.randn(3, n * n, n * 4, n * 5, generator=generator)
    shares = grid_pointing(maps)
    for m in range(3):
        for t in range(n * n):
            positive = maps[m, t].clamp(min=0)
            row, column = divmod(t, n)
            own = positive[row * 4 : row * 4 + 4, column * 5 : column * 5 + 5].sum()
            assert shares[m, t] == pytest.approx(float(own / positive.sum()), abs=1e-6)
    # all in its own cell
    perfect = mosaic(torch.eye(n * n).view(n * n, n * n, 1, 1, 1).expand(-1, -1, 1, 4, 5))[None, :, 0]
    perfect = perfect + torch.rand(perfect.shape) * 1e-6 * perfect
    torch.testing.assert_close(grid_pointing(perfect), torch.ones(1, n * n))


def test_an_uninformative_map_is_a_miss():
    maps = torch.rand(1, 4, 8, 8)
    maps[0, 0] = 0.5
    maps[0, 1] = torch.nan
    maps[0, 2] = -torch.rand(8, 8)
    maps[0, 3, 0, 0] = torch.inf
    assert grid_pointing(maps).tolist() == [[0, 0, 0, 0]]
