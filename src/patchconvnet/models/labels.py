"""Class names of ImageNet's label sets, which timm has as WordNet's synsets."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset


def class_names_of(cfg: Mapping[str, Any], num_classes: int) -> list[str]:
    """The class names that belong to published weights, one a logit; empty where nobody has written them down.

    ImageNet's come only with weights whose tag says that they were trained for that label set, for a thousand outputs
    may be anything; and all of them only as long as the network keeps the classes of its weights.

    Args:
        cfg: timm's `pretrained_cfg`.
        num_classes: of the network.
    """
    if num_classes != cfg.get("num_classes"):
        return []
    if labels := cfg.get("label_names"):
        described = cfg.get("label_descriptions") or {}
        if isinstance(described, list | tuple):
            return list(described)
        names = [described.get(label, label) for label in labels]
        return names if len(set(names)) == len(names) else list(labels)
    subset, tag = infer_imagenet_subset(cfg), cfg.get("tag") or ""
    if subset is None or (subset == "imagenet-1k") != ("in1k" in tag):
        return []
    return imagenet_class_names() if subset == "imagenet-1k" else _synset_names(subset)


def imagenet_class_names() -> list[str]:
    """The 1,000 ImageNet classes in words, all different: the first of WordNet's synonyms each."""
    names = [synonyms.split(",")[0] for synonyms in ImageNetInfo().label_descriptions()]
    names[134], names[517] = "crane (bird)", "crane (machine)"
    names[639] = "maillot, tank suit"  # 638 is "maillot" too
    return names


def _synset_names(subset: str) -> list[str]:
    """The first synonym of each class; all of them where it is not the only one of that name, and if need be its id."""
    info = ImageNetInfo(subset)
    synonyms: list[str] = list(info.label_descriptions())
    names = [words.split(",")[0] for words in synonyms]
    count = Counter(names)
    names = [synonyms[i] if count[name] > 1 else name for i, name in enumerate(names)]
    count = Counter(names)
    return [f"{name} ({info.index_to_label_name(i)})" if count[name] > 1 else name for i, name in enumerate(names)]
