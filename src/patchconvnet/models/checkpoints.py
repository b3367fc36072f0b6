"""Other people's weights under this package's names: the paper's published checkpoints, and the Keras example's.

Source of the names: facebookresearch/deit, `patchconvnet_models.py`, and keras.io, `examples/vision/patch_convnet.py`.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from timm.models._hub import download_cached_file
from torch import Tensor

from patchconvnet.errors import UserError, first_line
from patchconvnet.models.labels import class_names_of
from patchconvnet.models.tensor_file import read_tensors
from patchconvnet.models.weights import Metadata, StateDict, check_state, load_state, preprocessing_of_cfg

_logger = logging.getLogger(__name__)

Names = Iterable[tuple[str, str]]  # (theirs, ours): a whole key or the front of it; {i} stands for a number


def _rename(key: str, names: Names) -> str:
    for theirs, ours in names:
        if match := re.fullmatch(re.escape(theirs).replace(r"\{i\}", r"(\d+)") + r"(\..+)?", key):
            *number, rest = match.groups(default="")
            return (ours.replace("{i}", number[0]) if number else ours) + rest
    return key


def load_checkpoint(model: Any, source: str | Path, cache_dir: str | Path | None = None) -> None:
    """Load weights in whatever form they come into a network of the same configuration.

    Args:
        model: a `PatchConvNet`. Its `num_heads` must be that of the training: the weights look the same for any number,
            and answer wrongly with another. (The published ones have 1.)
        source: a file or URL. A PyTorch file (`.pth`, `.pt`; the paper's names or ours, the state dict bare or under
            "model"), a `.safetensors` file, or a Keras 3 `.weights.h5` of the Keras example.
        cache_dir: where a download is kept; PyTorch's hub directory when left out.

    Raises:
        UserError: when there is no such file, it cannot be read, or an entry is missing, unexpected or mis-shaped;
            the message calls the entry by its author's name.
    """
    path = Path(source)
    if urlparse(str(source)).scheme in ("http", "https", "file"):
        try:
            path = Path(download_cached_file(str(source), progress=True, cache_dir=cache_dir))
        except (OSError, RuntimeError) as error:  # urllib's errors; a hash that does not match
            raise UserError(f"cannot download {source}: {first_line(error)}") from error
    try:
        with path.open("rb"):
            pass
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint {source}") from error
    except OSError as error:
        raise UserError(f"the checkpoint {source} cannot be read: {first_line(error)}") from error
    if path.suffix == ".h5":
        load_state(model, convert_keras(read_keras_weights(path)), str(source))
        return
    state = convert_official(read_checkpoint(path))
    _check_token_blocks(state, model, str(source))
    load_state(model, state, str(source), lambda key: official_name(key, model.class_wise))


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """What a `.safetensors` file or a PyTorch file of weights alone holds, unpickled with `weights_only=True`.

    Raises:
        UserError: there is no such file, it is truncated, or it holds something else than weights.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    try:
        if path.suffix == ".safetensors":
            return read_tensors(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error
    except Exception as error:  # of a file that is none of PyTorch's, its reader raises whatever it stumbles over
        raise UserError(f"{path} is truncated, or not a file of weights alone: {first_line(error)}") from error
    if not isinstance(checkpoint, Mapping):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a dict of weights")
    return checkpoint


# The paper's published checkpoints

_OFFICIAL_NAMES = [
    ("cls_token", "pooling.class_token"),
    *((f"patch_embed.proj.{2 * i}.0", f"stem.convs.{i}") for i in range(4)),
    ("blocks.{i}.gamma_1", "trunk.{i}.layer_scale.gamma"),
    ("blocks.{i}.norm1", "trunk.{i}.norm"),
    ("blocks.{i}.attn.qkv_pos.0", "trunk.{i}.conv1"),
    ("blocks.{i}.attn.qkv_pos.2", "trunk.{i}.conv2"),
    ("blocks.{i}.attn.qkv_pos.4.conv_reduce", "trunk.{i}.se.reduce"),
    ("blocks.{i}.attn.qkv_pos.4.conv_expand", "trunk.{i}.se.expand"),
    ("blocks.{i}.attn.qkv_pos.5", "trunk.{i}.conv3"),
    ("blocks_token_only.0.gamma_1", "pooling.layer_scale1.gamma"),
    ("blocks_token_only.0.gamma_2", "pooling.layer_scale2.gamma"),
    ("blocks_token_only.0", "pooling"),
    ("blocks_token_only.{i}.gamma_1", "pooling.further.{i}.layer_scale1.gamma"),
    ("blocks_token_only.{i}.gamma_2", "pooling.further.{i}.layer_scale2.gamma"),
    ("blocks_token_only.{i}", "pooling.further.{i}"),
    ("norm", "pooling.norm"),
]
_OUR_NAMES = sorted(((ours, theirs) for theirs, ours in _OFFICIAL_NAMES), key=lambda pair: -len(pair[0]))


def official_name(key: str, class_wise: bool = False) -> str:
    """What the paper's code calls our `key`; for the multi-class head's rows, the first of them."""
    if class_wise and key in ("head.weight", "head.bias"):
        return key.replace("head.", "head.0.")
    return _rename(key, _OUR_NAMES)


def convert_official(checkpoint: Mapping[str, Any]) -> StateDict:
    """A published checkpoint of the paper under this package's names.

    Args:
        checkpoint: the state dict itself, or a dict that holds it under "model".

    Returns:
        The state dict; keys that the paper's code does not know stay as they are, so that strict loading names them.

    Raises:
        UserError: for entries that are no tensors, and for a multi-class head with a row missing.
    """
    state = checkpoint["model"] if isinstance(checkpoint.get("model"), Mapping) else checkpoint
    converted: StateDict = {}
    rows: dict[str, dict[int, Tensor]] = {"weight": {}, "bias": {}}  # multi: head.k.weight (1, C), head.k.bias (1)
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"the checkpoint's entry {key!r} is a {type(value).__name__}, not a tensor")
        if match := re.fullmatch(r"head\.(\d+)\.(weight|bias)", key):
            rows[match[2]][int(match[1])] = value
            continue
        new = _rename(key, _OFFICIAL_NAMES)
        if value.shape[2:] == (1, 1) and re.search(r"\.(conv1|conv3|se\.\w+)\.weight$", new):
            value = value.flatten(1)  # a 1×1 convolution is a linear layer here
        converted[new] = value
    tokens = converted.get("pooling.class_token")
    num_classes = max(tokens.shape[1] if tokens is not None and tokens.ndim == 3 else 0, len(rows["weight"]))
    for name, values in rows.items():
        if not values:
            continue
        for k in range(num_classes):
            if k not in values:
                raise UserError(f"the checkpoint lacks 'head.{k}.{name}'")
        converted[f"head.{name}"] = torch.cat([values[k] for k in sorted(values)])
    return converted


