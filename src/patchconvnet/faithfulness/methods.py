"""Attributions: maps of any method for any classes in one form, so that they can be measured beside each other.

Ours are here: evidence, contrastive evidence, attention. The usual ones are in `baselines`.
"""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from patchconvnet.errors import UserError
from patchconvnet.explanation.evidence import forward_with_maps
from patchconvnet.explanation.patch_grid import Grid, patch_grid
from patchconvnet.models.modes import evaluation_mode

COSTLY = 5.0  # forward passes for a map; RISE takes hundreds, integrated gradients 150, all others at most 2
MOST_RIVALS = 100  # classes that compete, the image's likeliest; each may cost a backward pass of the head


@dataclass(frozen=True, eq=False)
class Attribution:
    """One map for each asked class of each image.

    Args:
        values: (B, T, h, w) float; the larger, the more a place speaks for the class.
        grid: where the map's cells are on the network input.
        total: (B, T), what the method says its values sum to; None where it claims nothing.
    """

    values: Tensor
    grid: Grid
    total: Tensor | None = None

    def pixels(self, size: tuple[int, int]) -> Tensor:
        """(B, T, H, W): the maps at the resolution of a network input of `size` = (H, W), each value at its place.

        Bilinear between cell centres and constant beyond the outer ones, as `patch_grid.place` on the whole input.
        """
        weights = (self.grid.weights(np.arange(size[axis]) + 0.5, axis) for axis in (0, 1))
        rows, columns = (torch.from_numpy(values).to(self.values) for values in weights)
        return rows @ self.values @ columns.mT

    def completeness_error(self) -> Tensor | None:
        """(B, T): how far the values miss the sum they claim, |Σ values − total| / Σ |values|; None without a claim.

        "Completeness" is the axiom of Sundararajan et al. 2017, arXiv 1703.01365, section 3. Divided by what the map
        shows in all, 0.01 means: one percent of it is unaccounted for. A map of zeros that claims something has 1, one
        that is not finite NaN.
        """
        if self.total is None:
            return None
        values = self.values.double()
        missed = (values.sum((-2, -1)) - self.total).abs()
        shown = values.abs().sum((-2, -1))
        return torch.where(shown == 0, (missed > 0).double(), missed / shown).float()


def uninformative(maps: Tensor) -> Tensor:
    """(...,) bool for maps (..., H, W): whether a map is uniform or holds a NaN or an infinity.

    Such a map names no place. Every metric counts it as a miss: ties must not be broken in its favour.
    """
    flat = maps.flatten(-2)
    return ~flat.isfinite().all(-1) | (flat.amax(-1) == flat.amin(-1))


def generator_of(image: Tensor, seed: int) -> torch.Generator:
    """A CPU generator for an image (C, H, W): the same numbers for it in every batch, others for another image."""
    content = image.detach().float().cpu().contiguous().numpy().tobytes()
    return torch.Generator().manual_seed(zlib.crc32(content, seed))


@dataclass(frozen=True)
class AttributionOptions:
    """What the methods need to know.

    seed: of the random maps and of RISE's masks.
    forward_batch: images in one forward pass, at most; on a CPU fewer large ones are.
    rise_masks: RISE's random masks for each image (its paper: 4,000 to 8,000).
    gradient_steps: integrated gradients' points on the path.
    """

    seed: int = 0
    forward_batch: int = 256
    rise_masks: int = 1000
    gradient_steps: int = 50


Kind = Literal["ours", "method", "control"]
Compute = Callable[[nn.Module, Tensor, Tensor, AttributionOptions], Attribution]


