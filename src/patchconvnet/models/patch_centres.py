"""Where the patches of a timm network lie in its image, followed through the layers that made the map smaller."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from timm.layers import BlurPool2d
from timm.layers.padding import get_same_padding
from torch import nn


class Reduction(NamedTuple):
    """A layer as it was run that made the map smaller: (height, width) before and behind it, and for both axes how far
    its kernel reaches, its stride, and how many pixels were padded in front."""

    size: tuple[int, int]
    behind: tuple[int, int]
    reach: tuple[int, int]
    stride: tuple[int, int]
    front: tuple[int, int]


@contextmanager
def noting_reductions(backbone: nn.Module) -> Iterator[list[Reduction]]:
    reductions: list[Reduction] = []

    def note(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs[0].shape[-2:] == output.shape[-2:]:
            return
        size, behind = pair(inputs[0].shape[-2:]), pair(output.shape[-2:])
        blurs = isinstance(layer, BlurPool2d)
        kernel, stride = pair(layer.filt_size if blurs else layer.kernel_size), pair(layer.stride)
        dilation, padding = pair(getattr(layer, "dilation", 1)), pair(layer.padding[::2] if blurs else layer.padding)
        reach, front = [0, 0], [0, 0]
        for i in (0, 1):
            reach[i] = (kernel[i] - 1) * dilation[i] + 1
            told = (size[i] + 2 * padding[i] - reach[i]) // stride[i] + 1 == behind[i]
            # else TensorFlow's padding, or a length that was rounded up
            front[i] = padding[i] if told else get_same_padding(size[i], kernel[i], stride[i], dilation[i]) // 2
        reductions.append(Reduction(size, behind, pair(reach), stride, pair(front)))

    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, BlurPool2d)
    handles = [layer.register_forward_hook(note) for layer in backbone.modules() if isinstance(layer, kinds)]
    try:
        yield reductions
    finally:
        for handle in handles:
            handle.remove()


def follow(layers: list[Reduction], size: Sequence[int], grid: Sequence[int]) -> tuple[tuple[float, float], int]:
    """Centre (y, x) of the first patch's receptive field, and the distance of patches, in pixels of the image.

    Followed from the image to the map. Of several layers that lead on, the one that reduces least is the way (others
    serve attention), and of those alike the one that reaches farthest (shortcuts are short). What reduces without a
    convolution or a pooling merges neighbours (Swin), which leaves centres in the middle.
    """
    centre, step, at = [0.5, 0.5], [1, 1], pair(size)
    while at != pair(grid) and (ways := [layer for layer in layers if layer.size == at]):
        way = max(ways, key=lambda layer: (layer.behind, layer.reach))
        for i in (0, 1):
            centre[i] += ((way.reach[i] - 1) / 2 - way.front[i]) * step[i]
            step[i] *= way.stride[i]
        at = way.behind
    for i in (0, 1):
        merged = round(at[i] / grid[i])
        centre[i] += (merged - 1) / 2 * step[i]
        step[i] *= merged
    return (centre[0], centre[1]), step[0]


def pair(value: Any) -> tuple[int, int]:
    """A length for both axes, or the two that are given."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])
