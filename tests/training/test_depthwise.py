"""Gradients of depthwise convolutions in float32: the same numbers, only where they are wanted, in a real training."""

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
from patchconvnet.training import depthwise
from patchconvnet.training.depthwise import Float32Depthwise, faster_backward
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
    monkeypatch.setattr(depthwise, "CHUNK", chunk)  # one image, three, or all at once
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 16, kernel, stride, padding=kernel // 2, groups=16, bias=bias).bfloat16()
    images = torch.randn(8, 16, 14, 14).contiguous(memory_format=torch.channels_last).bfloat16()
    ours = gradients(layer, images, Float32Depthwise())
    plain = gradients(layer, images, nullcontext())
    exact = gradients(layer.float(), images.float(), nullcontext())
    for which, (one, two, right) in enumerate(zip(ours, plain, exact, strict=True)):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.float(), right, rtol=2**-8, atol=float(right.abs().max()) * 1e-5)
        if not (stride > 1, kernel > 3, kernel > 3)[which]:
            assert torch.equal(one, two)


def converted(layer: nn.Module, images: Tensor, context: Any) -> set[torch.dtype]:
    """Number formats of the backward convolutions."""
    found = set()

    class Formats(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func._opname == "convolution_backward":
                found.add(args[0].dtype)
            return func(*args, **(kwargs or {}))

    out = layer(images.requires_grad_())
    with Formats(), context:
        out.sum().backward()
    return found


def test_nothing_else_changes() -> None:
    strided = nn.Conv2d(8, 8, 3, 2, groups=8).bfloat16()
    images = torch.rand(2, 8, 9, 9).bfloat16()
    assert converted(strided, images, Float32Depthwise()) == {torch.bfloat16, torch.float32}  # weights, input
    assert converted(strided, images, nullcontext()) == {torch.bfloat16}
    large = nn.Conv2d(8, 8, 5, groups=8).bfloat16()
    assert converted(large, images, Float32Depthwise()) == {torch.bfloat16, torch.float32}  # input; weights and bias
    for layer in (nn.Conv2d(8, 8, 3, 2), nn.Conv2d(8, 8, 5, groups=4), nn.ConvTranspose2d(8, 8, 3, 2, groups=8)):
        assert converted(layer.bfloat16(), images, Float32Depthwise()) == {torch.bfloat16}
    assert converted(strided.half(), images.half(), Float32Depthwise()) == {torch.float16}


def test_only_networks_that_have_such_layers() -> None:
    assert isinstance(faster_backward(nn.Conv2d(4, 4, 3, groups=4)), nullcontext)
    assert isinstance(faster_backward(nn.Conv2d(4, 4, 7)), nullcontext)
    assert isinstance(faster_backward(nn.Sequential(nn.Conv2d(4, 4, 3, 2, groups=4))), Float32Depthwise)


@pytest.mark.parametrize("changes", [{}, {"recompute": "blocks"}, {"optimization": {"accumulate": 2}}])
def test_a_training_computes_them_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    formats, within = [], depthwise._in_float32

    def counted(gradient: Tensor, *args: Any) -> Any:
        formats.append(gradient.dtype)
        return within(gradient, *args)

    monkeypatch.setattr(depthwise, "_in_float32", counted)
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
