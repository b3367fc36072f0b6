"""How alike two maps of an image are: by the order of their values, and as images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from patchconvnet.faithfulness.methods import AttributionOptions, Method, uninformative
from patchconvnet.faithfulness.metrics.localisation import scale

SSIM_WINDOW = 7  # pixels a side, uniform, as in scikit-image, which the sanity check's authors use


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's correlation of maps (B, H, W) with maps (B, H, W): (B,), NaN where one of the two is uninformative."""
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
    """SSIM of maps (B, H, W), each scaled to 0..1 (Wang et al. 2004): (B,), NaN where one is uninformative."""
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


def pixel_maps(
    method: Method, model: nn.Module, images: Tensor, classes: Tensor, options: AttributionOptions
) -> Tensor:
    """(B, H, W): a method's maps of `classes` (B,) at the resolution of the images."""
    maps = method(model, images, classes[:, None], options).pixels((images.shape[-2], images.shape[-1]))
    return maps[:, 0].float()
