"""Does a map name what the decision hangs on? Remove, or bring in, what it calls important, and ask the network.

An uninformative map (uniform, or not finite) is a miss: its order of pixels would be an accident, and scattered holes
destroy a decision rather well.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from patchconvnet.errors import UserError
from patchconvnet.faithfulness.methods import uninformative
from patchconvnet.faithfulness.metrics.ends import Ends
from patchconvnet.faithfulness.metrics.metric import Case, Column, Metric, Values
from patchconvnet.faithfulness.passes import answers, probabilities
from patchconvnet.faithfulness.statistics import Estimate, estimate_of
from patchconvnet.models.passes import for_each, images_at_once


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
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    classes: Tensor,
    *,
    steps: int = 32,
    forward_batch: int = 256,
    ends: Ends | None = None,
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
        forward_batch: images in one forward pass, at most.
        ends: what the network says of the images as they are and without anything, where that is known already.

    Returns:
        Curves of at most `steps` + 1 points, from 0 to 1; the score is the area under them (trapezoids).

    Raises:
        UserError: shapes that don't belong together, or `steps` below 1.
    """
    ends = ends or Ends(model, images, forward_batch)
    start, finish = (images, ends.original), (torch.zeros_like(images), ends.removed)
    return _exchange(model, start, finish, maps, classes, steps, forward_batch)


def insertion(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    classes: Tensor,
    *,
    steps: int = 32,
    forward_batch: int = 256,
    ends: Ends | None = None,
) -> Curves:
    """Area under the class's probability while a blurred image's pixels become sharp, the most important first.

    High is good. Petsiuk et al. 2018, arXiv 1806.07421, section 4.1; the blur is `ends.blurred`. An uninformative map
    scores what the blurred image does.

    Args, returns, raises: as `deletion`.
    """
    ends = ends or Ends(model, images, forward_batch)
    start, finish = (ends.blurred_images, ends.blurred), (images, ends.original)
    return _exchange(model, start, finish, maps, classes, steps, forward_batch)


def _exchange(
    model: nn.Module,
    start: tuple[Tensor, Tensor],
    finish: tuple[Tensor, Tensor],
    maps: Tensor,
    classes: Tensor,
    steps: int,
    forward_batch: int,
) -> Curves:
    """The class's probability on the way from `start` to `finish`, pixels exchanged in the maps' order.

    Args:
        start, finish: images (B, C, H, W) and their probabilities (B, K).
    """
    (before, first), (after, last) = start, finish
    check_shapes(before, maps, classes)
    if steps < 1:
        raise UserError(f"steps is {steps}; it must be 1 or more.")
    ranks = importance_ranks(maps)
    pixels = ranks.shape[1]
    step = -(-pixels // steps)
    counts = torch.tensor([*range(0, pixels, step), pixels], device=ranks.device)
    curve = first.gather(1, classes[:, None]).repeat(1, len(counts))  # (B, S), where an uninformative map stays
    rows = (~uninformative(maps)).nonzero()[:, 0]
    curve[rows, -1] = last.gather(1, classes[:, None])[rows, 0]
    between = torch.cartesian_prod(rows, torch.arange(1, len(counts) - 1, device=rows.device))  # (N, 2)

    def asked(part: Tensor) -> Tensor:
        image, place = part.unbind(1)
        exchanged = (ranks[image] < counts[place, None]).unflatten(-1, maps.shape[1:])[:, None]  # (n, 1, H, W)
        chances = probabilities(model, torch.where(exchanged, after[image], before[image]))
        return chances.gather(1, classes[image, None])[:, 0]

    if len(between):
        parts = between.split(images_at_once(before, forward_batch))
        curve[between[:, 0], between[:, 1]] = torch.cat(for_each(asked, parts, before.device))
    fractions = (counts / pixels).to(curve)
    return Curves(fractions, curve, torch.trapezoid(curve, fractions, dim=1))


def importance_ranks(maps: Tensor) -> Tensor:
    """(B, P): each pixel's rank, 0 for the most important."""
    order = maps.flatten(1).nan_to_num().argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def class_probability(model: nn.Module, images: Tensor, classes: Tensor, forward_batch: int) -> Tensor:
    """(B,) the probability of each image's class."""
    return answers(model, images, forward_batch).gather(1, classes[:, None])[:, 0]


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


def _measured(measure: Callable[..., Curves], case: Case) -> list[Any]:
    options = {"steps": case.steps, "forward_batch": case.options.forward_batch, "ends": case.ends}
    return _stored(measure(case.answering, case.images, case.maps[:, 0], case.classes[:, 0], **options))


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
        partial(_measured, deletion),
        passes=lambda steps: steps - 1.0,
        seconds_per_pixel=4e-7,  # of the order of its pixels; measured at 224
        estimates=_deletion_estimates,
    ),
    Metric(
        "insertion",
        "Insertion",
        "high",
        "A blurred image becomes sharp, the most important pixels first: area under the class's probability",
        "Petsiuk et al. 2018, arXiv 1806.07421",
        partial(_measured, insertion),
        passes=lambda steps: steps - 1.0,
        seconds_per_pixel=4e-7,  # of the order of its pixels; measured at 224
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
