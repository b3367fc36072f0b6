"""The trunk's block against a second implementation over channels-first images, and the statistics of its drop path."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from patchconvnet.models.trunk import PreactivationBlock, TrunkBlock

DIM = 16


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def randomise(block: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return block.double()


def reference(block: TrunkBlock, x: Tensor, groups: int, act: str) -> Tensor:
    """The same on (B, C, H, W), with 1×1 convolutions where the block has linear layers."""
    y = x.permute(0, 2, 3, 1)
    if isinstance(block.norm, torch.nn.BatchNorm2d):
        y = F.batch_norm(x, None, None, block.norm.weight, block.norm.bias, training=True, eps=1e-5)
    else:
        y = F.layer_norm(y, (DIM,), block.norm.weight, block.norm.bias, eps=1e-6).permute(0, 3, 1, 2)
    y = F.gelu(F.conv2d(y, block.conv1.weight[:, :, None, None], block.conv1.bias), approximate=act)
    y = F.gelu(F.conv2d(y, block.conv2.weight, block.conv2.bias, padding=1, groups=groups), approximate=act)
    squeezed = F.linear(y.mean((2, 3)), block.se.reduce.weight, block.se.reduce.bias)
    excited = F.linear(squeezed.relu(), block.se.expand.weight, block.se.expand.bias)
    y = y * excited.sigmoid()[:, :, None, None]
    y = F.conv2d(y, block.conv3.weight[:, :, None, None], block.conv3.bias)
    gamma = getattr(block.layer_scale, "gamma", torch.ones(DIM))
    return x + gamma[:, None, None] * y


@pytest.mark.parametrize("conv", ["depthwise", "dense"])
@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize(
    ("act", "se_bias", "layer_scale"), [("gelu", True, 1e-4), ("gelu_tanh", False, None)], ids=["paper", "keras"]
)
def test_the_block_step_by_step(conv: str, norm: str, act: str, se_bias: bool, layer_scale: float | None) -> None:
    block = randomise(TrunkBlock(DIM, conv=conv, norm=norm, act=act, se_bias=se_bias, layer_scale=layer_scale))
    patches = draw(3, 5, 7, DIM).double()
    groups = DIM if conv == "depthwise" else 1
    expected = reference(block, patches.permute(0, 3, 1, 2), groups, "tanh" if act == "gelu_tanh" else "none")
    torch.testing.assert_close(block(patches), expected.permute(0, 2, 3, 1))


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("layer_scale", [None, 1e-4])
def test_the_preactivation_block_step_by_step(norm: str, layer_scale: float | None) -> None:
    block = randomise(PreactivationBlock(DIM, norm=norm, layer_scale=layer_scale))
    x = y = draw(3, 5, 7, DIM).double().permute(0, 3, 1, 2)
    for norm_layer, conv in ((block.norm1, block.conv1), (block.norm2, block.conv2)):
        if norm == "batch":
            y = F.batch_norm(y, None, None, norm_layer.weight, norm_layer.bias, training=True, eps=1e-5)
        else:
            y = F.layer_norm(y.permute(0, 2, 3, 1), (DIM,), norm_layer.weight, norm_layer.bias, eps=1e-6)
            y = y.permute(0, 3, 1, 2)
        y = F.conv2d(F.gelu(y), conv.weight, padding=1)
    squeezed = F.linear(y.mean((2, 3)), block.se.reduce.weight, block.se.reduce.bias)
    y = y * F.linear(squeezed.relu(), block.se.expand.weight, block.se.expand.bias).sigmoid()[:, :, None, None]
    expected = x + getattr(block.layer_scale, "gamma", torch.ones(DIM))[:, None, None] * y
    torch.testing.assert_close(block(x.permute(0, 2, 3, 1)), expected.permute(0, 2, 3, 1))


def test_layer_scale_starts_where_it_is_told_to() -> None:
    assert TrunkBlock(DIM, layer_scale=1e-6).layer_scale.gamma.tolist() == pytest.approx([1e-6] * DIM)
    assert not hasattr(TrunkBlock(DIM).layer_scale, "gamma")


def test_drop_path_leaves_out_whole_branches_of_images_and_keeps_the_mean() -> None:
    rate, n = 0.2, 20_000
    block = randomise(TrunkBlock(DIM, layer_scale=1.0, drop_path=rate)).float()
    patches = draw(1, 2, 3, DIM)
    with torch.no_grad():
        branch = block.eval()(patches) - patches
        torch.manual_seed(0)
        kept = block.train()(patches.expand(n, -1, -1, -1)) - patches
    ratio = kept / branch  # 0, or 1 / (1 - rate), the same all over an image
    first = ratio[:, 0, 0, 0]
    torch.testing.assert_close(ratio, first[:, None, None, None].expand_as(ratio), atol=1e-3, rtol=1e-3)
    dropped = (first.abs() < 1e-3).float().mean().item()
    assert abs(dropped - rate) < 4 * (rate * (1 - rate) / n) ** 0.5
    torch.testing.assert_close(first[first > 0.5].mean(), torch.tensor(1 / (1 - rate)), atol=1e-3, rtol=1e-3)
    assert abs(first.mean().item() - 1) < 0.02
