"""Does a map name what the decision hangs on? Remove, or bring in, what it calls important, and ask the network.

An uninformative map (uniform, or not finite) is a miss: its order of pixels would be an accident, and scattered holes
destroy a decision rather well.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchconvnet.errors import UserError
from patchconvnet.faithfulness.methods import uninformative
from patchconvnet.faithfulness.metrics.metric import Case, Column, Metric, Values
from patchconvnet.faithfulness.statistics import Estimate, estimate_of

BLUR_KERNEL, BLUR_SIGMA = 11, 5.0  # as in RISE's code


class Curves(NamedTuple):
    """What the network says while pixels are exchanged.

    fractions: (S,), shares of the pixels that are exchanged, ascending.
    probabilities: (B, S), of the asked class.
    score: (B,).
    """

    fractions: Tensor
    probabilities: Tensor
    score: Tensor


def deletion(
    model: nn.Module, images: Tensor, maps: Tensor, classes: Tensor, *, steps: int = 32, forward_batch: int = 256
) -> Curves:
    """Area under the class's probability while pixels are set to zero, the most important first; low is good.

    Petsiuk et al. 2018, arXiv 1806.07421, section 4.1. Zero is that of the preprocessed image, so the data's mean
    colour. Pixels of equal rank go from top left to bottom right. An uninformative map scores what the whole
    image does: as if nothing that matters were ever found.

    Args:
        model: in eval mode.
        images: (B, C, H, W), preprocessed.
        maps: (B, H, W), the larger the more important.
        classes: (B,) int64.
        steps: into how many equal parts the pixels are divided; the paper takes a row of 224 pixels a step.
        forward_batch: images in one forward pass.

    Returns:
        Curves of at most `steps` + 1 points, from 0 to 1; the score is the area under them (trapezoids).

    Raises:
        UserError: shapes that don't belong together, or `steps` below 1.
    """
    return _exchange(model, images, torch.zeros_like(images), maps, classes, steps, forward_batch)


def insertion(
    model: nn.Module, images: Tensor, maps: Tensor, classes: Tensor, *, steps: int = 32, forward_batch: int = 256
) -> Curves:
    """Area under the class's probability while a blurred image's pixels become sharp, the most important first.

    High is good. Petsiuk et al. 2018, arXiv 1806.07421, section 4.1; the blur is `blurred`. An uninformative map
    scores what the blurred image does.

    Args, returns, raises: as `deletion`.
    """
    return _exchange(model, blurred(images), images, maps, classes, steps, forward_batch)


def blurred(images: Tensor) -> Tensor:
    """The start of insertion: (B, C, H, W) through RISE's blur, a kernel of 11 × 11 with sigma 5, zeros around.

    Its kernel is a point, smoothed by a Gaussian that is reflected at the kernel's borders, as RISE's code has it.
    """
    offsets = torch.arange(-int(4 * BLUR_SIGMA + 0.5), int(4 * BLUR_SIGMA + 0.5) + 1)
    weights = torch.exp(-0.5 * (offsets / BLUR_SIGMA) ** 2)
    places = (offsets + BLUR_KERNEL // 2) % (2 * BLUR_KERNEL)
    places = torch.where(places < BLUR_KERNEL, places, 2 * BLUR_KERNEL - 1 - places)
    line = torch.zeros(BLUR_KERNEL).index_add_(0, places, weights / weights.sum()).to(images)
    channels = images.shape[1]
    rows = F.conv2d(
        images, line.view(1, 1, -1, 1).expand(channels, -1, -1, -1), padding=(BLUR_KERNEL // 2, 0), groups=channels
    )
    return F.conv2d(
        rows, line.view(1, 1, 1, -1).expand(channels, -1, -1, -1), padding=(0, BLUR_KERNEL // 2), groups=channels
    )


def _exchange(
    model: nn.Module, start: Tensor, finish: Tensor, maps: Tensor, classes: Tensor, steps: int, forward_batch: int
) -> Curves:
    """The class's probability on the way from `start` to `finish`, pixels exchanged in the maps' order."""
    check_shapes(start, maps, classes)
    if steps < 1:
        raise UserError(f"steps is {steps}; it must be 1 or more.")
    ranks = importance_ranks(maps)
    pixels = ranks.shape[1]
    step = -(-pixels // steps)
    counts = torch.tensor([*range(0, pixels, step), pixels], device=ranks.device)
    probabilities = []
    for part in counts.split(max(1, forward_batch // len(start))):
        exchanged = (ranks[:, None] < part[:, None]).unflatten(-1, start.shape[-2:])  # (B, n, H, W)
        between = torch.where(exchanged[:, :, None], finish[:, None], start[:, None]).flatten(0, 1)
        chance = class_probability(model, between, classes.repeat_interleave(len(part)), forward_batch)
        probabilities.append(chance.unflatten(0, (-1, len(part))))
    curve = torch.cat(probabilities, 1)  # (B, S)
    curve = torch.where(uninformative(maps)[:, None], curve[:, :1], curve)
    fractions = (counts / pixels).to(curve)
    return Curves(fractions, curve, torch.trapezoid(curve, fractions, dim=1))


def importance_ranks(maps: Tensor) -> Tensor:
    """(B, P): each pixel's rank, 0 for the most important."""
    return maps.flatten(1).nan_to_num().argsort(dim=1, descending=True, stable=True).argsort(dim=1)


