"""Networks to which left and right are one: a mirrored image gets the same logits, and mirrored maps.

Half of the channels answer to an image as the other half answers to its mirror image: channel c + C/2 of a convolution
has the mirrored filter of channel c, over inputs of exchanged halves; norms, excitation, queries and classifier treat
both halves alike. So the network sees every image both ways at once. It is an ordinary network, with as many
operations, of whose weights half are free: whatever computes, writes or exports networks does so as ever.

It holds for images as wide as a whole number of patches, and is wrong for what a mirror changes, such as letters.

Source: Cohen & Welling 2016, "Group Equivariant Convolutional Networks", arXiv 1602.07576, for the group of two.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from timm.layers import LayerScale
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from patchconvnet.errors import UserError
from patchconvnet.models.classifier import AttentionClassifier
from patchconvnet.models.layers import SqueezeExcite
from patchconvnet.models.pooling import AdditivePooling
from patchconvnet.models.stem import PooledStem


class _Tie(NamedTuple):
    """A tensor of the network, and how its axes are exchanged in a mirror.

    Attributes:
        owner, name: whose it is: a parameter, or a statistic of a batch norm.
        outputs: what the first axis' places become, or None if they stay.
        inputs: the same of the second axis.
        filters: whether the last axis is a filter's width.
    """

    owner: nn.Module
    name: str
    outputs: Tensor | None
    inputs: Tensor | None = None
    filters: bool = False

    @property
    def value(self) -> Tensor:
        return getattr(self.owner, self.name)

    def mirrored(self, value: Tensor) -> Tensor:
        if self.outputs is not None:
            value = value[self.outputs.to(value.device)]
        if self.inputs is not None:
            value = value[:, self.inputs.to(value.device)]
        return value.flip(-1) if self.filters else value


class MirrorSymmetry:
    """What keeps a network's weights symmetric. Make one when the stem has its whitening filters.

    Args:
        model: a `PatchConvNet` with a pooled stem of stride 1 and additive pooling.

    Raises:
        UserError: the network is of another form, or has an odd number of channels somewhere.
    """

    def __init__(self, model: AttentionClassifier):
        stem, trunk, pooling = getattr(model, "stem", None), getattr(model, "trunk", None), model.pooling
        if not isinstance(stem, PooledStem) or stem.stride != 1 or not isinstance(pooling, AdditivePooling):
            raise UserError(
                "mirror symmetry is for networks with a pooled stem of stride 1 and additive pooling, such as "
                "patchconvnet_mini"
            )
        assert isinstance(trunk, nn.ModuleList)
        self._features = [*_of_stem(stem), *_of_hidden(trunk), *_of_hidden(pooling.norm)]
        self._ties = [*self._features, _Tie(pooling, "query", None, _halves(pooling.query.shape[-1]))]
        classifier = model.get_classifier()
        self._ties.extend(
            _Tie(classifier, name, None, _halves(value.shape[-1]))
            for name, value in classifier.named_parameters(recurse=False)
            if value.ndim == 2
        )

    @torch.no_grad()
    def begin(self) -> None:
        """Make fresh weights symmetric: of two that belong together the first counts, so that their spread stays."""
        for tie in self._ties:
            partners = tie.outputs if tie.outputs is not None else tie.inputs
            assert partners is not None
            second = (partners < torch.arange(len(partners))).to(tie.value.device)
            shape = [-1, *[1] * (tie.value.ndim - 1)] if tie.outputs is not None else [-1]
            tie.value.copy_(torch.where(second.view(shape), tie.mirrored(tie.value), tie.value))
        self.keep()

    @torch.no_grad()
    def keep(self) -> None:
        """Set weights and statistics to their mean with their mirror images: after each step, which rounds."""
        for tie in self._ties:
            tie.value.copy_((tie.value + tie.mirrored(tie.value)) / 2)

    @torch.no_grad()
    def tie_gradients(self) -> None:
        """The same for gradients, before a step: then optimizers that treat all places alike make equal steps."""
        for tie in self._ties:
            gradient = tie.value.grad
            if gradient is not None:
                gradient.copy_((gradient + tie.mirrored(gradient)) / 2)

    @torch.no_grad()
    def is_kept(self) -> bool:
        """Whether all weights but queries and classifier are symmetric, but for rounding."""
        return all(torch.allclose(tie.value, tie.mirrored(tie.value), rtol=1e-3, atol=1e-5) for tie in self._features)


def _of_stem(stem: PooledStem) -> Iterator[_Tie]:
    first, *further = stem.convs
    assert isinstance(first, nn.Conv2d)
    channels = _pairs(first)
    yield _Tie(first, "weight", channels, None, filters=True)
    if first.bias is not None:
        yield _Tie(first, "bias", channels)
    for conv in further:
        assert isinstance(conv, nn.Conv2d)
        halves = _halves(conv.out_channels)
        yield _Tie(conv, "weight", halves, channels, filters=True)
        channels = halves
    for part in (stem.norms, stem.repeat_convs, stem.repeat_norms):
        yield from _of_hidden(part)


def _of_hidden(part: nn.Module) -> Iterator[_Tie]:
    """Of layers from hidden channels to hidden channels."""
    for name, module in part.named_modules():
        if isinstance(module, SqueezeExcite):  # its hidden layer is given both halves' sum, and gives both the same
            yield _Tie(module.reduce, "weight", None, _halves(module.reduce.in_features))
            yield from _of_outputs(module.expand)
        elif isinstance(module, nn.Conv2d):
            inputs = None if module.groups > 1 else _halves(module.in_channels)
            yield from _of_outputs(module, inputs, filters=True)
        elif isinstance(module, nn.Linear) and not name.endswith(("se.reduce", "se.expand")):
            yield from _of_outputs(module, _halves(module.in_features))
        elif isinstance(module, _BatchNorm | nn.LayerNorm | LayerScale):
            yield from (
                _Tie(module, of, _halves(len(value)))
                for of, value in (*module.named_parameters(), *module.named_buffers())
                if value.ndim == 1
            )


def _of_outputs(layer: nn.Conv2d | nn.Linear, inputs: Tensor | None = None, *, filters: bool = False) -> Iterator[_Tie]:
    halves = _halves(len(layer.weight))
    yield _Tie(layer, "weight", halves, inputs, filters)
    if layer.bias is not None:
        yield _Tie(layer, "bias", halves)


def _halves(channels: int) -> Tensor:
    if channels % 2:
        raise UserError(f"mirror symmetry needs an even number of channels, not {channels}")
    return torch.arange(channels).roll(channels // 2)


def _pairs(first: nn.Conv2d) -> Tensor:
    """What the first convolution's channels become in a mirror: whitening filters have their mirror images among them.

    Of the others those in the first half belong to those in the second.
    """
    weight = first.weight.detach().float().cpu()
    filters, mirrored = weight.flatten(1), weight.flip(-1).flatten(1)
    distances, partners = torch.cdist(mirrored, filters).min(1)
    others = (distances > 1e-3 * filters.norm(dim=1)).nonzero().flatten()
    partners[others] = others[_halves(len(others))]
    return partners
