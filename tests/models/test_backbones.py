"""Attention pooling on timm's networks: a start that changes nothing, maps and evidence, model folders, refusals.

All networks are randomly initialised, most of them cut down; nothing is downloaded.
"""

import copy
import functools
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import patchconvnet
from patchconvnet import Output, PatchConvNet, UserError, with_attention_pooling
from patchconvnet.explanation import explain
from patchconvnet.explanation.evidence import forward_with_maps
from patchconvnet.explanation.explainer import preprocessing_of
from patchconvnet.explanation.patch_grid import patch_grid
from patchconvnet.models import AttentionPooled, AttentionPooledConfig, Metadata, load
from patchconvnet.models.backbones import UnrolledConv
from patchconvnet.models.fused import FusedConv, _has_onednn, fuse_convolutions
from patchconvnet.models.timm_models import takes

K = 5
SIZE = (64, 96)

# name: (options that make it small, what stands between its pooling and its classifier)
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "resnet10t": ({}, "none"),
    "resnetv2_18": ({}, "none"),
    "seresnet18": ({}, "none"),
    "regnety_002": ({}, "none"),
    "repvgg_a0": ({}, "none"),
    "densenet121": ({"growth_rate": 8, "block_config": [2, 2, 2, 2]}, "none"),
    "efficientnet_lite0": ({}, "none"),
    "tf_efficientnetv2_b0": ({}, "none"),
    "hrnet_w18_small": ({}, "none"),
    "swin_tiny_patch4_window7_224": (
        {"depths": [1, 1, 1, 1], "embed_dim": 24, "num_heads": [1, 2, 4, 8], "strict_img_size": False},
        "none",
    ),
    "swinv2_cr_tiny_224": (
        {
            "depths": [1, 1, 1, 1],
            "embed_dim": 24,
            "num_heads": [1, 2, 4, 8],
            "img_size": [64, 96],
            "window_size": [2, 3],
        },
        "none",
    ),
    "pvt_v2_b0": ({}, "none"),
    "convnext_atto": ({"depths": [1, 1, 1, 1]}, "norm"),
    "davit_tiny": ({"depths": [1, 1, 1, 1], "embed_dims": [24, 24, 48, 48], "num_heads": [1, 1, 2, 2]}, "norm"),
    "edgenext_xx_small": ({}, "norm"),
    "mobilenetv3_small_050": ({}, "layers"),
    "mobilenetv4_conv_small_035": ({}, "layers"),
    "ghostnet_050": ({}, "layers"),
    "mambaout_femto": ({"depths": [1, 1, 1, 1], "dims": [16, 16, 32, 32]}, "layers"),
    "caformer_s18": ({}, "layers"),
    "efficientvit_b0": ({}, "layers"),
    "vgg11": ({"mlp_ratio": 1 / 64}, "layers"),
}
NHWC = {"swin_tiny_patch4_window7_224", "mambaout_femto"}
EXACT = [name for name, (_, between) in KINDS.items() if between != "layers"]
FIRST_ORDER = [name for name in KINDS if name not in EXACT]


@functools.cache
def _source(name: str, num_classes: int) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=num_classes, **KINDS[name][0])
    with torch.no_grad():  # classifiers may begin at zero, which would hide what happens before them
        for parameter in model.get_classifier().parameters():
            parameter.normal_(std=0.1)
    return model.eval()


def source(name: str, num_classes: int = K) -> nn.Module:
    return copy.deepcopy(_source(name, num_classes))


