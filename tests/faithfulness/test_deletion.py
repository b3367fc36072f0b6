"""Deletion, insertion, ROAD against torch-cam, pytorch-grad-cam, scipy, plain loops; an uninformative map is a miss."""

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from patchconvnet import UserError
from patchconvnet.faithfulness.metrics.deletion import deletion, insertion
from patchconvnet.faithfulness.metrics.ends import BLUR_KERNEL, BLUR_SIGMA, blurred
from patchconvnet.faithfulness.metrics.road import road

HEIGHT, WIDTH, CLASSES = 12, 16, 5


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, CLASSES)
    )
    with torch.no_grad():
        network[-1].weight.mul_(8)
    return network.eval()


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, HEIGHT, WIDTH, generator=generator)
    maps = torch.randn(4, HEIGHT, WIDTH, generator=generator)
    return images, maps, torch.tensor([0, 3, 1, 4])


def by_loops(model, image, start, finish, values, k, steps) -> float:
    """RISE's code in plain loops: exchange a step's worth of pixels, ask, take the trapezoids."""
    pixels = values.size
    order = sorted(range(pixels), key=lambda p: -values.flat[p])
    step = -(-pixels // steps)
    current, scores, shares = start.copy(), [], []
    for done in [*range(0, pixels, step), pixels]:
        current = start.copy()
        for p in order[:done]:
            current[:, p // WIDTH, p % WIDTH] = finish[:, p // WIDTH, p % WIDTH]
        with torch.no_grad():
            scores.append(model(torch.from_numpy(current)[None]).softmax(1)[0, k].item())
        shares.append(done / pixels)
    return sum((b - a) * (s + t) / 2 for a, b, s, t in zip(shares, shares[1:], scores, scores[1:], strict=False))


@pytest.mark.parametrize("steps", [7, 32, 1000])
def test_deletion_and_insertion_are_those_of_plain_loops(model, batch, steps):
    images, maps, classes = batch
    deleted = deletion(model, images, maps, classes, steps=steps, forward_batch=10)
    inserted = insertion(model, images, maps, classes, steps=steps, forward_batch=10)
    soft = blurred(images)
    for i, k in enumerate(classes.tolist()):
        image, values, blur = images[i].numpy(), maps[i].numpy(), soft[i].numpy()
        assert deleted.score[i] == pytest.approx(
            by_loops(model, image, image, np.zeros_like(image), values, k, steps), abs=1e-5
        )
        assert inserted.score[i] == pytest.approx(by_loops(model, image, blur, image, values, k, steps), abs=1e-5)
    assert deleted.fractions[0] == 0
    assert deleted.fractions[-1] == 1
    assert deleted.probabilities.shape == (4, len(deleted.fractions))


@pytest.mark.parametrize("steps", [10, 32])
def test_deletion_and_insertion_are_torch_cams(model, batch, steps):
    metrics = pytest.importorskip("torchcam.metrics")
    images, maps, classes = batch

    class Given:
        """What torch-cam takes for an extractor, giving our maps."""

        def __init__(self):
            self.model = model

        def __call__(self, class_idx=None, scores=None, **_):
            return [maps]

        def fuse_cams(self, cams):
            return cams[0]

        def _hooks_off(self):
            return nullcontext()

    scores = {}
    for name, baseline in (("deletion_auc", None), ("insertion_auc", blurred)):
        metric = metrics.DeletionInsertionMetric(
            Given(), partial(torch.softmax, dim=-1), steps=steps, baseline=baseline
        )
        metric.update(images, classes.tolist())
        scores[name] = metric.summary()[name]
    assert deletion(model, images, maps, classes, steps=steps).score.mean() == pytest.approx(
        scores["deletion_auc"], abs=1e-5
    )
    assert insertion(model, images, maps, classes, steps=steps).score.mean() == pytest.approx(
        scores["insertion_auc"], abs=1e-5
    )


def test_the_blur_is_rises():
    point = np.zeros((BLUR_KERNEL, BLUR_KERNEL))
    point[BLUR_KERNEL // 2, BLUR_KERNEL // 2] = 1
    kernel = torch.from_numpy(gaussian_filter(point, BLUR_SIGMA)).float()
    images = torch.randn(2, 3, 20, 15)
    theirs = nn.functional.conv2d(images.flatten(0, 1)[:, None], kernel[None, None], padding=BLUR_KERNEL // 2)
    torch.testing.assert_close(blurred(images), theirs.view_as(images), atol=1e-6, rtol=1e-5)


def test_the_order_of_a_map_is_what_counts(model, batch):
    images, maps, classes = batch
    for measure in (deletion, insertion):
        plain = measure(model, images, maps, classes).score
        torch.testing.assert_close(measure(model, images, maps.exp() * 7 + 3, classes).score, plain)
        assert not torch.allclose(measure(model, images, -maps, classes).score, plain)


def test_a_map_that_knows_beats_one_that_does_not():
    class Corner(nn.Module):
        def forward(self, images):
            bright = images[:, 0, :4, :4].mean((1, 2))
            return torch.stack([torch.zeros_like(bright), 8 * bright - 4], 1)

    images = torch.ones(1, 3, 12, 12)
    right = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(0))
    wrong = right.clone()
    right[:, :4, :4] += 1
    wrong[:, 8:, 8:] += 1
    k = torch.tensor([1])
    assert deletion(Corner(), images, right, k).score < deletion(Corner(), images, wrong, k).score - 0.2
    assert insertion(Corner(), images, right, k).score > insertion(Corner(), images, wrong, k).score
    rough = images * torch.rand(12, 12, generator=torch.Generator().manual_seed(1))
    assert road(Corner(), rough, right, k).score > road(Corner(), rough, wrong, k).score


@pytest.mark.parametrize("broken", [0.0, 0.3, float("nan")])
def test_an_uninformative_map_is_a_miss(model, batch, broken):
    images, maps, classes = batch
    maps = maps.clone()
    maps[1] = broken
    deleted, inserted = (measure(model, images, maps, classes) for measure in (deletion, insertion))
    with torch.no_grad():
        whole = model(images).softmax(1)[1, 3]
        blur = model(blurred(images)).softmax(1)[1, 3]
    assert deleted.score[1] == pytest.approx(float(whole), abs=1e-6)
    assert inserted.score[1] == pytest.approx(float(blur), abs=1e-6)
    assert road(model, images, maps, classes).score[1] == 0
    others = [0, 2, 3]
    torch.testing.assert_close(
        deletion(model, images[others], maps[others], classes[others]).score, deleted.score[others]
    )


def test_a_map_with_one_nan_is_a_miss_too(model, batch):
    images, maps, classes = batch
    maps = maps.clone()
    maps[2, 3, 3] = torch.nan
    with torch.no_grad():
        assert deletion(model, images, maps, classes).score[2] == pytest.approx(
            float(model(images).softmax(1)[2, 1]), abs=1e-6
        )


def test_bad_input_is_refused_in_words(model, batch):
    images, maps, classes = batch
    with pytest.raises(UserError, match="maps"):
        deletion(model, images, maps[:, :-1], classes)
    with pytest.raises(UserError, match="classes"):
        road(model, images, maps, classes[:-1])
    with pytest.raises(UserError, match="steps is 0"):
        insertion(model, images, maps, classes, steps=0)
