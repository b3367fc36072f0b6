"""ROAD, remove and debias: removed pixels are filled in from their neighbours, so that no hole has a shape to see."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from patchconvnet.faithfulness.methods import generator_of, uninformative
from patchconvnet.faithfulness.metrics.deletion import Curves, check_shapes, class_probability, importance_ranks
from patchconvnet.faithfulness.metrics.imputation import impute
from patchconvnet.faithfulness.metrics.metric import Case, Metric

FRACTIONS = tuple(tenth / 10 for tenth in range(1, 10))


class Road(NamedTuple):
    """most_first, least_first: the curves; score: (B,), how far they lie apart."""

    most_first: Curves
    least_first: Curves
    score: Tensor


def road(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    classes: Tensor,
    *,
    noise: float = 0.01,
    seed: int = 0,
    forward_batch: int = 256,
) -> Road:
    """How much sooner the class is lost without the most important pixels than without the least important ones.

    Rong et al. 2022, arXiv 2202.00449: noisy linear imputation (`imputation.impute`, on the CPU) of the most (MoRF) and
    of the least (LeRF) important 10, 20 … 90 % of the pixels. The score is (mean LeRF − mean MoRF) / 2 of the class's
    probability, as in pytorch-grad-cam's `ROADCombined`; high is good, and a random order has 0. So has an
    uninformative map. An image's score does not depend on the other images of the batch.

    Args:
        model: in eval mode.
        images: (B, C, H, W), preprocessed.
        maps: (B, H, W), the larger the more important.
        classes: (B,) int64.
        noise: standard deviation of the noise on filled pixels, in units of the network input.
        seed: of the noise, of which each image has one draw.
        forward_batch: images in one forward pass, at most.

    Raises:
        UserError: shapes that don't belong together.
    """
    check_shapes(images, maps, classes)
    draws = [torch.randn(image.shape, generator=generator_of(image, seed)) for image in images]
    shake = torch.stack(draws).to(images) * noise
    order = importance_ranks(maps)
    curves = []
    for ranks in (order, order.shape[1] - 1 - order):
        removed = torch.stack([ranks < fraction * order.shape[1] for fraction in FRACTIONS], 1)  # (B, S, P)
        known = ~removed.unflatten(-1, images.shape[-2:])
        probabilities = []
        for part in known.split(max(1, forward_batch // len(images)), 1):
            count = part.shape[1]
            filled = impute(images.repeat_interleave(count, 0), part.flatten(0, 1))
            filled = torch.where(part.flatten(0, 1)[:, None], filled, filled + shake.repeat_interleave(count, 0))
            chance = class_probability(model, filled, classes.repeat_interleave(count), forward_batch)
            probabilities.append(chance.unflatten(0, (-1, count)))
        curve = torch.cat(probabilities, 1)
        curves.append(Curves(curve.new_tensor(FRACTIONS), curve, curve.mean(1)))
    most, least = curves
    score = torch.where(uninformative(maps), 0.0, (least.score - most.score) / 2)
    return Road(most, least, score)


def _road(case: Case) -> list[Any]:
    options = case.options
    scores = road(
        case.answering,
        case.images,
        case.maps[:, 0],
        case.classes[:, 0],
        seed=options.seed,
        forward_batch=options.forward_batch,
    ).score
    return scores.tolist()


METRICS = (
    Metric(
        "road",
        "ROAD",
        "high",
        "The most, or the least, important tenths of the pixels are filled in from their neighbours, so that the holes "
        "have no shape to see: half the difference of the class's probability. A random order has 0",
        "Rong et al. 2022, arXiv 2202.00449",
        _road,
        chance=0.0,
        passes=lambda _: 2.0 * len(FRACTIONS),
        seconds_per_pixel=2 * len(FRACTIONS) * 2e-6,  # measured for sides from 32 to 224
    ),
)
