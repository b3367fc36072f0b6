"""Evidence: each patch's signed share of a class's logit, exact where the pooling is additive, first order elsewhere.

With one query a, values tᵢ and a linear classifier, logit_k = b_k + Σᵢ aᵢ·⟨w_k, tᵢ⟩: the terms are the shares, and
nothing is left. Where norms and an MLP follow the attention (Touvron et al. 2021, arXiv 2112.13692, section 3.2; the
Keras example), or further layers an additive pooling (a timm backbone's), everything after it is linearised around the
image, and each pooling says what its patches add (`Pooling.first_order_evidence`). What the shares leave of
logit − bias is the remainder.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from patchconvnet.errors import UserError
from patchconvnet.models.classifier import AttentionClassifier
from patchconvnet.models.pooling import Pooled, Pooling

# First-order shares cost a backward pass through the head for each class: of more, only the likeliest get one.
MAX_FIRST_ORDER_CLASSES = 100


class ForwardMaps(NamedTuple):
    """A batch's logits, with the attention and the evidence behind them.

    Attributes:
        logits: (B, K).
        attention: (B, Q, h, w).
        classes: (B, K') int64, the classes that have evidence; sorted.
        evidence: (B, K', h, w).
        bias: (K,), the classifier's.
        exact: whether evidence sums to logit − bias by construction.
        patches: (B, h, w, C), what the pooling read; None of an exported file.
    """

    logits: Tensor
    attention: Tensor
    classes: Tensor
    evidence: Tensor
    bias: Tensor
    exact: bool
    patches: Tensor | None

    def evidence_of(self, classes: Tensor) -> Tensor:
        """(B, T, h, w): the evidence for classes (B, T), all of which have some."""
        same = self.classes[:, None, :] == classes[:, :, None]
        if not same.any(-1).all():
            raise UserError(
                "this exported file gives evidence for each image's likeliest classes only, which differ between "
                "shifted images; take refine 0, or export with evidence for all classes"
            )
        rows = same.int().argmax(-1)
        return self.evidence.gather(1, rows[..., None, None].expand(-1, -1, *self.evidence.shape[2:]))


def forward_with_maps(
    model: nn.Module,
    images: Tensor,
    classes: tuple[int, ...] = (),
    top: int = 5,
    judged_by: Callable[[Tensor], Tensor] | None = None,
) -> ForwardMaps:
    """Logits, attention and evidence from one pass through the trunk.

    Args:
        model: a network with attention pooling, in eval mode.
        images: (B, C, H, W) float, preprocessed.
        classes: classes that must have evidence.
        top: how many of each image's likeliest classes must have it too.
        judged_by: of the logits (B, K), those that say which are the likeliest; by default they do themselves.

    Raises:
        UserError: the model has no pooling head of this package, or no classifier.
    """
    if isinstance(model, AttentionClassifier) and (whole := model.whole_answer(images)) is not None:
        known = model.get_parameter("head.bias")
        return ForwardMaps(*whole, known, model.has_exact_evidence, None)
    if not (isinstance(model, AttentionClassifier) and isinstance(pooling := model.pooling, Pooling)):
        raise UserError(
            f"{type(model).__name__} has no attention pooling, so there is no map to show; use a PatchConvNet with a "
            "pooling other than 'none', or give a timm network to with_attention_pooling()"
        )
    head = model.get_classifier()
    if isinstance(head, nn.Identity):
        raise UserError("this network has no classifier (0 classes), so there is no decision to explain")
    patches = model.forward_features(images).permute(0, 2, 3, 1)  # (B, h, w, C)
    pooled: Pooled = pooling(patches)
    logits, attention = model.classify(pooled.vector), pooled.attention
    if exact := model.has_exact_evidence:
        shares = model.evidence_of(pooled)
        chosen = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    else:
        chosen = _chosen(judged_by(logits) if judged_by else logits, classes, top)
        shares = pooling.first_order_evidence(patches, model.classify, chosen)
    bias = getattr(head, "bias", None)
    if bias is None:
        bias = logits.new_zeros(logits.shape[1])
    return ForwardMaps(logits, attention, chosen, shares, bias, exact, patches)


def _chosen(logits: Tensor, classes: tuple[int, ...], top: int) -> Tensor:
    """(B, K') classes of each image: all if they are few, else its likeliest and the asked for; as many for each."""
    batch, count = logits.shape
    if count <= MAX_FIRST_ORDER_CLASSES:
        return torch.arange(count, device=logits.device).expand(batch, -1)
    ranks = logits.detach().clone()
    asked = sorted(set(classes))
    ranks[:, asked] = torch.inf
    return ranks.topk(min(top + len(asked), count), 1).indices.sort(1).values
