"""The one loader: any trained network, by its folder or its name; this package's, and timm's with attention pooling."""

import difflib
import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import nn

from patchconvnet.errors import UserError
from patchconvnet.hardware import find_device
from patchconvnet.models import hub, imagenet, timm_models
from patchconvnet.models.backbones import AttentionPooled, with_attention_pooling
from patchconvnet.models.checkpoints import load_checkpoint, published_metadata
from patchconvnet.models.classifier import AttentionClassifier
from patchconvnet.models.patchconvnet import PatchConvNet
from patchconvnet.models.weights import CONFIG_FILE, load_pretrained, published_tags, shipped_models

# files that `patchconvnet export` writes, and where they are read: above the models, so it is found by its name
EXPORTED = {".onnx": "patchconvnet.deploy.exported"}
KINDS: list[type[AttentionClassifier]] = [PatchConvNet, AttentionPooled]


def load(source: str | Path, *, weights: str | Path | None = None, **options: Any) -> AttentionClassifier:
    """A trained network in evaluation mode, ready to classify and to say why.

    A network of timm's comes with its published weights and attention pooling on top, its queries at zero, so that it
    answers as before (see `with_attention_pooling`), and with the class names and the preprocessing that timm tells.

    Args:
        source: a model folder, or a run folder, of which the best model is taken; a model that ships with the package
            (`cifar10`); an `.onnx` file that `patchconvnet export` wrote; `imagenet`; a published PatchConvNet
            (`patchconvnet_s60.fb_in1k`); a timm model (`resnet50`, `convnext_tiny.in12k_ft_in1k`); or a hub id
            (`owner/name`) of a model folder or a timm model. What exists as a folder is never asked for elsewhere.
        weights: a checkpoint of the network that `source`, the name of a timm model or of a variant of PatchConvNet,
            stands for: `.safetensors`, or a PyTorch file of weights alone.
        options: configuration fields to change, such as `drop_path_rate`; another `num_classes` gets a fresh head.

    Raises:
        UserError: in one sentence, when there is no such model, or its config and weights disagree.

    Example:
        >>> from patchconvnet import load
        >>> load("cifar10").metadata.class_names[:3]
        ['airplane', 'automobile', 'bird']
    """
    path, name = Path(source).expanduser(), str(source)
    if (path / "best" / CONFIG_FILE).is_file() and not (path / CONFIG_FILE).is_file():
        path, name = path / "best", str(path / "best")
    if weights is not None:
        return _with_checkpoint(path, name, Path(weights).expanduser(), options)
    if path.suffix in EXPORTED:
        return importlib.import_module(EXPORTED[path.suffix]).load_exported(path)
    if path.is_dir():
        config = _config(path)
        if _is_timms(config):
            return _from_timm(name, config, timm_models.weights_file(path), options)
        return load_pretrained(KINDS, path, **options)
    if path.is_file():
        raise UserError(
            f"{name} is a file; give a model folder, or the file as the weights of a network: "
            f"load('resnet18', weights={name!r}), or --model resnet18 --weights {name}"
        )
    if isinstance(source, Path) or name.count("/") > 1 or name.startswith(("/", ".", "~")):
        raise UserError(f"there is no model folder {source}")
    if "/" in name:
        config = _config(hub.fetch(name, CONFIG_FILE).parent)
        if _is_timms(config):
            return _from_timm(name, config, hub.fetch(name, *timm_models.HUB_FILES), options)
        return load_pretrained(KINDS, name, **options)
    if name == imagenet.NAME:
        return imagenet.load_imagenet(**options).eval()
    if name in shipped_models() or name.startswith("patchconvnet"):
        return load_pretrained(KINDS, name, **options)
    if not timm.is_model(name):
        raise _unknown(name)
    return _with_classes(with_attention_pooling(name, pretrained=True, **options), name)


def default_model() -> str:
    """The model that is asked where none is named: `imagenet` where its extra is installed, else `cifar10`."""
    return imagenet.NAME if imagenet.packaged_weights() else "cifar10"


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


def _with_checkpoint(path: Path, name: str, file: Path, options: dict[str, Any]) -> AttentionClassifier:
    if path.exists() or "/" in name:
        raise UserError(
            f"weights go with the name of a network, such as resnet18, and {name} is "
            f"{'a folder or file' if path.exists() else 'none'}; give that name"
        )
    if name.startswith("patchconvnet") and timm.is_model(name):
        model = timm.create_model(name, **options)
        load_checkpoint(model, file)
        return model.eval()
    if not timm.is_model(name):
        raise _unknown(name)
    return _with_classes(with_attention_pooling(name, weights=file, **options), name)


def _from_timm(origin: str, config: Mapping[str, Any], file: Path, options: dict[str, Any]) -> AttentionClassifier:
    """The network of a folder or repository of timm's: its `config.json`, and its file of weights."""
    try:
        name, cfg, made_with = timm_models.from_hub_config(config)
    except UserError as error:
        raise UserError(f"{origin} holds no model that can be read: {error}") from error
    made_with.pop("num_classes", None)
    model = with_attention_pooling(name, weights=file, pretrained_cfg_overlay=cfg, **{**made_with, **options})
    # the name alone will make the network again, and may be known for another preprocessing
    model.metadata.preprocessing = published_metadata(model.pretrained_cfg, model.num_classes).preprocessing
    model.metadata.provenance |= {"source": origin}
    return _with_classes(model, origin)


def _with_classes(model: AttentionPooled, name: str) -> AttentionPooled:
    """The network, if its weights know classes."""
    of_weights = model.pretrained_cfg.get("num_classes")
    if not model.num_classes or (
        model.num_classes == of_weights
        and of_weights in timm_models.EMBEDDING_SIZES
        and not model.metadata.class_names
        and timm_models.is_published(name)
    ):
        raise UserError(
            f"{name} comes without a classifier, so there are no classes to name: train one on it, with `patchconvnet "
            f"train --model.name {name} --model.pretrained true`, or give num_classes for one that is to be trained"
        )
    return model.eval()


def _config(folder: Path) -> Mapping[str, Any]:
    """What `config.json` says, if it can be read; what is wrong with it, the reader of model folders will say."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, Mapping) else {}


def _is_timms(config: Mapping[str, Any]) -> bool:
    return isinstance(config.get("architecture"), str)


def _unknown(name: str) -> UserError:
    own = [*shipped_models(), imagenet.NAME]
    close = difflib.get_close_matches(
        name, [*own, *published_tags(), *timm.list_models(), *timm.list_models(pretrained=True)]
    )
    near = f"; close to it: {', '.join(close)}" if close else ""
    return UserError(
        f"there is no model {name!r}: no folder of that name is here, and neither this package ({', '.join(own)}) nor "
        f"timm has one (a hub id would be owner/name){near}"
    )