@functools.cache
def _pooled(name: str, pooling: str) -> AttentionPooled:
    torch.manual_seed(0)
    model = AttentionPooled(
        backbone=name, options=KINDS[name][0], pooling=pooling, num_classes=K, source=source(name)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        if hasattr(model.pooling, "query"):
            patches = model.forward_features(make_image(model)).permute(0, 2, 3, 1).flatten(1, 2)
            direction = torch.randn(len(model.pooling.query), patches.shape[2])
            scores = patches @ direction.mT * model.pooling.scale
            model.pooling.query.copy_(direction * 2 / scores.std(1).mean())
    return model


def pooled(name: str, pooling: str = "additive") -> AttentionPooled:
    """As it may be after training: no parameter at zero, and maps that are not flat."""
    return copy.deepcopy(_pooled(name, pooling))


def make_image(model: nn.Module, batch: int = 2, size: tuple[int, int] = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, model.in_chans, *size, generator=generator)


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


# Every kind of network


@pytest.mark.parametrize("name", KINDS)
def test_on_the_first_day_nothing_changes(name: str) -> None:
    original = source(name)
    image = make_image(original)
    with torch.no_grad():
        expected = original(image)
        assert expected.std() > 0
        for pooling in ("additive", "additive_multi"):
            config = AttentionPooledConfig(name, KINDS[name][0], num_classes=K, pooling=pooling)
            model = AttentionPooled(config, source=copy.deepcopy(original))
            output = model(image, return_attention=True)
            close(output.logits, expected)
            h, w = output.attention.shape[2:]
            assert output.attention.shape == (2, K if model.class_wise else 1, h, w)
            torch.testing.assert_close(output.attention, torch.full_like(output.attention, 1 / (h * w)))
            assert h * w > 1
        assert model.between == KINDS[name][1]
        assert model.layout == ("channels last" if name in NHWC else "channels first")
        assert not model.training


@pytest.mark.parametrize("name", ["resnet10t", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050"])
def test_a_network_is_copied_with_its_weights_and_options(name: str) -> None:
    original = source(name)
    image = make_image(original)
    with torch.no_grad():
        expected = original(image)
        model = with_attention_pooling(original)
        close(model(image), expected)
        assert torch.equal(original(image), expected)
    assert model.config.options == KINDS[name][0]
    assert model.config.backbone.startswith(f"{name}.")


@pytest.mark.parametrize("name", KINDS)
def test_forward_backward_maps_folder(name: str, tmp_path: Path) -> None:
    model = pooled(name)
    image = make_image(model)
    training = copy.deepcopy(model).train()
    with torch.no_grad():
        training.pooling.query.zero_()  # batch statistics make other scores, whose softmax may have no gradient left
    output = training(image, return_attention=True)
    assert isinstance(output, Output)
    F.cross_entropy(output.logits, torch.tensor([0, 3])).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in training.parameters())
    assert training.pooling.query.grad.abs().max() > 0

    with torch.no_grad():
        expected = model(image, return_attention=True)
        features = model.forward_features(image)
        assert features.shape == (2, model.num_features, *expected.attention.shape[2:])
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
        close(model.forward_head(features), expected.logits)
        close(model.get_classifier()(model.forward_head(features, pre_logits=True)), expected.logits)
        torch.testing.assert_close(expected.attention.sum((2, 3)), torch.ones(2, 1))
        assert (expected.attention.amax((2, 3)) > 1.5 * expected.attention.mean((2, 3))).all()

    model.metadata = Metadata(class_names=list("abcde"), preprocessing={"size": list(SIZE)}, metrics={"top1": 0.5})
    loaded = load(model.save_pretrained(tmp_path))
    assert isinstance(loaded, AttentionPooled)
    assert (loaded.config, loaded.metadata, loaded.training) == (model.config, model.metadata, False)
    with torch.no_grad():
        ours = loaded(image, return_attention=True)
    assert torch.equal(ours.logits, expected.logits)
    assert torch.equal(ours.attention, expected.attention)

    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    explanation = explain(loaded, pixels)
    assert explanation.exact == (name in EXACT)
    assert explanation.placed().shape == SIZE
    assert explanation.predicted.name in "abcde"
    for k, rest in explanation.remainder.items():
        shares = explanation.evidence_for(k)
        assert shares.std() > 0
        if explanation.exact:
            assert abs(rest) <= 1e-4 * np.abs(shares).sum()


@pytest.mark.parametrize("name", ["resnet10t", "swin_tiny_patch4_window7_224", "convnext_atto", "davit_tiny"])
@pytest.mark.parametrize("pooling", ["additive", "additive_multi", "additive_sliced", "average"])
def test_evidence_sums_to_the_logit_less_its_bias(name: str, pooling: str) -> None:
    model = pooled(name, pooling)
    image = make_image(model)
    with torch.no_grad():
        output = model(image, return_evidence=True)
        close(output.logits, model(image))
    rest = output.logits - model.head.bias - output.evidence.sum((2, 3))
    assert (rest.abs() <= 1e-4 * output.evidence.abs().sum((2, 3))).all()


def test_evidence_behind_a_norm_without_weights() -> None:
    model = pooled("convnext_atto")
    norm = model.backbone.get_submodule(model.norm_name)
    norm.weight = norm.bias = None
    output = model(make_image(model), return_evidence=True)
    close(output.evidence.sum((2, 3)), output.logits - model.head.bias, 1e-4)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "caformer_s18", "vgg11"])
