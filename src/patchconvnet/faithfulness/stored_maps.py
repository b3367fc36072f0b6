"""Do maps that were written before lie on the annotated objects? The measures of place, without the network's answer.

All other measures of an audit need what the network says about changed images, or maps in full precision.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from patchconvnet.data.labelled_images import StoredImages
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.data.splits import Split
from patchconvnet.errors import UserError
from patchconvnet.explanation.patch_grid import patch_grid
from patchconvnet.faithfulness.annotations import Annotations, Located
from patchconvnet.faithfulness.baselines import METHODS
from patchconvnet.faithfulness.methods import Attribution, AttributionOptions
from patchconvnet.faithfulness.metrics import METRICS, Case
from patchconvnet.faithfulness.statistics import Estimate

PLACES = ("pointing", "energy", "boxes", "pixels")  # of METRICS
MAPS_AT_ONCE = 64


class StoredMap(NamedTuple):
    """The map of an image of a split: its number there, and (h, w) float."""

    place: int
    values: np.ndarray


def matched(rows: Iterable[tuple[str, np.ndarray]], data: Split) -> Iterator[StoredMap]:
    """The maps of a split's images, each once.

    Args:
        rows: ids, which end with the image's folder and file name, or its number in memory; and maps.
        data: the images; rows of others are passed over.

    Raises:
        UserError: two images are called alike, or there is none or more than one map of an image.
    """
    places = {data.name(index): index for index in range(len(data))}
    if len(places) < len(data):
        raise UserError("the data has images with the same folder and file name, which ids cannot tell apart")
    parts = 2 if isinstance(data, StoredImages) else 1
    left = set(places)
    for name, values in rows:
        key = "/".join(name.split("/")[-parts:])
        if key not in places:
            continue
        if key not in left:
            raise UserError(f"the predictions have more than one map of {key}")
        left.remove(key)
        yield StoredMap(places[key], values)
    if left:
        raise UserError(
            f"the predictions have no map of {len(left)} of {len(data)} images, such as {min(left)}; predict the same "
            "data, or choose another --split"
        )


def measure_places(
    maps: Iterable[StoredMap],
    kind: str,
    model: nn.Module,
    data: Split,
    preprocessing: Preprocessing,
    annotations: Annotations,
) -> dict[str, Estimate]:
    """Pointing game, energy, boxes, and with masks pixels, as `audit` measures them.

    Args:
        maps: each image's; read once, a few at a time.
        kind: "attention" or "evidence".
        model: that made them; it says where its patches are, and is not asked anything.
        data: the images, opened for their size.
        preprocessing: that the maps were made with.
        annotations: of all images that there are maps of.

    Returns:
        Estimates by the name of the audit's column.

    Raises:
        UserError: an annotation does not fit its image, or an image cannot be read.
    """
    metrics = [METRICS[name] for name in PLACES]
    metrics = [metric for metric in metrics if metric.needs != "masks" or annotations.masks is not None]
    values: dict[str, dict[int, Any]] = {metric.name: {} for metric in metrics}
    waiting: list[StoredMap] = []

    def measure() -> None:
        located = []
        for stored in waiting:
            image = data.image(stored.place)
            located.append(annotations.on_input(stored.place, preprocessing.geometry(image.height, image.width)))
        cells = torch.from_numpy(np.stack([stored.values for stored in waiting]).astype(np.float32))
        case = _case(kind, model, preprocessing, cells, located)
        for metric in metrics:
            values[metric.name].update(zip((each.place for each in waiting), metric.compute(case), strict=True))
        waiting.clear()

    for stored in maps:
        waiting.append(stored)
        if len(waiting) == MAPS_AT_ONCE:
            measure()
    if waiting:
        measure()
    return {column: each for metric in metrics for column, each in metric.estimated(values).items()}


def _case(kind: str, model: nn.Module, preprocessing: Preprocessing, cells: Tensor, located: list[Located]) -> Case:
    """What the measures of place look at, and nothing that is not stored."""
    size = (preprocessing.size[0], preprocessing.size[1])
    grid = patch_grid(model, size, (cells.shape[1], cells.shape[2]))
    attribution = Attribution(cells[:, None], grid)
    return Case(
        model=model,
        method=METHODS[kind],
        images=cells.new_empty(0),
        classes=torch.empty((len(cells), 0), dtype=torch.int64),
        options=AttributionOptions(),
        steps=0,
        attribution=attribution,
        maps=attribution.pixels(size).float(),
        located=located,
    )
