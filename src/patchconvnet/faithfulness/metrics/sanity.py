"""Does a map depend on what the network has learned? Parameter randomisation, the "sanity check"."""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from patchconvnet.faithfulness.methods import AttributionOptions, Method
from patchconvnet.faithfulness.metrics.agreement import pixel_maps, rank_correlation, similarity
from patchconvnet.faithfulness.metrics.metric import Case, Column, Metric, Values
from patchconvnet.faithfulness.statistics import Estimate, estimate_of

MOST_LEVELS = 8  # of the cascade


class Cascade(NamedTuple):
    """How like its original a map stays while the network is randomised, from the head down to the stem.

    levels: L names; at each, that part is random and everything above it as well.
    rank_correlation: (B, L) Spearman's, −1..1; NaN where one of the two maps is uninformative.
    similarity: (B, L) structural similarity (SSIM), at most 1; NaN likewise.
    """

    levels: list[str]
    rank_correlation: Tensor
    similarity: Tensor


def cascade(
    method: Method, model: nn.Module, images: Tensor, classes: Tensor, options: AttributionOptions, seed: int = 0
) -> Cascade:
    """The sanity check by cascading parameter randomisation: Adebayo et al. 2018, arXiv 1810.03292, section 3.1.

    A map that stays as it is while the network forgets everything shows the image, not the network. Low is good at
    the last level. The class asked for stays that of the trained network. An uninformative map of the randomised
    network has no order to compare: its value is missing, rather than counted as changed.

    Args:
        method: makes the maps.
        model: in eval mode; it is copied, not changed.
        images: (B, C, H, W), preprocessed.
        classes: (B,) int64.
        options: the method's.
        seed: of the random parameters.
    """
    original = pixel_maps(method, model, images, classes, options)
    levels, correlations, similarities = [], [], []
    for name, randomised in randomisations(model, seed):
        now = pixel_maps(method, randomised, images, classes, options)
        levels.append(name)
        correlations.append(rank_correlation(original, now))
        similarities.append(similarity(original, now))
    return Cascade(levels, torch.stack(correlations, 1), torch.stack(similarities, 1))


def randomisations(model: nn.Module, seed: int = 0) -> Iterator[tuple[str, nn.Module]]:
    """The network with its last part random, then the last two, and so on down to the stem; (name, network) each.

    Every parameter tensor is drawn anew from a normal distribution of its own mean and standard deviation, and the
    running statistics of batch norms are shuffled among the channels: what was learned is gone, and sizes stay. At most
    `MOST_LEVELS` parts: deep networks several blocks at once. All of them are one copy, changed step by step: use each
    before asking for the next.
    """
    network = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    parts = _parts(network)
    size = -(-len(parts) // MOST_LEVELS)
    for start in range(0, len(parts), size):
        group = parts[start : start + size]
        for _, part in group:
            for parameter in part.parameters():
                values = parameter.detach()
                spread = values.float().std(correction=0)
                noise = torch.randn(values.shape, generator=generator).to(values)
                with torch.no_grad():
                    parameter.copy_(noise * spread + values.float().mean())
            for norm in part.modules():
                if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
                    assert norm.running_var is not None
                    order = torch.randperm(norm.num_features, generator=generator).to(norm.running_mean.device)
                    norm.running_mean.copy_(norm.running_mean[order])
                    norm.running_var.copy_(norm.running_var[order])
        yield (group[0][0] if len(group) == 1 else f"{group[0][0]} to {group[-1][0]}"), network


def _parts(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The network's parts with parameters, from the logits to the image: its modules, lists of blocks taken apart."""
    parts: list[tuple[str, nn.Module]] = []
    for name, module in network.named_children():
        blocks = list(module.named_children()) if isinstance(module, nn.ModuleList | nn.Sequential) else []
        parts += [(f"{name}.{place}", block) for place, block in blocks] or [(name, module)]
    return [(name, part) for name, part in reversed(parts) if next(part.parameters(), None) is not None]


def _sanity(case: Case) -> list[Any]:
    found = cascade(case.method, case.model, case.images, case.classes[:, 0], case.options, case.options.seed)
    rows = zip(found.rank_correlation.tolist(), found.similarity.tolist(), strict=True)
    return [{"levels": found.levels, "rank_correlation": ranks, "similarity": ssim} for ranks, ssim in rows]


def _estimates(values: Values) -> dict[str, Estimate]:
    return {
        f"sanity_{kind}": estimate_of({image: value[kind][-1] for image, value in values["sanity"].items()})
        for kind in ("rank_correlation", "similarity")
    }


METRICS = (
    Metric(
        "sanity",
        "Sanity: rank",
        "near zero",
        "Rank correlation of the map with that of the same network after all of its weights were randomised. A map "
        "that stays the same shows the image, not the network",
        "Adebayo et al. 2018, arXiv 1810.03292",
        _sanity,
        stage="repeated",
        maps=MOST_LEVELS + 1,
        column="sanity_rank_correlation",
        more_columns=(
            Column("sanity_similarity", "Sanity: SSIM", "near zero", "The same as structural similarity of the maps."),
        ),
        estimates=_estimates,
    ),
)
