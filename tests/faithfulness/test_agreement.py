"""Rank correlation and structural similarity of maps: scipy's, scikit-image's and torchmetrics'."""

import pytest
import torch
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity as skimage_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from patchconvnet.faithfulness.metrics.agreement import rank_correlation, ranks, similarity, structural_similarity


def test_ranks_and_correlation_are_scipys():
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 6, (4, 7, 9), generator=generator).float()  # many ties
    second = first + torch.randint(0, 6, (4, 7, 9), generator=generator)
    for i, value in enumerate(rank_correlation(first, second)):
        assert value == pytest.approx(spearmanr(first[i].flatten(), second[i].flatten()).statistic, abs=1e-6)
    assert ranks(torch.tensor([[[3.0, 1.0], [3.0, 2.0]]])).tolist() == [[2.5, 0, 2.5, 1]]


def test_similarity_is_scikit_images():
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(2, 20, 24, generator=generator) * 3 - 1
    second = first + torch.rand(2, 20, 24, generator=generator)
    for i, value in enumerate(similarity(first, second)):
        a, b = ((m - m.min()) / (m.max() - m.min()) for m in (first[i].numpy(), second[i].numpy()))
        theirs = skimage_similarity(a, b, win_size=7, data_range=1.0, use_sample_covariance=False)
        assert value == pytest.approx(theirs, abs=5e-3)


@pytest.mark.parametrize(("size", "smooth"), [((32, 32), 4), ((33, 48), 33), ((96, 96), 6), ((5, 9), 5), ((1, 4), 1)])
def test_similarity_is_torchmetrics(size: tuple[int, int], smooth: int) -> None:
    generator = torch.Generator().manual_seed(1)
    rough = torch.rand(2, 8, 1, smooth, smooth, generator=generator, dtype=torch.float64)
    first, second = (torch.nn.functional.interpolate(maps, size, mode="bilinear")[:, 0] for maps in rough)
    second = (0.3 * first + second) / 1.3
    window = min(7, (min(size) - 1) // 2 * 2 + 1)
    ours = structural_similarity(first, second)
    theirs = structural_similarity_index_measure(
        first[:, None], second[:, None], gaussian_kernel=False, kernel_size=window, data_range=1.0, reduction="none"
    )
    torch.testing.assert_close(ours, theirs.view(-1), atol=1e-9, rtol=0)
    # in float32, which figures were measured in before
    torch.testing.assert_close(structural_similarity(first.float(), second.float()), ours, atol=1e-6, rtol=0)


def test_similarity_of_a_map_is_its_own_whatever_shares_the_batch() -> None:
    first, second = torch.rand(2, 6, 96, 96, generator=torch.Generator().manual_seed(2))
    alone = torch.cat([similarity(first[i : i + 1], second[i : i + 1]) for i in range(6)])
    assert torch.equal(similarity(first, second), alone)
    assert similarity(first, first).tolist() == [1.0] * 6


def test_uninformative_maps_have_no_correlation():
    maps = torch.rand(3, 8, 8)
    broken = maps.clone()
    broken[0] = 1.0
    broken[1, 0, 0] = torch.nan
    for measure in (rank_correlation, similarity):
        for a, b in ((maps, broken), (broken, maps)):
            assert measure(a, b).isnan().tolist() == [True, True, False]
