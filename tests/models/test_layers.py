"""Layers against timm's and torch's own."""

import math

import pytest
import timm.layers
import torch
from torch import nn

from patchconvnet.models.layers import SqueezeExcite, act_layer, norm_layer


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("dim", "ratio"), [(32, 1 / 8), (48, 0.25), (384, 0.25)])
@pytest.mark.parametrize("bias", [True, False])
def test_squeeze_excite_is_timms(dim: int, ratio: float, bias: bool) -> None:
    ours = SqueezeExcite(dim, ratio, bias)
    theirs = timm.layers.SqueezeExcite(dim, rd_channels=int(dim * ratio), bias=bias)
    with torch.no_grad():
        for layer, convolution in ((ours.reduce, theirs.fc1), (ours.expand, theirs.fc2)):
            convolution.weight.copy_(layer.weight[:, :, None, None])
            if bias:
                convolution.bias.copy_(layer.bias)
    patches, direction = draw(2, 5, 7, dim).requires_grad_(), draw(2, 5, 7, dim).flip(0)
    expected = theirs(patches.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(ours(patches), expected, atol=1e-6, rtol=1e-5)
    gradient, wanted = (torch.autograd.grad(y, patches, direction)[0] for y in (ours(patches), expected))
    torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-5)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_squeeze_excite_bears_large_values_in_half_precision(dtype: torch.dtype, tolerance: float) -> None:
    """3,600 patches of about 300: their sum is beyond float16."""
    torch.manual_seed(0)
    layer = SqueezeExcite(16, 0.25, True)
    with torch.no_grad():
        layer.reduce.weight *= 0.01  # keeps the sigmoid away from its ends
    patches = draw(1, 60, 60, 16) + 300
    scaled = layer.to(dtype)(patches.to(dtype)).float()
    assert 0.1 < (scaled / patches).min() < (scaled / patches).max() < 0.9
    torch.testing.assert_close(scaled, layer.float()(patches), atol=0, rtol=tolerance)


def test_batch_norm_is_torchs_in_training_and_evaluation() -> None:
    ours, theirs = norm_layer("batch", 8), nn.BatchNorm2d(8)
    for seed in range(3):
        patches = draw(4, 5, 6, 8) * (seed + 1) + seed
        expected = theirs(patches.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        torch.testing.assert_close(ours(patches), expected)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    expected = theirs.eval()(patches.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(ours.eval()(patches), expected)


def test_layer_norm_is_over_the_channels_of_each_patch() -> None:
    patches = draw(2, 3, 4, 8) * 1e-3  # small, so that a wrong epsilon shows
    mean, var = patches.mean(-1, keepdim=True), patches.var(-1, unbiased=False, keepdim=True)
    torch.testing.assert_close(norm_layer("layer", 8)(patches), (patches - mean) / (var + 1e-6).sqrt())


def test_the_two_gelus() -> None:
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    exact = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    approximate = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    torch.testing.assert_close(act_layer("gelu")(x), exact)
    torch.testing.assert_close(act_layer("gelu_tanh")(x), approximate)
    assert (exact - approximate).abs().max() > 1e-4
