"""Parameter randomisation: what is randomised, in which order, and methods whose answer is known."""

import pytest
import timm
import torch
from small_networks import known_method, smooth_images, trained_like
from torch import nn

import patchconvnet  # noqa: F401, registers the models
from patchconvnet.faithfulness.baselines import METHODS
from patchconvnet.faithfulness.methods import AttributionOptions
from patchconvnet.faithfulness.metrics.sanity import cascade, randomisations

OPTIONS = AttributionOptions()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return trained_like()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return smooth_images()


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
    constant = cascade(known_method(lambda images: torch.ones(len(images), 32, 32)), model, images, classes, OPTIONS)
    assert constant.rank_correlation.isnan().all()
    again = cascade(METHODS["evidence"], model, images, classes, OPTIONS)
    assert torch.equal(again.rank_correlation, ours.rank_correlation)
