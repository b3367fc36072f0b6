"""Attention-based aggregation: patches → pooled vector(s) and the attention weights that pooled them.

Every head here takes patches (B, h, w, C) and returns `Pooled`. The class tokens are constants of the network, so their
queries are too: the score of a patch is one dot product, t·(W_kᵀq)/√C, and values are projected after pooling,
Σ aᵢ·W_v·tᵢ = W_v·Σ aᵢ·tᵢ. Keys and values over the patches are never made (docs/architecture.md has the algebra).

Source: Touvron et al. 2021, arXiv 2112.13692, section 3.2; "Augmenting convnets with aggregated attention", keras.io.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import LayerScale
from torch import Tensor, nn

from patchconvnet.models.layers import NORM_EPS, ActName, NormName, act_layer, norm_layer, patch_mean

PoolingName = Literal[
    "class_attention", "class_attention_multi", "keras", "additive", "additive_multi", "average", "none"
]

# Up to this many queries, W_kᵀq and projecting after pooling cost less than keys and values over an 8×8 grid or more.
MAX_FOLDED_QUERIES = 64


class Pooled(NamedTuple):
    """What a pooling head returns.

    vector: (B, C), or (B, K, C) from a head with one query per class.
    attention: (B, Q, h, w), each query's softmax weights over the patches; they sum to 1, or to less where the class
        token attends to itself and keeps a share.
    values: (B, h, w, C) such that vector = Σ attention · values, from heads for which that holds; else None.
    """

    vector: Tensor
    attention: Tensor
    values: Tensor | None = None


def build_pooling(
    name: PoolingName,
    dim: int,
    num_classes: int | None = None,
    *,
    norm: NormName | Literal["none"] = "layer",
    act: ActName = "gelu",
    mlp_ratio: float = 3.0,
    layer_scale: float = 1e-4,
    attn_drop: float = 0.0,
    drop: float = 0.0,
) -> nn.Module:
    """The pooling head of a name ("none" has none); each takes of the options what it has.

    Args:
        dim: channels C.
        num_classes: for a "_multi" head, the number of its queries; else None.
    """
    if name.startswith("class_attention"):
        return ClassAttentionPooling(
            dim, num_classes, mlp_ratio=mlp_ratio, layer_scale=layer_scale, act=act, attn_drop=attn_drop, drop=drop
        )
    if name == "keras":
        return KerasPooling(dim, act=act, attn_drop=attn_drop, drop=drop)
    if name == "average":
        return AveragePooling(dim, norm=norm, drop=drop)
    return AdditivePooling(dim, num_classes, norm=norm, attn_drop=attn_drop, drop=drop)


class ClassAttention(nn.Module):
    """Attention of class tokens to patches: one head, biased query, key, value and output projections.

    Args:
        dim: channels C.
        num_queries: class tokens Q.
        drop: dropout on the attention weights in training.
    """

    def __init__(self, dim: int, num_queries: int = 1, drop: float = 0.0):
        super().__init__()
        self.scale = 1 / math.sqrt(dim)
        self.num_queries = num_queries
        self.folded = num_queries <= MAX_FOLDED_QUERIES
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, tokens: Tensor, patches: Tensor, attend_self: bool) -> tuple[Tensor, Tensor]:
        """Normalised class tokens (Q, C) look at normalised patches (B, N, C).

        Args:
            attend_self: whether the one class token is a key and a value itself (single) or not (one per class).

        Returns:
            Attention output (B, Q, C), and softmax weights over the patches (B, Q, N).
        """
        query = self.q(tokens) * self.scale  # (Q, C)
        if self.folded:
            # the key bias adds the same to every score; it stays for its (zero) gradient's sake
            folded, constant = query @ self.k.weight, query @ self.k.bias  # (Q, C), (Q)
            scores = (patches @ folded.mT).mT + constant[:, None]  # (B, Q, N)
            if attend_self:
                own = (folded * tokens).sum(-1, keepdim=True) + constant[:, None]  # (Q, 1)
                scores = torch.cat([own.expand(patches.shape[0], -1, -1), scores], -1)
            weights = scores.softmax(-1)
            kept = self.drop(weights)
            if attend_self:
                pooled = kept[..., 1:] @ patches + kept[..., :1] * tokens
                weights = weights[..., 1:]
            else:
                pooled = kept @ patches
            value = F.linear(pooled, self.v.weight) + kept.sum(-1, keepdim=True) * self.v.bias
        else:
            weights = (query @ self.k(patches).mT).softmax(-1)  # (B, Q, N)
            value = self.drop(weights) @ self.v(patches)
        return self.proj(value), weights


class Mlp(nn.Module):
    """Linear, GELU, dropout, linear, and a second GELU where the Keras example has one."""

    def __init__(self, dim: int, hidden: int, act: ActName, drop: float, last_act: bool = False):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.act = act_layer(act)
        self.drop = nn.Dropout(drop)
        self.last_act = last_act

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc2(self.drop(self.act(self.fc1(x))))
        return self.act(x) if self.last_act else x


class ClassAttentionPooling(nn.Module):
    """The paper's attention-based aggregation with one class token, or one per class (paper, section 3.2).

    c = c + γ₁·attention(norm₁[c; patches]); c = c + γ₂·MLP(norm₂(c)); norm(c).

    Args:
        dim: channels C.
        num_classes: number of class tokens for the multi-class head; None for the single class token.
        mlp_ratio: width of the MLP's hidden layer, in C.
        layer_scale: initial γ₁ and γ₂.
        act, attn_drop, drop: which GELU; dropout on the attention weights; dropout inside the MLP.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int | None = None,
        *,
        mlp_ratio: float = 3.0,
        layer_scale: float = 1e-4,
        act: ActName = "gelu",
        attn_drop: float = 0.0,
        drop: float = 0.0,
    ):
        super().__init__()
        self.class_wise = num_classes is not None
        tokens = 1 if num_classes is None else max(num_classes, 1)
        self.class_token = nn.Parameter(torch.zeros(1, tokens, dim))
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = ClassAttention(dim, tokens, attn_drop)
        self.layer_scale1 = LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act, drop)
        self.layer_scale2 = LayerScale(dim, layer_scale)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        nn.init.trunc_normal_(self.class_token, std=0.02)

    def forward(self, patches: Tensor) -> Pooled:
        h, w = patches.shape[1:3]
        attended, weights = self.attn(
            self.norm1(self.class_token[0]), self.norm1(patches.flatten(1, 2)), attend_self=not self.class_wise
        )
        x = self.class_token + self.layer_scale1(attended)  # (B, Q, C)
        x = self.norm(x + self.layer_scale2(self.mlp(self.norm2(x))))
        return Pooled(x if self.class_wise else x[:, 0], weights.unflatten(-1, (h, w)))


