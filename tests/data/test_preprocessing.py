"""Preprocessing against the Keras example's numbers, PIL, torchvision and timm, and every way in against the others."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor
from torchvision.transforms import v2

from patchconvnet.data.batches import batches
from patchconvnet.data.images import pixels, read_image
from patchconvnet.data.labelled_images import ImageFiles, Images
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.errors import UserError

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden_seed.npz"
KERAS_EXAMPLE = Preprocessing(size=(48, 48), antialias=False)


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 with structure at several scales, as photographs have."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((width, height), 3)
    return (0.7 * np.asarray(coarse) + 0.3 * generator.integers(0, 256, (height, width, 3))).astype(np.uint8)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        return {name: arrays[name] for name in ("input.images_u8", "act.preprocessed", "aug.resized52")}


@pytest.mark.parametrize(("name", "side"), [("act.preprocessed", 48), ("aug.resized52", 52)])
def test_equals_the_keras_example(golden: dict[str, np.ndarray], name: str, side: int) -> None:
    images = torch.from_numpy(golden["input.images_u8"]).permute(0, 3, 1, 2)
    ours = KERAS_EXAMPLE.with_size(side).batch(images).permute(0, 2, 3, 1)
    torch.testing.assert_close(ours, torch.from_numpy(golden[name]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "preprocessing",
    [
        KERAS_EXAMPLE,
        Preprocessing((48, 48), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
        Preprocessing((64, 40), "crop", 0.875, "bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
        Preprocessing((40, 64), "letterbox", interpolation="bicubic", antialias=False, mean=(0.5, 0.4, 0.3)),
        Preprocessing((33, 200), "letterbox", interpolation="nearest", antialias=False),
    ],
    ids=["keras", "stretch", "crop", "letterbox", "nearest"],
)
def test_a_image_gets_identical_tensors_on_every_way_in(preprocessing: Preprocessing, tmp_path: Path) -> None:
    arrays = [random_image(53, 71, seed) for seed in range(5)]
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for array, path in zip(arrays, paths, strict=True):
        Image.fromarray(array).save(path)
    labels = torch.tensor([0, 1, 0, 1, 0])
    files = ImageFiles(paths, labels, ["a", "b"])
    stacked = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)  # not contiguous, as arrays come

    expected = preprocessing.batch(stacked)
    assert expected.shape == (5, 3, *preprocessing.size)
    ways: dict[str, Tensor] = {
        "PIL": torch.stack([preprocessing(read_image(path)) for path in paths]),
        "array": torch.stack([preprocessing(array) for array in arrays]),
        "tensor": torch.stack([preprocessing(image) for image in stacked]),
        "memory": torch.cat(
            [images for images, _, _ in batches(Images(stacked, labels, ["a", "b"]), preprocessing, 2)]
        ),
        "files": torch.cat([images for images, _, _ in batches(files, preprocessing, 2)]),
        "workers": torch.cat([images for images, _, _ in batches(files, preprocessing, 3, workers=1)]),
        "read back": torch.cat(
            [images for images, _, _ in batches(files, Preprocessing.from_dict(preprocessing.to_dict()), 4)]
        ),
    }
    for way, tensors in ways.items():
        assert torch.equal(tensors, expected), way


@pytest.mark.parametrize(
    ("interpolation", "filter_"), [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)]
)
@pytest.mark.parametrize("size", [(20, 30), (90, 101), (45, 200)], ids=["smaller", "larger", "both"])
def test_antialiased_resize_is_pils(interpolation: str, filter_: int, size: tuple[int, int]) -> None:
    colour = random_image(60, 80)
    ours = Preprocessing(size, interpolation=interpolation)(colour)  # type: ignore[arg-type]
    for channel in range(3):  # PIL resizes single float channels without rounding in between
        values = Image.fromarray(colour[..., channel].astype(np.float32) / 255)
        theirs = np.asarray(values.resize(size[::-1], filter_)).clip(0, 1)
        assert np.abs(ours[channel].numpy() - theirs).max() < 2e-6


@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (300, 200), (32, 32), (33, 47)])
@pytest.mark.parametrize("crop_ratio", [1.0, 0.875, 0.9])
def test_crop_is_torchvisions(shape: tuple[int, int], crop_ratio: float) -> None:
    image = torch.from_numpy(random_image(*shape)).permute(2, 0, 1)
    preprocessing = Preprocessing((48, 48), "crop", crop_ratio, "bilinear")
    theirs = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.Resize(int(48 / crop_ratio), antialias=True),
            v2.CenterCrop(48),
        ]
    )
    torch.testing.assert_close(preprocessing(image), theirs(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["resnet18.a1_in1k", "deit_small_patch16_224.fb_in1k", "convnext_tiny.fb_in22k_ft_in1k_384"]
)
def test_from_pretrained_cfg_is_timms_evaluation(name: str) -> None:
    image = Image.fromarray(random_image(301, 423))
    cfg = timm.get_pretrained_cfg(name).to_dict()
    theirs = create_transform(**resolve_data_config(pretrained_cfg=cfg), is_training=False)(image)
    ours = Preprocessing.from_pretrained_cfg(cfg)(image)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().mean() < 0.01  # in units of a standard deviation; timm's resize rounds to uint8


def test_a_image_of_the_right_size_is_only_scaled() -> None:
    image = torch.from_numpy(random_image(48, 48)).permute(2, 0, 1)
    for resize in ("stretch", "crop", "letterbox"):
        ours = Preprocessing((48, 48), resize, interpolation="bicubic")(image)  # type: ignore[arg-type]
        assert torch.equal(ours, image / 255)


def test_letterbox_shows_all_of_the_image_in_a_border_that_is_zero() -> None:
    image = torch.full((3, 20, 40), 255, dtype=torch.uint8)
    values = Preprocessing((32, 32), "letterbox", mean=(0.5, 0.4, 0.3))(image)
    assert torch.equal(values[:, :8], torch.zeros(3, 8, 32))
    assert torch.equal(values[:, 24:], torch.zeros(3, 8, 32))
    torch.testing.assert_close(values[:, 8:24], torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1).expand(3, 16, 32))


def test_bicubic_overshoot_is_cut_off() -> None:
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[:, :, 4:] = 255
    values = Preprocessing((31, 31), interpolation="bicubic")(image)
    assert values.min() == 0
    assert values.max() == 1


def test_normalisation() -> None:
    image = torch.from_numpy(random_image(8, 8)).permute(2, 0, 1)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    values = Preprocessing((8, 8), mean=mean, std=std)(image)
    expected = (image.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=2e-6)


def test_geometry_says_what_the_network_sees() -> None:
    """An image whose red is x and whose green is y shows the box in the network's input itself."""
    height, width = 120, 200
    y, x = np.mgrid[:height, :width]
    image = np.stack((x, y, np.zeros_like(x)), axis=-1).astype(np.uint8)
    for resize, ratio in (("stretch", 1.0), ("crop", 1.0), ("crop", 0.8)):
        preprocessing = Preprocessing((60, 50), resize, ratio)  # type: ignore[arg-type]
        left, top, right, bottom = preprocessing.geometry(height, width).box
        values = preprocessing(image) * 255
        columns = left + (torch.arange(50) + 0.5) * (right - left) / 50 - 0.5  # where each input pixel's centre lies
        rows = top + (torch.arange(60) + 0.5) * (bottom - top) / 60 - 0.5
        torch.testing.assert_close(values[0, 30, 2:-2], columns[2:-2], rtol=0, atol=0.1)
        torch.testing.assert_close(values[1, 2:-2, 25], rows[2:-2], rtol=0, atol=0.1)
    letterbox = Preprocessing((64, 64), "letterbox").geometry(32, 64)
    assert letterbox.box == (0.0, -16.0, 64.0, 48.0)


