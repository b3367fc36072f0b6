"""First-order evidence as formulas that an exporter can follow: it cannot follow PyTorch's own derivatives.

J_k = ∂logit_k/∂(attention output) goes back through the norms and the MLP behind a single block of class attention;
what each patch adds is then `ClassAttention.shares` of it, as in `Pooling.first_order_evidence`.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from patchconvnet.models.backbones import AttentionPooled
from patchconvnet.models.classifier import AttentionClassifier
from patchconvnet.models.pooling import ClassAttentionPooling, KerasPooling, Mlp


def has_formulas(model: AttentionClassifier) -> bool:
    """Whether the network's head is one whose derivatives are written down here."""
    pooling = model.pooling
    alone = not isinstance(model, AttentionPooled) or model.between == "none"
    return alone and (
        isinstance(pooling, KerasPooling) or (isinstance(pooling, ClassAttentionPooling) and not pooling.further)
    )


def first_order_evidence(model: AttentionClassifier, patches: Tensor, classes: Tensor) -> Tensor:
    """As `Pooling.first_order_evidence` of the network's pooling: (B, h, w, C), (B, K') → (B, K', h, w)."""
    pooling: Any = model.pooling
    tokens = pooling.norm1(patches.flatten(1, 2))  # (B, N, C)
    token = pooling.class_token[0]  # (Q, C)
    attended, weights = pooling.attn(pooling.norm1(token), tokens, attend_self=not pooling.class_wise)
    behind = token + attended if isinstance(pooling, KerasPooling) else token + pooling.layer_scale1(attended)
    if pooling.class_wise:  # each class's own row: (B, K', C), (B, H, K', N)
        behind = behind.gather(1, classes[..., None].expand(-1, -1, behind.shape[-1]))
        rows = classes[:, None, :, None].expand(-1, weights.shape[1], -1, weights.shape[-1])
        weights = weights.gather(2, rows)
    derivative = model.get_parameter("head.weight")[classes]  # (B, K', C)
    if isinstance(pooling, KerasPooling):
        once = pooling.norm2(behind)
        twice = pooling.norm3(once)
        derivative = derivative + _back_through_mlp(pooling.mlp, twice, derivative)
        derivative = _back_through_norm(pooling.norm3, once, derivative)
        derivative = _back_through_norm(pooling.norm2, behind, derivative)
    else:
        normalised = pooling.norm2(behind)
        final = behind + pooling.layer_scale2(pooling.mlp(normalised))
        derivative = _back_through_norm(pooling.norm, final, derivative)
        inner = _back_through_mlp(pooling.mlp, normalised, derivative * pooling.layer_scale2.gamma)
        derivative = derivative + _back_through_norm(pooling.norm2, behind, inner)
        derivative = derivative * pooling.layer_scale1.gamma
    shares: Tensor = pooling.attn.shares(derivative, tokens, weights)
    return shares.unflatten(-1, patches.shape[1:3])


def _back_through_norm(norm: nn.LayerNorm, given: Tensor, derivative: Tensor) -> Tensor:
    """Derivative by a layer norm's input, of one by its output."""
    centred = given - given.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    unit, scaled = centred / deviation, derivative * norm.weight
    across = scaled.mean(-1, keepdim=True) + unit * (scaled * unit).mean(-1, keepdim=True)
    return (scaled - across) / deviation


def _back_through_mlp(mlp: Mlp, given: Tensor, derivative: Tensor) -> Tensor:
    hidden = mlp.fc1(given)
    if mlp.last_act:
        derivative = derivative * _slope(mlp.act, mlp.fc2(mlp.act(hidden)))
    return (derivative @ mlp.fc2.weight * _slope(mlp.act, hidden)) @ mlp.fc1.weight


def _slope(act: nn.Module, x: Tensor) -> Tensor:
    """Derivative of GELU, exact or of its tanh approximation."""
    if act.approximate == "none":
        density = torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)
        return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * density
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    tanh = torch.tanh(inner)
    return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh.square()) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x.square())