@pytest.mark.parametrize("pooling", ["additive", "additive_multi", "additive_sliced"])
def test_first_order_evidence_is_the_derivative_by_each_patchs_weight(name: str, pooling: str) -> None:
    """Against central differences in float64, each patch's attention made a little larger and smaller."""
    model = pooled(name, pooling).double()
    image = make_image(model, 1).double()
    with torch.no_grad():
        seen = forward_with_maps(model, image)
        assert not seen.exact
        torch.testing.assert_close(seen.logits, model(image))
        values = model.pooling(model.forward_features(image).permute(0, 2, 3, 1)).values
        places = [(0, 0), (1, 2), tuple(n - 1 for n in values.shape[1:3])]
        for y, x in places:
            logits = []
            for step in (1e-4, -1e-4):
                attention = seen.attention.clone()
                attention[..., y, x] *= 1 + step
                vector = torch.einsum("bqhw,bhwc->bqc", attention, values)
                logits.append(model.classify(vector if model.class_wise else vector[:, 0]))
            slope = (logits[0] - logits[1]) / 2e-4
            torch.testing.assert_close(seen.evidence[..., y, x], slope, atol=1e-7, rtol=1e-4)
    with pytest.raises(UserError, match=f"{name} has layers between pooling and classifier"):
        model(image, return_evidence=True)


@pytest.mark.parametrize("pooling", ["class_attention", "class_attention_multi", "keras"])
@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "mobilenetv3_small_050"])
def test_other_poolings(name: str, pooling: str, tmp_path: Path) -> None:
    model = pooled(name, pooling)
    image = make_image(model)
    output = model(image, return_attention=True)
    assert output.attention.shape == (2, K if model.class_wise else 1, 2, 3)
    output.logits.sum().backward()
    seen = forward_with_maps(model, image)
    assert not seen.exact
    torch.testing.assert_close(seen.logits, output.logits)
    assert seen.evidence.shape == (2, K, 2, 3)
    assert torch.equal(load(model.save_pretrained(tmp_path))(image), model(image))


def test_a_flattening_classifier_is_unrolled_over_its_map() -> None:
    conv = nn.Conv2d(6, 8, 7)
    unrolled = UnrolledConv(conv)
    map_ = torch.randn(3, 6, 7, 7)
    torch.testing.assert_close(unrolled(map_).mean((2, 3)), conv(map_)[:, :, 0, 0], atol=1e-5, rtol=1e-5)
    assert unrolled(torch.randn(3, 6, 2, 9)).shape == (3, 8, 7, 7)
    model = pooled("vgg11")
    assert model(make_image(model, 1, (64, 64)), return_attention=True).attention.shape == (1, 1, 7, 7)
    grid = patch_grid(model, (224, 224), (7, 7))
    assert (grid.first, grid.step) == ((16, 16), (32, 32))


# Transformers

TINY_VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3}
# name: (options that make it small, number of prefix tokens, whether it averages its patches, what stands behind them)
TRANSFORMERS: dict[str, tuple[dict[str, Any], int, bool, str]] = {
    "vit_tiny_patch16_224": (TINY_VIT, 1, False, "none"),
    "vit_base_patch16_rpn_224": ({**TINY_VIT, "class_token": False}, 0, True, "norm"),
    "vit_small_patch14_reg4_dinov2": ({**TINY_VIT, "img_size": [56, 84]}, 5, False, "none"),
    "vit_base_patch16_siglip_224": (TINY_VIT, 0, False, "layers"),
    "deit_tiny_distilled_patch16_224": (TINY_VIT, 2, False, "none"),
    "beit_base_patch16_224": ({**TINY_VIT, "img_size": [64, 96]}, 1, True, "norm"),
    "eva02_tiny_patch14_224": ({"embed_dim": 48, "depth": 2, "num_heads": 3}, 1, True, "norm"),
    "cait_xxs24_224": ({**TINY_VIT, "img_size": [64, 96]}, 1, False, "none"),
    "xcit_nano_12_p16_224": ({"embed_dim": 48, "depth": 2, "num_heads": 3}, 1, False, "none"),
    "mixer_s32_224": ({}, 0, True, "none"),
    "hiera_tiny_224": ({"embed_dim": 24, "num_heads": 1, "stages": [1, 1, 1, 1]}, 0, True, "norm"),
    "levit_128s": ({}, 0, True, "none"),
    "volo_d1_224": ({}, 1, False, "none"),
}


