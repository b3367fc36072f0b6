"""Reading and writing weights: the model folder, the paper's published checkpoints, the Keras example's weights.

A model folder is `config.json` (architecture, class names, preprocessing, provenance, metrics) and `model.safetensors`.
Nothing here imports the network: it arrives as an argument.
"""

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from patchconvnet.errors import UserError

ModelT = TypeVar("ModelT", bound=nn.Module)
StateDict = dict[str, Tensor]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = 1


@dataclass
class Metadata:
    """What a trained model knows besides its weights; all of it travels in the model folder's `config.json`.

    class_names: one per logit, in order.
    preprocessing: fields of `patchconvnet.data.Preprocessing`.
    provenance: how it came to be: recipe, data, package version, date.
    metrics: what it reached, by name.
    """

    class_names: list[str] = field(default_factory=list)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)


# The model folder


def write_model_folder(folder: Path, architecture: dict[str, Any], metadata: Metadata, state: Mapping[str, Tensor]) -> Path:
    """Write `config.json` and `model.safetensors` into `folder`, each aside first and then renamed.

    Args:
        architecture: what rebuilds the network: `kind` and its configuration.
        state: the state dict, saved in its own dtypes.

    Raises:
        UserError: when the folder cannot be written; files that were there are still whole then.
    """
    config = {"format": FORMAT, "library": "patchconvnet", "architecture": architecture, **asdict(metadata)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace_file(folder / WEIGHTS_FILE, lambda path: save_file({k: v.contiguous() for k, v in state.items()}, path))
        _replace_file(folder / CONFIG_FILE, lambda path: path.write_text(json.dumps(config, indent=2) + "\n"))
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the model folder {folder}: {error}") from error
    return folder


def _replace_file(target: Path, write: Any) -> None:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        write(Path(name))
        Path(name).replace(target)
    finally:
        Path(name).unlink(missing_ok=True)


def read_model_folder(folder: Path) -> tuple[dict[str, Any], Metadata, StateDict]:
    """Read a model folder: architecture, metadata, state dict.

    Raises:
        UserError: when a file is missing, is not what it should be, or is cut short.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a model folder: it has no {name}")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        architecture = dict(config["architecture"])
        metadata = Metadata(**{f.name: config[f.name] for f in fields(Metadata) if f.name in config})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG_FILE} is damaged or not a patchconvnet config: {error}") from error
    if config.get("format", FORMAT) > FORMAT:
        raise UserError(f"{folder} was written by a newer patchconvnet (format {config['format']}); update the package")
    try:
        state = load_file(folder / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS_FILE} is truncated or damaged: {error}") from error
    return architecture, metadata, state


# The paper's published checkpoints

# official key → ours; the reverse reading is only needed to name a missing key as its author did
_OFFICIAL_KEYS = [
    (r"cls_token", "pooling.class_token"),
    (r"patch_embed\.proj\.(\d+)\.0\.weight", lambda m: f"stem.convs.{int(m[1]) // 2}.weight"),
    (r"blocks\.(\d+)\.gamma_1", r"trunk.\1.layer_scale.gamma"),
    (r"blocks\.(\d+)\.norm1\.(\w+)", r"trunk.\1.norm.\2"),
    (r"blocks\.(\d+)\.attn\.qkv_pos\.0\.(\w+)", r"trunk.\1.conv1.\2"),
    (r"blocks\.(\d+)\.attn\.qkv_pos\.2\.(\w+)", r"trunk.\1.conv2.\2"),
    (r"blocks\.(\d+)\.attn\.qkv_pos\.4\.conv_(reduce|expand)\.(\w+)", r"trunk.\1.se.\2.\3"),
    (r"blocks\.(\d+)\.attn\.qkv_pos\.5\.(\w+)", r"trunk.\1.conv3.\2"),
    (r"blocks_token_only\.0\.gamma_([12])", r"pooling.layer_scale\1.gamma"),
    (r"blocks_token_only\.0\.(norm[12]|attn\.\w+|mlp\.fc[12])\.(\w+)", r"pooling.\1.\2"),
    (r"norm\.(\w+)", r"pooling.norm.\1"),
    (r"head\.(weight|bias)", r"head.\1"),
]


def convert_official(checkpoint: Mapping[str, Any]) -> StateDict:
    """A published checkpoint of the paper under this package's names.

    Args:
        checkpoint: the state dict itself, or a dict that holds it under "model".

    Returns:
        The state dict; keys that the paper's code does not know stay as they are, so that strict loading names them.
    """
    state = checkpoint["model"] if isinstance(checkpoint.get("model"), Mapping) else checkpoint
    converted: StateDict = {}
    rows: dict[str, dict[int, Tensor]] = {"weight": {}, "bias": {}}  # multi: head.k.weight (1, C), head.k.bias (1)
    for key, value in state.items():
        if match := re.fullmatch(r"head\.(\d+)\.(weight|bias)", key):
            rows[match[2]][int(match[1])] = value
            continue
        new = key
        for pattern, replacement in _OFFICIAL_KEYS:
            if re.fullmatch(pattern, key):
                new = re.sub(pattern, replacement, key)
                break
        if value.ndim == 4 and re.search(r"\.(conv1|conv3|se\.\w+)\.weight$", new):
            value = value.flatten(1)  # a 1×1 convolution is a linear layer here
        converted[new] = value
    for name, values in rows.items():
        if values:
            converted[f"head.{name}"] = torch.cat([values[k] for k in sorted(values)])
    return converted


def filter_checkpoint(state: Mapping[str, Any], model: nn.Module) -> StateDict:
    """What timm runs over a downloaded state dict before it loads it strictly; see `convert_official`."""
    return convert_official(state)


# The Keras example's weights

_KERAS_KEYS = [
    (r"stem\.conv([12])\.(kernel|bias)", lambda m: f"stem.convs.{int(m[1]) - 1}.{m[2]}"),
    (r"trunk\.(\d+)\.(.+)", r"trunk.\1.\2"),
    (r"cls", "pooling.class_token"),
    (r"(norm[123]|mlp\.fc[12])\.(\w+)", r"pooling.\1.\2"),
    (r"attention\.(query|key|value)\.(\w+)", lambda m: f"pooling.attn.{m[1][0]}.{m[2]}"),
    (r"attention\.out\.(\w+)", r"pooling.attn.proj.\1"),
    (r"head\.(\w+)", r"head.\1"),
]
_KERAS_NAMES = {"kernel": "weight", "gamma": "weight", "beta": "bias"}


def convert_keras(arrays: Mapping[str, np.ndarray]) -> StateDict:
    """The Keras example's weights under this package's names, in PyTorch's layouts.

    Args:
        arrays: by name: `stem.conv{1,2}`, `trunk.i.{norm,conv1,conv2,se.reduce,se.expand,conv3}`, `cls`, `norm{1,2,3}`,
            `attention.{query,key,value,out}`, `mlp.fc{1,2}`, `head`, each with `.kernel`, `.bias`, `.gamma` or `.beta`; convolutions
            HWIO, dense (in, out), attention (C, 1, C).
    """
    converted: StateDict = {}
    for key, array in arrays.items():
        new = key
        for pattern, replacement in _KERAS_KEYS:
            if re.fullmatch(pattern, key):
                new = re.sub(pattern, replacement, key)
                break
        stem, _, last = new.rpartition(".")
        value = torch.from_numpy(np.ascontiguousarray(array))
        if last == "kernel":
            if value.ndim == 4 and value.shape[:2] != (1, 1):
                value = value.permute(3, 2, 0, 1)  # HWIO → OIHW
            else:
                value = _as_matrix(value, new).mT  # (in, out) → (out, in)
        elif ".attn." in new:
            value = value.flatten()
        converted[f"{stem}.{_KERAS_NAMES.get(last, last)}" if stem else new] = value.contiguous()
    return converted


def _as_matrix(kernel: Tensor, name: str) -> Tensor:
    if kernel.ndim == 4:  # 1×1 convolution
        return kernel[0, 0]
    if kernel.ndim == 3:  # attention: (C, heads, C_head) in, (heads, C_head, C) out
        return kernel.flatten(0, 1) if ".proj." in name else kernel.flatten(1)
    return kernel
