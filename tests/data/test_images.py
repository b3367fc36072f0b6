"""Reading images: every kind of file and array against PIL and NumPy, and what is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from patchconvnet.data.images import as_rgb, pixels, read_image
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.errors import UserError


def random_image(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 with structure at several scales, as photographs have."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((width, height), 3)
    return (0.7 * np.asarray(coarse) + 0.3 * generator.integers(0, 256, (height, width, 3))).astype(np.uint8)


def test_every_kind_of_image_file_is_read_right(tmp_path: Path) -> None:
    colour = random_image(20, 30)
    rgb, grey = Image.fromarray(colour), Image.fromarray(colour).convert("L")

    def read(image: Image.Image, name: str, **options: object) -> np.ndarray:
        image.save(tmp_path / name, **options)
        read = read_image(tmp_path / name)
        assert read.mode == "RGB"
        return np.asarray(read)

    assert np.array_equal(read(rgb, "rgb.png"), colour)
    assert np.array_equal(read(grey, "grey.png"), np.asarray(grey.convert("RGB")))
    palette = rgb.quantize(16)
    assert np.array_equal(read(palette, "palette.png"), np.asarray(palette.convert("RGB")))
    bits = grey.convert("1")
    assert np.array_equal(read(bits, "bits.png"), np.asarray(bits.convert("RGB")))

    deep = np.asarray(grey).astype(np.uint16) * 257  # 0..65535: 8-bit values exactly
    for name in ("deep.png", "deep.tiff"):
        assert np.array_equal(read(Image.fromarray(deep), name), np.asarray(grey.convert("RGB"))), name
    (tmp_path / "deep.pgm").write_bytes(b"P5 30 20 65535\n" + deep.astype(">u2").tobytes())
    assert np.array_equal(np.asarray(read_image(tmp_path / "deep.pgm")), np.asarray(grey.convert("RGB")))

    alpha = np.full((20, 30), 255, np.uint8)
    alpha[:10] = 0
    alpha[10:12] = 51  # a fifth
    shown = read(Image.fromarray(np.dstack((colour, alpha))), "alpha.png").astype(int)
    assert (shown[:10] == 255).all()
    assert np.abs(shown[10:12] - (0.2 * colour[10:12] + 0.8 * 255)).max() <= 1
    assert np.array_equal(shown[12:], colour[12:])
    shown = read(Image.merge("LA", (grey, Image.fromarray(alpha))), "grey_alpha.png")
    assert (shown[:10] == 255).all()
    assert np.array_equal(shown[12:, :, 0], np.asarray(grey)[12:])
    see_through = palette.copy()
    shown = read(see_through, "palette_alpha.png", transparency=0)
    where = np.asarray(palette) == 0
    assert (shown[where] == 255).all()
    assert np.array_equal(shown[~where], np.asarray(palette.convert("RGB"))[~where])

    cmyk = rgb.convert("CMYK")
    assert np.abs(read(cmyk, "cmyk.tiff").astype(int) - np.asarray(cmyk.convert("RGB"))).max() <= 1
    smooth = Image.fromarray(random_image(6, 6)).resize((64, 64), 3)
    assert np.abs(read(smooth.convert("CMYK"), "cmyk.jpg", quality=95).astype(int) - np.asarray(smooth)).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright(orientation: int, tmp_path: Path) -> None:
    preprocessing = Preprocessing((48, 48))
    upright = Image.fromarray(random_image(20, 30))
    # What the camera stores for each orientation tag: the inverse of the turn that shows it upright.
    stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    image = upright if stored is None else upright.transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "photo.png")), np.asarray(upright))
    with Image.open(tmp_path / "photo.png") as opened:  # an image handed over as PIL read it
        assert torch.equal(preprocessing(opened), preprocessing(upright))


def test_files_that_are_no_images_are_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.fromarray(random_image(64, 64)).save(whole)
    cut, text, empty = tmp_path / "cut.png", tmp_path / "text.jpg", tmp_path / "empty.jpg"
    cut.write_bytes(whole.read_bytes()[:3000])
    text.write_text("not an image")
    empty.touch()
    for path in (cut, text, empty):
        with pytest.raises(UserError, match=f"{path.name} is not a readable image"):
            read_image(path)
    with pytest.raises(UserError, match=r"no image file .*gone\.png"):
        read_image(tmp_path / "gone.png")
    with whole.open("rb") as file:
        assert read_image(file).size == (64, 64)


@pytest.mark.parametrize("values", [np.full((8, 8), 0.5, np.float32), np.full((8, 8), 70_000, np.int32)])
def test_pixels_of_32_bit_are_refused_and_not_cut(values: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match=r"a\.tiff is not a readable image: its pixels are numbers of 32 bit"):
        read_image(tmp_path / "a.tiff")


def test_as_rgb_leaves_rgb_alone() -> None:
    colour = random_image(9, 7)
    assert np.array_equal(np.asarray(as_rgb(Image.fromarray(colour))), colour)


def test_layouts_are_told_apart() -> None:
    colour = random_image(9, 7)
    expected = torch.from_numpy(colour).movedim(-1, 0)
    ways: list[np.ndarray | Tensor] = [colour, colour.transpose(2, 0, 1), colour / 255, expected, expected / 255]
    ways += [way.half() for way in (expected / 255, expected.movedim(0, -1) / 255)]
    for way in ways:
        assert torch.equal(pixels(way), expected)
    many_channels = torch.randint(0, 256, (7, 20, 30), dtype=torch.uint8)
    assert torch.equal(pixels(many_channels.movedim(0, -1), 7), many_channels)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((1, 8, 8, 3), np.uint8), "two axes, or three"),
        (np.zeros((0, 8, 3), np.uint8), "no pixels"),
        (np.zeros((8, 8, 2), np.uint8), "first or last axis must be 1, 3 or 4 channels"),
        (np.zeros((3, 8, 4), np.uint8), "give it as a PIL image"),
        (torch.full((3, 8, 8), 255.0), "divide by 255, or give uint8"),
        (torch.full((3, 8, 8), -1.0), "as it is before normalisation"),
        (np.full((8, 8), np.inf), "must lie in 0..1"),
        (torch.zeros(8, 8, dtype=torch.int32), "must be uint8, 0..255, or floats"),
        (np.zeros((8, 8), np.complex64), "must be uint8"),
    ],
)
def test_arrays_that_are_no_images_are_refused_in_words(image: np.ndarray | Tensor, words: str) -> None:
    with pytest.raises(UserError, match=words):
        pixels(image)


def test_damaged_exif_of_a_jpeg_is_no_error_later_on() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(file, "JPEG", exif=b"Exif\0\0no directory of tags")
    image = read_image(file)
    assert image.info == {}
    assert pixels(image).shape == (3, 6, 8)
