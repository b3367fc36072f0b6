"""Class names of published weights."""

import pytest
from timm.models import get_pretrained_cfg

from patchconvnet.models.labels import class_names_of, imagenet_class_names


def names_of(name: str, num_classes: int | None = None) -> list[str]:
    cfg = get_pretrained_cfg(name).to_dict()
    return class_names_of(cfg, cfg["num_classes"] if num_classes is None else num_classes)


def test_imagenet_has_a_thousand_different_names() -> None:
    names = imagenet_class_names()
    assert len(set(names)) == len(names) == 1000
    assert (names[0], names[281], names[134], names[999]) == ("tench", "tabby", "crane (bird)", "toilet tissue")


@pytest.mark.parametrize("name", ["resnet50", "resnet50.a1_in1k", "convnext_tiny.in12k_ft_in1k"])
def test_heads_of_imagenet_get_its_names(name: str) -> None:
    assert names_of(name) == imagenet_class_names()
    assert names_of(name, 37) == []


@pytest.mark.parametrize(
    ("name", "count", "index", "word"),
    [
        ("convnext_nano.r384_in12k", 11821, 0, "benthos"),
        ("vit_tiny_patch16_224.augreg_in21k", 21843, 0, "organism"),
        ("convnext_tiny.fb_in22k", 21841, 1, "benthos"),
        ("mobilenetv3_large_100.miil_in21k", 11221, 0, "benthos"),
        ("focalnet_large_fl3.ms_in22k", 21842, 0, "tench"),
    ],
)
def test_larger_label_sets(name: str, count: int, index: int, word: str) -> None:
    names = names_of(name)
    assert len(names) == len(set(names)) == count
    assert names[index] == word


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2.lvd142m", "resnet50_clip.openai", "resmlp_12_224.fb_dino"])
def test_nobody_invents_names(name: str) -> None:
    assert names_of(name) == []


def test_labels_of_a_hubs_config() -> None:
    cfg = {"num_classes": 2, "label_names": ["n1", "n2"], "label_descriptions": {"n1": "cat", "n2": "dog"}}
    assert class_names_of(cfg, 2) == ["cat", "dog"]
    assert class_names_of({**cfg, "label_descriptions": {"n1": "cat", "n2": "cat"}}, 2) == ["n1", "n2"]
    assert class_names_of({**cfg, "label_descriptions": None}, 2) == ["n1", "n2"]
    assert class_names_of(cfg, 3) == []
