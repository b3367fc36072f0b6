"""Rank correlation and structural similarity of maps: scipy's and scikit-image's."""

import pytest
import torch
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity

from patchconvnet.faithfulness.metrics.agreement import rank_correlation, ranks, similarity


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
        theirs = structural_similarity(a, b, win_size=7, data_range=1.0, use_sample_covariance=False)
        assert value == pytest.approx(theirs, abs=5e-3)


def test_uninformative_maps_have_no_correlation():
    maps = torch.rand(3, 8, 8)
    broken = maps.clone()
    broken[0] = 1.0
    broken[1, 0, 0] = torch.nan
    for measure in (rank_correlation, similarity):
        for a, b in ((maps, broken), (broken, maps)):
            assert measure(a, b).isnan().tolist() == [True, True, False]
