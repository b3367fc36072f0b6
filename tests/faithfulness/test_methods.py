"""Maps in one form: where they are, what they claim, when they are uninformative; measuring changes nothing."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

import patchconvnet  # noqa: F401, registers the models
from patchconvnet import UserError
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.explanation.patch_grid import Grid, patch_grid, place
from patchconvnet.faithfulness.baselines import METHODS, chosen_methods, rise_masks
from patchconvnet.faithfulness.methods import Attribution, AttributionOptions, frozen, uninformative
from patchconvnet.models.backbones import with_attention_pooling

CHEAP = AttributionOptions(rise_masks=32, gradient_steps=8)


def make(pooling: str = "additive", **options) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(
        "patchconvnet_micro", pooling=pooling, **{"embed_dim": 16, "depth": 1, "num_classes": 4, **options}
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 24, 32, generator=torch.Generator().manual_seed(1))


def test_pixels_lie_where_placement_puts_them(model):
    values = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    grid = patch_grid(model, (24, 32), (6, 8))
    pixels = Attribution(values, grid).pixels((24, 32))
    whole = Preprocessing((24, 32)).geometry(24, 32)
    np.testing.assert_allclose(pixels, place(values.numpy(), grid, whole), atol=1e-5)


def test_completeness_error():
    values = torch.tensor([[[[1.0, 2.0], [3.0, -2.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    grid = Grid((2, 2), (1.0, 1.0), (0.5, 0.5))
    error = Attribution(values, grid, torch.tensor([[5.0, 1.0]])).completeness_error()
    torch.testing.assert_close(error, torch.tensor([[1 / 8, 1.0]]))
    assert Attribution(values, grid).completeness_error() is None
    values[0, 0, 0, 0] = torch.nan
    error = Attribution(values, grid, torch.tensor([[5.0, 0.0]])).completeness_error()
    assert error.isnan().tolist() == [[True, False]]


def test_uniform_and_broken_maps_are_uninformative():
    maps = torch.rand(5, 4, 4)
    maps[1] = 0.25
    maps[2, 0, 0] = torch.nan
    maps[3, 1, 1] = torch.inf
    assert uninformative(maps).tolist() == [False, True, True, True, False]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_a_map_a_class_and_leaves_the_model_alone(name, model, images):
    method = chosen_methods([name])[0]
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with frozen(model):
        classes = torch.tensor([[0, 3], [1, 1], [2, 0]])
        both = method(model, images, classes, CHEAP)
        one = method(model, images[1:2], classes[1:2, :1], CHEAP)
    assert both.values.shape[:2] == (3, 2)
    assert both.pixels((24, 32)).shape == (3, 2, 24, 32)
    assert torch.isfinite(both.values).all()
    # one image gets the same map alone as among others, and the class asked for is the class that answers
    torch.testing.assert_close(one.values[0, 0], both.values[1, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both.values[1, 0], both.values[1, 1])
    same = torch.allclose(both.values[0, 0], both.values[0, 1])
    assert same == (method.kind == "control" or name == "attention")
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    model.eval()


@pytest.mark.parametrize("pooling", ["additive_multi", "class_attention_multi"])
def test_class_wise_attention_is_that_of_the_class(pooling, images):
    model = make(pooling)
    classes = torch.tensor([[2], [0], [3]])
    maps = METHODS["attention"](model, images, classes).values[:, 0]
    with torch.no_grad():
        attention = model(images, return_attention=True).attention
    assert torch.equal(maps, attention[torch.arange(3), classes[:, 0]])


@pytest.mark.parametrize(("pooling", "exact"), [("additive", True), ("average", True), ("class_attention", False)])
def test_evidence_claims_the_logit_less_the_bias(pooling, exact, images):
    model = make(pooling, **({} if exact else {"layer_scale": 1.0}))
    classes = torch.tensor([[1], [2], [0]])
    evidence = METHODS["evidence"](model, images, classes)
    with torch.no_grad():
        logits = model(images).gather(1, classes) - model.head.bias[classes]
    torch.testing.assert_close(evidence.total, logits, atol=1e-5, rtol=1e-4)
    error = evidence.completeness_error()
    assert (error.max() < 1e-5) == exact


@pytest.mark.parametrize("pooling", ["additive", "additive_multi", "class_attention"])
def test_contrastive_evidence_is_over_the_best_rival_of_each_patch(pooling, images):
    model = make(pooling, **({"layer_scale": 1.0} if pooling == "class_attention" else {}))
    classes = torch.tensor([[1, 3], [2, 0], [0, 0]])
    every = METHODS["evidence"](model, images, torch.arange(4).expand(3, -1)).values
    contrast = METHODS["contrast"](model, images, classes).values
    for i in range(3):
        for t, k in enumerate(classes[i].tolist()):
            rivals = every[i, [j for j in range(4) if j != k]]
            torch.testing.assert_close(contrast[i, t], every[i, k] - rivals.amax(0))
    # at each patch at most one class is ahead
    every_contrast = METHODS["contrast"](model, images, torch.arange(4).expand(3, -1)).values
    assert ((every_contrast > 0).sum(1) <= 1).all()


def test_a_contrast_among_many_classes_does_not_depend_on_the_other_images(images):
    model = make("class_attention", layer_scale=1.0, num_classes=150)
    with torch.no_grad():
        ranked = model(images).argsort(1, descending=True)
    classes = ranked[:, [0, 140]]  # of the second, no other image may make a rival
    together = METHODS["contrast"](model, images, classes).values
    for i in range(3):
        alone = METHODS["contrast"](model, images[i : i + 1], classes[i : i + 1]).values
        torch.testing.assert_close(together[i], alone[0], atol=1e-5, rtol=1e-4)


def test_a_model_without_maps_is_refused_in_words(images):
    with pytest.raises(UserError, match="no attention"):
        METHODS["evidence"](make("none"), images, torch.zeros(3, 1, dtype=torch.int64))
    with pytest.raises(UserError, match="no attention"):
        METHODS["attention"](nn.Sequential(nn.Flatten(), nn.Linear(24 * 32 * 3, 4)), images, torch.zeros(3, 1).long())


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_other_backbones_are_explained_too(name):
    model = with_attention_pooling(name, pooling="additive", num_classes=3, pretrained=False).eval()
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([[0], [2]])
    for method in ("evidence", "contrast", "attention", "gradcam", "gradcam_contrast", "layercam", "random"):
        attribution = METHODS[method](model, images, classes, CHEAP)
        assert attribution.values.shape == (2, 1, 2, 3)
        assert attribution.grid == patch_grid(model, (64, 96), (2, 3))
    plain = timm.create_model(name, num_classes=3).eval()
    assert METHODS["gradcam"](plain, images, classes, CHEAP).values.shape == (2, 1, 2, 3)


def test_random_maps_belong_to_the_image(model, images):
    classes = torch.zeros(3, 1, dtype=torch.int64)
    for name in ("random", "random_pixels"):
        maps = METHODS[name](model, images, classes).values
        assert torch.equal(METHODS[name](model, images.flip(0), classes).values.flip(0), maps)
        assert not torch.equal(METHODS[name](model, images + 1e-3, classes).values, maps)
        assert not torch.equal(METHODS[name](model, images, classes, AttributionOptions(seed=1)).values, maps)


def test_edges_and_centre():
    images = torch.zeros(1, 3, 16, 16)
    images[..., 8:] = 1
    edges = METHODS["edges"](nn.Identity(), images, torch.zeros(1, 1).long()).values[0, 0]
    assert (edges[:, 7:9] == 4).all()
    assert edges.sum() == edges[:, 7:9].sum()
    centre = METHODS["centre"](nn.Identity(), images, torch.zeros(1, 1).long()).values[0, 0]
    assert torch.equal(centre, centre.flip(0))
    assert torch.equal(centre, centre.mT)
    assert centre[8, 8] / centre[8, 12] == pytest.approx(np.exp(-0.5 * ((0.5 / 4) ** 2 - (4.5 / 4) ** 2)), rel=1e-5)


def test_integrated_gradients_are_captums_and_the_sum_of_many_small_steps(images):
    """A second source of its own: the midpoint rule by hand, with enough steps."""
    pytest.importorskip("captum")
    model = make(stem="strided")  # at a max pool's corners, each sum goes wrong in its own way
    classes = torch.tensor([[0], [2], [3]])
    ours = METHODS["integrated_gradients"](model, images, classes, AttributionOptions(gradient_steps=64))
    steps, total = 400, torch.zeros_like(images)
    for step in range(steps):
        point = (images * ((step + 0.5) / steps)).requires_grad_()
        model(point).gather(1, classes).sum().backward()
        total += point.grad / steps
    by_hand = (total * images).sum(1)
    torch.testing.assert_close(ours.values[:, 0], by_hand, atol=1e-3 * float(by_hand.abs().max()), rtol=0)
    assert ours.completeness_error().max() < 1e-3
    from captum.attr import IntegratedGradients

    theirs = IntegratedGradients(model).attribute(images, target=classes[:, 0], n_steps=64).sum(1).detach()
    torch.testing.assert_close(ours.values[:, 0], theirs.to(ours.values), atol=1e-5, rtol=1e-4)
    for parameter in model.parameters():
        parameter.grad = None


def test_gradcam_is_the_formula(model, images):
    pytest.importorskip("pytorch_grad_cam")
    classes = torch.tensor([[0], [2], [3]])
    ours = METHODS["gradcam"](model, images, classes).values[:, 0]
    features = model.forward_features(images).detach().requires_grad_()
    model.forward_head(features).gather(1, classes).sum().backward()
    cam = (features.grad.mean((2, 3), keepdim=True) * features).sum(1).clamp(min=0).detach()
    cam = cam - cam.amin((1, 2), keepdim=True)
    cam = cam / cam.amax((1, 2), keepdim=True).clamp(min=1e-7)
    torch.testing.assert_close(ours, cam, atol=1e-4, rtol=0)
    for parameter in model.parameters():
        parameter.grad = None


def test_contrastive_gradcam_is_over_the_best_rival_of_each_place(model, images):
    classes = torch.tensor([[0, 3], [2, 2], [3, 1]])
    contrast = METHODS["gradcam_contrast"](model, images, classes).values
    features = model.forward_features(images).detach().requires_grad_()
    logits = model.forward_head(features)
    cams = []
    for k in range(4):
        gradient = torch.autograd.grad(logits[:, k].sum(), features, retain_graph=True)[0]
        cams.append((gradient.mean((2, 3), keepdim=True) * features).sum(1).detach())
    for i in range(3):
        for t, k in enumerate(classes[i].tolist()):
            rivals = torch.stack([cams[j][i] for j in range(4) if j != k])
            torch.testing.assert_close(contrast[i, t], cams[k][i] - rivals.amax(0), atol=1e-6, rtol=1e-4)


def test_rise_masks_are_soft_and_half_open():
    masks = rise_masks(400, (24, 32), 0)
    assert masks.shape == (400, 24, 32)
    assert masks.min() >= 0
    assert masks.max() <= 1
    assert masks.mean() == pytest.approx(0.5, abs=0.02)
    assert ((masks > 0.01) & (masks < 0.99)).float().mean() > 0.3
    assert torch.equal(masks, rise_masks(400, (24, 32), 0))
    assert not torch.equal(masks, rise_masks(400, (24, 32), 1))


def test_rise_finds_the_planted_place():
    class Corner(nn.Module):
        """Class 1 where the upper left quarter is bright."""

        def forward(self, images):
            bright = images[:, 0, :8, :8].mean((1, 2))
            return torch.stack([torch.zeros_like(bright), 6 * bright - 3], 1)

    images = torch.ones(1, 3, 16, 16)
    maps = METHODS["rise"](Corner(), images, torch.ones(1, 1).long(), AttributionOptions(rise_masks=500)).values[0, 0]
    assert maps[:8, :8].mean() > 1.1 * maps[8:, 8:].mean()
    assert maps[2:6, 2:6].min() > maps[10:, 10:].max()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["gradcan"], "Did you mean 'gradcam'"),
        (["lead"], "Did you mean 'contrast'"),  # as earlier versions called it
        (["gradcam_lead"], "Did you mean 'gradcam_contrast'"),
        (["attention", "attention"], "twice"),
        ([], "no method"),
    ],
)
def test_wrong_names_are_refused_in_words(names, words):
    with pytest.raises(UserError, match=words):
        chosen_methods(names)


def test_a_missing_package_is_named(monkeypatch):
    import importlib

    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"patchconvnet\[audit\]"):
        chosen_methods(["gradcam"])
