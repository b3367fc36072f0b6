"""The network that holds the speed record on CIFAR-10 (airbench94), and its parts changed one at a time towards ours.

K. Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498, and airbench94.py of
github.com/KellerJordan/cifar10-airbench. Used by `record_control.py`; written anew, with this package's pooling.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from patchconvnet.models.layers import SqueezeExcite
from patchconvnet.models.pooling import AdditivePooling

CHANGES = {
    "attention": "additive attention over the last map's places instead of their maximum",
    "channel_attention": "for every channel a softmax over the places of its own values, 4 times as sharp at first and "
    "learned, instead of their maximum",
    "map8": "the last map has 8 × 8 places, not 3 × 3 (no pool in the third group, pools round up); 192 wide, not 256",
    "coarse": "with 8 × 8 places: the last convolution works on 4 × 4, maxima of 2 × 2, and its answer is added to "
    "what went into the norm before it, each place four times; 224 wide, not 192",
    "norm_order": "as in our blocks: the second convolution's answer is added to what went into its norm and GELU "
    "(pre-activation), default initialisation there; no GELU before the pooling",
    "whitening3": "whitening as in our stems: 3×3, padded, the 12 strongest of 27 filters and their negatives, not all "
    "12 of 2×2",
    "excitation": "squeeze-and-excitation of what the last convolution gives",
    "layer_norm": "layer norm of the last map's places before the pooling, as in our heads",
    "default_init": "PyTorch's initialisation of the convolutions, not Dirac's",
    "norm_scale": "batch norms as ours: a learned scale, the bias at the others' rate, statistics' momentum 0.1",
    "muon": "Muon for the 3×3 convolutions, with the rates and the momentum of cifar10_10min",
    "adamw": "AdamW with the rates of cifar10_10min for what Muon does not take",
    "no_lookahead": "no Lookahead",
}
WIDTHS, WIDTHS_MAP8, WIDTHS_COARSE = (
    (64, 256, 256),
    (64, 192, 192),
    (64, 224, 224),
)  # of the groups, for as many operations
WHITENING_SIDE = 2  # pixels
WHITENING_FLOOR = 5e-4
LOGIT_SCALE = 1 / 9
EXCITATION = 0.25  # width of its hidden layer, of the channels
SHARPNESS = 4.0  # of channel_attention, at first
BATCH_NORM = {"momentum": 0.4, "eps": 1e-12}


class RecordNetwork(nn.Module):
    """Whitening convolution, three groups of two 3×3 convolutions, pooling, linear: (B, 3, 32, 32) → logits (B, K).

    Args:
        changes: names in `CHANGES`; none for the record's network. Those after "norm_scale" are not the network's.
    """

    def __init__(self, changes: Sequence[str] = (), num_classes: int = 10):
        super().__init__()
        filters = 2 * 3 * WHITENING_SIDE**2
        large_map, residual = "map8" in changes, "norm_order" in changes
        coarse = "coarse" in changes
        if coarse and not large_map:
            raise ValueError("the change coarse is one of map8; give both")
        widths = WIDTHS_COARSE if coarse else WIDTHS_MAP8 if large_map else WIDTHS
        common: dict[str, bool] = {
            "residual": residual, "dirac": "default_init" not in changes, "norm_scale": "norm_scale" in changes
        }  # fmt: skip
        if "whitening3" in changes and not large_map:
            raise ValueError("the change whitening3 is one of map8, whose pools round up; give both")
        side, padding = (3, 1) if "whitening3" in changes else (WHITENING_SIDE, 0)
        self.whitening = nn.Conv2d(3, filters, side, padding=padding)
        self.groups = nn.Sequential(
            Group(filters, widths[0], round_up=large_map, **common),
            Group(widths[0], widths[1], round_up=large_map, **common),
            Group(
                widths[1],
                widths[2],
                pool=not large_map,
                last_act=not residual,
                coarse=coarse,
                excitation="excitation" in changes,
                **common,
            ),
        )
        normalised = "layer_norm" in changes
        if normalised and "attention" not in changes:
            raise ValueError("the change layer_norm is one of attention; give both")
        norm: Literal["layer", "none"] = "layer" if normalised else "none"
        self.attention = AdditivePooling(widths[2], norm=norm) if "attention" in changes else None
        self.channel_attention = ChannelAttention(widths[2]) if "channel_attention" in changes else None
        self.classifier = nn.Linear(widths[2], num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = F.gelu(self.whitening(images.contiguous(memory_format=torch.channels_last)))  # (B, 24, 31, 31)
        x = self.groups(x)
        if self.attention is not None:
            pooled = self.attention(x.permute(0, 2, 3, 1)).vector
        elif self.channel_attention is not None:
            pooled = self.channel_attention(x)
        else:
            pooled = F.max_pool2d(x, x.shape[-2:]).flatten(1)
        return self.classifier(pooled) * LOGIT_SCALE

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Fix the first convolution: the eigenvectors of the images' patches, of variance 1, and their negatives.

        They are of 2 × 2 pixels unless changed. Unlike `PooledStem.whiten` it takes every patch, and their second
        moments about zero, as the record does.

        Args:
            images: (N, 3, H, W), normalised.
        """
        weight = self.whitening.weight
        patches = F.unfold(images, self.whitening.kernel_size).movedim(1, 2).flatten(0, 1).double()  # (N·h·w, 12 or 27)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + WHITENING_FLOOR).sqrt()).T.flip(0)[: len(weight) // 2]  # the strongest
        weight.copy_(torch.cat([filters, -filters]).view_as(weight))
        weight.requires_grad_(False)
        assert self.whitening.bias is not None
        self.whitening.bias.zero_()


