"""Temperature scaling: one number that logits are divided by, so that probabilities come true.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599, section 4.2.
"""

import math
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from patchconvnet.models import AttentionClassifier
from patchconvnet.models.modes import evaluation_mode

Batches = Iterable[tuple[Tensor, Tensor, Tensor]]

LIMITS = (0.05, 20.0)
SPREAD = math.log(2)  # of the prior on log T, which counts for something below some hundred images


def calibrate(model: AttentionClassifier, batches: Callable[[], Batches] | None, source: str) -> None:
    """Give a network the temperature that fits some images, and say in its provenance which images they were.

    Args:
        batches: (images, labels, …); None leaves the temperature at 1.
        source: what the images are.
    """
    model.metadata.provenance["calibration"] = source
    model.metadata.temperature = (
        1.0 if batches is None else round(fit_temperature(*collect_logits(model, batches())), 4)
    )


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T that makes the labels likeliest: argmin of Σ cross-entropy(logits / T) + ½ (log T / log 2)².

    The second term, a prior around 1, keeps T sensible where a few images are all classified correctly.

    Args:
        logits: (N, K), of images that the network did not learn.
        labels: (N,) int64.

    Returns:
        T between 0.05 and 20; above 1 where the network is overconfident.
    """
    logits = logits.double().cpu()
    labels = labels.cpu()

    def cost(log_temperature: float) -> float:
        loss = F.cross_entropy(logits / math.exp(log_temperature), labels, reduction="sum").item()
        return loss + 0.5 * (log_temperature / SPREAD) ** 2

    bounds = (math.log(LIMITS[0]), math.log(LIMITS[1]))
    return math.exp(minimize_scalar(cost, bounds=bounds, method="bounded").x)


def collect_logits(model: nn.Module, batches: Batches) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and labels (N,) of batches of (images, labels, …), of all processes together, on the CPU."""
    logits, labels = [], []
    with evaluation_mode(model), torch.inference_mode():
        for images, true, *_ in batches:
            logits.append(model(images).float().cpu())
            labels.append(true.cpu())
    ours = (torch.cat(logits), torch.cat(labels)) if logits else None
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        assert ours is not None, "a split is not empty"
        return ours
    gathered: list[tuple[Tensor, Tensor] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, ours)
    present = [part for part in gathered if part is not None]
    return torch.cat([part[0] for part in present]), torch.cat([part[1] for part in present])