def transformer(name: str, **options: Any) -> AttentionPooled:
    torch.manual_seed(0)
    return with_attention_pooling(name, num_classes=K, **TRANSFORMERS[name][0], **options).eval()


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_tokens_become_a_map(name: str, tmp_path: Path) -> None:
    _, prefix, averages, between = TRANSFORMERS[name]
    model = transformer(name)
    assert (model.layout, model.prefix_tokens, model.averages, model.between) == ("tokens", prefix, averages, between)
    model.metadata = Metadata(preprocessing={"size": list(model.probed_size)})
    image = make_image(model, 2, model.probed_size)
    for parameter in (model.pooling.query, model.head.weight):
        nn.init.normal_(parameter)
    with torch.no_grad():
        features = model.forward_features(image)
        output = model(image, return_attention=True)
    step = model.patch_size
    assert features.shape[:2] == (2, model.num_features)
    assert output.attention.shape[2:] == features.shape[2:]
    assert [n // step for n in image.shape[2:]] == pytest.approx(features.shape[2:], abs=1)
    torch.testing.assert_close(output.attention.sum((2, 3)), torch.ones(2, 1))
    if model.has_exact_evidence:
        evidence = model(image, return_evidence=True).evidence
        rest = output.logits - model.head.bias - evidence.sum((2, 3))
        assert (rest.abs() <= 1e-4 * evidence.abs().sum((2, 3))).all()
    else:
        assert forward_with_maps(model, image).evidence.std() > 0
    model.train()(image).sum().backward()
    assert model.pooling.query.grad.abs().max() > 0
    loaded = load(model.eval().save_pretrained(tmp_path))
    with torch.no_grad():
        assert torch.equal(loaded(image), model(image))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_tokens_are_pooled_as_they_were_where_they_were_averaged(name: str) -> None:
    """Where the network averages, its logits stay; elsewhere they are those of the averaged tokens."""
    options, prefix, averages, _ = TRANSFORMERS[name]
    torch.manual_seed(0)
    if takes(name, "dynamic_img_size"):
        options = {**options, "dynamic_img_size": True}
    original = timm.create_model(name, num_classes=K, **options).eval()
    for parameter in original.parameters():  # classifiers, class tokens and scales may begin at zero
        nn.init.normal_(parameter, std=0.1)
    model = with_attention_pooling(original)
    image = make_image(model, 2, model.probed_size)
    with torch.no_grad():
        ours, theirs = model(image), original(image)
        tokens = original.forward_features(image)
        mean = model.forward_features(image).mean((2, 3))
        if not name.startswith("xcit"):  # whose last patches are mixed into the class token alone, and then dropped
            close(mean, tokens[:, prefix:].mean(1))
        if averages:
            close(ours, theirs)
        else:
            assert (ours - theirs).abs().max() > 1e-3 * theirs.abs().max()
            if getattr(original, "aux_head", None) is not None:
                original.aux_head = None
            close(ours, original.forward_head(mean[:, None].expand_as(tokens)), 1e-4)


def test_patches_of_tokens_lie_where_they_should() -> None:
    """A change of one patch's pixels changes that patch's embedding most: rows are rows, on a rectangle too."""
    model = with_attention_pooling("vit_tiny_patch16_224", **{**TINY_VIT, "depth": 1}).eval()
    for layer in (model.backbone.blocks[0].attn.proj, model.backbone.blocks[0].mlp.fc2):  # patches do not mix
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    image = make_image(model, 1, (64, 96))
    changed = image.clone()
    changed[..., 16:32, 64:80] += 1
    with torch.no_grad():
        moved = (model.forward_features(changed) - model.forward_features(image)).abs().sum((0, 1))
    assert moved.shape == (4, 6)
    assert moved[1, 4] > 0
    assert torch.count_nonzero(moved) == 1
    grid = patch_grid(model, (64, 96), (4, 6))
    assert (grid.first, grid.step) == ((8, 8), (16, 16))


def test_transformers_take_images_of_any_size_where_timm_has_it() -> None:
    model = transformer("vit_tiny_patch16_224")
    assert model.config.options["dynamic_img_size"] is True
    assert model(make_image(model, 1, (80, 128)), return_attention=True).attention.shape == (1, 1, 5, 8)
    fixed = with_attention_pooling("vit_tiny_patch16_224", dynamic_img_size=False, **TINY_VIT)
    with pytest.raises(UserError, match="vit_tiny_patch16_224 cannot read images of 80×128 pixels"):
        fixed(torch.zeros(1, 3, 80, 128))


def test_published_weights_that_answer_otherwise_say_so(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    published = timm.create_model("vit_tiny_patch16_224", **TINY_VIT)
    torch.save(published.state_dict(), tmp_path / "weights.pth")
    with_attention_pooling("vit_tiny_patch16_224", weights=tmp_path / "weights.pth", **TINY_VIT)
    assert "vit_tiny_patch16_224 does not average its patches" in caplog.text
    caplog.clear()
    with_attention_pooling("vit_tiny_patch16_224", weights=tmp_path / "weights.pth", num_classes=3, **TINY_VIT)
    with_attention_pooling("vit_tiny_patch16_224", **TINY_VIT)
    assert not caplog.text


def test_two_heads_become_their_mean() -> None:
    torch.manual_seed(0)
    original = timm.create_model("repvit_m0_9", num_classes=K, distillation=True).eval()
    for module in original.modules():
        if isinstance(module, nn.BatchNorm1d | nn.Linear):
            nn.init.normal_(module.weight, std=0.5)
            nn.init.normal_(module.bias, std=0.5)
    model = with_attention_pooling(original)
    image = make_image(model)
    with torch.no_grad():
        output = model(image, return_evidence=True)
        close(output.logits, original(image))
        close(output.evidence.sum((2, 3)), output.logits - model.head.bias, 1e-4)


# Inference

FUSED = ["resnet10t", "regnety_002", "densenet121", "efficientnet_lite0", "tf_efficientnetv2_b0", "convnext_atto",
         "swin_tiny_patch4_window7_224", "mobilenetv3_small_050", "vgg11", "resnetv2_18"]  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_copy_answers_alike(name: str) -> None:
    model = pooled(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    before = copy.deepcopy(model.state_dict())
    fused = model.fuse()
    image = make_image(model)
    with torch.no_grad():
        expected, output = (each(image, return_attention=True) for each in (model, fused))
        close(output.logits, expected.logits, 1e-4)
        torch.testing.assert_close(output.attention, expected.attention, atol=1e-5, rtol=1e-3)
        if model.has_exact_evidence:
            evidence = fused(image, return_evidence=True).evidence
            rest = output.logits - fused.head.bias - evidence.sum((2, 3))
            assert (rest.abs() <= 1e-4 * evidence.abs().sum((2, 3))).all()
        half = model.fuse(torch.bfloat16)(image)
        assert half.dtype == torch.float32
        assert not torch.equal(half, output.logits)
        close(half, expected.logits, 0.1)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    norms = [sum(isinstance(module, nn.BatchNorm2d) for module in each.modules()) for each in (model, fused)]
    assert norms[1] < norms[0] or not norms[0]
    if name in ("resnet10t", "efficientnet_lite0"):
        assert norms[1] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fused_copys_convolutions_are_onednns_with_their_activation(dtype: torch.dtype) -> None:
    fused = with_attention_pooling("tf_efficientnet_lite0", pretrained=False).eval().fuse(dtype)
    if not _has_onednn(torch.zeros(1, dtype=dtype)):
        pytest.skip(f"oneDNN cannot be called in {dtype} here")
    assert not any(isinstance(module, nn.Conv2d) for module in fused.modules())
    acts = [module.act for module in fused.modules() if isinstance(module, FusedConv)]
    assert sum(isinstance(act, nn.ReLU6) for act in acts) == 33
    assert acts.count(None) == 16  # each block's last
    for refuse in (lambda: copy.deepcopy(fused), fused.double):
        with pytest.raises(UserError, match=r"can't be (copied|moved)"):
            refuse()
    with pytest.raises(UserError, match="no gradients"):
        fused(make_image(fused).requires_grad_())


def test_an_activation_is_not_fused_with_a_convolution_whose_output_goes_elsewhere_too() -> None:
    class Both(nn.Module):
        def __init__(self, inplace: bool) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 4, 3), nn.ReLU(inplace)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            before = self.conv(image)
            return before + self.act(before.clone() if self.act.inplace else before)

    image = torch.randn(2, 3, 8, 8)
    for network in (Both(inplace=False), Both(inplace=True)):
        with torch.no_grad():
            expected = network(image)
            fuse_convolutions(network, torch.float32, functools.partial(network, image))
            close(network(image), expected, 1e-5)
            assert isinstance(network.act, nn.ReLU)


def test_what_a_fused_copy_refuses(tmp_path: Path) -> None:
    model = pooled("resnet10t")
    fused = model.fuse()
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert fused.eval() is fused
    for refuse, words in (
        (fused.train, "can't be trained"),
        (lambda: fused.save_pretrained(tmp_path), "can't be saved"),
        (fused.fuse, "fused already"),
        (model.train().fuse, r"call eval\(\) first"),
        (lambda: model.eval().fuse(torch.int8), "can't be fused to torch.int8"),
    ):
        with pytest.raises(UserError, match=words):
            refuse()


# Where patches lie


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("resnet18", 0.5),
        ("edgenext_xx_small", 16),
        ("densenet121", 14.5),
        ("tf_efficientnetv2_b0", 31.5),
        ("pvt_v2_b0", 0.5),
    ],
)
def test_the_first_centre_is_where_the_features_look(name: str, first: float) -> None:
    """Against the centre of mass of the squared gradient of a patch in the middle, over random directions."""
    torch.manual_seed(0)
    model = with_attention_pooling(name).eval()
    side = 320
    centres = []
    for seed in range(3):
        torch.manual_seed(seed)
        image = torch.randn(1, 3, side, side, requires_grad=True)
        features = model.forward_features(image)
        i, j = (n // 2 for n in features.shape[2:])
        (gradient,) = torch.autograd.grad((features[0, :, i, j] * torch.randn(features.shape[1])).sum(), image)
        energy = gradient[0].square().sum(0)
        pixels = torch.arange(side) + 0.5
        centres += [
            (energy.sum(1) @ pixels / energy.sum()) - i * model.patch_size,
            (energy.sum(0) @ pixels / energy.sum()) - j * model.patch_size,
        ]
    assert model.first_centre == (first, first)
    assert torch.stack(centres).mean() == pytest.approx(first, abs=2)
    grid = patch_grid(model, (side, side), tuple(features.shape[2:]))
    assert (grid.first, grid.step) == ((first, first), (32, 32))


# Contract


@pytest.mark.parametrize("pooling", ["additive", "additive_multi"])
def test_reset_classifier(pooling: str) -> None:
    model = pooled("mobilenetv3_small_050", pooling)
    image = make_image(model)
    model.metadata = Metadata(class_names=list("abcde"))
    before = copy.deepcopy(model.state_dict())
    model.reset_classifier(7)
    assert model.num_classes == model.config.num_classes == 7
    assert model.metadata.class_names == []
    assert model(image, return_attention=True).attention.shape[1] == (7 if model.class_wise else 1)
    assert model(image).shape == (2, 7)
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before if key.startswith("backbone."))
    model.reset_classifier(0)
    assert model(image).shape == (2, model.head_hidden_size)
    model.reset_classifier(3, "class_attention")
    assert model(image).shape == (2, 3)
    model.reset_classifier(0, "")
    assert torch.equal(model(image), model.forward_features(image))
    with pytest.raises(UserError, match="unknown pooling 'max'"):
        model.reset_classifier(3, "max")


