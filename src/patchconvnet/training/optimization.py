"""The optimizer, which weights it decays, and the learning rate's schedule."""

import math

import torch
from timm.optim import create_optimizer_v2
from torch import nn

from patchconvnet.errors import UserError
from patchconvnet.training.recipe import OptimizationOptions


def warmup_cosine(step: int, total_steps: int, warmup_steps: int, base: float, warmup_from: float = 0.0) -> float:
    """Learning rate at a step: a line from `warmup_from` to `base`, then half a cosine down to 0.

    Args:
        step: counted from 0; from `total_steps` on the rate is 0.
        total_steps, warmup_steps: lengths of the run and of its warm-up.
        base: the rate at the top.
        warmup_from: the rate at step 0.

    Raises:
        UserError: a warm-up longer than the run, or one that begins above the top.

    Source: keras.io "Augmenting convnets with aggregated attention", WarmUpCosine; Loshchilov & Hutter 2017, arXiv 1608.03983.
    """
    if total_steps < warmup_steps:
        raise UserError(f"a warm-up of {warmup_steps} steps is longer than the run of {total_steps}; make it shorter")
    if base < warmup_from:
        raise UserError(f"the learning rate {base} is below the {warmup_from} that its warm-up begins with; raise it")
    if step >= total_steps:
        return 0.0
    if step < warmup_steps:
        return warmup_from + (base - warmup_from) * step / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return 0.5 * base * (1 + math.cos(math.pi * progress))


def build_optimizer(model: nn.Module, options: OptimizationOptions) -> torch.optim.Optimizer:
    """timm's optimizer over the model's parameters, in groups.

    Weight decay spares everything with one axis or none (biases, norms, layer scales) and what the model names in
    `no_weight_decay()` (class tokens, queries). Muon gets the hidden weight matrices; the first convolution, the classifier and
    what has one axis go to its AdamW, as its author advises (kellerjordan.github.io/posts/muon).

    Raises:
        UserError: timm has no such optimizer.
    """
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    muon = options.optimizer.endswith("muon")
    outer = _outer_weights(model) if muon else set()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = parameter.ndim > 1 and name not in spared
            fallback = muon and (not decay or name in outer)
            groups.setdefault((decay, fallback), []).append(parameter)
    extra = {"betas": options.betas} if options.betas else {}
    if muon:
        extra["fallback_lr_scale"] = (options.fallback_learning_rate or options.learning_rate) / options.learning_rate
    parameters = [
        {
            "params": members,
            "weight_decay": options.weight_decay if decay else 0.0,
            **({"use_fallback": fallback} if muon else {}),
        }
        for (decay, fallback), members in groups.items()
    ]
    try:
        return create_optimizer_v2(
            parameters, opt=options.optimizer, lr=options.learning_rate, momentum=options.momentum, **extra
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"optimizer {options.optimizer!r} cannot be built: {error}") from error


def _outer_weights(model: nn.Module) -> set[str]:
    first = next((name for name, p in model.named_parameters() if p.ndim == 4), "")
    classifier = {id(p) for p in model.get_classifier().parameters()} if hasattr(model, "get_classifier") else set()
    return {first} | {name for name, p in model.named_parameters() if id(p) in classifier}