def to_official(state: Mapping[str, Tensor], class_wise: bool = False) -> StateDict:
    """The inverse of `convert_official`: a network's state dict as the paper's code names and shapes it.

    Args:
        state: of a `PatchConvNet` with the paper's stem, blocks and class attention.
        class_wise: whether every class has a class token of its own ("class_attention_multi").
    """
    converted: StateDict = {}
    for key, value in state.items():
        if class_wise and key.startswith("head."):
            leaf = key.removeprefix("head.")
            converted |= {f"head.{k}.{leaf}": row for k, row in enumerate(value.split(1))}
        elif value.ndim == 2 and re.fullmatch(r"trunk\..+\.(conv1|conv3|se\.\w+)\.weight", key):
            converted[official_name(key)] = value[..., None, None]  # a linear layer is a 1×1 convolution there
        else:
            converted[official_name(key)] = value
    return converted


def _check_token_blocks(state: Mapping[str, Tensor], model: Any, origin: str) -> None:
    found = {int(match[1]) for key in state if (match := re.match(r"pooling\.further\.(\d+)\.", key))}
    given, depth = max(found, default=0) + 1, model.config.depth_token_only
    if "pooling.attn.q.weight" in state and given != depth and model.config.pooling.startswith("class_attention"):
        raise UserError(
            f"{origin} does not fit the network: it has {given} blocks of class attention and the network {depth}; "
            f"make the network with depth_token_only={given}, and with the num_heads of its training, which weights "
            "do not tell"
        )


