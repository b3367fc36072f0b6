"""How alike two maps of an image are: by the order of their values, and as images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    value = structural_similarity(scale(first), scale(second))
    nothing = uninformative(first) | uninformative(second)
    return torch.where(nothing, torch.nan, value).float()


def structural_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Mean structural similarity of images (B, H, W) of values 0..1: (B,) float64, at most 1.

    In float64, because the variances are small differences: float32 errs by up to 2e-5 on smooth maps.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", equation 13;
    uniform windows, edges mirrored.
    """
    window = min(SSIM_WINDOW, (min(first.shape[1:]) - 1) // 2 * 2 + 1)
    x, y = first.double(), second.double()
    moments = F.pad(torch.stack([x, y, x * x, y * y, x * y], 1), (window // 2,) * 4, mode="reflect")
    mean_x, mean_y, xx, yy, xy = F.avg_pool2d(moments, window, stride=1).unbind(1)
    variances = (xx - mean_x**2).clamp(min=0) + (yy - mean_y**2).clamp(min=0)
    covariance = xy - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * (2 * covariance + c2) / (variances + c2)).mean((1, 2))


def pixel_maps(
    method: Method, model: nn.Module, images: Tensor, classes: Tensor, options: AttributionOptions
) -> Tensor:
    """(B, H, W): a method's maps of `classes` (B,) at the resolution of the images."""
    maps = method(model, images, classes[:, None], options).pixels((images.shape[-2], images.shape[-1]))
    return maps[:, 0].float()
