"""timm's models by name: making one, with published weights or with those of a file, and names that are close to one.

Weights of the hub are fetched here and handed to timm, which would wait for a silent server for minutes.
"""

import difflib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from timm.models._helpers import clean_state_dict
from timm.models._hub import download_cached_file
from timm.models._pretrained import PretrainedCfg
from torch import Tensor, nn

from patchconvnet.errors import UserError, first_line
from patchconvnet.models import hub
from patchconvnet.models.checkpoints import read_checkpoint
from patchconvnet.models.weights import CONFIG_FILE

Weights = str | Path | Mapping[str, Tensor]
# outputs of networks that were trained beside a text encoder: vectors to compare with a text's, and no classes
EMBEDDING_SIZES = (384, 512, 640, 768, 1024, 1152, 1280)
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def create(
    name: str, options: Mapping[str, Any] | None = None, *, pretrained: bool = False, weights: Weights | None = None
) -> nn.Module:
    """A network of timm's.

    Args:
        name: an architecture, or with a tag ("resnet50.a1_in1k").
        options: what else `timm.create_model` gets.
        pretrained: with timm's published weights of that name, which are downloaded.
        weights: instead a file of a state dict (`.safetensors`, or a `.pth` of weights alone), or the state dict. A
            classifier with another number of rows than the name's makes a network of so many classes.

    Raises:
        UserError: there is no such model, it does not take an option, or the weights can't be had or don't fit.
    """
    options = dict(options or {})
    if not timm.is_model(name):
        raise unknown(name)
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError as error:
        raise UserError(
            f"timm cannot make {name}: {first_line(error).rstrip('.')}; published: {', '.join(tags(name))}"
        ) from error
    overlay: dict[str, Any] = dict(options.pop("pretrained_cfg_overlay", None) or {})
    file = None
    if weights is not None:
        pretrained, file = True, None if isinstance(weights, Mapping) else str(weights)
        overlay["state_dict"] = weights if isinstance(weights, Mapping) else _state(read_checkpoint(Path(weights)))
        overlay.setdefault("num_classes", _count_classes(overlay["state_dict"], cfg))
    elif pretrained and not {"file", "url", "state_dict"} & overlay.keys() and "cache_dir" not in options:
        overlay |= _published(name, cfg)
    try:
        model = timm.create_model(name, pretrained=pretrained, pretrained_cfg_overlay=overlay, **options)
    except (TypeError, ValueError, RuntimeError, AssertionError, OSError, KeyError, AttributeError) as error:
        what = f"timm cannot make {name}" + (f" with the weights {file}" if file else "")
        what += " with its published weights" if pretrained and weights is None else ""
        given = f" with options {options}" if options else ""
        told = " ".join(str(error).split())
        raise UserError(f"{what}{given}: {told[:300] or type(error).__name__}") from error
    told_cfg: dict[str, Any] = model.pretrained_cfg
    told_cfg.pop("state_dict", None)
    if file:
        told_cfg["file"] = file
    return model


def takes(name: str, option: str) -> bool:
    """Whether timm's model of that name has a switch; nothing is computed to find out."""
    try:
        with torch.device("meta"):
            timm.create_model(name, **{option: True})
    except Exception:  # whatever is wrong with the name, or with making it of nothing, making it will say
        return False
    return True


def unknown(name: str) -> UserError:
    """What to say of a name that timm does not have."""
    base = name.partition(".")[0]
    close = difflib.get_close_matches(base, timm.list_models(exclude_filters="patchconvnet*"), n=3)
    return UserError(f"timm has no model {name!r}" + (f"; close to it: {', '.join(close)}" if close else ""))


def tags(name: str) -> list[str]:
    """Up to five names with a tag that timm has published weights by, of the same architecture."""
    known = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
    return difflib.get_close_matches(name, known, n=5, cutoff=0) or ["none"]


def is_published(name: str) -> bool:
    """Whether timm knows published weights by that name, alone or at the hub."""
    return timm.is_model_pretrained(name.removeprefix("timm/"))


def weights_file(folder: Path) -> Path:
    """The file of weights in a folder that timm wrote.

    Raises:
        UserError: there is none.
    """
    for name in HUB_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} has a {CONFIG_FILE} of timm's and no {' or '.join(HUB_FILES)}")


def from_hub_config(config: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """What the `config.json` of a timm model on the hub says.

    Returns:
        The name, with the tag where this timm knows it; entries for its `pretrained_cfg`; options that the network was
        made with.

    Raises:
        UserError: it is of an architecture that this timm does not have, or tells none.
    """
    architecture = config.get("architecture")
    if not isinstance(architecture, str):
        raise UserError("its config.json names no architecture")
    if not timm.is_model(architecture):
        raise unknown(architecture)
    cfg = dict(config.get("pretrained_cfg") or config)  # older ones have everything on one level
    if "labels" in cfg:
        cfg["label_names"] = cfg.pop("labels")
    cfg |= {key: config[key] for key in ("num_classes", "label_names", "label_descriptions") if key in config}
    known = {field.name for field in fields(PretrainedCfg)} - {"url", "file", "state_dict", "custom_load", "source"}
    cfg = {key: value for key, value in cfg.items() if key in known}
    tag = cfg.get("tag")
    name = f"{architecture}.{tag}" if tag and timm.is_model_pretrained(f"{architecture}.{tag}") else architecture
    return name, cfg, dict(config.get("model_args") or {})


def _published(name: str, cfg: PretrainedCfg | None) -> dict[str, Any]:
    """What tells timm where published weights are, now that they are here."""
    if cfg is not None and cfg.hf_hub_id:
        return {"state_dict": _state(read_checkpoint(hub.fetch(cfg.hf_hub_id, *HUB_FILES)))}
    if cfg is not None and cfg.url:
        url, folder = cfg.url, Path(torch.hub.get_dir(), "checkpoints")
        try:
            return {"file": hub.patiently(lambda: download_cached_file(url), f"{url} to send weights", folder)}
        except OSError as error:
            raise hub.Unreachable(f"cannot download {url}: {first_line(error)}") from error
    raise UserError(f"timm has no published weights of {name}; published: {', '.join(tags(name))}")


def _state(checkpoint: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The state dict in a checkpoint: averaged weights first, under the names that timm's training scripts use."""
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    return clean_state_dict(dict(checkpoint))


def _count_classes(state: Mapping[str, Tensor], cfg: PretrainedCfg | None) -> int:
    """Rows of the classifier in a state dict; those of the name's own weights where it is not found."""
    count = (cfg and cfg.num_classes) or 1000
    if cfg is None or cfg.label_offset:
        return count
    classifiers = (cfg.classifier,) if isinstance(cfg.classifier, str) else cfg.classifier or ()
    return next((len(state[f"{key}.weight"]) for key in classifiers if f"{key}.weight" in state), count)
