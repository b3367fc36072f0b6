"""Stability: methods whose answer is known, and evidence by hand."""

import zlib

import numpy as np
import pytest
import timm
import torch
from scipy.stats import spearmanr
from torch import nn

import patchconvnet  # noqa: F401, registers the models
from patchconvnet.explanation.patch_grid import Grid
from patchconvnet.faithfulness.baselines import METHODS
from patchconvnet.faithfulness.methods import Attribution, AttributionOptions, Method
from patchconvnet.faithfulness.metrics.stability import stability

OPTIONS = AttributionOptions()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    network = timm.create_model("patchconvnet_micro", embed_dim=16, depth=2, num_classes=4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        for name, buffer in network.named_buffers():  # as after a training
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))
    return network.eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    rough = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(rough, (32, 32), mode="bilinear")


def method(compute) -> Method:
    """A method whose maps are a function of the images: (B, H, W)."""

    def attribution(network, images, classes, options):
        maps = compute(images)
        return Attribution(maps[:, None], Grid(tuple(maps.shape[1:]), (1.0, 1.0), (0.5, 0.5)))

    return Method("test", "Test", "", "control", attribution)


def test_stability_of_methods_whose_answer_is_known(model, images):
    classes = torch.tensor([0, 1, 2])
    # a map that moves with the image is perfectly stable under shifts, one that ignores the image under noise
    moving = stability(method(lambda images: images.mean(1)), model, images, classes, OPTIONS)
    assert moving.shift.min() > 0.999
    assert moving.noise.max() < 0.999
    still = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
    fixed = stability(method(lambda images: still.expand(len(images), -1, -1)), model, images, classes, OPTIONS)
    assert fixed.noise.min() > 0.999
    assert fixed.shift.max() < 0.2
    nothing = stability(method(lambda images: torch.ones(len(images), 32, 32)), model, images, classes, OPTIONS)
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