def filter_checkpoint(checkpoint: Mapping[str, Any], model: Any) -> StateDict:
    """What timm runs over a published checkpoint before it loads it (its `pretrained_filter_fn`).

    The checkpoint is converted and checked here, strictly: timm does not look once the number of classes differs. What
    a network of another number of classes or with another pooling cannot take from it stays as initialised.

    Raises:
        UserError: naming an entry that is missing, unexpected or mis-shaped, as the paper's code calls it.
    """
    state = convert_official(checkpoint)
    cfg = model.pretrained_cfg
    origin = cfg.get("file") or cfg.get("url") or "the checkpoint"
    _check_token_blocks(state, model, origin)
    own = model.state_dict()
    fresh: set[str] = set()
    if not model.config.pooling.startswith("class_attention"):
        _logger.warning("the published weights have no pooling %r: pooling and head are fresh", model.config.pooling)
        fresh = {key for key in state.keys() | own.keys() if key.startswith(("pooling.", "head."))}
    elif model.num_classes != cfg["num_classes"]:
        fresh = {key for key in state.keys() | own.keys() if model.depends_on_classes(key)}
    state = {key: value for key, value in state.items() if key not in fresh}
    state |= {key: value for key, value in own.items() if key in fresh}
    any_shape = () if model.in_chans == cfg["input_size"][0] else (f"{cfg['first_conv']}.weight",)  # timm adapts it
    check_state(model, state, origin, lambda key: official_name(key, model.class_wise), any_shape)
    return state


def published_metadata(cfg: Mapping[str, Any], num_classes: int) -> Metadata:
    """What is known of a published checkpoint.

    Args:
        cfg: timm's `pretrained_cfg`.
        num_classes: of the network; class names belong to it only when it has kept the classes of its weights.
    """
    return Metadata(
        class_names=class_names_of(cfg, num_classes),
        preprocessing=preprocessing_of_cfg(cfg),
        provenance={
            "source": cfg.get("file") or (f"hf-hub:{hub_id}" if (hub_id := cfg.get("hf_hub_id")) else cfg.get("url")),
            "tag": f"{cfg['architecture']}.{cfg['tag']}" if cfg.get("tag") else cfg["architecture"],
            "license": cfg.get("license"),
            "paper": cfg.get("paper_ids"),
        },
    )


# The Keras example's weights

_KERAS_NAMES = [
    ("stem.conv1", "stem.convs.0"),
    ("stem.conv2", "stem.convs.1"),
    ("cls", "pooling.class_token"),
    *((f"norm{i}", f"pooling.norm{i}") for i in (1, 2, 3)),
    *((f"attention.{name}", f"pooling.attn.{name[0]}") for name in ("query", "key", "value")),
    ("attention.out", "pooling.attn.proj"),
    ("mlp", "pooling.mlp"),
]
_KERAS_LEAVES = {"kernel": "weight", "gamma": "weight", "beta": "bias"}


def convert_keras(arrays: Mapping[str, np.ndarray]) -> StateDict:
    """The Keras example's weights under this package's names, in PyTorch's layouts.

    Args:
        arrays: by name: `stem.conv{1,2}`, `trunk.i.{norm,conv1,conv2,se.reduce,se.expand,conv3}`, `cls`, `norm{1,2,3}`,
            `attention.{query,key,value,out}`, `mlp.fc{1,2}`, `head`, each with `.kernel`, `.bias`, `.gamma` or `.beta`;
            convolutions HWIO, dense (in, out), attention (C, 1, C).
    """
    converted: StateDict = {}
    for key, array in arrays.items():
        stem, _, last = _rename(key, _KERAS_NAMES).rpartition(".")
        value = torch.from_numpy(np.ascontiguousarray(array))
        if last == "kernel":
            if value.ndim == 4 and value.shape[:2] != (1, 1):
                value = value.permute(3, 2, 0, 1)  # HWIO → OIHW
            else:
                value = _as_matrix(value, stem).mT  # (in, out) → (out, in)
        elif ".attn." in stem:
            value = value.flatten()
        converted[f"{stem}.{_KERAS_LEAVES.get(last, last)}"] = value.contiguous()
    return converted