def test_other_classes_channels_and_options() -> None:
    model = with_attention_pooling("resnet10t", num_classes=3, in_chans=1, drop_rate=0.5, attn_drop_rate=0.1).train()
    image = torch.randn(2, 1, *SIZE)
    assert model(image).shape == (2, 3)
    assert not torch.equal(model(image), model(image))
    assert torch.equal(model.eval()(image), model(image))
    assert preprocessing_of(model).channels == 1
    assert model.config.options == {"drop_rate": 0.5}
    assert with_attention_pooling("resnet10t", num_classes=0)(torch.randn(1, 3, *SIZE)).shape == (1, 512)
    assert with_attention_pooling("resnet10t").num_classes == 1000
    assert with_attention_pooling(source("resnet10t"), num_classes=9)(torch.randn(1, 3, *SIZE)).shape == (1, 9)


@pytest.mark.parametrize("name", ["resnet10t", "swin_tiny_patch4_window7_224", "efficientnet_lite0", "convnext_atto"])
def test_parameter_groups(name: str) -> None:
    model = pooled(name)
    names = dict(model.named_parameters())
    original = source(name)
    theirs = original.no_weight_decay() if hasattr(original, "no_weight_decay") else set()
    assert model.no_weight_decay() == {"pooling.query"} | {f"backbone.{key}" for key in theirs}
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    before = group_parameters(original, original.group_matcher(), reverse=True)
    classifier = {id(parameter) for parameter in original.get_classifier().parameters()}
    for key, parameter in original.named_parameters():
        if id(parameter) not in classifier:
            assert layers[f"backbone.{key}"] == before[key], key
    assert layers["head.weight"] == layers["pooling.query"] == max(layers.values())
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model = pooled("regnety_002")
    image = make_image(model)
    gradients = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.train().zero_grad()
        model(image).sum().backward()
        gradients.append(model.backbone.stem.conv.weight.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="vgg11 cannot recompute"):
        pooled("vgg11").set_grad_checkpointing()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224"])
