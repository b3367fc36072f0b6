"""Does a map stay the same when the image hardly changes?"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchconvnet.faithfulness.methods import AttributionOptions, Method, generator_of
from patchconvnet.faithfulness.metrics.agreement import pixel_maps, rank_correlation
from patchconvnet.faithfulness.metrics.metric import Case, Column, Metric, Values
from patchconvnet.faithfulness.statistics import Estimate, estimate_of

SHIFTS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # (down, right) in pixels of the network input
NOISE = 0.1  # standard deviation of the noise, in units of the normalised network input
NOISE_DRAWS = 4


class Stability(NamedTuple):
    """shift, noise: (B,), mean rank correlation with the original map, −1..1; 0 for uninformative maps."""

    shift: Tensor
    noise: Tensor


def stability(
    method: Method, model: nn.Module, images: Tensor, classes: Tensor, options: AttributionOptions, seed: int = 0
) -> Stability:
    """How well the order of a map's values survives a shift by a pixel, and faint noise; high is good.

    After Alvarez-Melis and Jaakkola 2018, arXiv 1806.08049 ("explanations of similar inputs should be similar"), in
    Spearman's correlation instead of a Lipschitz constant, so that maps of any scale compare. Shifts: one pixel up,
    down, left and right, the edge is repeated where pixels come in; the map is moved back and compared without the
    outermost pixels. Noise: normal, a tenth of the normalised input's unit, four draws for each image. An
    uninformative map counts as 0.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    # what was at (y, x) moves to (y + down, x + right)
    changed = [padded[..., 1 - down : 1 - down + height, 1 - right : 1 - right + width] for down, right in SHIFTS]
    generators = [generator_of(image, seed) for image in images]
    for _ in range(NOISE_DRAWS):
        draws = [torch.randn(image.shape, generator=own) for image, own in zip(images, generators, strict=True)]
        changed.append(images + torch.stack(draws).to(images) * NOISE)
    original, *maps = [pixel_maps(method, model, part, classes, options) for part in (images, *changed)]
    shifted = [
        rank_correlation(original[:, 1:-1, 1:-1], moved[:, 1 + down : height - 1 + down, 1 + right : width - 1 + right])
        for (down, right), moved in zip(SHIFTS, maps[: len(SHIFTS)], strict=True)
    ]
    noisy = [rank_correlation(original, now) for now in maps[len(SHIFTS) :]]
    return Stability(*(torch.stack(parts).nan_to_num().mean(0) for parts in (shifted, noisy)))


def _stability(case: Case) -> list[Any]:
    found = stability(case.method, case.explained, case.images, case.classes[:, 0], case.options, case.options.seed)
    rows = zip(found.shift.tolist(), found.noise.tolist(), strict=True)
    return [{"shift": shift, "noise": noise} for shift, noise in rows]


def _estimates(values: Values) -> dict[str, Estimate]:
    return {
        f"stability_{kind}": estimate_of({image: value[kind] for image, value in values["stability"].items()})
        for kind in ("shift", "noise")
    }


METRICS = (
    Metric(
        "stability",
        "Stable: shift",
        "high",
        "Rank correlation of the map with that of the image moved by one pixel, moved back. Necessary, not sufficient: "
        "a map that ignores the image is stable too",
        "after Alvarez-Melis and Jaakkola 2018, arXiv 1806.08049",
        _stability,
        stage="repeated",
        contest=False,
        maps=1 + len(SHIFTS) + NOISE_DRAWS,
        column="stability_shift",
        more_columns=(
            Column("stability_noise", "Stable: noise", "high", "The same with faint noise on the image.", None, False),
        ),
        estimates=_estimates,
    ),
)