class KerasPooling(nn.Module):
    """The Keras example's aggregation: two norms in a row after the attention, and the MLP's residual from behind them.

    c = c + attention(norm₁[c; patches]); c = norm₃(norm₂(c)); c + MLP(c).

    Args: as `ClassAttentionPooling`.
    """

    class_wise = False

    def __init__(self, dim: int, *, act: ActName = "gelu_tanh", attn_drop: float = 0.0, drop: float = 0.0):
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))  # zeros: attention starts uniform
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = ClassAttention(dim, drop=attn_drop)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.norm3 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, dim, act, drop, last_act=True)

    def forward(self, patches: Tensor) -> Pooled:
        h, w = patches.shape[1:3]
        attended, weights = self.attn(
            self.norm1(self.class_token[0]), self.norm1(patches.flatten(1, 2)), attend_self=True
        )
        x = self.norm3(self.norm2(self.class_token + attended))  # (B, 1, C)
        x = x + self.mlp(x)
        return Pooled(x[:, 0], weights.unflatten(-1, (h, w)))


class AdditivePooling(nn.Module):
    """Attention pooling that stays linear after the softmax, so each patch's share of a class's logit is exact.

    Patches are normalised, t = norm(x); query q weighs them, a = softmax(t·q/√C); the vector is Σ aᵢ·tᵢ. With a linear
    classifier, logit_k = b_k + Σᵢ aᵢ·⟨w_k, tᵢ⟩. A key projection would only multiply q, a value projection only w_k, so
    there is neither. Queries start at zero: on the first day this is global average pooling.

    Args:
        dim: channels C.
        num_classes: number of queries for class-wise attention; None for one query that all classes share.
        norm: "layer" or "batch" normalisation of the patches, or "none".
        attn_drop, drop: dropout on the attention weights, and on the pooled vector.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int | None = None,
        *,
        norm: NormName | Literal["none"] = "layer",
        attn_drop: float = 0.0,
        drop: float = 0.0,
    ):
        super().__init__()
        self.class_wise = num_classes is not None
        self.scale = 1 / math.sqrt(dim)
        self.norm = norm_layer(norm, dim)
        self.query = nn.Parameter(torch.zeros(1 if num_classes is None else max(num_classes, 1), dim))
        self.attn_drop = nn.Dropout(attn_drop)
        self.drop = nn.Dropout(drop)

    def forward(self, patches: Tensor) -> Pooled:
        h, w = patches.shape[1:3]
        values = self.norm(patches)
        tokens = values.flatten(1, 2)  # (B, N, C)
        weights = (tokens @ (self.query * self.scale).mT).mT.softmax(-1)  # (B, Q, N)
        vector = self.drop(self.attn_drop(weights) @ tokens)  # (B, Q, C)
        return Pooled(vector if self.class_wise else vector[:, 0], weights.unflatten(-1, (h, w)), values)


class AveragePooling(nn.Module):
    """Global average pooling, as the thing to compare with: the same attention everywhere, 1/(h·w)."""

    class_wise = False

    def __init__(self, dim: int, *, norm: NormName | Literal["none"] = "layer", drop: float = 0.0):
        super().__init__()
        self.norm = norm_layer(norm, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, patches: Tensor) -> Pooled:
        b, h, w, _ = patches.shape
        values = self.norm(patches)
        return Pooled(self.drop(patch_mean(values)), values.new_full((b, 1, h, w), 1 / (h * w)), values)


class ClassWiseLinear(nn.Module):
    """A linear classifier whose row k reads only vector k: (B, K, C) → (B, K)."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, dim))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, vectors: Tensor) -> Tensor:
        return torch.einsum("bkc,kc->bk", vectors, self.weight) + self.bias
