"""Augmentation against second implementations (slicing, torchvision, timm), and equal for any process count."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from patchconvnet.data.augmentation import Augmentation, AugmentationConfig, _coins, _jittered
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.errors import UserError

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden_seed.npz"
COUNT, SIDE = 24, 16
SAME_SIZE = Preprocessing((SIDE, SIDE))


def random_images(count: int = COUNT, side: int = SIDE) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def augmented(
    config: AugmentationConfig,
    images: Tensor,
    preprocessing: Preprocessing = SAME_SIZE,
    *,
    epoch: int = 0,
    seed: int = 0,
    part: slice | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    labels = torch.arange(len(images)) % 10
    return Augmentation(config, preprocessing, 10, label_smoothing=label_smoothing)(
        images[part or slice(None)],
        labels[part or slice(None)],
        indices=torch.arange(len(images)) * 7,
        epoch=epoch,
        generator=torch.Generator().manual_seed(seed),
        batch_slice=part,
    )


EVERY_WAY = {
    "airbench": AugmentationConfig(random_crop_padding=2, flip="alternating", cutout=5),
    "keras": AugmentationConfig(canvas=20, flip="random"),
    "imagenet": AugmentationConfig(
        randaugment="rand-m9-mstd0.5-inc1",
        random_resized_crop_scale=(0.1, 1.0),
        flip="random",
        color_jitter=0.4,
        random_erasing=0.5,
        mixup=0.8,
        cutmix=1.0,
    ),
}


@pytest.mark.parametrize("name", EVERY_WAY)
@pytest.mark.parametrize("seed", range(4))
def test_processes_see_what_one_process_sees(name: str, seed: int) -> None:
    images, whole = random_images(), augmented(EVERY_WAY[name], random_images(), epoch=1, seed=seed)
    parts = [augmented(EVERY_WAY[name], images, epoch=1, seed=seed, part=slice(i, i + 6)) for i in range(0, COUNT, 6)]
    assert torch.equal(torch.cat([values for values, _ in parts]), whole[0])
    assert torch.equal(torch.cat([targets for _, targets in parts]), whole[1])


@pytest.mark.parametrize("name", EVERY_WAY)
def test_seeded_and_without_a_trace_in_global_random_states(name: str) -> None:
    images = random_images()
    before = images.clone()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    one, same, other = (augmented(EVERY_WAY[name], images, seed=seed)[0] for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(images, before)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


def test_nothing_asked_for_is_the_preprocessing() -> None:
    preprocessing = Preprocessing((24, 20), "crop", 0.9, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    values, targets = augmented(AugmentationConfig(), random_images(), preprocessing)
    assert torch.equal(values, preprocessing.batch(random_images()))
    assert targets.tolist() == [index % 10 for index in range(COUNT)]


def test_padded_crop_is_padding_and_slicing() -> None:
    images, reach = random_images(400), 3
    values, _ = augmented(AugmentationConfig(random_crop_padding=reach), images)
    padded = F.pad(images / 255, (reach,) * 4, mode="reflect")
    offsets = []
    for image, value in zip(padded, values, strict=True):
        places = [
            (top, left)
            for top in range(2 * reach + 1)
            for left in range(2 * reach + 1)
            if torch.equal(image[:, top : top + SIDE, left : left + SIDE], value)
        ]
        assert len(places) == 1
        offsets += places
    counts = torch.tensor(offsets).T
    for axis in counts:  # every offset comes up about equally often, and the two axes apart from each other
        assert axis.bincount(minlength=7).min() > 400 / 7 / 2
    assert abs(torch.corrcoef(counts.float())[0, 1]) < 0.2


def test_canvas_crop_of_the_keras_example() -> None:
    with np.load(GOLDEN) as golden:
        images = torch.from_numpy(golden["input.images_u8"]).permute(0, 3, 1, 2)
        canvas = torch.from_numpy(golden["aug.resized52"]).permute(0, 3, 1, 2)
    config = AugmentationConfig(canvas=52, flip="random")
    seen = set()
    for seed in range(10):
        values, _ = augmented(config, images, Preprocessing((48, 48), antialias=False), seed=seed)
        for image, value in zip(canvas, values, strict=True):
            places = [
                (top, left, flip)
                for top in range(5)
                for left in range(5)
                for flip in (False, True)
                if torch.allclose(
                    value,
                    (image.flip(-1) if flip else image)[:, top : top + 48, left : left + 48],
                    atol=2e-6,
                    rtol=0,
                )
            ]
            assert len(places) == 1
            seen.update(places)
    assert len({(top, left) for top, left, _ in seen}) > 15  # one offset an image, not one a batch
    assert {flip for _, _, flip in seen} == {False, True}


def test_alternating_flip_shows_every_image_both_ways_in_two_epochs() -> None:
    images = random_images(200)
    config = AugmentationConfig(flip="alternating")
    epochs = [augmented(config, images, epoch=epoch, seed=epoch)[0] for epoch in range(4)]
    straight = images / 255
    mirrored = torch.stack([(epochs[0][i] != straight[i]).any() for i in range(200)])
    assert 70 < mirrored.sum() < 130
    assert torch.equal(epochs[0], torch.where(mirrored.view(-1, 1, 1, 1), straight.flip(-1), straight))
    assert torch.equal(epochs[1], epochs[0].flip(-1))
    assert torch.equal(epochs[2], epochs[0])
    assert torch.equal(epochs[3], epochs[1])


def test_coins_are_fair_and_independent_of_each_other_and_of_the_seed() -> None:
    coins = torch.stack([_coins(torch.arange(50_000), seed) for seed in range(6)]).float()
    assert (coins.mean(1) - 0.5).abs().max() < 0.01  # 4.5 standard deviations
    assert torch.corrcoef(coins).fill_diagonal_(0).abs().max() < 0.02
    assert ((coins[:, 1:] * coins[:, :-1]).mean(1) - 0.25).abs().max() < 0.01
    order = torch.randperm(50_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_coins(order, 3).float(), coins[3][order])
    _coins(torch.arange(3), 2**63)  # any seed will do


def test_random_flip_is_by_coin_in_every_epoch() -> None:
    images = random_images(200)
    values, _ = augmented(AugmentationConfig(flip="random"), images)
    straight = images / 255
    mirrored = [torch.equal(value, image.flip(-1)) for value, image in zip(values, straight, strict=True)]
    assert 70 < sum(mirrored) < 130
    for value, image, flipped in zip(values, straight, mirrored, strict=True):
        assert flipped or torch.equal(value, image)


def test_random_resized_crop_draws_boxes_within_scale_and_ratio() -> None:
    """Red is x and green is y, so each result shows the box it was cut from."""
    y, x = torch.meshgrid(torch.arange(100), torch.arange(160), indexing="ij")
    image = torch.stack((x, y, torch.zeros_like(x))).to(torch.uint8)
    config = AugmentationConfig(random_resized_crop_scale=(0.2, 0.6), flip="random")
    values, _ = augmented(config, image.expand(500, -1, -1, -1), Preprocessing((32, 32)))
    values = values * 255
    # Pixel centres 8 and 24 are half of the box apart and lie inside of the image's border.
    widths = (values[:, 0, 16, 24] - values[:, 0, 16, 8]).abs() * 2
    heights = (values[:, 1, 24, 16] - values[:, 1, 8, 16]) * 2
    areas, ratios = widths * heights / 16_000, widths / heights
    assert areas.min() > 0.19
    assert areas.max() < 0.61
    assert areas.std() > 0.09  # uniform over 0.4: 0.115
    assert ratios.min() > 0.74
    assert ratios.max() < 1.35
    mirrored = values[:, 0, 16, 24] < values[:, 0, 16, 8]
    assert 200 < mirrored.sum() < 300
    centres = values[:, :2, 16, 16]
    assert centres[:, 0].std() > 15
    assert centres[:, 1].std() > 5


def test_a_box_of_everything_is_a_plain_resize() -> None:
    config = AugmentationConfig(random_resized_crop_scale=(1, 1), random_resized_crop_ratio=(1, 1))
    preprocessing = Preprocessing((24, 40), antialias=False)
    values, _ = augmented(config, random_images(), preprocessing)
    torch.testing.assert_close(values, preprocessing.batch(random_images()), rtol=0, atol=1e-5)


def test_cutout_sets_one_square_to_the_mean_anywhere_inside() -> None:
    preprocessing = Preprocessing((SIDE, SIDE), mean=(0.45, 0.45, 0.45), std=(0.3, 0.3, 0.3))
    values, _ = augmented(AugmentationConfig(cutout=5), random_images(400), preprocessing)
    plain = preprocessing.batch(random_images(400))
    hidden = (values == 0).all(1)
    assert not ((values != plain).any(1) & ~hidden).any()
    assert (hidden.sum((1, 2)) == 25).all()
    assert (hidden.any(1).sum(1) == 5).all()  # five columns and five rows: a square
    assert hidden.any(0).all()  # every place comes up


def test_random_erasing_fills_boxes_of_the_stated_size_with_noise() -> None:
    images = torch.zeros(600, 3, 40, 40, dtype=torch.uint8)
    values, _ = augmented(AugmentationConfig(random_erasing=0.4), images, Preprocessing((40, 40)))
    erased = (values != 0).all(1)
    touched = erased.any((1, 2))
    assert 0.33 < touched.float().mean() < 0.47
    areas = erased.sum((1, 2))[touched] / 1600
    assert areas.min() > 0.015
    assert areas.max() < 0.35
    boxes = erased.any(1).sum(1) * erased.any(2).sum(1)
    assert torch.equal(boxes, erased.sum((1, 2)))  # filled rectangles
    assert abs(values[erased[:, None].expand_as(values)].std() - 1) < 0.1


def test_color_jitter_is_torchvisions() -> None:
    values = random_images() / 255
    factors = torch.rand(3, COUNT, generator=torch.Generator().manual_seed(0)) + 0.5
    ours = _jittered(values, *factors)
    for index, (brightness, contrast, saturation) in enumerate(factors.T.tolist()):
        expected = tv.adjust_brightness(values[index], brightness)
        expected = tv.adjust_contrast(expected, contrast)
        expected = tv.adjust_saturation(expected, saturation)
        torch.testing.assert_close(ours[index], expected, rtol=0, atol=1e-5)


def test_color_jitter_changes_each_image_its_own_way() -> None:
    images = random_images(1).expand(COUNT, -1, -1, -1)
    values, _ = augmented(AugmentationConfig(color_jitter=0.4), images)
    assert len({round(float(value.mean()), 5) for value in values}) == COUNT


def test_randaugment_is_timms() -> None:
    images = random_images()
    config = "rand-m9-n3-mstd0.5"
    values, _ = augmented(AugmentationConfig(randaugment=config), images, seed=8)
    transform = rand_augment_transform(config, {"translate_const": 7, "img_mean": (0, 0, 0)})
    seeds = torch.randint(2**31, (COUNT,), generator=torch.Generator().manual_seed(8)).tolist()
    changed = 0
    for image, value, seed in zip(images, values, seeds, strict=True):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        expected = np.asarray(transform(Image.fromarray(image.permute(1, 2, 0).numpy())))
        assert np.array_equal(value.permute(1, 2, 0).mul(255).round().numpy(), expected)
        changed += not np.array_equal(expected, image.permute(1, 2, 0).numpy())
    assert changed > COUNT / 2


@pytest.mark.parametrize("config", ["rand-m10-inc1", "rand-m9-mstd0.5-inc1", "rand-m0", "rand-m2-n4"])
def test_randaugment_at_any_magnitude(config: str) -> None:
    """Where timm would keep no bit of a colour, which Pillow refuses."""
    for seed in range(20):
        augmented(AugmentationConfig(randaugment=config), random_images(), seed=seed)


@pytest.mark.parametrize("count", [24, 25])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_mixes_neighbours_and_their_labels_alike(count: int, smoothing: float) -> None:
    images = random_images(count)
    values, targets = augmented(AugmentationConfig(mixup=1.0), images, label_smoothing=smoothing)
    plain = images / 255
    one_hot = F.one_hot(torch.arange(count) % 10, 10) * (1 - smoothing) + smoothing / 10
    torch.testing.assert_close(targets.sum(1), torch.ones(count))
    partner = torch.arange(24).view(-1, 2).flip(1).flatten()
    share = (targets[0, 0] - smoothing / 10) / (1 - smoothing)
    assert 0 < share < 1
    torch.testing.assert_close(values[:24], share * plain[:24] + (1 - share) * plain[partner], rtol=0, atol=1e-5)
    torch.testing.assert_close(targets[:24], share * one_hot[:24] + (1 - share) * one_hot[partner], rtol=0, atol=1e-5)
    assert torch.equal(values[24:], plain[24:])  # the one without a partner
    torch.testing.assert_close(targets[24:], one_hot[24:])


def test_cutmix_shares_labels_by_area() -> None:
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(-1, 3, SIDE, SIDE)
    mixed_at_all = 0
    for seed in range(5):
        values, targets = augmented(AugmentationConfig(cutmix=1.0), images, seed=seed)
        classes = values[:, 0].mul(255).round().long()
        shares = torch.stack([(classes == label).float().mean((1, 2)) for label in range(10)], dim=1)
        torch.testing.assert_close(targets, shares)
        mixed_at_all += int((targets.max() < 1).item())
    assert mixed_at_all >= 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"canvas": 52, "random_resized_crop_scale": (0.1, 1.0)}, "canvas and random_resized_crop_scale"),
        ({"canvas": 52, "random_crop_padding": 2}, "canvas and random_crop_padding, which are two ways to crop"),
        ({"flip": "vertical"}, "known: none, random, alternating"),
        ({"cutout": -1}, "must not be negative"),
        ({"mixup": -0.1}, "must not be negative"),
        ({"random_erasing": 1.5}, "must lie in 0..1"),
        ({"random_resized_crop_scale": (0.9, 0.1)}, "0 < low ≤ high ≤ 1"),
        ({"random_resized_crop_ratio": (0.0, 1.0)}, "0 < low ≤ high"),
        ({"canvas": 15}, "canvas 15×15 is smaller than the network's input 16×16"),
        ({"canvas": (40, 15)}, "canvas 40×15 is smaller"),
        ({"random_crop_padding": 16}, "narrower than the image"),
        ({"cutout": 17}, "larger than the network's input 16×16"),
        ({"randaugment": "m9"}, "which timm does not know"),
        ({"randaugment": "rand-x9"}, "which timm does not know"),
    ],
)
def test_bad_options_are_refused_in_words(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augmentation(AugmentationConfig(**values), SAME_SIZE, 10)  # type: ignore[arg-type]


def test_the_config_is_read_from_text(capsys: pytest.CaptureFixture[str]) -> None:
    def read(*arguments: str) -> AugmentationConfig:
        return auto_cli(AugmentationConfig, args=list(arguments), exit_on_error=False)

    assert read("--canvas=52", "--randaugment=rand-m9") == AugmentationConfig(canvas=52, randaugment="rand-m9")
    assert read("--canvas=[52, 60]", "--flip=alternating") == AugmentationConfig(canvas=(52, 60), flip="alternating")
    assert read("--random_resized_crop_scale=[0.1, 1.0]").random_resized_crop_scale == (0.1, 1.0)
    with pytest.raises(SystemExit):
        read("--help")
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("timm's RandAugment", "the Keras example", "filled by reflection", "alpha of CutMix's"):
        assert text in shown
