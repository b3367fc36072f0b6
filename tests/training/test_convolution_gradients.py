"""Gradients of convolutions by other ways: the same numbers, only where they are wanted, in a real training."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from small_runs import MICRO, run
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.models import winograd
from patchconvnet.training import convolution_gradients
from patchconvnet.training.convolution_gradients import FasterGradients, faster_backward
from patchconvnet.training.recipe import ModelOptions


def gradients(layer: nn.Conv2d, images: Tensor, context: Any, *, random: bool = False) -> tuple[Tensor, ...]:
    images = images.clone().requires_grad_()
    layer.zero_grad()
    out = layer(images)
    if random:
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    else:
        upstream = torch.linspace(-1, 1, out.numel()).view_as(out)
    with context:
        out.backward(upstream.bfloat16().to(out.dtype))
    found = images.grad, *(parameter.grad for parameter in layer.parameters())
    assert all(each is not None for each in found)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("chunk", [1, 3 * 16 * 14 * 14, 2**21])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2), (7, 1)])
def test_gradients_are_those_of_float32_rounded(
    kernel: int, stride: int, bias: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution_gradients, "CHUNK", chunk)  # one image, three, or all at once
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 16, kernel, stride, padding=kernel // 2, groups=16, bias=bias).bfloat16()
    images = torch.randn(8, 16, 14, 14).contiguous(memory_format=torch.channels_last).bfloat16()
    ours = gradients(layer, images, FasterGradients())
    plain = gradients(layer, images, nullcontext())
    exact = gradients(layer.float(), images.float(), nullcontext())
    for which, (one, two, right) in enumerate(zip(ours, plain, exact, strict=True)):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.float(), right, rtol=2**-8, atol=float(right.abs().max()) * 1e-5)
        if not (stride > 1, kernel > 3, kernel > 3)[which]:
            assert torch.equal(one, two)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("batch", "height", "width"), [(2, 5, 1), (40, 4, 4), (13, 6, 7), (9, 3, 8), (3, 12, 8)])
def test_narrow_images_side_by_side_have_the_same_gradients(
    batch: int, height: int, width: int, bias: bool, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 24, 3, padding=1, bias=bias).bfloat16()
    images = torch.randn(batch, 16, height, width).contiguous(memory_format=memory_format).bfloat16()
    ours = gradients(layer, images, FasterGradients(side_by_side=True))
    plain = gradients(layer, images, FasterGradients(side_by_side=False))
    exact = gradients(layer.float(), images.float(), nullcontext())
    assert torch.equal(ours[0], plain[0])  # of the images
    for one, right in zip(ours[1:], exact[1:], strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.float(), right, rtol=2**-7, atol=float(right.abs().max()) * 2**-8)


@pytest.mark.parametrize(
    ("layer", "width", "changed"),
    [
        (nn.Conv2d(8, 8, 3, padding=1), 8, True),
        (nn.Conv2d(8, 8, 3, padding=1), 9, False),  # wide enough as it is
        (nn.Conv2d(8, 8, 3), 8, False),
        (nn.Conv2d(8, 8, 3, 2, padding=1), 8, False),
        (nn.Conv2d(8, 8, 3, padding=2, dilation=2), 8, False),
        (nn.Conv2d(8, 8, 3, padding=1, groups=2), 8, False),
        (nn.Conv2d(8, 8, 1), 8, False),
        (nn.Conv2d(8, 8, 5, padding=2), 8, False),
        (nn.ConvTranspose2d(8, 8, 3, padding=1), 8, False),
    ],
    ids=str,
)
def test_only_narrow_images_of_plain_3_by_3_convolutions_are_laid_side_by_side(
    layer: nn.Module, width: int, changed: bool
) -> None:
    images = torch.rand(16, 8, 9, width).bfloat16()
    shapes = {seen for _, seen in computed(layer.bfloat16(), images, FasterGradients(side_by_side=True))}
    assert shapes == ({images.shape, (3, 8, 9, 7 * 9)} if changed else {images.shape})


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("batch", "height", "width"), [(64, 8, 8), (31, 6, 6), (16, 13, 5)])
def test_large_convolutions_have_gradients_by_winograds_algorithm(
    batch: int, height: int, width: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("LEAST_OPERATIONS", "LEAST_PLACES"):
        monkeypatch.setattr(winograd, limit, 0)
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 128, 3, padding=1, bias=bias).bfloat16()
    images = torch.randn(batch, 64, height, width).contiguous(memory_format=torch.channels_last).bfloat16()
    context = FasterGradients(by_winograd=True)
    assert not computed(layer, images.clone(), context)  # none of PyTorch's
    ours = gradients(layer, images, context, random=True)
    assert all(each.dtype is torch.bfloat16 for each in ours)
    exact = gradients(layer.float(), images.float(), nullcontext(), random=True)
    for one, right in zip(ours, exact, strict=True):
        assert one.shape == right.shape
        assert (one.float() - right).norm() < 0.02 * right.norm()


def test_they_add_little_to_what_bfloat16_does_to_a_networks_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("LEAST_OPERATIONS", "LEAST_PLACES"):
        monkeypatch.setattr(winograd, limit, 0)
    torch.manual_seed(0)
    network = timm.create_model("patchconvnet_mini").to(memory_format=torch.channels_last).train()
    images, labels = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))

    def gradient(*, half: bool, context: Any) -> Tensor:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = network(images)
        with context:
            F.cross_entropy(logits.float(), labels).backward()
        return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])

    exact = gradient(half=False, context=nullcontext())
    plain, ours = (
        (gradient(half=True, context=context) - exact).norm()
        for context in (nullcontext(), FasterGradients(by_winograd=True))
    )
    assert plain != ours
    assert ours < 1.2 * plain


@pytest.mark.parametrize("images", [torch.rand(2, 64, 8, 8), torch.rand(200, 48, 8, 8)], ids=["few", "few channels"])
def test_small_ones_stay_as_they_are(images: Tensor) -> None:
    layer, images = nn.Conv2d(images.shape[1], 64, 3, padding=1).bfloat16(), images.bfloat16()
    assert converted(layer, images, FasterGradients(by_winograd=True)) == {torch.bfloat16}


@pytest.mark.parametrize("which", ["images", "weight"])
def test_only_the_gradients_that_are_asked_for(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("LEAST_OPERATIONS", "LEAST_PLACES"):
        monkeypatch.setattr(winograd, limit, 0)
    layer, images = nn.Conv2d(64, 128, 3, padding=1, bias=False).bfloat16(), torch.rand(8, 64, 8, 8).bfloat16()
    layer.requires_grad_(which == "weight")
    images.requires_grad_(which == "images")
    out = layer(images)
    with FasterGradients(by_winograd=True):
        out.sum().backward()
    assert (images.grad is None) is (which == "weight")
    assert (layer.weight.grad is None) is (which == "images")


def computed(layer: nn.Module, images: Tensor, context: Any) -> set[tuple[torch.dtype, torch.Size]]:
    """Number format and shape of the images of each backward convolution."""
    found = set()

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func._opname == "convolution_backward":
                found.add((args[1].dtype, args[1].shape))
            return func(*args, **(kwargs or {}))

    out = layer(images.requires_grad_())
    with Seen(), context:
        out.sum().backward()
    return found


def converted(layer: nn.Module, images: Tensor, context: Any) -> set[torch.dtype]:
    return {dtype for dtype, _ in computed(layer, images, context)}


def test_nothing_else_changes() -> None:
    strided = nn.Conv2d(8, 8, 3, 2, groups=8).bfloat16()
    images = torch.rand(2, 8, 9, 9).bfloat16()
    assert converted(strided, images, FasterGradients()) == {torch.bfloat16, torch.float32}  # weights, input
    assert converted(strided, images, nullcontext()) == {torch.bfloat16}
    large = nn.Conv2d(8, 8, 5, groups=8).bfloat16()
    assert converted(large, images, FasterGradients()) == {torch.bfloat16, torch.float32}  # input; weights and bias
    for layer in (nn.Conv2d(8, 8, 3, 2), nn.Conv2d(8, 8, 5, groups=4), nn.ConvTranspose2d(8, 8, 3, 2, groups=8)):
        assert converted(layer.bfloat16(), images, FasterGradients()) == {torch.bfloat16}
    assert converted(strided.half(), images.half(), FasterGradients()) == {torch.float16}


def test_only_networks_that_have_such_layers() -> None:
    assert isinstance(faster_backward(nn.Conv2d(4, 4, 3, groups=4)), nullcontext)
    assert isinstance(faster_backward(nn.Conv2d(4, 4, 7)), nullcontext)
    assert isinstance(faster_backward(nn.Sequential(nn.Conv2d(4, 4, 3, 2, groups=4))), FasterGradients)


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize("bfloat16", [True, False])
def test_each_cpu_has_its_way(units: bool, bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution_gradients, "cpu_has_matrix_units", lambda: units)
    monkeypatch.setattr(convolution_gradients, "cpu_has_bfloat16", lambda: bfloat16)
    found = faster_backward(nn.Conv2d(4, 4, 3))
    if units:
        assert isinstance(found, FasterGradients)
        assert (found.side_by_side, found.by_winograd) == (True, False)
    elif bfloat16:
        assert isinstance(found, FasterGradients)
        assert (found.side_by_side, found.by_winograd) == (False, True)
    else:
        assert isinstance(found, nullcontext)


@pytest.mark.parametrize("changes", [{}, {"recompute": "blocks"}, {"optimization": {"accumulate": 2}}])
def test_a_training_computes_them_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    formats, within = [], convolution_gradients._in_float32

    def counted(gradient: Tensor, *args: Any) -> Any:
        formats.append(gradient.dtype)
        return within(gradient, *args)

    monkeypatch.setattr(convolution_gradients, "_in_float32", counted)
    model = {"name": "test_efficientnet", "pretrained": False, "options": {}}
    made = replace(MICRO, model=ModelOptions(**model))
    made = replace(made, preprocessing=Preprocessing(size=(32, 32)), precision="bf16-mixed", epochs=1)
    for name, value in changes.items():
        made = replace(made, **{name: replace(getattr(made, name), **value) if isinstance(value, dict) else value})
    run(made, tmp_path / "run")
    assert formats
    assert set(formats) == {torch.bfloat16}
    formats.clear()
    run(replace(made, precision="32-true"), tmp_path / "exact")
    assert not formats
