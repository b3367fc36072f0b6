"""Counted operations and bytes, against what small layers take by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchconvnet.training.operations import (
    ACTIVATION,
    ATTENTION,
    ATTENTION_BACKWARD,
    BATCH_NORM,
    BATCH_NORM_BACKWARD,
    CONVOLUTION,
    CONVOLUTION_BACKWARD,
    DEPTHWISE,
    DEPTHWISE_BACKWARD,
    DEPTHWISE_LARGE,
    DEPTHWISE_STRIDED,
    ELEMENTWISE,
    MATRIX,
    POINTWISE,
    POINTWISE_BACKWARD,
    POOLING,
    STARTING,
    SUM,
    Amount,
    Counter,
    Counts,
    combined,
)


def forward_and_backward(layer: nn.Module, *inputs: Tensor) -> tuple[Counts, Counts]:
    with Counter() as forward:
        out = layer(*inputs)
    gradient = torch.rand_like(out)
    with Counter() as backward:
        out.backward(gradient)
    return forward.counts, backward.counts


def images(batch: int, channels: int, side: int) -> Tensor:
    values = torch.rand(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
    return values.requires_grad_()


def test_a_convolution() -> None:
    forward, backward = forward_and_backward(nn.Conv2d(3, 8, 3, padding=1, bias=False), images(2, 3, 10))
    given, weight, out = 4 * 2 * 3 * 100, 4 * 8 * 3 * 9, 4 * 2 * 8 * 100
    operations = 2 * 2 * 8 * 100 * 3 * 9
    assert forward[CONVOLUTION] == Amount(1, operations, given + weight + out)
    # the gradient of the images is made from those of the output and the weights, that of the weights from the images
    assert backward[CONVOLUTION_BACKWARD] == Amount(2, 2 * operations, 2 * (given + weight + out))
    _, first = forward_and_backward(nn.Conv2d(3, 8, 3, padding=1, bias=False), images(2, 3, 10).detach())
    assert first[CONVOLUTION_BACKWARD] == Amount(1, operations, given + weight + out)


def test_a_pointwise_convolution_in_bfloat16() -> None:
    layer, given = nn.Conv2d(4, 6, 1, bias=False).bfloat16(), images(2, 4, 5).detach().bfloat16().requires_grad_()
    forward, backward = forward_and_backward(layer, given)
    moved = 2 * (2 * 4 * 25 + 6 * 4 + 2 * 6 * 25)
    assert forward[POINTWISE] == Amount(1, 2 * 2 * 6 * 25 * 4, moved)
    assert backward[POINTWISE_BACKWARD] == Amount(2, 2 * 2 * 2 * 6 * 25 * 4, 2 * moved)


@pytest.mark.parametrize(
    ("kernel", "stride", "of_images", "of_weights"),
    [
        (3, 1, DEPTHWISE_BACKWARD, DEPTHWISE_BACKWARD),
        (3, 2, DEPTHWISE_STRIDED, DEPTHWISE_BACKWARD),
        (5, 1, DEPTHWISE_BACKWARD, DEPTHWISE_LARGE),
        (5, 2, DEPTHWISE_STRIDED, DEPTHWISE_LARGE),
    ],
)
def test_a_depthwise_convolution(kernel: int, stride: int, of_images: str, of_weights: str) -> None:
    layer = nn.Conv2d(8, 8, kernel, stride, padding=kernel // 2, groups=8, bias=False)
    forward, backward = forward_and_backward(layer, images(2, 8, 12))
    side = 12 // stride
    operations = 2 * 2 * 8 * side**2 * kernel**2  # a channel is summed over itself alone
    moved = 4 * (2 * 8 * 144 + 8 * kernel**2 + 2 * 8 * side**2)
    assert forward[DEPTHWISE] == Amount(1, operations, moved)
    expected: dict[str, Amount] = {}
    for kind in (of_images, of_weights):
        expected[kind] = expected.get(kind, Amount()).combined(1, Amount(1, operations, moved), 1)
    assert {kind: amount for kind, amount in backward.items() if "depthwise" in kind} == expected


def test_a_linear_layer() -> None:
    forward, backward = forward_and_backward(nn.Linear(5, 7), torch.rand(3, 5, requires_grad=True))
    assert forward[MATRIX] == Amount(1, 2 * 3 * 5 * 7, 4 * (3 * 5 + 5 * 7 + 7 + 3 * 7))
    assert backward[MATRIX] == Amount(2, 2 * 2 * 3 * 5 * 7, 2 * 4 * (3 * 5 + 5 * 7 + 3 * 7))
    assert backward[SUM] == Amount(1, 3 * 7, 4 * (3 * 7 + 7))  # of the bias
    assert forward.keys() == {MATRIX, STARTING}  # transposing the weight is a view: started, nothing computed
    assert forward[STARTING].calls == 2


def test_what_memory_bounds() -> None:
    values, count = images(2, 4, 6), 2 * 4 * 36
    forward, backward = forward_and_backward(nn.BatchNorm2d(4), values)
    assert forward[BATCH_NORM].bytes == pytest.approx(4 * 2 * count, rel=0.1)  # and a few numbers for each channel
    assert backward[BATCH_NORM_BACKWARD].bytes == pytest.approx(4 * 3 * count, rel=0.1)
    forward, backward = forward_and_backward(nn.GELU(), images(2, 4, 6))
    assert (forward[ACTIVATION], backward[ACTIVATION]) == (Amount(1, count, 8 * count), Amount(1, count, 12 * count))
    forward, backward = forward_and_backward(nn.ReLU(), images(2, 4, 6))
    assert (forward[ELEMENTWISE], backward[ELEMENTWISE]) == (Amount(1, count, 8 * count), Amount(1, count, 12 * count))
    one = torch.ones(1).expand(2, 4, 6, 6)  # read once, however often it is expanded
    with torch.no_grad(), Counter() as counter:
        values.add_(one)
    assert counter.counts[ELEMENTWISE] == Amount(1, count, 4 * (2 * count + 1))
    with torch.no_grad(), Counter() as counter:
        F.max_pool2d(values, 2)
    assert counter.counts[POOLING] == Amount(1, count, 4 * (count + count // 4) + 8 * count // 4)


def test_attention() -> None:
    query, key, value = (torch.rand(2, 3, 10, 8, requires_grad=True) for _ in range(3))
    with Counter() as forward:
        out = F.scaled_dot_product_attention(query, key, value)
    with Counter() as backward:
        out.backward(torch.rand_like(out))
    product = 2 * 2 * 3 * 10 * 10 * 8
    assert forward.counts[ATTENTION].operations == 2 * product  # scores, and the sum of values
    assert backward.counts[ATTENTION_BACKWARD].operations == 5 * product


def test_amounts_of_images_and_steps() -> None:
    few, more = {MATRIX: Amount(3, 20, 100), SUM: Amount(1, 0, 8)}, {MATRIX: Amount(3, 40, 180)}
    image = combined(0.5, more, -0.5, few)
    assert image == {MATRIX: Amount(0, 10, 40), SUM: Amount()}
    assert combined(1, few, -2, image) == {MATRIX: Amount(3, 0, 20), SUM: Amount(1, 0, 8)}
