"""Multiply-accumulates against the published tables, and against a closed formula."""

import pytest
import timm
import torch

from patchconvnet import UserError
from patchconvnet.models.cost import family, multiply_accumulates

PUBLISHED = {  # GMAC by variant and input size: the public code's, and the Keras example's
    ("patchconvnet_s60", 224): 3.98,
    ("patchconvnet_s60", 384): 11.68,
    ("patchconvnet_s60", 512): 20.76,
    ("patchconvnet_s120", 224): 7.49,
    ("patchconvnet_b60", 224): 15.80,
    ("patchconvnet_b60", 384): 46.39,
    ("patchconvnet_b60", 512): 82.46,
    ("patchconvnet_b120", 224): 29.78,
    ("patchconvnet_b120", 384): 87.42,
    ("patchconvnet_b120", 512): 155.4,
    ("patchconvnet_l60", 224): 28.04,
    ("patchconvnet_l120", 224): 52.85,
    ("patchconvnet_s60_multi", 224): 5.31,
    ("patchconvnet_keras", 48): 0.2715,
}


@pytest.mark.parametrize(("variant", "size"), PUBLISHED)
def test_published_tables(variant: str, size: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(variant)
    assert multiply_accumulates(model, size, size).published / 1e9 == pytest.approx(PUBLISHED[variant, size], rel=0.01)


def test_the_keras_example_saves_19_of_its_271_million() -> None:
    cost = multiply_accumulates(timm.create_model("patchconvnet_keras"), 48, 48)
    d, n = 256, 144
    stem = 24 * 24 * 9 * 3 * d // 2 + n * 9 * d // 2 * d
    block = n * (d * d + 9 * d * d + d * d) + 2 * d * d // 8
    query_and_output, mlp, head = 2 * d * d, 2 * d * d, 10 * d
    rest = stem + 2 * block + query_and_output + mlp + head
    assert cost.published == rest + 2 * (n + 1) * d * d + 2 * (n + 1) * d
    assert cost.ours == rest + 2 * d * d + 2 * n * d
    assert (cost.published - cost.ours) / 1e6 == pytest.approx(19, abs=0.5)


@pytest.mark.parametrize("pooling", ["additive", "average", "none"])
def test_heads_without_keys_have_nothing_to_save(pooling: str) -> None:
    cost = multiply_accumulates(timm.create_model("patchconvnet_micro", pooling=pooling), 16, 24)
    assert cost.ours == cost.published > 0


def test_few_class_tokens_are_folded_and_many_are_not() -> None:
    costs = [
        multiply_accumulates(
            timm.create_model("patchconvnet_s60_multi", embed_dim=64, depth=1, num_classes=k), 128, 128
        )
        for k in (10, 1000)
    ]
    assert costs[0].ours < costs[0].published
    assert costs[1].ours == costs[1].published


def test_counting_leaves_the_model_as_it_was() -> None:
    model = timm.create_model("patchconvnet_micro").train()
    multiply_accumulates(model, 16, 16)
    assert model.training
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in model.parameters())
    with pytest.raises(UserError, match="smaller than one patch"):
        multiply_accumulates(model, 3, 16)


def test_the_family() -> None:
    variants = {variant.name: variant for variant in family()}
    assert list(variants) == sorted(variants, key=lambda name: variants[name].parameters)
    assert set(variants) == set(timm.list_models("patchconvnet*"))
    s60 = variants["patchconvnet_s60"]
    assert (s60.parameters, s60.input_size) == (25_231_096, (224, 224))
    assert s60.tags == [
        "patchconvnet_s60.fb_in1k",
        "patchconvnet_s60.fb_in21k_ft_in1k",
        "patchconvnet_s60.fb_in21k_ft_in1k_384",
        "patchconvnet_s60.fb_in21k_ft_in1k_512",
    ]
    assert sum(len(variant.tags) for variant in variants.values()) == 13
    assert variants["patchconvnet_l60"].tags == []
    assert s60.published > s60.ours == multiply_accumulates(timm.create_model("patchconvnet_s60"), 224, 224).ours
