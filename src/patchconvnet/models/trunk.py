"""The trunk: residual blocks that work on the patches at one resolution (paper, section 3.1 and figure 4)."""

from typing import Literal

from timm.layers import DropPath, LayerScale
from torch import Tensor, nn

from patchconvnet.models.layers import ActName, NormName, SqueezeExcite, act_layer, norm_layer

BlockName = Literal["paper", "preactivation"]
ConvName = Literal["depthwise", "dense"]


class TrunkBlock(nn.Module):
    """x + drop_path(γ · F(norm(x))), F = 1×1 conv, GELU, 3×3 conv, GELU, squeeze-and-excitation, 1×1 conv.

    Patches (B, h, w, C) → (B, h, w, C). The 1×1 convolutions are linear layers over the last axis.

    Args:
        dim: channels C.
        conv: whether the 3×3 convolution is "depthwise" (the paper) or "dense" (the Keras example).
        norm: "layer" or "batch" normalisation.
        act: which GELU.
        se_ratio, se_bias: see `SqueezeExcite`.
        layer_scale: initial value of γ, or None for a block without one.
        drop_path: probability of leaving an image's branch out in training (stochastic depth).
    """

    def __init__(
        self,
        dim: int,
        *,
        conv: ConvName = "depthwise",
        norm: NormName = "layer",
        act: ActName = "gelu",
        se_ratio: float = 0.25,
        se_bias: bool = True,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm = norm_layer(norm, dim)
        self.conv1 = nn.Linear(dim, dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim if conv == "depthwise" else 1)
        self.se = SqueezeExcite(dim, se_ratio, se_bias)
        self.conv3 = nn.Linear(dim, dim)
        self.act = act_layer(act)
        self.layer_scale = LayerScale(dim, layer_scale) if layer_scale is not None else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, patches: Tensor) -> Tensor:
        x = self.conv1(self.norm(patches)).permute(0, 3, 1, 2)  # a view: (B, C, h, w) in channels-last memory
        x = self.act(self.conv2(self.act(x))).permute(0, 2, 3, 1)
        x = self.conv3(self.se(x))
        return patches + self.drop_path(self.layer_scale(x))


class PreactivationBlock(nn.Module):
    """x + drop_path(γ · F(x)), F = norm, GELU, 3×3 conv, norm, GELU, 3×3 conv, squeeze-and-excitation.

    Patches (B, h, w, C) → (B, h, w, C). All of its operations mix neighbours: on small images, where depth is
    scarce, better for each of them than `TrunkBlock`'s.

    Source: He et al. 2016, arXiv 1603.05027; Hu et al. 2018, arXiv 1709.01507.

    Args:
        dim: channels C.
        norm, act, se_ratio, se_bias, layer_scale, drop_path: see `TrunkBlock`.
    """

    def __init__(
        self,
        dim: int,
        *,
        norm: NormName = "batch",
        act: ActName = "gelu",
        se_ratio: float = 0.25,
        se_bias: bool = True,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm1 = norm_layer(norm, dim)
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.norm2 = norm_layer(norm, dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.se = SqueezeExcite(dim, se_ratio, se_bias)
        self.act = act_layer(act)
        self.layer_scale = LayerScale(dim, layer_scale) if layer_scale is not None else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, patches: Tensor) -> Tensor:
        x = self.norm1(patches).permute(0, 3, 1, 2)  # a view: (B, C, h, w) in channels-last memory
        x = self.norm2(self.conv1(self.act(x)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.conv2(self.act(x)).permute(0, 2, 3, 1)
        return patches + self.drop_path(self.layer_scale(self.se(x)))
