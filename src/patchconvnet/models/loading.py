"""The one loader: any trained network of this package, by its folder or its name."""

import os
from pathlib import Path
from typing import Any

from torch import nn

from patchconvnet.errors import UserError
from patchconvnet.hardware import find_device
from patchconvnet.models import weights
from patchconvnet.models.backbones import AttentionPooled
from patchconvnet.models.classifier import AttentionClassifier
from patchconvnet.models.patchconvnet import PatchConvNet

KINDS: list[type[AttentionClassifier]] = [PatchConvNet, AttentionPooled]


def load(source: str | Path, **options: Any) -> AttentionClassifier:
    """A trained network in evaluation mode, of whatever kind its model folder says.

    Args:
        source: a model folder, a hub id (`owner/name`), a published tag (`patchconvnet_s60.fb_in1k`), or a model that
            ships with the package (`cifar10`).
        options: configuration fields to change, such as `drop_path_rate`; another `num_classes` gets a fresh head.

    Raises:
        UserError: in one sentence, when there is no such model, or its config and weights disagree.
    """
    return weights.load_pretrained(KINDS, source, **options)


def as_model(model: nn.Module | str | os.PathLike[str]) -> nn.Module:
    """A network as it is, or one by name in evaluation mode on the best device there is.

    Raises:
        UserError: as `load`; or it is neither a network nor a name.
    """
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, str | os.PathLike):
        return load(Path(model) if isinstance(model, os.PathLike) else model).to(find_device())
    raise UserError(f"given a model of type {type(model).__name__}; give a network, or the name or folder of one.")
