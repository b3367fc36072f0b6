"""Evidence: each patch's signed share of a class's logit, exact where the head is additive, first order elsewhere.

With one query a, values tᵢ and a linear classifier, logit_k = b_k + Σᵢ aᵢ·⟨w_k, tᵢ⟩: the terms are the shares, and
nothing is left. Where norms and an MLP follow the attention (Touvron et al. 2021, arXiv 2112.13692, section 3.2; the
Keras example), everything behind it is linearised around the image: J_k = ∂logit_k/∂(attention output), and the share
of patch i is J_k·W_proj·aᵢ·(W_v·tᵢ + b_v). Where a network has an additive head with further layers behind it (a timm
backbone's), J_k = ∂logit_k/∂(pooled vector), and the share is aᵢ·⟨J_k, tᵢ⟩. What the shares leave of logit − bias is
the remainder.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from patchconvnet.errors import UserError
from patchconvnet.models.pooling import AdditivePooling, AveragePooling, ClassAttentionPooling, KerasPooling, Pooled

Classify = Callable[[Tensor], Tensor]  # pooled vector (B, C) or (B, K, C) → logits (B, K)

# First-order shares cost a backward pass through the head for each class: of more, only the likeliest get one.
MAX_FIRST_ORDER_CLASSES = 100


class Look(NamedTuple):
    """What the network answered, and why, for a batch.

    logits: (B, K).
    attention: (B, Q, h, w).
    classes: (B, K') int64, the classes that have evidence; sorted.
    evidence: (B, K', h, w).
    bias: (K,), the classifier's.
    exact: whether evidence sums to logit − bias by construction.
    """

    logits: Tensor
    attention: Tensor
    classes: Tensor
    evidence: Tensor
    bias: Tensor
    exact: bool

    def evidence_of(self, classes: Tensor) -> Tensor:
        """(B, T, h, w): the evidence for classes (B, T), all of which have some."""
        rows = (self.classes[:, None, :] == classes[:, :, None]).int().argmax(-1)
        return self.evidence.gather(1, rows[..., None, None].expand(-1, -1, *self.evidence.shape[2:]))


def look(model: nn.Module, images: Tensor, classes: tuple[int, ...] = (), top: int = 5) -> Look:
    """Logits, attention and evidence from one pass through the trunk.

    Args:
        model: a network with attention pooling, in eval mode.
        images: (B, C, H, W) float, preprocessed.
        classes: classes that must have evidence.
        top: how many of each image's likeliest classes must have it too.

    Raises:
        UserError: the model has no pooling head of this package, or no classifier.
    """
    pooling = getattr(model, "pooling", None)
    if not isinstance(pooling, AdditivePooling | AveragePooling | ClassAttentionPooling | KerasPooling):
        raise UserError(
            f"{type(model).__name__} has no attention pooling, so there is no map to show; use a PatchConvNet with a "
            "pooling other than 'none'."
        )
    head: nn.Module = model.get_classifier()  # type: ignore[operator]
    if isinstance(head, nn.Identity):
        raise UserError("this network has no classifier (0 classes), so there is no decision to explain.")
    if exact := bool(model.has_exact_evidence):
        logits, attention, evidence = model(images, return_evidence=True)
        chosen = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    else:
        patches = model.forward_features(images).permute(0, 2, 3, 1)  # type: ignore[operator]  # (B, h, w, C)
        pooled = pooling(patches)
        classify: Classify = model.classify  # type: ignore[assignment]
        logits, attention = classify(pooled.vector), pooled.attention
        chosen = _chosen(logits, classes, top)
        if isinstance(pooling, ClassAttentionPooling | KerasPooling):
            shares = _behind_attention(pooling, classify, patches, chosen)
        else:
            shares = _behind_pooling(pooled, classify, chosen)
        evidence = shares * _rows(attention, chosen)
    bias = getattr(head, "bias", None)
    if bias is None:
        bias = logits.new_zeros(logits.shape[1])
    return Look(logits, attention, chosen, evidence, bias, exact)


def _chosen(logits: Tensor, classes: tuple[int, ...], top: int) -> Tensor:
    """(B, K') classes of each image: all if they are few, else its likeliest and the asked for; as many for each."""
    batch, count = logits.shape
    if count <= MAX_FIRST_ORDER_CLASSES:
        return torch.arange(count, device=logits.device).expand(batch, -1)
    ranks = logits.detach().clone()
    asked = sorted(set(classes))
    ranks[:, asked] = torch.inf
    return ranks.topk(min(top + len(asked), count), 1).indices.sort(1).values


def _rows(attention: Tensor, classes: Tensor) -> Tensor:
    """(B, K', h, w) or (B, 1, h, w): the attention of each class."""
    if attention.shape[1] == 1:
        return attention
    return attention.gather(1, classes[..., None, None].expand(-1, -1, *attention.shape[2:]))


def _behind_attention(
    pooling: ClassAttentionPooling | KerasPooling, classify: Classify, patches: Tensor, classes: Tensor
) -> Tensor:
    """(B, K', h, w): what a patch adds to each logit for each unit of attention; the value projection is before it."""
    attn = pooling.attn

    def logits_of(bias: Tensor, image: Tensor, wanted: Tensor) -> Tensor:
        # the projection's bias is added to the attention's output, so the derivative by it is the derivative by that
        vector = functional_call(pooling, {"attn.proj.bias": bias}, (image[None],)).vector
        return classify(vector)[0, wanted]

    jacobian = vmap(jacrev(logits_of), in_dims=(None, 0, 0))(attn.proj.bias.detach(), patches, classes)  # (B, K', C)
    by_value = jacobian @ attn.proj.weight  # by Σ aᵢ·(W_v·tᵢ + b_v)
    values = pooling.norm1(patches.flatten(1, 2))  # (B, N, C)
    shares = by_value @ attn.v.weight @ values.mT + (by_value @ attn.v.bias)[..., None]  # (B, K', N)
    return shares.unflatten(-1, patches.shape[1:3])


def _behind_pooling(pooled: Pooled, classify: Classify, classes: Tensor) -> Tensor:
    """The same where the pooled vector is Σ aᵢ·tᵢ, and layers that are not linear follow."""
    assert pooled.values is not None

    def logits_of(vector: Tensor, wanted: Tensor) -> Tensor:
        return classify(vector[None])[0, wanted]

    if pooled.vector.ndim == 2:
        jacobian = vmap(jacrev(logits_of))(pooled.vector, classes)  # (B, K', C)
    else:  # each logit depends on its own class's vector only, so one backward pass does for all
        jacobian = vmap(grad(lambda vectors: classify(vectors[None]).sum()))(pooled.vector)  # (B, K, C)
        jacobian = jacobian.gather(1, classes[..., None].expand(-1, -1, jacobian.shape[-1]))
    return torch.einsum("bkc,bhwc->bkhw", jacobian, pooled.values)
