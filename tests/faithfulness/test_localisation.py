"""Pointing, energy, boxes and masks: closed forms, brute force, and that nothing to see is never a hit."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import average_precision_score

from patchconvnet import UserError
from patchconvnet.faithfulness.metrics.localisation import (
    THRESHOLDS,
    box_overlaps,
    energy,
    max_box_accuracy,
    overlaps,
    pixel_average_precision,
    pixel_histograms,
    pointing,
)


def blob(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    """A smooth random map."""
    rough = torch.rand(1, 1, 5, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(rough, (height, width), mode="bicubic")[0, 0].numpy()


def test_pointing_and_energy():
    maps = torch.zeros(4, 6, 6)
    objects = torch.zeros(4, 6, 6, dtype=torch.bool)
    objects[:, 2:4, 2:4] = True
    maps[0, 2, 3] = 1  # on it
    maps[1, 0, 0] = 1  # beside it
    maps[2, 2, 3] = maps[2, 5, 5] = 1  # a tie, one of the two beside it
    maps[3, 2, 3] = maps[3, 3, 3] = 1  # a tie, both on it
    assert pointing(maps, objects).tolist() == [1, 0, 0, 1]
    assert energy(maps, objects).tolist() == [1, 0, 0.5, 1]
    signed = maps - 0.5
    assert energy(signed, objects).tolist() == [1, 0, 0.5, 1]


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan"), float("inf")])
def test_an_uninformative_map_never_hits(value):
    maps = torch.full((2, 6, 6), value)
    objects = torch.ones(2, 6, 6, dtype=torch.bool)
    objects[1, :, :3] = False
    assert pointing(maps, objects).tolist() == [0, 0]
    assert energy(maps, objects).tolist() == [0, 0]
    assert box_overlaps(maps[0].numpy(), np.array([[0, 0, 6, 6]])).max() == 0
    histogram = pixel_histograms(maps, objects)
    assert (histogram[:, :, 1:] == 0).all()
    # one broken value is enough
    one = torch.rand(1, 6, 6)
    one[0, 0, 0] = torch.nan
    assert pointing(one, objects[:1]).item() == 0


def test_an_empty_object_is_never_hit():
    maps, nothing = torch.rand(2, 6, 6), torch.zeros(2, 6, 6, dtype=torch.bool)
    assert pointing(maps, nothing).tolist() == [0, 0]
    assert energy(maps, nothing).tolist() == [0, 0]
    assert box_overlaps(maps[0].numpy(), np.zeros((0, 4))).max() == 0
    with pytest.raises(UserError, match="no pixel"):
        pixel_average_precision(pixel_histograms(maps, nothing).numpy())


def parts_by_flooding(mask: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Bounding boxes of connected parts, diagonals connect: the slow way."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    boxes = []
    while left:
        part, border = set(), [left.pop()]
        while border:
            y, x = border.pop()
            part.add((y, x))
            for near in [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                if near in left:
                    left.remove(near)
                    border.append(near)
        ys, xs = zip(*part, strict=True)
        boxes.append((min(xs), min(ys), max(xs) + 1, max(ys) + 1))
    return boxes


def overlap_by_counting(a, b) -> float:
    """Of boxes with whole corners, by counting pixels."""
    cells = [{(x, y) for x in range(int(x0), int(x1)) for y in range(int(y0), int(y1))} for x0, y0, x1, y1 in (a, b)]
    return len(cells[0] & cells[1]) / len(cells[0] | cells[1])


def test_boxes_against_brute_force():
    for seed in range(3):
        values = blob(14, 18, seed)
        boxes = np.array([[3, 2, 11, 9], [12, 5, 18, 14]], dtype=float)
        scaled = (values - values.min()) / (values.max() - values.min())
        best = box_overlaps(values, boxes)
        for i in range(0, THRESHOLDS, 7):
            found = parts_by_flooding(scaled > i / THRESHOLDS)
            expected = max((overlap_by_counting(a, b) for a in found for b in boxes), default=0)
            assert best[i] == pytest.approx(expected)


def test_overlaps_of_boxes():
    boxes = np.array([[0, 0, 4, 4], [2, 2, 6, 6], [10, 10, 12, 12]], dtype=float)
    np.testing.assert_allclose(overlaps(boxes, boxes[:2]), [[1, 4 / 28], [4 / 28, 1], [0, 0]])


def test_max_box_accuracy_takes_one_threshold_for_all():
    best = np.zeros((2, THRESHOLDS))
    best[0, 10], best[1, 20] = 0.9, 0.6  # each found at a threshold of its own
    assert max_box_accuracy(best) == {0.3: 0.5, 0.5: 0.5, 0.7: 0.5}
    best[1, 10] = 0.4
    assert max_box_accuracy(best) == {0.3: 1.0, 0.5: 0.5, 0.7: 0.5}


def test_a_map_of_the_box_finds_it():
    values = np.zeros((24, 32))
    values[5:15, 8:20] = 1
    values += 0.01 * blob()
    assert box_overlaps(values, np.array([[8, 5, 20, 15]])).max() == 1


def test_pixel_average_precision_is_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    objects = torch.rand(5, 12, 12, generator=generator) > 0.7
    # whole hundredths, so that binning loses nothing
    maps = (torch.rand(5, 12, 12, generator=generator) * 60 + 40 * objects).floor() / 100
    maps[:, 0, 0], maps[:, 0, 1] = 0, 1
    maps = maps + 1e-4 * (maps < 1)
    value = pixel_average_precision(pixel_histograms(maps, objects).numpy())
    assert value == pytest.approx(average_precision_score(objects.flatten(), maps.flatten()), abs=1e-6)
    nothing = torch.zeros(5, 12, 12)
    assert pixel_average_precision(pixel_histograms(nothing, objects).numpy()) == pytest.approx(
        float(objects.float().mean())
    )


@pytest.mark.parametrize("power", [1, 3, 9])
def test_of_many_parts_the_best_box_is_found_all_the_same(power):
    """Noise has thousands of parts above a threshold, of which only those large enough are looked at."""
    generator = np.random.default_rng(0)
    values = generator.standard_normal((60, 80)) ** power
    boxes = np.array([[10, 20, 50, 45], [60, 3, 66, 9]], dtype=np.float64)
    scaled = (values - values.min()) / (values.max() - values.min())
    expected = []
    for i in range(THRESHOLDS):
        parts, _ = ndimage.label(scaled > i / THRESHOLDS, np.ones((3, 3)))
        found = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(parts)]
        expected.append(overlaps(np.array(found, dtype=np.float64), boxes).max())
    np.testing.assert_allclose(box_overlaps(values, boxes), expected, atol=1e-12)
