"""The head of a frozen backbone: logistic regression on averaged patches, then queries that learn where to look.

Each query weighs an equal slice of the channels (`SlicedPooling`, after Psomas et al. 2025, arXiv 2506.10178), so
logit_k − b_k = Σᵢ Σ_q a_qi·⟨w_kq, x_iq⟩ stays exact. With queries at zero it is the logistic regression; they stay
there unless the validation images say otherwise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # of the squared weights of standardised features, weakest first
ATTENTION_EPOCHS = 6
ATTENTION_DROPOUT = 0.5  # of the pooled features: without it the queries learn single training images by heart
_BATCH = 256
_ITERATIONS = 80  # of L-BFGS


@dataclass(frozen=True)
class ProbeHead:
    """What was fitted.

    Attributes:
        weight: (K, C') of the linear classifier on the pooled patches.
        bias: (K,).
        queries: (Q, C), or zeros where uniform attention did better.
        penalty: of the squared weights, as chosen.
        loss: cross-entropy on the validation images.
        loss_of_average: the same with uniform attention.
    """

    weight: Tensor
    bias: Tensor
    queries: Tensor
    penalty: float
    loss: float
    loss_of_average: float


def sliced_attention(patches: Tensor, queries: Tensor) -> Tensor:
    """Patches (B, N, C) pooled by queries (Q, C), each of which weighs its slice of the channels: (B, C)."""
    b, n, c = patches.shape
    weights = (patches @ queries.mT / c**0.5).softmax(1)  # (B, N, Q)
    return torch.einsum("bnq,bnqs->bqs", weights, patches.view(b, n, len(queries), -1)).flatten(1)


def fit_probe(
    train: Tensor,
    labels: Tensor,
    validation: Tensor,
    validation_labels: Tensor,
    num_classes: int,
    queries: int,
    *,
    neck: Callable[[Tensor], Tensor] = lambda vector: vector,
    class_weights: Tensor | None = None,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
    on_step: Callable[[float], None] | None = None,
) -> ProbeHead:
    """Fit the head on patches of frozen features.

    Args:
        train: (V, N, P, C) patches of N images in V views, any floating point format.
        labels: (N,) int64.
        validation: (M, P, C), by which penalty and attention are chosen.
        validation_labels: (M,).
        num_classes: K.
        queries: Q; must divide C. 0 keeps attention uniform.
        neck: what the network does to a pooled vector (B, C) before its classifier reads it, (B, C').
        class_weights: (K,) of the loss, for uneven classes.
        penalties: to choose from.
        seed: of the order and the dropout.
        on_step: called with the share of the work done, now and then.
    """
    views, channels = len(train), train.shape[-1]
    flat = train.flatten(0, 1)  # (V·N, P, C)
    targets = labels.repeat(views)
    averages = _averages(flat, neck)
    mean, scale = averages.mean(0), averages.std().clamp_min(1e-6)
    held_out = (_averages(validation, neck) - mean) / scale
    averages = (averages - mean) / scale
    report = on_step or (lambda share: None)

    weight, bias = averages.new_zeros(num_classes, averages.shape[1]), averages.new_zeros(num_classes)
    best: tuple[float, float, Tensor, Tensor] | None = None
    for i, penalty in enumerate(sorted(penalties, reverse=True)):  # each starts from the stronger one's solution
        weight, bias = _logistic_regression(averages, targets, weight, bias, penalty, class_weights)
        loss = F.cross_entropy(held_out @ weight.mT + bias, validation_labels, class_weights).item()
        if best is None or loss < best[0]:
            best = (loss, penalty, weight, bias)
        report(0.5 * (i + 1) / len(penalties))
    assert best is not None
    average_loss, penalty, weight, bias = best
    loss, query = average_loss, averages.new_zeros(max(queries, 1), channels)
    if queries:
        refined = _attend(
            flat, targets, neck, weight, bias, query, mean, scale, penalty, class_weights, seed,
            lambda share: report(0.5 + 0.5 * share),
        )  # fmt: skip
        pooled = torch.cat([neck(sliced_attention(part.float(), refined[2])) for part in validation.split(_BATCH)])
        attended = (pooled - mean) / scale @ refined[0].mT + refined[1]
        attended_loss = F.cross_entropy(attended, validation_labels, class_weights).item()
        if attended_loss < average_loss:
            loss, (weight, bias, query) = attended_loss, refined
    # the classifier reads pooled patches as they are
    return ProbeHead(weight / scale, bias - weight @ (mean / scale), query, penalty, loss, average_loss)


def _averages(patches: Tensor, neck: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([neck(part.float().mean(1)) for part in patches.split(_BATCH)])


def _logistic_regression(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, penalty: float, class_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(features @ weight.mT + bias, labels, class_weights) + penalty * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def _attend(
    patches: Tensor,
    labels: Tensor,
    neck: Callable[[Tensor], Tensor],
    weight: Tensor,
    bias: Tensor,
    queries: Tensor,
    mean: Tensor,
    scale: Tensor,
    penalty: float,
    class_weights: Tensor | None,
    seed: int,
    report: Callable[[float], None],
) -> tuple[Tensor, Tensor, Tensor]:
    """Train queries and classifier together, from the logistic regression on."""
    parameters = [value.clone().requires_grad_() for value in (weight, bias, queries)]
    weight, bias, queries = parameters
    rates = [1e-3, 1e-3, 1e-2]
    optimizer = torch.optim.AdamW(
        [{"params": [value], "lr": rate} for value, rate in zip(parameters, rates, strict=True)], weight_decay=0.0
    )
    batch = min(_BATCH, len(labels))
    per_epoch = max(len(labels) // batch, 1)
    # a small set has few steps in an epoch; the queries need a few dozen to leave zero
    epochs = max(ATTENTION_EPOCHS, -(-60 // per_epoch))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=epochs * per_epoch, pct_start=0.2)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        for places in torch.randperm(len(labels), generator=generator).split(batch)[:per_epoch]:
            pooled = (neck(sliced_attention(patches[places].float(), queries)) - mean) / scale
            kept = torch.rand(pooled.shape, generator=generator) >= ATTENTION_DROPOUT
            logits = pooled * kept.to(pooled) / (1 - ATTENTION_DROPOUT) @ weight.mT + bias
            loss = F.cross_entropy(logits, labels[places], class_weights) + penalty * weight.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        report((epoch + 1) / epochs)
    return weight.detach(), bias.detach(), queries.detach()
