"""Maps lie where the pixels were: a network that looks at brightness, and a bright square planted at known places."""

from functools import cache

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.explanation import Explanation, explain
from patchconvnet.explanation.patch_grid import Grid, patch_grid, place, resample, seen_pixels

PLACES = [(0.3, 0.3), (0.7, 0.4), (0.45, 0.65)]  # (x, y) of the square's centre, as a share of what the network sees
SIZE = (48, 64)  # height, width of the network input


@cache
def brightness_model(padding: str = "symmetric", stem: int = 2) -> nn.Module:
    """Patches are local mean brightness; attention and the evidence for class 1 follow it, class 0 is its opposite."""
    model = timm.create_model(
        "patchconvnet_mini",
        embed_dim=16,
        depth=1,
        stem_divisors=tuple(2**i for i in reversed(range(stem))),
        **({"stem": "pooled"} if padding == "pooled" else {"stem": "strided", "stem_padding": padding}),
        pooling_norm="batch",  # which leaves a patch's brightness to it; layer norm makes all grey patches the same
        num_classes=2,
    ).eval()
    with torch.no_grad():
        for conv in model.stem.convs:
            conv.weight.fill_(1 / conv.weight[0].numel())
        model.trunk[0].conv2.weight.zero_()  # the block adds nothing: a patch is what the stem saw
        model.pooling.query.fill_(1.0)
        model.head.weight[0], model.head.weight[1] = -1.0, 1.0
        model.head.bias.copy_(torch.tensor([0.25, -0.5]))
    return model


def planted(image: tuple[int, int], preprocessing: Preprocessing, at: tuple[float, float]):
    """A black image with a white square: itself, the square's centre (x, y), and image pixels per input pixel."""
    height, width = image
    geometry = preprocessing.geometry(height, width)
    left, top, right, bottom = geometry.box
    scale_x, scale_y = (right - left) / geometry.size[1], (bottom - top) / geometry.size[0]
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    half_x, half_y = max(3, round(5 * scale_x)), max(3, round(5 * scale_y))
    x, y = round(left + at[0] * (right - left)), round(top + at[1] * (bottom - top))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y - half_y : y + half_y, x - half_x : x + half_x] = 255
    return Image.fromarray(pixels), (x, y), (scale_x, scale_y)


def centre(explanation: Explanation, target: int | None = None, kind: str = "attention") -> tuple[float, float]:
    """Where on the image a map stands out of its background: its centre of mass, (x, y)."""
    values = explanation.placed(target, kind)
    seen = seen_pixels(explanation.geometry)
    weights = np.where(seen, np.clip(values - np.median(values[seen]), 0, None), 0)
    height, width = values.shape
    x = (weights.sum(0) * (np.arange(width) + 0.5)).sum() / weights.sum()
    y = (weights.sum(1) * (np.arange(height) + 0.5)).sum() / weights.sum()
    return float(x), float(y)


@pytest.mark.parametrize("padding", ["symmetric", "same", "pooled"])
@pytest.mark.parametrize("image", [(200, 300), (300, 200), (131, 257), (30, 40)])
@pytest.mark.parametrize("resize", ["stretch", "crop", "letterbox"])
@pytest.mark.parametrize("at", PLACES)
def test_planted_square_is_where_it_was(resize, image, padding, at):
    preprocessing = Preprocessing(SIZE, resize)
    image, (x, y), (scale_x, scale_y) = planted(image, preprocessing, at)
    explanation = explain(brightness_model(padding), image, preprocessing=preprocessing, view="own")

    for kind, target in (("attention", None), ("evidence", 1)):
        found = centre(explanation, target, kind)
        # to half a pixel of the network input (patches are four); taken for squares of 4×4, it would be off by 1.5
        assert abs(found[0] - x) < 0.5 * scale_x, kind
        assert abs(found[1] - y) < 0.5 * scale_y, kind
    # what people look at: in the overlay, the brightest colour and the deepest red lie in the square
    seen = seen_pixels(explanation.geometry)
    overlay = np.asarray(explanation.overlay(map="attention"), dtype=int)[..., :3].sum(-1) * seen
    row, column = np.unravel_index(overlay.argmax(), overlay.shape)
    assert np.asarray(image)[row, column, 0] == 255
    alpha = np.asarray(explanation.overlay(1, "evidence"))[..., 3] * seen
    row, column = np.unravel_index(alpha.argmax(), alpha.shape)
    assert np.asarray(image)[row, column, 0] == 255


