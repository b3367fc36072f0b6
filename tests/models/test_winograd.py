"""Winograd's convolutions against PyTorch's own in double precision, and that only those that gain are computed so."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchconvnet.models import winograd
from patchconvnet.models.winograd import by_winograd

# batch, channels, outputs, height, width: whole tiles of 4 and of 3, and both with a rest
SIZES = [(2, 5, 7, 8, 8), (3, 4, 4, 6, 6), (2, 3, 8, 4, 12), (1, 6, 2, 13, 5), (4, 3, 3, 1, 1), (2, 2, 2, 7, 16)]


def close(ours: Tensor, exact: Tensor) -> None:
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=2e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("at_once", [1, 20_000, 10**9])  # values: an image at a time, some, all
@pytest.mark.parametrize(("batch", "channels", "outputs", "height", "width"), SIZES)
def test_both_passes_are_the_convolution_and_its_gradients(
    batch: int,
    channels: int,
    outputs: int,
    height: int,
    width: int,
    at_once: int,
    memory_format: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(winograd, "AT_ONCE", at_once)
    torch.manual_seed(0)
    images = torch.randn(batch, channels, height, width).contiguous(memory_format=memory_format)
    weight = torch.randn(outputs, channels, 3, 3)
    exact = F.conv2d(images.double().requires_grad_(), weight.double(), padding=1)
    gradient = torch.randn_like(exact).float().contiguous(memory_format=memory_format)
    found = winograd.convolve(images, weight)
    close(found, exact.detach())
    assert found.is_contiguous(memory_format=torch.channels_last)
    of_images = F.conv_transpose2d(gradient.double(), weight.double(), padding=1)
    of_weight = torch.nn.grad.conv2d_weight(images.double(), weight.shape, gradient.double(), padding=1)
    both = winograd.gradients(gradient, images, weight)
    for ours, theirs in zip(both, (of_images, of_weight), strict=True):
        assert ours is not None
        close(ours, theirs)
    only_images = winograd.gradients(gradient, images, weight, of_weight=False)
    only_weight = winograd.gradients(gradient, images, weight, of_images=False)
    assert only_images[1] is only_weight[0] is None
    torch.testing.assert_close((only_images[0], only_weight[1]), both, rtol=0, atol=0)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_threads_share_the_work(batch: int) -> None:
    torch.manual_seed(0)
    images, weight = torch.randn(batch, 4, 8, 8), torch.randn(6, 4, 3, 3)
    gradient, before = torch.randn(batch, 6, 8, 8), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append((winograd.convolve(images, weight), *winograd.gradients(gradient, images, weight)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_autocast_has_its_own_format(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    monkeypatch.setattr(winograd, "LEAST_OPERATIONS", 0)
    conv, images = layer(), torch.randn(64, 96, 8, 8)
    with by_winograd(conv), torch.autocast("cpu", torch.bfloat16):
        assert conv(images).dtype is torch.bfloat16
    assert not calls
    with by_winograd(conv), torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert conv(images).dtype is torch.float32
    assert calls == {"convolve": 1}


@pytest.mark.parametrize("side", winograd.TILES)
def test_transforms_give_the_sum_of_products_of_any_tile(side: int) -> None:
    rng = np.random.default_rng(side)
    tile, filters = rng.normal(size=(side + 2, side + 2)), rng.normal(size=(3, 3))
    of_tiles, of_filters, of_outputs = (matrix.double().numpy() for matrix in winograd._transforms(side, torch.float32))
    ours = (of_outputs @ ((of_filters @ filters.ravel()) * (of_tiles @ tile.ravel()))).reshape(side, side)
    windows = np.lib.stride_tricks.sliding_window_view(tile, (3, 3))
    np.testing.assert_allclose(ours, (windows * filters).sum((-1, -2)), atol=1e-5)


def test_smaller_tiles_where_they_leave_less_over() -> None:
    sides = {length: winograd._Size(torch.empty(1, 1, length, length), 1).side for length in (3, 4, 6, 8, 12, 16, 32)}
    assert sides == {3: 3, 4: 4, 6: 3, 8: 4, 12: 4, 16: 4, 32: 4}


def test_weights_are_summed_over_more_tiles_than_stay_in_a_cache() -> None:
    images = torch.empty(500, 192, 8, 8)
    assert winograd._Size(images, 192).images_of_a_part == 600_000 // (36 * 4 * 192) == 21
    assert winograd._Size(images, 192, least=288).images_of_a_part == 288 / 4
    assert winograd._Size(images, 192, least=30).images_of_a_part == 21


@pytest.mark.parametrize("least", [0, 3])
def test_gradients_in_bfloat16_are_as_exact_in_parts_of_any_size(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "LEAST_SUMMED", least)
    torch.manual_seed(0)
    images, weight, gradient = torch.randn(60, 64, 8, 8), torch.randn(96, 64, 3, 3), torch.randn(60, 96, 8, 8)
    exact = winograd.gradients(gradient, images, weight)
    found = winograd.gradients(gradient.bfloat16(), images.bfloat16(), weight.bfloat16())
    for one, other, dtype in zip(exact, found, (torch.bfloat16, torch.float32), strict=True):
        assert one is not None
        assert other is not None
        assert other.dtype is dtype
        assert float((other.float() - one).square().mean().sqrt()) < 0.02 * float(one.std())


def layer(inputs: int = 96, outputs: int = 96, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": 1, **options}).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("conv", "shape", "wanted"),
    [
        (layer(), (200, 96, 8, 8), True),
        (layer(64, 128, bias=False), (4, 64, 64, 64), True),
        (layer(), (180, 96, 8, 8), False),  # too little to compute
        (layer(384, 384), (63, 384, 8, 8), False),  # too few places for so many channels
        (layer(64, 64), (500, 64, 8, 8), False),  # too few channels
        (layer(kernel=1, padding=0), (200, 96, 8, 8), False),
        (layer(stride=2), (200, 96, 16, 16), False),
        (layer(padding=0), (200, 96, 10, 10), False),
        (layer(dilation=2, padding=2), (200, 96, 8, 8), False),
        (layer(192, 192, groups=2), (200, 192, 8, 8), False),
        (layer(padding_mode="circular"), (200, 96, 8, 8), False),
        (layer(padding="same"), (200, 96, 8, 8), False),
        (layer().double(), (200, 96, 8, 8), False),
        (layer().bfloat16(), (200, 96, 8, 8), False),
    ],
    ids=str,
)
def test_only_large_plain_convolutions_in_float32_are_computed_so(
    conv: nn.Conv2d, shape: tuple[int, ...], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # which the limit goes by
    torch.manual_seed(0)
    images = torch.randn(shape, dtype=conv.weight.dtype).requires_grad_()
    expected = conv(images)
    parameters = [images, *conv.parameters()]
    gradients = torch.autograd.grad(expected, parameters, expected.detach())
    with by_winograd(conv):
        found = conv(images)
    ours = torch.autograd.grad(found, parameters, expected.detach())
    assert "_conv_forward" not in vars(conv)
    assert calls == ({"convolve": 1, "gradients": 1} if wanted else {})
    for one, other in zip((found, *ours), (expected, *gradients), strict=True):
        if wanted:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * float(other.detach().abs().max()))
        else:
            assert torch.equal(one, other)


def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often the algorithm is called from now on."""
    calls: dict[str, int] = {}

    def count(name: str) -> None:
        function = getattr(winograd, name)

        def called(*args: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return function(*args)

        monkeypatch.setattr(winograd, name, called)

    count("convolve")
    count("gradients")
    return calls
