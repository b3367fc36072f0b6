"""Stability: methods whose answer is known, and evidence by hand."""

import zlib

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from small_networks import known_method, smooth_images, trained_like
from torch import nn

from patchconvnet.faithfulness.baselines import METHODS
from patchconvnet.faithfulness.methods import AttributionOptions
from patchconvnet.faithfulness.metrics.stability import stability

OPTIONS = AttributionOptions()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return trained_like()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return smooth_images()


def test_stability_of_methods_whose_answer_is_known(model, images):
    classes = torch.tensor([0, 1, 2])
    # a map that moves with the image is perfectly stable under shifts, one that ignores the image under noise
    moving = stability(known_method(lambda images: images.mean(1)), model, images, classes, OPTIONS)
    assert moving.shift.min() > 0.999
    assert moving.noise.max() < 0.999
    still = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
    fixed = stability(known_method(lambda images: still.expand(len(images), -1, -1)), model, images, classes, OPTIONS)
    assert fixed.noise.min() > 0.999
    assert fixed.shift.max() < 0.2
    nothing = stability(known_method(lambda images: torch.ones(len(images), 32, 32)), model, images, classes, OPTIONS)
    assert nothing.shift.tolist() == nothing.noise.tolist() == [0, 0, 0]


def test_stability_of_evidence_by_hand(model, images):
    """The noise part, drawn again here."""
    classes = torch.tensor([0, 1, 2])
    ours = stability(METHODS["evidence"], model, images, classes, OPTIONS, seed=3)
    generators = [torch.Generator().manual_seed(zlib.crc32(image.numpy().tobytes(), 3)) for image in images]

    def maps(images):
        return METHODS["evidence"](model, images, classes[:, None]).pixels((32, 32))[:, 0].numpy()

    plain = maps(images)
    values = []
    for _ in range(4):
        noise = torch.stack([torch.randn(images.shape[1:], generator=generator) for generator in generators])
        noisy = maps(images + 0.1 * noise)
        values.append([spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(plain, noisy, strict=True)])
    np.testing.assert_allclose(ours.noise, np.mean(values, 0), atol=1e-4)
