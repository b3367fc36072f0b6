"""The optimizer, which weights it decays, and the learning rate's schedule."""

import difflib
import math
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import nn

from patchconvnet.errors import UserError
from patchconvnet.models import AttentionClassifier
from patchconvnet.training.recipe import OptimizationOptions

WHITENING_EPOCHS = 3


def warmup_cosine(step: int, total_steps: int, warmup_steps: int, base: float, warmup_from: float = 0.0) -> float:
    """Learning rate at a step: a line from `warmup_from` to `base`, then half a cosine down to 0.

    Args:
        step: counted from 0; from `total_steps` on the rate is 0.
        total_steps, warmup_steps: lengths of the run and of its warm-up.
        base: the rate at the top.
        warmup_from: the rate at step 0.

    Raises:
        UserError: a warm-up longer than the run, or one that begins above the top.

    Source: keras.io "Augmenting convnets with aggregated attention", WarmUpCosine; Loshchilov & Hutter 2017, arXiv
    1608.03983.
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


def warmup_linear(step: int, total_steps: int, warmup_steps: int, base: float) -> float:
    """As `warmup_cosine`, but in a straight line down to 0: better for trainings of a few epochs (airbench)."""
    if warmup_steps <= step < total_steps:
        return base * (total_steps - step) / (total_steps - warmup_steps)
    return warmup_cosine(step, total_steps, warmup_steps, base)


def learning_rate(options: OptimizationOptions, step: int, total: int) -> float:
    """The rate of a step (counted from 0) of `total`; neither the first nor the last is 0."""
    schedule = warmup_linear if options.schedule == "linear" else warmup_cosine
    return schedule(step + 1, total + 1, int(options.warmup * total), options.learning_rate)


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set each group's rate to a share of its rate at the top."""
    for group in optimizer.param_groups:
        group["lr"] = share * group["initial_lr"]


def whitening_rests(epoch: int, processes: int) -> bool:
    """Whether the bias of whitening filters is trained no more in an epoch, counted from 0.

    From the fourth on it is done with: at the resolution of the image, the gradient of what the second convolution is
    given costs a tenth of a small network's step, and is for 24 biases alone. Several processes have agreed before the
    first epoch on whose gradients they exchange, and go on.

    Source: the first three epochs are those of airbench94.py.
    """
    return epoch >= WHITENING_EPOCHS and processes == 1


def build_optimizer(model: AttentionClassifier, options: OptimizationOptions) -> torch.optim.Optimizer:
    """timm's optimizer over the model's parameters, in groups, each of which keeps its rate at the top as `initial_lr`.

    Weight decay spares everything with one axis or none (biases, norms, layer scales) and what the model names in
    `no_weight_decay()` (class tokens, queries). Muon gets the hidden weight matrices; the first convolution, the
    classifier and what has one axis go to its AdamW, as its author advises (kellerjordan.github.io/posts/muon).

    Raises:
        UserError: timm has no such optimizer, or it does not take these options.
    """
    if options.optimizer not in list_optimizers():
        close = difflib.get_close_matches(options.optimizer, list_optimizers())
        raise UserError(f"unknown optimizer {options.optimizer!r}; timm has {', '.join(close or list_optimizers())}")
    if options.betas and not get_optimizer_info(options.optimizer).has_betas:
        raise UserError(f"optimization.betas are for optimizers of Adam's kind; {options.optimizer} has none")
    spared = model.no_weight_decay()
    muon = options.has_fallback
    outer = _outer_weights(model) if muon else set()
    fallback_rate = options.fallback_learning_rate or options.learning_rate
    scales = _layer_scales(model, options.layer_decay)
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = parameter.ndim > 1 and name not in spared
            fallback = muon and (not decay or name in outer)
            groups.setdefault((decay, fallback, scales.get(name, 1.0)), []).append(parameter)
    parameters = [
        {
            "params": members,
            "weight_decay": options.weight_decay if decay else 0.0,
            "initial_lr": scale * (fallback_rate if fallback else options.learning_rate),
            **({"use_fallback": fallback} if muon else {}),
        }
        for (decay, fallback, scale), members in groups.items()
    ]
    extra = {"betas": options.betas} if options.betas else {}
    try:
        return create_optimizer_v2(
            parameters, opt=options.optimizer, lr=options.learning_rate, momentum=options.momentum, **extra
        )
    except (ValueError, TypeError, AssertionError, ImportError) as error:
        raise UserError(f"optimizer {options.optimizer!r} cannot be built: {error}") from error


def _layer_scales(model: AttentionClassifier, decay: float | None) -> dict[str, float]:
    """What each parameter's rate is multiplied by: `decay` to the power of the layers between it and the classifier."""
    if decay is None:
        return {}
    matcher: Any = model.group_matcher
    layers: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
    last = max(layers.values())
    return {name: decay ** (last - layer) for name, layer in layers.items()}


def _outer_weights(model: AttentionClassifier) -> set[str]:
    first = next(name for name, parameter in model.named_parameters() if parameter.ndim == 4)
    classifier = {id(parameter) for parameter in model.get_classifier().parameters()}
    return {first} | {name for name, parameter in model.named_parameters() if id(parameter) in classifier}