@pytest.mark.parametrize("padding", ["symmetric", "same", "pooled"])
@pytest.mark.parametrize("size", [(50, 71), (49, 65), (100, 100)])
def test_sizes_that_are_no_multiple_of_a_patch(size, padding):
    preprocessing = Preprocessing(size)
    image, (x, y), (scale_x, scale_y) = planted((200, 300), preprocessing, (0.6, 0.4))
    explanation = explain(brightness_model(padding), image, preprocessing=preprocessing)
    found = centre(explanation)
    assert abs(found[0] - x) < 0.5 * scale_x
    assert abs(found[1] - y) < 0.5 * scale_y


@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_a_flipped_image_has_the_flipped_map(padding):
    preprocessing = Preprocessing(SIZE)
    image, (x, y), (scale_x, _) = planted((96, 128), preprocessing, (0.3, 0.6))
    model = brightness_model(padding)
    flipped = explain(model, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), preprocessing=preprocessing)
    found = centre(flipped)
    assert abs(found[0] - (128 - x)) < 0.5 * scale_x
    assert abs(found[1] - y) < 0.5 * scale_x


@pytest.mark.parametrize("refine", [1, 2, 3, 4])
@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_refined_maps_are_finer_and_in_place(refine, padding):
    preprocessing = Preprocessing(SIZE)
    image, (x, y), (scale_x, scale_y) = planted((200, 300), preprocessing, (0.62, 0.41))
    plain = explain(brightness_model(padding), image, preprocessing=preprocessing)
    refined = explain(brightness_model(padding), image, preprocessing=preprocessing, refine=refine)
    assert refined.attention.shape == (1, 12 * refine, 16 * refine)
    for target, kind in ((None, "attention"), (1, "evidence")):
        found = centre(refined, target, kind)
        assert abs(found[0] - x) < 0.5 * scale_x
        assert abs(found[1] - y) < 0.5 * scale_y
    np.testing.assert_array_equal(refined.logits, plain.logits)
    assert refined.attention.sum() == pytest.approx(plain.attention.sum(), rel=1e-5)
    assert not refined.exact
    assert refined.refine == refine


def test_refined_map_of_a_mirrored_image_is_mirrored():
    model = brightness_model("same")
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    maps = [
        explain(model, np.ascontiguousarray(p), preprocessing=Preprocessing(SIZE), refine=2).map_for()
        for p in (pixels, pixels[:, ::-1])
    ]
    np.testing.assert_allclose(maps[0], maps[1][:, ::-1], rtol=1e-4)


def test_unseen_pixels_are_marked():
    image = Image.new("RGB", (300, 200), "grey")
    model = brightness_model()
    overlays = {
        resize: np.asarray(
            explain(model, image, preprocessing=Preprocessing((48, 48), resize), view="own").overlay(map="attention"),
            int,
        )
        for resize in ("stretch", "crop", "letterbox")
    }
    assert (overlays["stretch"][..., 3] == 153).all()
    assert (overlays["letterbox"][..., 3] == 153).all()
    assert (overlays["crop"][:, 50:250, 3] == 153).all()
    outside = overlays["crop"][:, :49]
    assert (outside[..., 3] > 153).all()
    assert np.ptp(outside[..., :3], axis=-1).max() == 0  # grey, which no map is


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("stem", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [32, 33, 34, 47, 100])
def test_patch_centres_are_the_centres_of_receptive_fields(padding, stem, length):
    """Against the pixels that a patch has a gradient by, for the patches whose view the border leaves whole."""
    model = brightness_model(padding, stem)
    pixels = torch.rand(1, 3, length, length, requires_grad=True)
    patches = model.stem(pixels)  # (1, h, w, C)
    grid = patch_grid(model, (length, length), (patches.shape[1], patches.shape[2]))
    for i in range(patches.shape[1]):
        gradient = torch.autograd.grad(patches[0, i, i].sum(), pixels, retain_graph=True)[0][0].sum(0)
        seen = gradient.abs().sum(0).nonzero().flatten()
        if seen.min() > 0 and seen.max() < length - 1:
            assert grid.first[1] + i * grid.step[1] == pytest.approx((seen.min() + seen.max() + 1).item() / 2)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("length", [48, 49, 50, 63])
