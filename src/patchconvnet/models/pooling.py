"""Attention-based aggregation: patches → pooled vector(s) and the attention weights that pooled them.

Every pooling here takes patches (B, h, w, C), returns `Pooled`, and says what each patch gave to a logit. The class
tokens are constants of the network, so their queries are too: the score of a patch is one dot product, t·(W_kᵀq)/√C,
and values are projected after pooling, Σ aᵢ·W_v·tᵢ = W_v·Σ aᵢ·tᵢ. Keys and values over the patches are never made
(docs/architecture.md has the algebra). With several heads this holds for each, with its rows of W_q, W_k and W_v; with
several blocks too, only that the queries of those after the first are the image's own.

Source: Touvron et al. 2021, arXiv 2112.13692, section 3.2; facebookresearch/deit, `patchconvnet_models.py`, for several
heads and blocks; "Augmenting convnets with aggregated attention", keras.io.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import LayerScale
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from patchconvnet.errors import UserError
from patchconvnet.models.layers import NORM_EPS, ActName, NormName, act_layer, norm_layer, patch_mean

PoolingName = Literal[
    "class_attention",
    "class_attention_multi",
    "keras",
    "additive",
    "additive_multi",
    "additive_sliced",
    "average",
    "none",
]
Classify = Callable[[Tensor], Tensor]  # pooled vector (B, C) or (B, K, C) → logits (B, K)

# Up to this many queries, W_kᵀq and projecting after pooling cost less than keys and values over an 8×8 grid or more.
MAX_FOLDED_QUERIES = 64


class Pooled(NamedTuple):
    """What a pooling returns.

    Attributes:
        vector: (B, C), or (B, K, C) from a pooling with one query per class.
        attention: (B, Q, h, w), each query's softmax weights over the patches, where there are several heads or blocks
            their mean; they sum to 1, or to less where the class token attends to itself and keeps a share.
        values: (B, h, w, C) such that vector = Σ attention · values, from poolings for which that holds; else None.
    """

    vector: Tensor
    attention: Tensor
    values: Tensor | None = None


class Pooling(nn.Module):
    """What all poolings share: patches (B, h, w, C) → `Pooled`.

    Attributes:
        additive: whether the vector is Σ attention · values, so that a linear classifier's logits split up exactly.
        class_wise: whether every class has a query, and so a vector, of its own.
    """

    additive: ClassVar[bool] = False
    class_wise: bool = False

    def first_order_evidence(self, patches: Tensor, classify: Classify, classes: Tensor) -> Tensor:
        """What each patch adds to a logit, with everything behind the attention made linear around this image.

        It is the derivative of the logit by a factor on the patch's values, 1 + εᵢ. Of an additive pooling followed by
        layers that are not linear: with J_k = ∂logit_k/∂(pooled vector), the share of patch i is aᵢ·⟨J_k, tᵢ⟩.

        Args:
            patches: (B, h, w, C).
            classify: pooled vector(s) → logits (B, K).
            classes: (B, K') int64, the classes wanted for each image.

        Returns:
            (B, K', h, w).
        """
        pooled: Pooled = self(patches)
        assert pooled.values is not None

        def logits_of(vector: Tensor, wanted: Tensor) -> Tensor:
            return classify(vector[None])[0, wanted]

        if pooled.vector.ndim == 2:
            jacobian = vmap(jacrev(logits_of))(pooled.vector, classes)  # (B, K', C)
        else:  # each logit depends on its own class's vector only, so one backward pass does for all
            jacobian = vmap(grad(lambda vectors: classify(vectors[None]).sum()))(pooled.vector)  # (B, K, C)
            jacobian = jacobian.gather(1, classes[..., None].expand(-1, -1, jacobian.shape[-1]))
        shares = torch.einsum("bkc,bhwc->bkhw", jacobian, pooled.values)
        attention = pooled.attention
        if attention.shape[1] > 1:
            attention = attention.gather(1, classes[..., None, None].expand(-1, -1, *attention.shape[2:]))
        return shares * attention


def build_pooling(
    name: PoolingName,
    dim: int,
    num_classes: int | None = None,
    *,
    norm: NormName | Literal["none"] = "layer",
    act: ActName = "gelu",
    mlp_ratio: float = 3.0,
    layer_scale: float = 1e-4,
    num_heads: int = 1,
    depth: int = 1,
    num_queries: int = 16,
    attn_drop: float = 0.0,
    drop: float = 0.0,
) -> Pooling:
    """The pooling of a name (there is none for "none"); each takes of the options what it has.

    Args:
        dim: channels C.
        num_classes: for a "_multi" pooling, the number of its queries; else None.
    """
    if name.startswith("class_attention"):
        return ClassAttentionPooling(
            dim, num_classes, mlp_ratio=mlp_ratio, layer_scale=layer_scale, num_heads=num_heads, depth=depth, act=act,
            attn_drop=attn_drop, drop=drop,
        )  # fmt: skip
    if name == "keras":
        return KerasPooling(dim, act=act, attn_drop=attn_drop, drop=drop)
    if name == "average":
        return AveragePooling(dim, norm=norm, drop=drop)
    if name == "additive_sliced":
        return SlicedPooling(dim, num_queries, norm=norm, attn_drop=attn_drop, drop=drop)
    return AdditivePooling(dim, num_classes, norm=norm, attn_drop=attn_drop, drop=drop)


class ClassAttention(nn.Module):
    """Attention of class tokens to patches, with biased query, key, value and output projections.

    Args:
        dim: channels C.
        num_queries: class tokens Q.
        num_heads: heads H, each with C/H channels of the queries, keys and values. Weights of any number of heads have
            the same shapes, so a wrong number goes unnoticed: it has to come with them.
        drop: dropout on the attention weights in training.

    Raises:
        UserError: C is no multiple of H.
    """

    def __init__(self, dim: int, num_queries: int = 1, num_heads: int = 1, drop: float = 0.0):
        super().__init__()
        if dim % num_heads:
            raise UserError(f"{dim} channels cannot be divided among {num_heads} heads; num_heads must divide them")
        self.scale = 1 / math.sqrt(dim // num_heads)
        self.num_queries = num_queries
        self.num_heads = num_heads
        self.folded = num_queries == 1 or num_queries * num_heads <= MAX_FOLDED_QUERIES
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, tokens: Tensor, patches: Tensor, attend_self: bool) -> tuple[Tensor, Tensor]:
        """Normalised class tokens attend to normalised patches.

        Args:
            tokens: (Q, C) where they are the same for all images, or (B, Q, C).
            patches: (B, N, C).
            attend_self: whether the one class token is a key and a value itself (single) or not (one per class).

        Returns:
            Attention output (B, Q, C), and softmax weights over the patches (B, H, Q, N).
        """
        query = self._by_head(self.q(tokens) * self.scale)  # (…, H, Q, C/H)
        if not self.folded:
            keys, values = self._by_head(self.k(patches)), self._by_head(self.v(patches))  # (B, H, N, C/H)
            weights = (query @ keys.mT).softmax(-1)
            return self.proj((self.drop(weights) @ values).transpose(1, 2).flatten(2)), weights
        folded, constant = self._folded(query)  # (…, H, Q, C), (…, H, Q, 1)
        scores = (patches @ folded.flatten(-3, -2).mT).mT + constant.flatten(-3, -2)  # (B, H·Q, N)
        if attend_self:
            own = (folded * tokens.unsqueeze(-3)).sum(-1, keepdim=True) + constant  # (…, H, 1, 1)
            scores = torch.cat([own.flatten(-3, -2).expand(patches.shape[0], -1, -1), scores], -1)
        weights = scores.softmax(-1)
        kept = self.drop(weights)
        total = kept.sum(-1, keepdim=True)
        if attend_self:
            pooled = kept[..., 1:] @ patches + kept[..., :1] * tokens
            weights = weights[..., 1:]
        else:
            pooled = kept @ patches  # (B, H·Q, C)
        if self.num_heads == 1:
            value = F.linear(pooled, self.v.weight) + total * self.v.bias
        else:
            pooled, total = self._split(pooled), self._split(total)  # (B, H, Q, C), (B, H, Q, 1)
            value = torch.einsum("bhqc,hdc->bqhd", pooled, self._rows(self.v.weight)).flatten(2)
            value = value + (total * self._rows(self.v.bias)[:, None]).transpose(1, 2).flatten(2)
        return self.proj(value), self._split(weights)

    def _folded(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (…, H, Q, C/H) → W_kᵀq (…, H, Q, C) and b_k·q (…, H, Q, 1).

        The key bias adds the same to every score; it stays for its (zero) gradient's sake.
        """
        if self.num_heads == 1:
            return query @ self.k.weight, (query @ self.k.bias)[..., None]
        folded = torch.einsum("...hqd,hdc->...hqc", query, self._rows(self.k.weight))
        return folded, (query * self._rows(self.k.bias)[:, None]).sum(-1, keepdim=True)

    def shares(self, jacobian: Tensor, patches: Tensor, weights: Tensor) -> Tensor:
        """Σ over heads of J·W_proj·aᵢ·(W_v·tᵢ + b_v): what each patch adds to what J is the derivative of.

        Args:
            jacobian: (B, K', C), derivatives by the attention output.
            patches: (B, N, C), as in `forward`.
            weights: (B, H, 1 or K', N), the attention that each of them goes by.

        Returns:
            (B, K', N).
        """
        by_value = self._by_head(jacobian @ self.proj.weight)  # (B, H, K', C/H)
        by_token = torch.einsum("bhkd,hdc->bhkc", by_value, self._rows(self.v.weight))
        shares = torch.einsum("bhkc,bnc->bhkn", by_token, patches)
        shares = shares + torch.einsum("bhkd,hd->bhk", by_value, self._rows(self.v.bias))[..., None]
        return (shares * weights).sum(1)

    def _by_head(self, vectors: Tensor) -> Tensor:
        """(…, N, C) → (…, H, N, C/H)."""
        return vectors.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)

    def _rows(self, parameter: Tensor) -> Tensor:
        """A projection's rows by head: (C, …) → (H, C/H, …)."""
        return parameter.unflatten(0, (self.num_heads, -1))

    def _split(self, rows: Tensor) -> Tensor:
        """(B, H·Q, …) → (B, H, Q, …)."""
        return rows.unflatten(1, (self.num_heads, -1))


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


class AttendingPooling(Pooling):
    """Poolings whose class tokens are updated by class attention, in one block or several."""

    class_token: nn.Parameter
    norm1: nn.LayerNorm
    attn: ClassAttention

    def _attend(self, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Patches (B, N, C) → class tokens behind everything (B, Q, C), and each block's weights (B, H, Q, N)."""
        raise NotImplementedError

    def _attentions(self) -> list[tuple[str, nn.Module, ClassAttention]]:
        """Each block's attention: the front of its parameters' names, the norm before it, and itself."""
        raise NotImplementedError

    def forward(self, patches: Tensor) -> Pooled:
        tokens, weights = self._attend(patches.flatten(1, 2))
        maps = [w[:, 0] if w.shape[1] == 1 else w.mean(1) for w in weights]  # (B, Q, N) each
        attention = maps[0] if len(maps) == 1 else torch.stack(maps).mean(0)
        return Pooled(tokens if self.class_wise else tokens[:, 0], attention.unflatten(-1, patches.shape[1:3]))

    def first_order_evidence(self, patches: Tensor, classify: Classify, classes: Tensor) -> Tensor:
        """As `Pooling.first_order_evidence`, with J_k = ∂logit_k/∂(a block's attention output).

        The share of patch i is J_k·W_proj·aᵢ·(W_v·tᵢ + b_v), summed over heads and blocks. The J of a block that others
        follow goes through their attention too, whose queries depend on it.
        """
        attentions = self._attentions()
        # the projection's bias is added to the attention's output, so the derivative by it is the derivative by that
        biases = {f"{front}proj.bias": attention.proj.bias.detach() for front, _, attention in attentions}

        def logits_of(biases: dict[str, Tensor], image: Tensor, wanted: Tensor) -> Tensor:
            vector = functional_call(self, biases, (image[None],)).vector
            return classify(vector)[0, wanted]

        jacobians = vmap(jacrev(logits_of), in_dims=(None, 0, 0))(biases, patches, classes)  # (B, K', C) each
        tokens = patches.flatten(1, 2)  # (B, N, C)
        evidence = tokens.new_zeros(())
        for (front, norm, attention), weights in zip(attentions, self._attend(tokens)[1], strict=True):
            if self.class_wise:
                rows = classes[:, None, :, None].expand(-1, weights.shape[1], -1, weights.shape[-1])
                weights = weights.gather(2, rows)
            evidence = evidence + attention.shares(jacobians[f"{front}proj.bias"], norm(tokens), weights)
        return evidence.unflatten(-1, patches.shape[1:3])


class ClassAttentionPooling(AttendingPooling):
    """The paper's attention-based aggregation with one class token, or one per class (paper, section 3.2).

    c = c + γ₁·attention(norm₁[c; patches]); c = c + γ₂·MLP(norm₂(c)), once or in several blocks; norm(c).

    Args:
        dim: channels C.
        num_classes: number of class tokens for the multi-class head; None for the single class token.
        mlp_ratio: width of the MLP's hidden layer, in C.
        layer_scale: initial γ₁ and γ₂.
        num_heads: of the class attention; see `ClassAttention`.
        depth: number of blocks.
        act, attn_drop, drop: which GELU; dropout on the attention weights; dropout inside the MLP.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int | None = None,
        *,
        mlp_ratio: float = 3.0,
        layer_scale: float = 1e-4,
        num_heads: int = 1,
        depth: int = 1,
        act: ActName = "gelu",
        attn_drop: float = 0.0,
        drop: float = 0.0,
    ):
        super().__init__()
        self.class_wise = num_classes is not None
        tokens = 1 if num_classes is None else max(num_classes, 1)
        self.class_token = nn.Parameter(torch.zeros(1, tokens, dim))

        def layers() -> dict[str, nn.Module]:
            return {
                "norm1": nn.LayerNorm(dim, eps=NORM_EPS),
                "attn": ClassAttention(dim, tokens, num_heads, attn_drop),
                "layer_scale1": LayerScale(dim, layer_scale),
                "norm2": nn.LayerNorm(dim, eps=NORM_EPS),
                "mlp": Mlp(dim, int(dim * mlp_ratio), act, drop),
                "layer_scale2": LayerScale(dim, layer_scale),
            }

        for name, layer in layers().items():  # the first block's are the pooling's own, as model folders name them
            self.add_module(name, layer)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.further = nn.ModuleDict({str(i): nn.ModuleDict(layers()) for i in range(1, depth)})
        nn.init.trunc_normal_(self.class_token, std=0.02)

    def _blocks(self) -> list[tuple[str, Any]]:
        """Each block's layers, and the front of their names."""
        first = {
            name: getattr(self, name) for name in ("norm1", "attn", "layer_scale1", "norm2", "mlp", "layer_scale2")
        }
        return [("", first), *((f"further.{i}.", block) for i, block in self.further.items())]

    def _attentions(self) -> list[tuple[str, nn.Module, ClassAttention]]:
        return [(f"{front}attn.", layers["norm1"], layers["attn"]) for front, layers in self._blocks()]

    def _attend(self, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, maps = self.class_token[0], []  # (Q, C), the same for all images until they have attended
        for _, layers in self._blocks():
            norm1, norm2 = layers["norm1"], layers["norm2"]
            attended, weights = layers["attn"](norm1(x), norm1(patches), attend_self=not self.class_wise)
            x = x + layers["layer_scale1"](attended)  # (B, Q, C)
            x = x + layers["layer_scale2"](layers["mlp"](norm2(x)))
            maps.append(weights)
        return self.norm(x), maps


class KerasPooling(AttendingPooling):
    """The Keras example's aggregation: two norms in a row after the attention, and the MLP's residual from behind them.

    c = c + attention(norm₁[c; patches]); c = norm₃(norm₂(c)); c + MLP(c).

    The arguments are those of `ClassAttentionPooling`.
    """

    def __init__(self, dim: int, *, act: ActName = "gelu_tanh", attn_drop: float = 0.0, drop: float = 0.0):
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))  # zeros: attention starts uniform
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = ClassAttention(dim, drop=attn_drop)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.norm3 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, dim, act, drop, last_act=True)

    def _attentions(self) -> list[tuple[str, nn.Module, ClassAttention]]:
        return [("attn.", self.norm1, self.attn)]

    def _attend(self, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        attended, weights = self.attn(self.norm1(self.class_token[0]), self.norm1(patches), attend_self=True)
        x = self.norm3(self.norm2(self.class_token + attended))  # (B, 1, C)
        return x + self.mlp(x), [weights]


class AdditivePooling(Pooling):
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

    additive = True

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


class SlicedPooling(Pooling):
    """Additive pooling with several queries, each of which weighs an equal slice of the channels.

    Query q looks at whole patches, a_q = softmax(t·q/√C), and pools its slice of them: the vector is the slices
    Σᵢ a_qi·t_iq side by side, and logit_k = b_k + Σᵢ Σ_q a_qi·⟨w_kq, t_iq⟩ exactly. The attention map is the mean of
    the queries', ā; with values t_iq·a_qi/āᵢ the vector is Σ āᵢ·valuesᵢ, as in every additive pooling.

    Args:
        dim: channels C.
        num_queries: queries Q; must divide C.
        norm, attn_drop, drop: as in `AdditivePooling`.

    Raises:
        UserError: the channels can't be divided into as many slices.

    Source: Psomas et al. 2025, "Attention, Please! Revisiting Attentive Probing for Masked Image Modeling", arXiv
    2506.10178, without its value projection, which the classifier can do.
    """

    additive = True

    def __init__(
        self,
        dim: int,
        num_queries: int = 16,
        *,
        norm: NormName | Literal["none"] = "layer",
        attn_drop: float = 0.0,
        drop: float = 0.0,
    ):
        super().__init__()
        if dim % num_queries:
            raise UserError(f"{dim} channels can't be cut into {num_queries} equal slices; choose another num_queries")
        self.scale = 1 / math.sqrt(dim)
        self.norm = norm_layer(norm, dim)
        self.query = nn.Parameter(torch.zeros(num_queries, dim))
        self.attn_drop = nn.Dropout(attn_drop)
        self.drop = nn.Dropout(drop)

    def forward(self, patches: Tensor) -> Pooled:
        tokens = self.norm(patches)  # (B, h, w, C)
        scores = tokens.flatten(1, 2) @ (self.query * self.scale).mT  # (B, N, Q)
        weights = scores.softmax(1).unflatten(1, patches.shape[1:3])  # (B, h, w, Q)
        slices = tokens.unflatten(-1, (len(self.query), -1))  # (B, h, w, Q, C/Q)
        vector = self.drop((self.attn_drop(weights)[..., None] * slices).sum((1, 2)).flatten(1))  # (B, C)
        mean = weights.mean(-1, keepdim=True)
        # where the mean is 0, so are all weights
        ratio = weights / mean.clamp_min(torch.finfo(mean.dtype).tiny)
        return Pooled(vector, mean.movedim(-1, 1), (ratio[..., None] * slices).flatten(-2))


class AveragePooling(Pooling):
    """Global average pooling, as the thing to compare with: the same attention everywhere, 1/(h·w)."""

    additive = True

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
