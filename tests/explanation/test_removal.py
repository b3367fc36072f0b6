"""What if this were gone: exact against scores of −∞, what a region may be, its figure and its JSON."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from made import collisions, words
from PIL import Image
from timm.layers import LayerScale
from torch import Tensor, nn

from patchconvnet import Explanation, UserError, explain, with_attention_pooling
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.explanation.figures import removal_figure
from patchconvnet.explanation.removal import covered_patches, region_pixels

POOLINGS = ["additive", "additive_multi", "additive_sliced", "class_attention", "class_attention_multi", "keras"]
BOX = (20, 10, 60, 40)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    return Image.fromarray(pixels).resize((96, 64), Image.Resampling.BICUBIC)


def network(pooling: str) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("patchconvnet_mini", embed_dim=32, depth=1, num_classes=4, pooling=pooling)
    for block in model.modules():
        if isinstance(block, LayerScale):  # 1e-4 at first, which would hide what attention does
            nn.init.ones_(block.gamma)
    return randomised(model)


def randomised(model: nn.Module) -> nn.Module:
    """Weights with queries that are not zero, so that attention differs from patch to patch."""
    with torch.no_grad():
        for name, parameter in model.pooling.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (1 if "query" in name else 0.2))
    model.metadata.class_names = ["cat", "dog", "ship", "lorry"]
    model.metadata.preprocessing = {"size": [32, 48], "mean": [0.5] * 3, "std": [0.25] * 3}
    return model.eval()


def logits_with_scores_of_minus_infinity(model: nn.Module, tensor: Tensor, removed: np.ndarray) -> Tensor:
    """The whole forward pass again, its attention scores of the removed patches set to −∞ before every softmax."""
    gone, softmax = torch.from_numpy(removed).flatten(), Tensor.softmax

    def masked(scores: Tensor, dim: int) -> Tensor:
        scores = scores.movedim(dim, -1)
        tokens = scores.shape[-1] - len(gone)  # the class token attends to itself too
        whole = torch.cat([torch.zeros(tokens, dtype=torch.bool), gone])
        return softmax(scores.masked_fill(whole, -torch.inf), -1).movedim(-1, dim)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(Tensor, "softmax", masked)
        return model(tensor)[0]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_patches_are_taken_out_exactly(pooling: str, image: Image.Image) -> None:
    model = network(pooling)
    explanation = explain(model, image)
    removal = explanation.without(BOX)
    tensor = explanation.forward_pass.crops[0].preprocessing(image)[None]
    expected = logits_with_scores_of_minus_infinity(model, tensor, removal.patches)
    np.testing.assert_allclose(removal.logits, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(removal.logits - explanation.logits).max() > 1e-3


@pytest.mark.parametrize("backbone", ["convnext_atto", "resnet18"])
@pytest.mark.parametrize("pooling", ["additive", "additive_sliced"])
def test_norms_behind_the_pooling_are_run_again(backbone: str, pooling: str, image: Image.Image) -> None:
    torch.manual_seed(0)
    model = randomised(with_attention_pooling(backbone, num_classes=4, pooling=pooling))
    explanation = explain(model, image, size=(64, 96), view="own")
    removal = explanation.without((0, 0, 40, 40))
    tensor = explanation.forward_pass.crops[0].preprocessing(image)[None]
    expected = logits_with_scores_of_minus_infinity(model, tensor, removal.patches)
    np.testing.assert_allclose(removal.logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pooling", ["additive", "additive_multi", "keras"])
def test_a_part_is_taken_out_of_every_crop(pooling: str) -> None:
    """Against the crops made by hand, the part taken out of each."""
    cut = Preprocessing((32, 32), "crop", 0.75, mean=(0.5,) * 3, std=(0.25,) * 3)
    whole_cut = replace(cut, crop_ratio=1.0)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 90, 3), np.uint8))
    model, box = network(pooling), (0, 0, 45, 60)
    crops = [  # the centre, and two that cover the image; each with the box on it
        (image, cut, box),
        (image.crop((0, 0, 60, 60)), whole_cut, box),
        (image.crop((30, 0, 90, 60)), whole_cut, (0, 0, 15, 60)),
    ]
    apart = [explain(model, one, preprocessing=how, view="own").without(where) for one, how, where in crops]
    together = explain(model, image, preprocessing=cut).without(box)
    for what in ("logits", "greyed_logits"):
        expected = np.average([getattr(each, what) for each in apart], axis=0, weights=[0.5, 0.25, 0.25])
        np.testing.assert_allclose(getattr(together, what), expected, atol=1e-5)
    taken = together.patch_pixels()
    assert taken[4:-4, 4:40].all()
    assert not taken[:, 52:].any()


def test_a_crop_of_which_nothing_remains_is_left_out() -> None:
    cut = Preprocessing((32, 32), "crop", 0.75, mean=(0.5,) * 3, std=(0.25,) * 3)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 180, 3), np.uint8))
    model = network("additive")
    gone = explain(model, image, preprocessing=cut).without((0, 0, 120, 60))  # the centre too, and two of three
    right = explain(model, image.crop((120, 0, 180, 60)), preprocessing=replace(cut, crop_ratio=1.0), view="own")
    np.testing.assert_allclose(gone.logits, right.logits, atol=1e-5)


def test_it_follows_from_evidence_and_attention_where_one_query_is_shared(image: Image.Image) -> None:
    explanation = explain(network("additive"), image)
    removal = explanation.without(BOX)
    kept = ~removal.patches
    expected = explanation.bias + explanation.evidence[:, kept].sum(1) / explanation.attention[0, kept].sum()
    np.testing.assert_allclose(removal.logits, expected, rtol=1e-4, atol=1e-5)


def test_an_average_is_that_of_the_others(image: Image.Image) -> None:
    explanation = explain(network("average"), image)
    removal = explanation.without(BOX)
    kept = ~removal.patches
    expected = explanation.bias + explanation.evidence[:, kept].mean(1) * kept.size
    np.testing.assert_allclose(removal.logits, expected, rtol=1e-4, atol=1e-5)


def test_pixels_are_made_grey_and_run_again(image: Image.Image) -> None:
    model = network("additive")
    removal = explain(model, image).without(BOX)
    grey = image.copy()
    grey.paste((128, 128, 128), BOX)
    assert removal.greyed.tobytes() == grey.tobytes()
    np.testing.assert_allclose(removal.greyed_logits, explain(model, grey).logits, rtol=1e-5)


def test_refined_maps_remove_the_same_patches(image: Image.Image) -> None:
    model = network("additive")
    plain, fine = (explain(model, image, refine=refine).without(BOX) for refine in (0, 2))
    np.testing.assert_array_equal(plain.patches, fine.patches)
    np.testing.assert_array_equal(plain.logits, fine.logits)


def test_patches_go_that_are_covered_by_half(image: Image.Image) -> None:
    explanation = explain(network("additive"), image)  # patches of 8 × 8 pixels of this image
    grid, geometry = explanation.forward_pass.grid, explanation.geometry
    first = [geometry.box[axis] + 2 * (grid.first[1 - axis] - grid.step[1 - axis] / 2) for axis in (0, 1)]
    left, top = (int(side) + 16 for side in first)  # two patches right and down from the first one's corner

    def gone(width: int) -> list[tuple[int, int]]:
        pixels = region_pixels((left, top, left + width, top + 8), (64, 96))
        return [tuple(where) for where in np.argwhere(covered_patches(pixels, grid, geometry)).tolist()]

    assert gone(8) == [(2, 2)]
    assert gone(11) == [(2, 2)]
    assert gone(12) == [(2, 2), (2, 3)]


def test_boxes_and_masks(image: Image.Image) -> None:
    explanation = explain(network("additive"), image)
    other = (70, 40, 96, 64)
    mask = np.zeros((64, 96), dtype=bool)
    mask[10:40, 20:60] = mask[40:64, 70:96] = True
    both = explanation.without([BOX, other])
    np.testing.assert_array_equal(both.logits, explanation.without(mask).logits)
    np.testing.assert_array_equal(both.pixels, mask)
    assert both.box == (20, 10, 96, 64)


@pytest.mark.parametrize(
    ("region", "said"),
    [
        ((1, 2, 3), "no part of an image"),
        ("left", "no part of an image"),
        ((0, 0, float("nan"), 9), "no part of an image"),
        ((200, 0, 300, 9), "the box 200,0,300,9 holds no pixel of the image, which is 96 × 64"),
        ((0, 0, 3, 3), r"covers half of no patch; a patch is 8 × 8 pixels"),
        ((0, 0, 96, 64), "covers all patches"),
        (np.zeros((3, 3), dtype=bool), "of the image's size"),
        (np.zeros((64, 96), dtype=bool), "holds no pixel"),
    ],
)
def test_what_is_no_region_is_refused(region: object, said: str, image: Image.Image) -> None:
    explanation = explain(network("additive"), image)
    with pytest.raises(UserError, match=said):
        explanation.without(region)


def test_figure_and_json(image: Image.Image, tmp_path: Path) -> None:
    explanation: Explanation = explain(network("additive"), image, name="tabby")
    removal = explanation.without(BOX)
    figure = removal_figure(explanation, removal)
    assert collisions(figure) == []
    best = explanation.predicted
    after = explanation.probabilities_of(removal.logits)[best.index]
    for expected in (best.name, f"{best.probability:.1%}", f"{after:.1%}", "patches taken out", "pixels made grey"):
        assert expected in words(figure)
    saved = explanation.save(tmp_path, without=removal)
    assert saved.without == tmp_path / "tabby_without.png"
    assert Image.open(saved.without).width > 600
    said = json.loads((tmp_path / "tabby.json").read_text())["without"]
    assert said["box"] == dict(zip(("left", "top", "right", "bottom"), BOX, strict=True))
    assert np.array_equal(np.array(said["patches"], dtype=bool), removal.patches)
    of_best = next(entry for entry in said["classes"] if entry["index"] == best.index)
    assert of_best["taken_out"] == pytest.approx({"probability": after, "logit": removal.logits[best.index]}, rel=1e-5)
    assert of_best["greyed"]["logit"] == pytest.approx(removal.greyed_logits[best.index], rel=1e-5)