def _as_matrix(kernel: Tensor, layer: str) -> Tensor:
    if kernel.ndim == 4:  # 1×1 convolution
        return kernel[0, 0]
    if kernel.ndim == 3:  # attention: (C, heads, C_head) in, (heads, C_head, C) out
        return kernel.flatten(0, 1) if layer.endswith(".proj") else kernel.flatten(1)
    return kernel


# A Keras 3 file names a layer by attributes, and in lists by its class, numbered from the second on. These are the ends
# of such paths, the same in files of Keras 3.0.5, 3.3.3 and 3.15.1.
_KERAS_PATHS: dict[str, dict[str, str]] = {
    r"trunk_blocks/sequential(?:_(?P<block>\d+))?/layers": {
        "layer_normalization": "norm",
        "conv2d": "conv1",
        "conv2d_1": "conv2",
        "conv2d_2": "conv3",
        "squeeze_excite/reduction": "se.reduce",
        "squeeze_excite/excite": "se.expand",
    },
    r"attention_pooling": {
        "": "cls",
        **{f"layer_norm{i}": f"norm{i}" for i in (1, 2, 3)},
        **{f"attention/{name}_dense": f"attention.{name}" for name in ("query", "key", "value")},
        "attention/output_dense": "attention.out",
        "mlp/layers/dense": "mlp.fc1",
        "mlp/layers/dense_1": "mlp.fc2",
        "dense": "head",
    },
    r"layers": {"conv2d": "stem.conv1", "conv2d_1": "stem.conv2"},
}


def read_keras_weights(path: str | Path) -> dict[str, np.ndarray]:
    """What `model.save_weights("….weights.h5")` of the Keras example wrote, by the names that `convert_keras` takes.

    In the example all blocks of the trunk are made of the same layers, which the file has once; here each block gets a
    copy. The file does not say which GELU it was trained with; see `act` in `PatchConvNetConfig`.

    Raises:
        UserError: when h5py is not installed, or the file is damaged or another network's.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError("reading Keras weights needs h5py: pip install 'patchconvnet[keras]'") from error
    arrays: dict[str, np.ndarray] = {}
    paths: list[str] = []
    try:
        with h5py.File(path) as file:
            file.visit(paths.append)
            for name in paths:
                if isinstance(file[name], h5py.Dataset) and (key := _keras_key(name)):
                    arrays[key] = np.asarray(file[name])
    except (OSError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or not a Keras weights file: {first_line(error)}") from error
    if "head.kernel" not in arrays:
        raise UserError(f"{path} does not hold the Keras example's network: there is no attention_pooling/dense in it")
    if "cls" not in arrays:
        raise UserError(
            f"{path} has no class token: Keras 3 saves it only when it is a keras.Variable, not a tf.Variable"
        )
    blocks = {
        int(match[1] or 0) for name in paths if (match := re.search(r"trunk_blocks/sequential(?:_(\d+))?$", name))
    }
    first = {key.removeprefix("trunk.0."): array for key, array in arrays.items() if key.startswith("trunk.0.")}
    for block in blocks:
        if not any(key.startswith(f"trunk.{block}.") for key in arrays):
            arrays |= {f"trunk.{block}.{key}": array for key, array in first.items()}
    return arrays


def _keras_key(path: str) -> str | None:
    """The name of the array at `path`; None for what is no weight of the network (optimizer, random state, metrics)."""
    layer, _, index = path.rpartition("/vars/")
    for front, names in _KERAS_PATHS.items():
        if match := re.fullmatch(rf"(?:.*/)?{front}(?:/(?P<layer>.+))?", layer):
            name = names.get(match["layer"] or "")
            if name is None or name == "cls":
                return name
            leaves = {"0": "gamma", "1": "beta"} if "norm" in name else {"0": "kernel", "1": "bias"}
            block = f"trunk.{int(match['block'] or 0)}." if "block" in match.groupdict() else ""
            return f"{block}{name}.{leaves.get(index, index)}"
    return None
