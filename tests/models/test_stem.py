"""The stem's two kinds of padding against their definitions, for even and odd sizes."""

import pytest
import torch
import torch.nn.functional as F

from patchconvnet.models.stem import ConvStem

SIZES = [(8, 8), (7, 8), (8, 9), (13, 11), (48, 32), (5, 31)]


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def tensorflow_padding(length: int, kernel: int = 3, stride: int = 2) -> tuple[int, int]:
    """Before and after, by TensorFlow's rule for padding "same"."""
    out = -(-length // stride)
    total = max((out - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_same_padding_is_tensorflows(height: int, width: int) -> None:
    stem = ConvStem(3, [4, 8], bias=True, padding="same", last_act=True)
    x = image = draw(2, 3, height, width)
    for conv in stem.convs:
        padded = F.pad(x, (*tensorflow_padding(x.shape[-1]), *tensorflow_padding(x.shape[-2])))
        x = F.gelu(F.conv2d(padded, conv.weight, conv.bias, stride=2))
    torch.testing.assert_close(stem(image), x.permute(0, 2, 3, 1))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_symmetric_padding_is_one_pixel_all_around(height: int, width: int) -> None:
    stem = ConvStem(3, [2, 4, 8])
    x = image = draw(2, 3, height, width)
    for i, conv in enumerate(stem.convs):
        assert conv.bias is None
        x = F.conv2d(F.pad(x, (1, 1, 1, 1)), conv.weight, stride=2)
        x = F.gelu(x) if i < 2 else x  # the paper's stem has no activation after the last one
    torch.testing.assert_close(stem(image), x.permute(0, 2, 3, 1))


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_grid_is_the_size_over_the_patch_size_rounded_up(padding: str, depth: int) -> None:
    stem = ConvStem(1, [4] * depth, padding=padding)
    assert stem.patch_size == 2**depth
    for height in (stem.patch_size, 17, 32, 33):
        for width in (stem.patch_size, 31):
            expected = (1, -(-height // stem.patch_size), -(-width // stem.patch_size), 4)
            assert stem(torch.zeros(1, 1, height, width)).shape == expected


def test_patches_are_contiguous_in_either_memory_format() -> None:
    stem = ConvStem(3, [4, 8])
    image = draw(2, 3, 16, 20)
    for given in (image, image.contiguous(memory_format=torch.channels_last)):
        assert stem(given).is_contiguous()
    torch.testing.assert_close(stem(image), stem(image.contiguous(memory_format=torch.channels_last)))