@torch.no_grad()
def class_probability(model: nn.Module, images: Tensor, classes: Tensor, forward_batch: int) -> Tensor:
    parts = zip(images.split(forward_batch), classes.split(forward_batch), strict=True)
    return torch.cat([model(part).float().softmax(1).gather(1, k[:, None])[:, 0] for part, k in parts])


def check_shapes(images: Tensor, maps: Tensor, classes: Tensor) -> None:
    batch, _, height, width = images.shape
    if maps.shape != (batch, height, width) or classes.shape != (batch,):
        raise UserError(
            f"given images {tuple(images.shape)}, maps {tuple(maps.shape)} and classes {tuple(classes.shape)}; needed "
            "are maps (batch, height, width) and classes (batch,) for images (batch, channels, height, width)."
        )


def _stored(curves: Curves) -> list[dict[str, Any]]:
    rows = zip(curves.score.tolist(), curves.probabilities.tolist(), strict=True)
    return [{"score": score, "curve": curve} for score, curve in rows]


def _deletion(case: Case) -> list[Any]:
    options = {"steps": case.steps, "forward_batch": case.options.forward_batch}
    return _stored(deletion(case.model, case.images, case.maps[:, 0], case.classes[:, 0], **options))


def _insertion(case: Case) -> list[Any]:
    options = {"steps": case.steps, "forward_batch": case.options.forward_batch}
    return _stored(insertion(case.model, case.images, case.maps[:, 0], case.classes[:, 0], **options))


def _deletion_estimates(values: Values) -> dict[str, Estimate]:
    return {"deletion": estimate_of({image: value["score"] for image, value in values["deletion"].items()})}


def _insertion_estimates(values: Values) -> dict[str, Estimate]:
    scores = {image: value["score"] for image, value in values["insertion"].items()}
    found = {"insertion": estimate_of(scores)}
    if deleted := values.get("deletion"):
        pairs = {image: (score, deleted[image]["score"]) for image, score in scores.items() if image in deleted}
        gaps = {image: None if None in pair else pair[0] - pair[1] for image, pair in pairs.items()}
        found["insertion_minus_deletion"] = estimate_of(gaps)
    return found


METRICS = (
    Metric(
        "deletion",
        "Deletion",
        "low",
        "Pixels are set to the mean colour, the most important first: area under the class's probability. If a map "
        "knows what matters, the probability falls at once. Fine, scattered holes destroy a decision by themselves, so "
        "maps at the resolution of pixels have an advantage here",
        "Petsiuk et al. 2018, arXiv 1806.07421",
        _deletion,
        passes=lambda steps: steps + 1.0,
        estimates=_deletion_estimates,
    ),
    Metric(
        "insertion",
        "Insertion",
        "high",
        "A blurred image becomes sharp, the most important pixels first: area under the class's probability",
        "Petsiuk et al. 2018, arXiv 1806.07421",
        _insertion,
        passes=lambda steps: steps + 1.0,
        more_columns=(
            Column(
                "insertion_minus_deletion",
                "Insertion − deletion",
                "high",
                "Both together. What scattered maps gain in one they tend to lose in the other.",
            ),
        ),
        estimates=_insertion_estimates,
    ),
)
