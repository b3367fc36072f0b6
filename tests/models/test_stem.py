"""The stem's two kinds of padding against their definitions, for even and odd sizes."""

import pytest
import torch
import torch.nn.functional as F

from patchconvnet.errors import UserError
from patchconvnet.models.stem import ConvStem, PooledStem

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


# The pooled stem


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize(("stride", "repeats"), [(1, 0), (2, 0), (1, 2)])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_pooled_stem_step_by_step(height: int, width: int, stride: int, repeats: int, norm: str) -> None:
    # in double precision: over the few patches of the smallest images batch norm makes much of rounding
    stem = PooledStem(3, 4, [6, 8], stride=stride, repeats=repeats, norm=norm).double()

    def norm_and_gelu(x: torch.Tensor) -> torch.Tensor:
        if norm == "batch":
            return F.gelu(F.batch_norm(x, None, None, training=True, eps=1e-5))
        return F.gelu(F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=1e-6).permute(0, 3, 1, 2))

    image = draw(2, 3, height, width).double()
    x = F.gelu(F.conv2d(F.pad(image, (1, 1, 1, 1)), stem.convs[0].weight, stem.convs[0].bias, stride=stride))
    for conv, further in zip(stem.convs[1:], [stem.repeat_convs, []], strict=True):
        x = F.conv2d(x, conv.weight, padding=1)
        edge = (0, x.shape[-1] % 2, 0, x.shape[-2] % 2)  # a pool that hangs over the edge counts what is there
        x = F.pad(x, edge, value=-torch.inf).unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
        x = norm_and_gelu(x)
        for again in further:
            x = norm_and_gelu(F.conv2d(x, again.weight, padding=1))
    assert len(stem.repeat_convs) == repeats
    torch.testing.assert_close(stem(image), x.permute(0, 2, 3, 1), atol=1e-5, rtol=1e-5)
    patch = 4 * stride
    assert stem.patch_size == patch
    assert x.shape[2:] == (-(-height // patch), -(-width // patch))


def squares() -> torch.Tensor:
    """Smooth in space and alike in their colours, as photographs are: (64, 3, 33, 33)."""
    noise = F.interpolate(draw(64, 3, 11, 11), size=(33, 33), mode="bilinear")
    return noise + 0.5 * noise.mean(1, keepdim=True)


@pytest.mark.parametrize("width", [10, 54, 60])  # fewer filters than 2 × 27, as many, more
def test_whitened_answers_are_uncorrelated_and_of_variance_1(width: int) -> None:
    stem = PooledStem(3, width, [8])
    images, before = squares(), stem.convs[0].weight.clone()
    stem.whiten(images)
    first, half = stem.convs[0], min(width // 2, 27)
    # patches that do not overlap, as the filters were made from
    answers = F.conv2d(images, first.weight, stride=3).movedim(1, 0).flatten(1)
    covariance = torch.cov(answers[:half])
    strong = torch.linalg.eigvalsh(torch.cov(F.unfold(images, 3, stride=3).movedim(1, 0).flatten(1))).flip(0)[:half]
    torch.testing.assert_close(covariance, torch.diag(strong / (strong + 5e-4)), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(answers[half : 2 * half], -answers[:half])
    assert torch.equal(first.weight[2 * half :], before[2 * half :])
    assert not first.weight.requires_grad
    assert first.bias.requires_grad
    assert not first.bias.any()
    stem.freeze_whitening()
    assert not first.bias.requires_grad


def test_without_whitening_there_is_nothing_to_freeze() -> None:
    stem = PooledStem(3, 8, [8])
    stem.freeze_whitening()
    assert all(parameter.requires_grad for parameter in stem.parameters())


def test_what_cannot_be_whitened_is_refused() -> None:
    stem = PooledStem(3, 8, [8])
    with pytest.raises(UserError, match="3 × 3 pixels or more"):
        stem.whiten(draw(4, 1, 32, 32))
    with pytest.raises(UserError, match="same colour"):
        stem.whiten(torch.ones(4, 3, 32, 32))