def test_export_with_a_free_batch(name: str) -> None:
    model = pooled(name)
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)}, None)
    program = torch.export.export(model, (make_image(model, 3), True), dynamic_shapes=shapes).module()
    for batch in (2, 5):
        image = make_image(model, batch)
        expected = model(image, return_attention=True)
        output = program(image, True)
        torch.testing.assert_close(output[0], expected.logits, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(output[1], expected.attention, atol=1e-5, rtol=1e-4)


def test_bfloat16_and_double() -> None:
    image = torch.randn(2, 3, *SIZE)
    model = with_attention_pooling(source("resnet10t").double())
    assert model(image.double()).dtype == torch.float64
    model = pooled("convnext_atto")
    with torch.autocast("cpu", torch.bfloat16):
        assert model(image).shape == (2, K)


# Model folders


def test_a_folder_needs_no_network_and_says_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pooled("resnet10t", "additive_multi").save_pretrained(tmp_path)
    architecture = json.loads((folder / "config.json").read_text())["architecture"]
    assert architecture["kind"] == "attention_pooled"
    assert architecture["backbone"] == "resnet10t"

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model folder must be enough")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(timm.models._builder, "load_pretrained", refuse)
    assert isinstance(patchconvnet.load(folder), AttentionPooled)
    assert isinstance(AttentionPooled.from_pretrained(folder, drop_path_rate=0.2), AttentionPooled)
    with pytest.raises(
        UserError, match=r"kind 'attention_pooled', and 'patchconvnet' is wanted here; patchconvnet.load"
    ):
        PatchConvNet.from_pretrained(folder)


def test_the_loader_reads_our_own_networks_too(tmp_path: Path) -> None:
    ours = timm.create_model("patchconvnet_micro", embed_dim=16, depth=1)
    assert isinstance(load(ours.save_pretrained(tmp_path)), PatchConvNet)
    with pytest.raises(UserError, match="kind 'patchconvnet', and 'attention_pooled' is wanted here"):
        AttentionPooled.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "swin_tiny_patch4_window7_224"])
