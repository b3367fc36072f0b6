"""Gradients of convolutions by other ways: the same numbers, only where they are wanted, in a real training."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import MICRO, run
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.hardware import cpu_has_matrix_units
from patchconvnet.training import convolution_gradients
from patchconvnet.training.convolution_gradients import FasterGradients, faster_backward
from patchconvnet.training.recipe import ModelOptions


def gradients(layer: nn.Conv2d, images: Tensor, context: Any) -> tuple[Tensor, ...]:
    images = images.clone().requires_grad_()
    layer.zero_grad()
    out = layer(images)
    with context:
        out.backward(torch.linspace(-1, 1, out.numel()).view_as(out).bfloat16().to(out.dtype))
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
    assert isinstance(faster_backward(nn.Conv2d(4, 4, 3)), FasterGradients) == cpu_has_matrix_units()


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