def test_dict_round_trip_and_its_refusals() -> None:
    preprocessing = Preprocessing((48, 64), "crop", 0.9, "bicubic", True, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    values = preprocessing.to_dict()
    assert values["size"] == [48, 64]
    assert Preprocessing.from_dict(values) == preprocessing
    with pytest.raises(UserError, match="unknown keys sise; known: size, resize"):
        Preprocessing.from_dict({"sise": [48, 48]})
    with pytest.raises(UserError, match="no size"):
        Preprocessing.from_dict({"resize": "crop"})
    with pytest.raises(UserError, match="wrong type"):
        Preprocessing.from_dict({"size": [48, 48], "mean": ["a", "b", "c"]})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": (0, 48)}, "two whole numbers"),
        ({"size": (48.0, 48.0)}, "two whole numbers"),
        ({"size": 48}, "as a list"),
        ({"size": (100_000, 100_000)}, "more than 64,000,000 pixels"),
        ({"resize": "squash"}, "known: stretch, crop, letterbox"),
        ({"interpolation": "lanczos"}, "known: bilinear, bicubic, nearest"),
        ({"resize": "crop", "crop_ratio": 1.5}, "at most 1"),
        ({"crop_ratio": 0.9}, "no meaning with resize 'stretch'"),
        ({"interpolation": "nearest"}, "antialias"),
        ({"mean": (0.5,)}, "1 mean and 3 std"),
        ({"mean": (123.7, 116.3, 103.5)}, "divide values for pixels of 0..255 by 255"),
        ({"std": (0.0, 1.0, 1.0)}, "std above 0"),
    ],
)
def test_bad_values_are_refused_in_words(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Preprocessing(**{"size": (48, 48), **values})  # type: ignore[arg-type]


def test_a_float_batch_is_refused_in_words() -> None:
    with pytest.raises(UserError, match=r"given images of type torch\.float32"):
        KERAS_EXAMPLE.batch(torch.zeros(1, 3, 8, 8))


def test_grey_networks_take_colour_images_and_colour_networks_grey_ones() -> None:
    colour = random_image(16, 16)
    grey = np.asarray(Image.fromarray(colour).convert("L"))
    one_channel = Preprocessing((16, 16), mean=(0.0,), std=(1.0,))
    assert torch.equal(one_channel(colour), torch.from_numpy(grey.copy())[None] / 255)
    assert torch.equal(one_channel(grey), one_channel(colour))
    assert torch.equal(Preprocessing((16, 16))(grey), one_channel(grey).expand(3, -1, -1))
    assert pixels(grey[..., None], 3).shape == (3, 16, 16)


def test_what_is_only_cut_or_framed_keeps_its_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (36, 41, 3), np.uint8)
    cut = Preprocessing((32, 32), "crop", crop_ratio=32 / 36, mean=(0, 0, 0), std=(1, 1, 1))(image)
    assert np.array_equal(cut.numpy(), image[2:34, 4:36].transpose(2, 0, 1) / np.float32(255))
    assert cut.is_contiguous()
    one_row_short = Preprocessing((37, 41), "letterbox", mean=(0.5, 0.5, 0.5), std=(1, 1, 1))(image)
    assert np.array_equal(one_row_short[:, :36].numpy(), image.transpose(2, 0, 1) / np.float32(255) - np.float32(0.5))
    assert not one_row_short[:, 36].any()
