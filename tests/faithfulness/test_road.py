"""ROAD and its imputation: pytorch-grad-cam's solver, closed forms, and that no image changes another's result."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patchconvnet import UserError
from patchconvnet.faithfulness.baselines import METHODS
from patchconvnet.faithfulness.metrics.imputation import impute
from patchconvnet.faithfulness.metrics.road import FRACTIONS, road

HEIGHT, WIDTH = 12, 16
CLASSES = torch.zeros(1, 1, dtype=torch.int64)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 5)
    )
    with torch.no_grad():
        network[-1].weight.mul_(8)
    return network.eval()


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, HEIGHT, WIDTH, generator=generator)
    maps = torch.randn(4, HEIGHT, WIDTH, generator=generator)
    return images, maps, torch.tensor([0, 3, 1, 4])


def photograph(side: int, seed: int = 0) -> Tensor:
    """Smooth parts, edges and noise: (1, 3, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn(1, 3, 5, 5, generator=generator)
    image = torch.nn.functional.interpolate(rough, (side, side), mode="bilinear")
    image[..., side // 3 : side // 2] += 2
    return image + 0.05 * torch.randn(image.shape, generator=generator)


def masks_of(kind: str, image: Tensor) -> Tensor:
    """(2 · 9, H, W) bool: the pixels that ROAD keeps, most and least important ones removed."""
    maps = METHODS[kind](nn.Identity(), image, CLASSES).pixels(image.shape[-2:])[0, 0]
    order = maps.flatten().argsort(descending=True, stable=True).argsort()
    masks = [ranks >= f * order.numel() for ranks in (order, order.numel() - 1 - order) for f in FRACTIONS]
    return torch.stack(masks).unflatten(1, maps.shape)


MAPS = ("edges", "centre", "random", "random_pixels")


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("side", [32, 96, pytest.param(224, marks=pytest.mark.slow)])
def test_what_is_filled_in_depends_on_no_other_image(side, kind):
    image, other = photograph(side), photograph(side, 1)
    known = masks_of(kind, image)
    alone = torch.cat([impute(image, mask[None]) for mask in known])
    count = len(known)
    together = impute(torch.cat([other, image.expand(count, -1, -1, -1)]), torch.cat([known[:1], known]))[1:]
    assert alone.isfinite().all()
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)
    assert alone.amax() <= image.amax() + 1e-5  # means of what is there lie between its extremes
    assert alone.amin() >= image.amin() - 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAPS)
def test_large_images_are_filled_in_alone_as_together(kind):
    image = photograph(512)
    known = masks_of(kind, image)[[0, 8, 17]]
    alone = torch.cat([impute(image, mask[None]) for mask in known])
    assert alone.isfinite().all()
    torch.testing.assert_close(impute(image.expand(3, -1, -1, -1), known), alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("side", [32, pytest.param(96, marks=pytest.mark.slow)])
def test_filling_in_is_that_of_pytorch_grad_cam(side, kind):
    """It holds ROAD's own code and assembles and solves the system in its own way."""
    imputer = pytest.importorskip("pytorch_grad_cam.metrics.road").NoisyLinearImputer(noise=0)
    image = photograph(side)
    known = masks_of(kind, image)
    filled = impute(image.expand(len(known), -1, -1, -1), known)
    for i in range(0, len(known), 4):
        torch.testing.assert_close(filled[i], imputer(image[0], known[i].float()), atol=1e-5, rtol=0)


def test_filling_in_of_odd_holes():
    imputer = pytest.importorskip("pytorch_grad_cam.metrics.road").NoisyLinearImputer(noise=0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 20, 24, generator=generator)
    known = torch.rand(6, 20, 24, generator=generator) > torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 0.0]).view(-1, 1, 1)
    known[5] = False
    known[5, 10:14, 3:5] = True  # one small island: the hardest to fill from
    filled = impute(images, known)
    for i in range(6):
        torch.testing.assert_close(filled[i], imputer(images[i], known[i].float()), atol=1e-5, rtol=0)
    known[5] = True
    assert torch.equal(impute(images, known)[5], images[5])
    single = impute(images[:1, :, :1, :2], torch.tensor([[[True, False]]]))  # an image of two pixels
    assert torch.equal(single[..., 1], single[..., 0])


def test_filling_in_of_a_large_hole_is_exact():
    y, x = torch.meshgrid(torch.linspace(0, 1, 96), torch.linspace(0, 1, 96), indexing="ij")
    images = (x + 2 * y)[None, None]
    known = torch.ones(1, 96, 96, dtype=torch.bool)
    known[:, 4:-4, 4:-4] = False
    # each value of a plane is the mean of its neighbours, so all of it comes back
    torch.testing.assert_close(impute(images, known), images, atol=1e-6, rtol=0)


def test_an_image_of_which_nothing_is_kept_is_refused_in_words():
    with pytest.raises(UserError, match="no pixel"):
        impute(torch.zeros(4, 3, 8, 8), torch.zeros(4, 8, 8, dtype=torch.bool))


def test_a_score_depends_on_no_other_image(model, batch):
    images, maps, classes = batch
    together = road(model, images, maps, classes, noise=0.5).score
    for i in range(4):
        for forward_batch in (1, 5, 256):
            alone = road(
                model, images[i : i + 1], maps[i : i + 1], classes[i : i + 1], noise=0.5, forward_batch=forward_batch
            )
            torch.testing.assert_close(alone.score[0], together[i], atol=1e-6, rtol=0)


def test_road_is_pytorch_grad_cams(model, batch):
    """The same pixels filled in by its exact solver, the same network: (mean LeRF − mean MoRF) / 2."""
    imputer = pytest.importorskip("pytorch_grad_cam.metrics.road").NoisyLinearImputer(noise=0)
    images, maps, classes = batch
    ours = road(model, images, maps, classes, noise=0.0, forward_batch=7)
    for i, k in enumerate(classes.tolist()):
        means = []
        for sign in (1, -1):
            chances = []
            for tenth in range(1, 10):
                order = (sign * maps[i]).flatten().argsort(descending=True, stable=True)
                kept = torch.ones(HEIGHT * WIDTH)
                kept[order[: int(np.ceil(tenth / 10 * HEIGHT * WIDTH))]] = 0
                filled = imputer(images[i], kept.view(HEIGHT, WIDTH))
                with torch.no_grad():
                    chances.append(model(filled[None]).softmax(1)[0, k].item())
            means.append(np.mean(chances))
        assert ours.score[i] == pytest.approx((means[1] - means[0]) / 2, abs=1e-3)


def test_noise_is_given_by_the_seed(model, batch):
    images, maps, classes = batch
    scores = [road(model, images, maps, classes, noise=0.5, seed=seed).score for seed in (0, 0, 1)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])
