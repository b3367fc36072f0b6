"""Evidence sums to the logit where it is called exact, and is the derivative where it is called first order."""

from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchconvnet.errors import UserError
from patchconvnet.explanation import explain
from patchconvnet.explanation.evidence import forward_with_maps

EXACT = ["additive", "additive_multi", "average"]
FIRST_ORDER = ["keras", "class_attention", "class_attention_multi"]


def model_of(pooling: str, num_classes: int = 7, **options: object) -> nn.Module:
    """A small network with random weights, none of them at the zeros and ones that training starts from."""
    torch.manual_seed(3)
    model = timm.create_model(
        "patchconvnet_mini", embed_dim=32, depth=1, pooling=pooling, num_classes=num_classes, layer_scale=1.0,
        **options,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 24, 36, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pooling", EXACT)
def test_exact_evidence_sums_to_logit_less_bias(pooling, images):
    model = model_of(pooling)
    seen = forward_with_maps(model, images)
    assert seen.exact
    assert seen.evidence.shape == (3, 7, 6, 9)
    torch.testing.assert_close(seen.logits, model(images))
    expected = seen.logits - model.head.bias
    error = (seen.evidence.sum((2, 3)) - expected).abs() / expected.abs().clamp(min=1e-2)
    assert error.max() < 1e-4


def paper_logits(model: nn.Module, patches: Tensor, scale: Tensor) -> Tensor:
    """One image's patches (N, C) → logits (K), with keys and values written out and each patch's value scaled, (N)."""
    pooling = model.pooling
    attn = pooling.attn
    token = pooling.class_token[0]  # (Q, C)
    if pooling.class_wise:
        keys = pooling.norm1(patches)
    else:
        keys = pooling.norm1(torch.cat([token, patches]))
        scale = torch.cat([scale.new_ones(1), scale])
    weights = (attn.q(pooling.norm1(token)) @ attn.k(keys).T / patches.shape[1] ** 0.5).softmax(-1)
    x = attn.proj(weights @ (attn.v(keys) * scale[:, None]))
    if hasattr(pooling, "norm3"):  # the Keras example
        x = pooling.norm3(pooling.norm2(token + x))
        x = x + F.gelu(pooling.mlp.fc2(F.gelu(pooling.mlp.fc1(x), approximate="tanh")), approximate="tanh")
    else:
        x = token + pooling.layer_scale1.gamma * x
        mlp = pooling.mlp.fc2(F.gelu(pooling.mlp.fc1(pooling.norm2(x))))
        x = pooling.norm(x + pooling.layer_scale2.gamma * mlp)
    if pooling.class_wise:
        return (x * model.head.weight).sum(1) + model.head.bias
    return model.head(x[0])


@pytest.mark.parametrize("pooling", FIRST_ORDER)
def test_first_order_evidence_is_the_derivative_by_each_patchs_value(pooling, images):
    """Against central differences, in float64, of the head as the paper and the Keras example write it."""
    model = model_of(pooling).double()
    if pooling == "keras":
        model.pooling.mlp.act = nn.GELU(approximate="tanh")
    images = images.double()
    with torch.no_grad():
        seen = forward_with_maps(model, images)
        patches = model.forward_features(images).flatten(2).mT  # (B, N, C)
        assert not seen.exact
        assert seen.evidence.shape == (3, 7, 6, 9)
        torch.testing.assert_close(seen.logits, model(images))
        step = 1e-5
        for b in range(len(images)):
            ones = torch.ones(54, dtype=torch.float64)
            torch.testing.assert_close(paper_logits(model, patches[b], ones), seen.logits[b])
            for i in range(54):
                more, less = ones.clone(), ones.clone()
                more[i] += step
                less[i] -= step
                slope = (paper_logits(model, patches[b], more) - paper_logits(model, patches[b], less)) / (2 * step)
                torch.testing.assert_close(seen.evidence[b, :, i // 9, i % 9], slope, atol=1e-8, rtol=1e-6)


def logits_with_scaled_values(model: nn.Module, patches: Tensor, scale: Tensor) -> Tensor:
    """Heads and blocks as in the paper's public code, with each patch's value scaled in all of them, (N)."""
    pooling = model.pooling
    heads, c, tokens = pooling.attn.num_heads, patches.shape[1], pooling.class_token[0]
    for layers in (pooling, *(SimpleNamespace(**block) for block in pooling.further.values())):
        attn, queries, keys = layers.attn, layers.norm1(tokens), layers.norm1(patches)
        factors = scale
        if not pooling.class_wise:
            keys, factors = torch.cat([queries, keys]), torch.cat([scale.new_ones(1), scale])
        q, k, v = (
            f(x).reshape(len(x), heads, c // heads).transpose(0, 1)
            for f, x in ((attn.q, queries), (attn.k, keys), (attn.v, keys))
        )
        mixed = F.scaled_dot_product_attention(q, k, v * factors[:, None])
        tokens = tokens + layers.layer_scale1.gamma * attn.proj(mixed.transpose(0, 1).reshape(-1, c))
        mlp = layers.mlp.fc2(F.gelu(layers.mlp.fc1(layers.norm2(tokens))))
        tokens = tokens + layers.layer_scale2.gamma * mlp
    x = pooling.norm(tokens)
    if pooling.class_wise:
        return (x * model.head.weight).sum(1) + model.head.bias
    return model.head(x[0])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("pooling", ["class_attention", "class_attention_multi"])
@pytest.mark.parametrize(("heads", "depth"), [(4, 1), (1, 2), (2, 3)])
def test_first_order_evidence_of_several_heads_and_blocks(heads, depth, pooling, fused, images):
    """The derivative by each patch's value, through all heads and blocks, by autograd over plain formulas."""
    model = model_of(pooling, num_heads=heads, depth_token_only=depth).double()
    images = images.double()
    with torch.no_grad():
        seen = forward_with_maps(model.fuse() if fused else model, images)
        patches = model.forward_features(images).flatten(2).mT  # (B, N, C)
    ones = torch.ones(54, dtype=torch.float64)
    for b in range(len(images)):
        torch.testing.assert_close(logits_with_scaled_values(model, patches[b], ones), seen.logits[b])
        slopes = torch.autograd.functional.jacobian(
            lambda s, b=b: logits_with_scaled_values(model, patches[b], s), ones
        )
        torch.testing.assert_close(seen.evidence[b].flatten(1), slopes, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("pooling", EXACT + FIRST_ORDER)
def test_the_record_says_what_the_evidence_leaves(pooling):
    model = model_of(pooling)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
    explanation = explain(model, pixels, size=(24, 36))
    assert explanation.exact == (pooling in EXACT)
    remainder = explanation.remainder
    assert sorted(remainder) == list(range(7))
    for k, rest in remainder.items():
        total = explanation.evidence_for(k).sum(dtype=np.float64)
        assert rest == pytest.approx(float(explanation.logits[k] - explanation.bias[k]) - total, abs=1e-5)
    largest = max(abs(rest) for rest in remainder.values())
    assert largest < 1e-4 if explanation.exact else largest > 1e-2


@pytest.mark.parametrize("pooling", ["keras", "class_attention"])
def test_the_class_token_keeps_a_share(pooling):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
    explanation = explain(model_of(pooling), pixels, size=(24, 36))
    assert 0 < explanation.class_token_share < 1
    assert explanation.class_token_share == pytest.approx(1 - explanation.attention.sum(), abs=1e-6)


def test_of_many_classes_the_likeliest_and_the_asked_for_have_first_order_evidence():
    model = model_of("class_attention", num_classes=150)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    explanation = explain(model, pixels, size=24, target=149, classes=["class 7"], top=3)
    likeliest = [p.index for p in explanation.top_classes()]
    assert len(likeliest) == 3
    assert {7, 149, *likeliest} <= set(explanation.evidence_classes)
    assert len(explanation.evidence_classes) == 5
    missing = next(k for k in range(150) if k not in explanation.evidence_classes)
    with pytest.raises(UserError, match="not computed"):
        explanation.evidence_for(missing)
    one = explain(model_of("class_attention", num_classes=150), pixels, size=24, classes=[missing], refine=2)
    assert one.evidence_for(missing).shape == (12, 12)


def test_models_without_maps_are_refused():
    images = torch.zeros(1, 3, 32, 32)
    with pytest.raises(UserError, match="no attention pooling"):
        forward_with_maps(timm.create_model("resnet10t"), images)
    with pytest.raises(UserError, match="no attention pooling"):
        forward_with_maps(timm.create_model("patchconvnet_mini", embed_dim=32, depth=1, pooling="none"), images)
    with pytest.raises(UserError, match="no classifier"):
        forward_with_maps(timm.create_model("patchconvnet_mini", embed_dim=32, depth=1, num_classes=0), images)