class Group(nn.Module):
    """Conv 3×3, max pool, norm, GELU, conv 3×3, norm, GELU: (B, C_in, H, W) → (B, C, H/2, W/2).

    Args:
        in_channels, channels: C_in and C.
        pool: whether there is the pool.
        round_up: whether the pool keeps a last odd row and column.
        residual: whether the second convolution's answer is added to the first one's.
        last_act: whether there is the last GELU.
        coarse: whether the second convolution works on the maxima of 2 × 2 places, its answer added to the first one's.
        excitation: whether squeeze-and-excitation follows the second convolution.
        dirac: whether the convolutions begin as the identity, as far as their channels reach.
        norm_scale: whether the norms are PyTorch's own, with a scale that is learned.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        pool: bool = True,
        round_up: bool = False,
        residual: bool = False,
        last_act: bool = True,
        coarse: bool = False,
        excitation: bool = False,
        dirac: bool = True,
        norm_scale: bool = False,
    ):
        super().__init__()
        self.residual, self.coarse = residual, coarse
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2, ceil_mode=round_up) if pool else nn.Identity()
        self.norm1, self.norm2 = (nn.BatchNorm2d(channels, **({} if norm_scale else BATCH_NORM)) for _ in range(2))
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.last_act = nn.GELU() if last_act else nn.Identity()
        self.excitation = SqueezeExcite(channels, EXCITATION, bias=True) if excitation else None
        for norm in (self.norm1, self.norm2):
            norm.weight.requires_grad_(norm_scale)  # else it stays 1
        for conv in () if not dirac else (self.conv1,) if residual else (self.conv1, self.conv2):
            nn.init.dirac_(conv.weight.data[: conv.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        first = self.pool(self.conv1(x))
        x = F.gelu(self.norm1(first))
        second = self.conv2(F.max_pool2d(x, 2) if self.coarse else x)
        if self.excitation is not None:
            second = self.excitation(second.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.coarse:
            second = F.interpolate(second, scale_factor=2)
        return self.last_act(self.norm2(first + second if self.residual or self.coarse else second))


class ChannelAttention(nn.Module):
    """Every channel is a query of its own: (B, C, H, W) → (B, C), its mean by softmax(sharpness · its values).

    Between the mean (sharpness 0) and the maximum (without bounds), and as a sum over places as exact as they are.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.sharpness = nn.Parameter(torch.full((channels,), SHARPNESS))

    def forward(self, x: Tensor) -> Tensor:
        values = x.flatten(2).float()
        return (values * (values * self.sharpness[:, None]).softmax(-1)).sum(-1)


class SixViews(nn.Module):
    """The record's test-time augmentation: half the image, a quarter each of two that are moved by a pixel; mirrored.

    (B, 3, H, W) → mean logits (B, K).
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        padded = F.pad(images, (1, 1, 1, 1), "reflect")
        moved = padded[..., :height, :width], padded[..., 2:, 2:]
        return 0.5 * self._both(images) + 0.25 * self._both(moved[0]) + 0.25 * self._both(moved[1])

    def _both(self, images: Tensor) -> Tensor:
        return (self.network(images) + self.network(images.flip(-1))) / 2


def forward_operations(changes: Sequence[str], side: int = 32) -> int:
    """Multiplications and additions of a forward pass for one image."""
    with torch.device("meta"):
        network, image = RecordNetwork(changes).eval().requires_grad_(False), torch.empty(1, 3, side, side)
    with FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops()
