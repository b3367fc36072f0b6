"""Layers that timm does not have in the needed form. All of them work on channels-last patches (B, h, w, C)."""

from typing import Literal

import torch
from torch import Tensor, nn

NormName = Literal["layer", "batch"]
ActName = Literal["gelu", "gelu_tanh"]

NORM_EPS = 1e-6  # LayerNorm's, in the paper's code and in the Keras example alike


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the last axis of (B, h, w, C), otherwise `nn.BatchNorm2d`."""

    def forward(self, patches: Tensor) -> Tensor:
        if torch.compiler.is_dynamo_compiling():
            # Inductor of torch 2.14 stops at a permuted view of unknown height and width that the backward pass needs;
            # a list of patches has known strides, and the code that it makes is the same
            return super().forward(patches.flatten(0, 2)[..., None, None]).view_as(patches)
        return super().forward(patches.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # views, no copy


def norm_layer(name: NormName | Literal["none"], dim: int) -> nn.Module:
    """The normalisation of (..., C) tensors that `name` stands for."""
    if name == "none":
        return nn.Identity()
    return nn.LayerNorm(dim, eps=NORM_EPS) if name == "layer" else BatchNorm(dim)


def act_layer(name: ActName) -> nn.Module:
    """Exact GELU (the paper's code), or its tanh approximation (Keras' default today)."""
    return nn.GELU(approximate="tanh" if name == "gelu_tanh" else "none")


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018, arXiv 1709.01507): channels scaled by what the whole image shows.

    Mean over the patches, linear C → C·ratio, ReLU, linear back, sigmoid, multiply.

    Args:
        dim: channels C.
        ratio: width of the hidden layer as a share of C.
        bias: whether the two linear layers have biases (the paper: yes, the Keras example: no).
    """

    def __init__(self, dim: int, ratio: float, bias: bool):
        super().__init__()
        hidden = int(dim * ratio)
        self.reduce = nn.Linear(dim, hidden, bias=bias)
        self.expand = nn.Linear(hidden, dim, bias=bias)

    def forward(self, patches: Tensor) -> Tensor:
        squeezed = patch_mean(patches)  # (B, C)
        scale = self.expand(torch.relu(self.reduce(squeezed))).sigmoid()
        return patches * scale[:, None, None, :]


def patch_mean(patches: Tensor) -> Tensor:
    """Mean over the patches, (B, h, w, C) → (B, C), faster in training than `Tensor.mean`.

    A sum's gradient is a view of (B, C), where mean's is as large as the patches; and on a CPU mean first copies
    bfloat16 to float32. In float16 a sum would overflow.
    """
    if patches.dtype is torch.float16:
        return patches.mean((1, 2))
    return patches.sum((1, 2)) / (patches.shape[1] * patches.shape[2])