def test_another_number_of_classes_gets_a_fresh_head_only(name: str, tmp_path: Path) -> None:
    trained = pooled(name, "additive_multi")
    model = load(trained.save_pretrained(tmp_path), num_classes=9)
    before, after = trained.state_dict(), model.state_dict()
    fresh = {key for key in after if not torch.equal(after[key], before[key])}
    assert fresh == {"head.weight", "head.bias", "pooling.query"}


def test_published_weights_of_a_backbone(tmp_path: Path) -> None:
    """Played by a file: published weights go through timm, and ImageNet's class names come with them."""
    published = source("resnet10t", 1000)
    torch.save(published.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    model = with_attention_pooling("resnet10t", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    image = make_image(model)
    close(model(image), published(image))
    assert model.metadata.class_names[207] == "golden retriever"
    assert model.metadata.provenance["tag"] == "resnet10t.c3_in1k"
    assert preprocessing_of(model).size == (176, 176)
    loaded = load(model.save_pretrained(tmp_path / "folder"))
    assert loaded.config.options == {}
    assert torch.equal(loaded(image), model(image))
    assert preprocessing_of(loaded) == preprocessing_of(model)
    other = with_attention_pooling("resnet10t", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=2).eval()
    assert other.metadata.class_names == []
    close(other.forward_features(image), published.forward_features(image))


def test_the_input_size_that_was_asked_for_is_the_preprocessings() -> None:
    assert preprocessing_of(pooled("swinv2_cr_tiny_224")).size == (64, 96)


# Refusals, one sentence each


def refused(backbone: str | nn.Module, *args: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        with_attention_pooling(backbone, *args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet50_clip", "its head does something else than to average the map"),
        ("crossvit_tiny_240", "it has not one linear classifier, but ModuleList"),
    ],
)
def test_networks_that_do_not_average_a_map(name: str, words: str) -> None:
    message = refused(name)
    assert message.startswith(f"{name} cannot get attention pooling: ")
    assert words in message


def test_names_and_options() -> None:
    assert "timm has no model 'resnet51'; close to it: resnet5" in refused("resnet51")
    assert "Invalid pretrained tag (nowhere)" in refused("resnet10t.nowhere")
    assert "patchconvnet_s60 pools by attention as it is" in refused("patchconvnet_s60")
    assert "unknown pooling 'max'; known: class_attention" in refused("resnet10t", "max")
    assert "unknown norm 'Layer'; known: layer, batch, none" in refused("resnet10t", norm="Layer")
    assert "give its name instead" in refused(source("resnet10t"), pretrained=True)
    assert "takes 3 channels, so in_chans can't be 1" in refused(source("resnet10t"), in_chans=1)
    assert "timm cannot make resnet10t with options {'depth': 3" in refused("resnet10t", depth=3)
    assert "attention pooling replaces; give `pooling`" in refused("resnet10t", global_pool="max")
    assert "must be numbers, words or lists" in refused("resnet10t", act_layer=nn.ReLU)
    assert "num_classes must be a whole number from 0 to" in refused("resnet10t", num_classes=-1)
    with pytest.raises(UserError, match="needs a backbone"):
        AttentionPooled(num_classes=3)


def test_networks_that_could_not_be_rebuilt() -> None:
    changed = source("resnet10t")
    changed.act1 = nn.Tanh()
    assert "give with_attention_pooling its name and all options" in refused(changed)
    changed = source("resnet10t")
    changed.layer1 = nn.Identity()
    assert "give with_attention_pooling its name and all options" in refused(changed)
    assert "a Linear that timm has not made cannot be rebuilt" in refused(nn.Linear(3, 3))


def test_images_that_a_network_cannot_read() -> None:
    model = pooled("resnet10t")
    with pytest.raises(UserError, match="an image of 31×64 pixels is smaller than one patch"):
        model(torch.zeros(1, 3, 31, 64))
    with pytest.raises(UserError, match=r"expected images of shape \(B, 3, H, W\)"):
        model(torch.zeros(1, 1, 64, 64))
    with pytest.raises(UserError, match="swinv2_cr_tiny_224 cannot read images of 96×96 pixels"):
        pooled("swinv2_cr_tiny_224")(torch.zeros(1, 3, 96, 96))