@dataclass(frozen=True)
class Method:
    """A way to make maps.

    Args:
        name: as it is asked for.
        title: as it is shown.
        about: what it is, in a sentence, with its source.
        kind: "ours", another "method", or a "control" that doesn't ask the network.
        signed: whether values below zero mean "against".
        compute: (model in eval mode, images (B, C, H, W), classes (B, T), options) → `Attribution`.
        passes: its cost for an image, in forward passes.
        all_classes_at_once: whether it costs the same for several classes.
        differentiates: whether it needs gradients of the image through the whole network, which a fused one has not.
        needs: what has to be installed.
    """

    name: str
    title: str
    about: str
    kind: Kind
    compute: Compute
    signed: bool = False
    passes: Callable[[AttributionOptions], float] = lambda _: 1.0
    all_classes_at_once: bool = False
    differentiates: bool = False
    needs: str | None = None

    def is_costly(self, options: AttributionOptions) -> bool:
        """Whether a map takes so many passes that making many of each image is only done when asked for."""
        return self.passes(options) > COSTLY

    def __call__(
        self, model: nn.Module, images: Tensor, classes: Tensor, options: AttributionOptions | None = None
    ) -> Attribution:
        """The maps of `classes` (B, T) for preprocessed images (B, C, H, W).

        Ours carry gradients if the images require them.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and images.requires_grad):
            return self.compute(model, images, classes, options or AttributionOptions())


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no gradients for parameters: what explains a network must not change it."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        with evaluation_mode(model):
            yield
    finally:
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)


def _attention(model: nn.Module, images: Tensor, classes: Tensor, _: AttributionOptions) -> Attribution:
    if not hasattr(model, "pooling"):
        raise UserError(f"{type(model).__name__} has no attention pooling, so it has no attention map to measure.")
    attention = model(images, return_attention=True).attention  # (B, Q, h, w)
    queries, h, w = attention.shape[1:]
    rows = classes if queries > 1 else torch.zeros_like(classes)
    values = attention.gather(1, rows[..., None, None].expand(-1, -1, h, w))
    return Attribution(values, patch_grid(model, _size(images), (h, w)))


def _evidence(model: nn.Module, images: Tensor, classes: Tensor, _: AttributionOptions) -> Attribution:
    seen = forward_with_maps(model, images, tuple(classes.unique().tolist()), top=1)
    values = seen.evidence_of(classes)
    total = seen.logits.gather(1, classes) - seen.bias[classes]
    return Attribution(values, patch_grid(model, _size(images), _size(values)), total)


def _contrast(model: nn.Module, images: Tensor, classes: Tensor, _: AttributionOptions) -> Attribution:
    seen = forward_with_maps(model, images, tuple(classes.unique().tolist()), top=MOST_RIVALS)
    # classes that other images of the batch were asked about have evidence too, but are no rivals here
    likeliest = seen.logits.topk(min(MOST_RIVALS, seen.logits.shape[1]), 1).indices  # (B, R)
    rival = (seen.classes[:, :, None] == likeliest[:, None]).any(2)  # (B, K')
    maps = []
    for k in classes.unbind(1):
        others = rival & (seen.classes != k[:, None])
        best = seen.evidence.masked_fill(~others[..., None, None], -torch.inf).amax(1)
        maps.append(seen.evidence_of(k[:, None])[:, 0] - best)
    return Attribution(torch.stack(maps, 1), patch_grid(model, _size(images), _size(seen.evidence)))


def _size(images: Tensor) -> tuple[int, int]:
    """Height and width of images or maps."""
    return images.shape[-2], images.shape[-1]


OURS = (
    Method(
        "evidence",
        "Evidence",
        "each patch's signed share of the class's logit, from the forward pass itself",
        "ours",
        _evidence,
        signed=True,
        all_classes_at_once=True,
    ),
    Method(
        "contrast",
        "Contrastive evidence",
        "each patch's evidence for the class less that for the strongest other class there (of many classes, the "
        "hundred likeliest), after the competition between classes of Gupta and Arora 2019, "
        "arXiv 1905.12152",
        "ours",
        _contrast,
        signed=True,
        all_classes_at_once=True,
    ),
    Method(
        "attention",
        "Attention",
        "the weights that pool the patches, from the forward pass itself (Touvron et al. 2021, arXiv 2112.13692)",
        "ours",
        _attention,
        all_classes_at_once=True,
    ),
)
