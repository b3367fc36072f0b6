"""`attribute`: the maps of every method as tensors, gradients against finite differences, and what is refused."""

import pytest
import timm
import torch
from torch import nn

from patchconvnet import UserError, attribute, with_attention_pooling
from patchconvnet.explanation.evidence import forward_with_maps
from patchconvnet.faithfulness.baselines import METHODS
from patchconvnet.faithfulness.methods import AttributionOptions

NAMES = ["cat", "dog", "ship", "lorry"]
CHEAP = {"rise_masks": 8, "gradient_steps": 2}


def make(pooling: str = "additive") -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("patchconvnet_micro", pooling=pooling, embed_dim=16, depth=1, num_classes=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.metadata.class_names = list(NAMES)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make()


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    return torch.randn(3, 3, 24, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_one_map_an_input(name: str, model: nn.Module, inputs: torch.Tensor) -> None:
    classes = torch.tensor([2, 0, 3])
    expected = METHODS[name](model, inputs, classes[:, None], AttributionOptions(**CHEAP))
    maps = attribute(model, inputs, classes, name, **CHEAP)
    torch.testing.assert_close(maps, expected.values[:, 0])
    large = attribute(model, inputs, classes, name, pixels=True, **CHEAP)
    torch.testing.assert_close(large, expected.pixels((24, 32))[:, 0])
    assert not maps.requires_grad


def test_targets_in_every_form(inputs: torch.Tensor) -> None:
    model = make()
    with torch.no_grad():
        model.head.bias -= model(inputs).mean(0)  # so that not all are predicted to be the same
        seen = forward_with_maps(model, inputs)
    predicted = seen.logits.argmax(1)
    assert len(set(predicted.tolist())) > 1
    torch.testing.assert_close(attribute(model, inputs), seen.evidence[range(3), predicted])
    for target in (2, "ship", "SHIP", torch.tensor(2), torch.tensor([2, 2, 2]), ["ship", 2, "2"]):
        torch.testing.assert_close(attribute(model, inputs, target), seen.evidence[:, 2])
    shares = attribute(model, inputs, [0, 1, 2]).sum((1, 2))
    torch.testing.assert_close(shares, (seen.logits - seen.bias)[range(3), [0, 1, 2]])  # additive: exact


@pytest.mark.parametrize("pooling", ["additive", "additive_multi", "class_attention", "class_attention_multi", "keras"])
@pytest.mark.parametrize("method", ["evidence", "attention"])
def test_gradients_are_those_of_finite_differences(pooling: str, method: str, inputs: torch.Tensor) -> None:
    model, generator = make(pooling).double(), torch.Generator().manual_seed(2)
    at = inputs.double().requires_grad_()
    maps = attribute(model, at, 1, method)
    weights = torch.randn(maps.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((maps * weights).sum(), at)
    direction, step = torch.randn(at.shape, generator=generator, dtype=torch.float64), 1e-7
    with torch.no_grad():
        ahead, behind = (attribute(model, at + sign * step * direction, 1, method) for sign in (1, -1))
    expected = ((ahead - behind) * weights).sum() / (2 * step)
    assert expected.abs() > 1e-6
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-4, atol=1e-9)


def test_the_models_mode_and_gradients_are_left_alone(inputs: torch.Tensor) -> None:
    model = make("class_attention").train()
    model.stem.eval()
    for method in ("evidence", "attention", "gradcam", "rise"):
        attribute(model, inputs, 1, method, **CHEAP)
        assert model.training
        assert not model.stem.training
        assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_networks_of_timms(inputs: torch.Tensor) -> None:
    large = torch.nn.functional.interpolate(inputs, size=(64, 96))
    pooled = with_attention_pooling("resnet18", num_classes=4)
    assert attribute(pooled, large, 1).shape == (3, 2, 3)
    plain = timm.create_model("resnet18", num_classes=4)
    assert attribute(plain, large, 1, "gradcam", pixels=True).shape == (3, 64, 96)
    with pytest.raises(UserError, match="no attention pooling"):
        attribute(plain, large, 1)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((torch.zeros(2, 3, 32, 32, dtype=torch.uint8),), {}, "float tensor of preprocessed images"),
        (("cat.jpg",), {}, "inputs are a str; .* explain"),
        ((torch.zeros(3, 32, 32),), {}, r"shape .3, 32, 32.; .*inputs.None."),
        ((torch.zeros(0, 3, 32, 32),), {}, "at least one image"),
        ((torch.zeros(1, 4, 32, 32),), {}, r"expected images of shape .B, 3, H, W."),
        ((torch.zeros(1, 3, 2, 2),), {}, "smaller than one patch"),
        ((torch.zeros(1, 3, 32, 32).double(),), {}, "bring them together"),
        ((torch.zeros(1, 3, 32, 32), "catt"), {}, "did you mean 'cat'"),
        ((torch.zeros(1, 3, 32, 32), 4), {}, "no class 4"),
        ((torch.zeros(1, 3, 32, 32), [1, 2]), {}, "2 targets for 1 inputs"),
        ((torch.zeros(1, 3, 32, 32), 1.5), {}, "target is 1.5; give a class's index or name"),
        ((torch.zeros(1, 3, 32, 32), torch.tensor([[1]])), {}, "give a class's index or name"),
        ((torch.zeros(1, 3, 32, 32), torch.ones(1)), {}, "classes are whole numbers"),
        ((torch.zeros(1, 3, 32, 32), 1, "gradcan"), {}, "Did you mean 'gradcam'"),
        (
            (torch.zeros(1, 3, 32, 32), 1, "rise"),
            {"rise_mask": 3},
            "Did you mean 'rise_masks'",
        ),
    ],
)
def test_mistakes_get_a_sentence(model: nn.Module, arguments, options, words: str) -> None:
    with pytest.raises(UserError, match=words):
        attribute(model, *arguments, **options)
