"""The convolutional stem: an image becomes a grid of patches (paper, section 3.1; Keras example, "Stem block")."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchconvnet.models.layers import ActName, act_layer

StemPadding = Literal["symmetric", "same"]


class ConvStem(nn.Module):
    """3×3 convolutions of stride 2, one after the other, with GELU between them: (B, C_in, H, W) → (B, h, w, C).

    Args:
        in_chans: channels of the image.
        channels: output channels of each convolution; each halves the resolution: the patch size is 2^len(channels).
        bias: whether the convolutions have biases.
        padding: "symmetric" pads one pixel on each side; "same" is TensorFlow's rule, which at stride 2 pads an even
            length by 0 before and 1 after. Both give ⌈H/patch⌉ × ⌈W/patch⌉ patches.
        last_act: whether the last convolution is followed by GELU too (the Keras example: yes, the paper: no).
        act: which GELU.
    """

    def __init__(
        self,
        in_chans: int,
        channels: Sequence[int],
        *,
        bias: bool = False,
        padding: StemPadding = "symmetric",
        last_act: bool = False,
        act: ActName = "gelu",
    ):
        super().__init__()
        self.patch_size = 2 ** len(channels)
        self.padding = padding
        self.last_act = last_act
        self.act = act_layer(act)
        widths = [in_chans, *channels]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=2, padding=1 if padding == "symmetric" else 0, bias=bias)
            for i, o in pairwise(widths)
        )

    def forward(self, image: Tensor) -> Tensor:
        x = image.contiguous(memory_format=torch.channels_last)
        for i, conv in enumerate(self.convs):
            if self.padding == "same":
                x = F.pad(x, (x.shape[-1] % 2, 1, x.shape[-2] % 2, 1))
            x = conv(x)
            if self.last_act or i < len(self.convs) - 1:
                x = self.act(x)
        return x.permute(0, 2, 3, 1)  # (B, h, w, C), a view of channels-last memory
