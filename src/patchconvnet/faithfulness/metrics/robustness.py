"""Does a map depend on what the network has learned, and hold still when the image hardly changes?

Both compare a map with another map of the same class, by the order of its values and by its look.
"""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from patchconvnet.faithfulness.methods import AttributionOptions, Method, generator_of, uninformative
from patchconvnet.faithfulness.metrics.localisation import scale

MOST_LEVELS = 8  # of the cascade
SHIFTS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # (down, right) in pixels of the network input
NOISE = 0.1  # standard deviation of the noise, in units of the normalised network input
NOISE_DRAWS = 4
SSIM_WINDOW = 7  # pixels a side, uniform, as in scikit-image, which the sanity check's authors use


class Cascade(NamedTuple):
    """How like its original a map stays while the network is randomised, from the head down to the stem.

    levels: L names; at each, that part is random and everything above it as well.
    rank_correlation: (B, L) Spearman's, −1..1; NaN where one of the two maps says nothing.
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
    the last level. The class asked for stays that of the trained network. A map of the randomised network that says
    nothing has no order to compare; it is left out rather than counted as changed.

    Args:
        method: makes the maps.
        model: in eval mode; it is copied, not changed.
        images: (B, C, H, W), preprocessed.
        classes: (B,) int64.
        options: the method's.
        seed: of the random parameters.
    """
    original = _maps(method, model, images, classes, options)
    levels, correlations, similarities = [], [], []
    for name, randomised in randomisations(model, seed):
        now = _maps(method, randomised, images, classes, options)
        levels.append(name)
        correlations.append(rank_correlation(original, now))
        similarities.append(similarity(original, now))
    return Cascade(levels, torch.stack(correlations, 1), torch.stack(similarities, 1))


def randomisations(model: nn.Module, seed: int = 0) -> Iterator[tuple[str, nn.Module]]:
    """The network with its last part random, then the last two, and so on down to the stem; (name, network) each.

    Every parameter tensor is drawn anew from a normal distribution of its own mean and standard deviation, and the
    running statistics of batch norms are dealt out to other channels: what was learned is gone, and sizes stay. At most
    `MOST_LEVELS` parts: deep networks several blocks at once. The network given out is one and the same copy, changed
    on; use it before asking for the next.
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


class Stability(NamedTuple):
    """shift, noise: (B,), mean rank correlation with the original map, −1..1."""

    shift: Tensor
    noise: Tensor


def stability(
    method: Method, model: nn.Module, images: Tensor, classes: Tensor, options: AttributionOptions, seed: int = 0
) -> Stability:
    """How well the order of a map's values survives a shift by a pixel, and faint noise; high is good.

    After Alvarez-Melis and Jaakkola 2018, arXiv 1806.08049 ("explanations of similar inputs should be similar"), in
    Spearman's correlation instead of a Lipschitz constant, so that maps of any scale compare. Shifts: one pixel up,
    down, left and right, what comes in at the edge repeats it; the map is moved back and compared without the outermost
    pixels. Noise: normal, a tenth of the normalised input's unit, four draws. A map that says nothing counts as 0.
    """
    original = _maps(method, model, images, classes, options)
    height, width = images.shape[-2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    shifted = []
    for down, right in SHIFTS:
        # what lay at (y, x) now lies at (y + down, x + right)
        moved = padded[..., 1 - down : 1 - down + height, 1 - right : 1 - right + width]
        maps = _maps(method, model, moved, classes, options)
        back = maps[:, 1 + down : height - 1 + down, 1 + right : width - 1 + right]
        shifted.append(rank_correlation(original[:, 1:-1, 1:-1], back))
    generators = [generator_of(image, seed) for image in images]
    noisy = []
    for _ in range(NOISE_DRAWS):
        draws = [torch.randn(image.shape, generator=own) for image, own in zip(images, generators, strict=True)]
        noise = torch.stack(draws).to(images) * NOISE
        noisy.append(rank_correlation(original, _maps(method, model, images + noise, classes, options)))
    return Stability(*(torch.stack(parts).nan_to_num().mean(0) for parts in (shifted, noisy)))


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's correlation of maps (B, H, W) with maps (B, H, W): (B,), NaN where one of the two says nothing."""
    a, b = (ranks(maps) for maps in (first, second))
    a, b = (values - values.mean(1, keepdim=True) for values in (a, b))
    correlation = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return torch.where(uninformative(first) | uninformative(second), torch.nan, correlation).float()


def ranks(maps: Tensor) -> Tensor:
    """(B, H, W) → (B, P) float64 ranks, equal values sharing the mean of theirs."""
    values, order = maps.nan_to_num().flatten(1).sort(1)
    group = F.pad((values[:, 1:] != values[:, :-1]).long().cumsum(1), (1, 0))  # (B, P), numbers of equal values
    place = torch.arange(values.shape[1], device=maps.device, dtype=torch.float64).expand_as(values)
    sums = torch.zeros_like(place).scatter_add_(1, group, place)
    counts = torch.zeros_like(place).scatter_add_(1, group, torch.ones_like(place))
    shared = (sums / counts.clamp(min=1)).gather(1, group)
    return torch.empty_like(shared).scatter_(1, order, shared)


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """SSIM of maps (B, H, W), each scaled to 0..1 (Wang et al. 2004): (B,), NaN where one of the two says nothing."""
    window = min(SSIM_WINDOW, (min(first.shape[1:]) - 1) // 2 * 2 + 1)
    value = structural_similarity_index_measure(
        scale(first)[:, None],
        scale(second)[:, None],
        gaussian_kernel=False,
        kernel_size=window,
        data_range=1.0,
        reduction="none",
    )
    assert isinstance(value, Tensor)
    nothing = uninformative(first) | uninformative(second)
    return torch.where(nothing, torch.nan, value.view(len(first)))


def _maps(method: Method, model: nn.Module, images: Tensor, classes: Tensor, options: AttributionOptions) -> Tensor:
    """(B, H, W)"""
    maps = method(model, images, classes[:, None], options).pixels((images.shape[-2], images.shape[-1]))
    return maps[:, 0].float()