def test_patch_centres_of_pooled_stems(stride, length):
    """A pool hands the gradient to one of its pixels, so over images: the first and the last pixel ever seen."""
    torch.manual_seed(0)
    model = timm.create_model("patchconvnet_micro", embed_dim=16, depth=1, stem_stride=stride).eval()
    seen: dict[int, list[int]] = {}
    for seed in range(30):
        pixels = torch.rand(1, 3, length, length, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        patches = model.stem(pixels)
        for i in range(1, patches.shape[1] - 2):
            gradient = torch.autograd.grad(patches[0, i, i].sum(), pixels, retain_graph=True)[0][0].sum(0)
            seen.setdefault(i, []).extend(gradient.abs().sum(0).nonzero().flatten().tolist())
    grid = patch_grid(model, (length, length), (patches.shape[1], patches.shape[2]))
    whole = {i: at for i, at in seen.items() if min(at) > 0 and max(at) < length - 1}
    assert whole
    for i, at in whole.items():
        assert grid.first[1] + i * grid.step[1] == (min(at) + max(at) + 1) / 2


def test_foreign_networks_have_patches_side_by_side():
    assert patch_grid(nn.Identity(), (32, 48), (4, 6)) == Grid((4, 6), (8.0, 8.0), (4.0, 4.0))


def test_placing_is_torch_interpolation_for_patches_side_by_side():
    values = np.random.default_rng(0).random((3, 4), np.float32)
    grid = Grid((3, 4), (4.0, 4.0), (2.0, 2.0))
    geometry = Preprocessing((12, 16)).geometry(37, 53)
    theirs = nn.functional.interpolate(torch.from_numpy(values)[None, None], (37, 53), mode="bilinear")[0, 0]
    np.testing.assert_allclose(place(values, grid, geometry), theirs, atol=1e-6)
    theirs = nn.functional.interpolate(torch.from_numpy(values)[None, None], (36, 52), mode="nearest-exact")[0, 0]
    geometry = Preprocessing((12, 16)).geometry(36, 52)
    np.testing.assert_array_equal(place(values, grid, geometry, smoothing="nearest"), theirs)


def test_placing_on_whole_cut_and_boxed_images():
    checks, grid = np.array([[1.0, 2.0], [3.0, 4.0]]), Grid((2, 2), (16.0, 16.0), (8.0, 8.0))

    def placed(resize, image, **options):
        geometry = Preprocessing((32, 32), resize).geometry(*image)
        return place(checks, grid, geometry, smoothing="nearest", **options)

    np.testing.assert_array_equal(placed("stretch", (10, 6)), checks.repeat(5, 0).repeat(3, 1))
    cut = [[[-1, -1, 1, 1, 2, 2, -1, -1]] * 2, [[-1, -1, 3, 3, 4, 4, -1, -1]] * 2]
    np.testing.assert_array_equal(placed("crop", (4, 8), outside=-1), [*cut[0], *cut[1]])
    np.testing.assert_array_equal(placed("letterbox", (4, 8)), checks.repeat(2, 0).repeat(4, 1))


def test_resampling_to_the_same_grid_changes_nothing():
    values = np.random.default_rng(0).random((2, 5, 7), np.float32)
    grid = Grid((5, 7), (4.0, 4.0), (0.5, 0.5))
    np.testing.assert_array_equal(resample(values, grid, grid), values)


@pytest.mark.parametrize("smoothing", ["bilinear", "nearest"])
@pytest.mark.parametrize("axis", [0, 1])
def test_reading_is_the_product_with_the_weights(axis, smoothing):
    grid = Grid((3, 5), (16.0, 10.0), (8.0, 2.5))
    values = np.random.default_rng(0).normal(size=(2, 3, 5))
    positions = np.linspace(-20, 70, 37)
    weights = grid.weights(positions, axis, smoothing)
    expected = weights @ values if axis == 0 else values @ weights.T
    assert grid.read(values, positions, axis, smoothing) == pytest.approx(expected, abs=1e-12)
