"""Parameter randomisation and stability: against scipy and scikit-image, and on methods whose answer is known."""

import zlib

import numpy as np
import pytest
import timm
import torch
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import nn

import patchconvnet  # noqa: F401, registers the models
from patchconvnet.explanation.patch_grid import Grid
from patchconvnet.faithfulness.baselines import METHODS
from patchconvnet.faithfulness.methods import Attribution, AttributionOptions, Method
from patchconvnet.faithfulness.metrics.robustness import (
    cascade,
    randomisations,
    rank_correlation,
    ranks,
    similarity,
    stability,
)

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


def test_maps_that_say_nothing_have_no_correlation():
    maps = torch.rand(3, 8, 8)
    broken = maps.clone()
    broken[0] = 1.0
    broken[1, 0, 0] = torch.nan
    for measure in (rank_correlation, similarity):
        for a, b in ((maps, broken), (broken, maps)):
            assert measure(a, b).isnan().tolist() == [True, True, False]


def test_randomisation_goes_from_head_to_stem_and_leaves_the_model_alone(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    levels = []
    for name, network in randomisations(model):
        levels.append(name)
        touched = tuple(levels)
        for key, value in network.state_dict().items():
            if key.endswith("num_batches_tracked"):
                continue
            changed = not torch.equal(value, before[key])
            assert changed == key.startswith(touched), (name, key)
            if key.endswith("running_var"):
                assert value.min() > 0
            elif changed and value.numel() > 200:
                assert value.std().item() == pytest.approx(before[key].std().item(), rel=0.25)
    assert levels == ["head", "pooling", "trunk.1", "trunk.0", "stem"]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_deep_networks_take_several_blocks_at_a_time():
    network = timm.create_model("patchconvnet_micro", embed_dim=16, depth=20)
    levels = [name for name, _ in randomisations(network)]
    assert len(levels) <= 8
    assert levels[0].startswith("head to ")
    assert "stem" in levels[-1]


def test_a_map_of_the_network_changes_and_one_of_the_image_does_not(model, images):
    classes = torch.tensor([0, 1, 2])
    ours = cascade(METHODS["evidence"], model, images, classes, OPTIONS)
    assert ours.rank_correlation.shape == (3, 5)
    assert ours.rank_correlation[:, -1].abs().max() < 0.9
    edges = cascade(METHODS["edges"], model, images, classes, OPTIONS)
    torch.testing.assert_close(edges.rank_correlation, torch.ones(3, 5))
    torch.testing.assert_close(edges.similarity, torch.ones(3, 5))
    constant = cascade(method(lambda images: torch.ones(len(images), 32, 32)), model, images, classes, OPTIONS)
    assert constant.rank_correlation.isnan().all()
    again = cascade(METHODS["evidence"], model, images, classes, OPTIONS)
    assert torch.equal(again.rank_correlation, ours.rank_correlation)


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
