"""The paper's S60 the way its published code computes it, to compare with: eager, channels-first, float32.

Written for the benchmark after the paper and its code's structure (Touvron et al. 2021; facebookresearch/deit): patches
travel as (B, N, C), every block turns them to (B, C, h, w) for its convolutions and back, 1×1 convolutions are
convolutions, and class attention makes keys and values for every patch. Weights are those of a `PatchConvNet`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchconvnet import PatchConvNet
from patchconvnet.models.trunk import TrunkBlock


def conv1x1(linear: nn.Linear) -> nn.Conv2d:
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1)
    conv.load_state_dict({"weight": linear.weight[:, :, None, None], "bias": linear.bias})
    return conv


class SqueezeExcite(nn.Module):
    def __init__(self, reduce: nn.Linear, expand: nn.Linear):
        super().__init__()
        self.reduce, self.expand = conv1x1(reduce), conv1x1(expand)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class Block(nn.Module):
    def __init__(self, block: TrunkBlock):
        super().__init__()
        self.norm, self.gamma = block.norm, block.layer_scale.gamma
        self.branch = nn.Sequential(
            conv1x1(block.conv1), nn.GELU(), block.conv2, nn.GELU(),
            SqueezeExcite(block.se.reduce, block.se.expand), conv1x1(block.conv3),
        )  # fmt: skip

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        b, n, c = tokens.shape
        image = self.norm(tokens).transpose(1, 2).reshape(b, c, height, width)
        return tokens + self.gamma * self.branch(image).reshape(b, c, n).transpose(1, 2)


class PublishedStyle(nn.Module):
    """The same answers as `model`, a `patchconvnet_s60` with one class token, in evaluation mode."""

    def __init__(self, model: PatchConvNet):
        super().__init__()
        self.stem, self.pooling, self.head = model.stem, model.pooling, model.head
        self.blocks = nn.ModuleList(Block(block) for block in model.trunk)

    def forward(self, image: Tensor) -> Tensor:
        x = image
        for i, conv in enumerate(self.stem.convs):
            x = conv(x if i == 0 else F.gelu(x))
        height, width = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens, height, width)
        p = self.pooling
        token = p.class_token.expand(len(tokens), -1, -1)
        token = token + p.layer_scale1(self.attend(p.norm1(torch.cat([token, tokens], 1))))
        token = token + p.layer_scale2(p.mlp(p.norm2(token)))
        return self.head(p.norm(token)[:, 0])

    def attend(self, tokens: Tensor) -> Tensor:
        attn = self.pooling.attn
        query = attn.q(tokens[:, :1]) * attn.scale
        weights = (query @ attn.k(tokens).transpose(1, 2)).softmax(-1)
        return attn.proj(weights @ attn.v(tokens))
