"""A checkpoint in parts: each process of strategy fsdp writes its own, and any number of processes reads them.

By torch.distributed.checkpoint, in files of safetensors, since its own format has a pickle, which may hold code. The
parts of a checkpoint are a folder beside it; what is small stays in the checkpoint, which names the folder.
"""

import shutil
import warnings
import zlib
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, HuggingFaceStorageWriter

_CHUNK = 1 << 24


def save_parts(weights: Mapping[str, Any], optimizer: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write weights and optimizer state; all processes together.

    Args:
        weights: whole tensors, or DTensors of which this process has a part.
        optimizer: its state by names of weights, and `param_groups`.
        folder: from `unused_folder`, the same for all.

    Returns:
        What a checkpoint holds instead of them, for `with_parts`.

    Raises:
        OSError: in all processes, when one of them could not write.
    """
    tensors = {f"model.{name}": value for name, value in weights.items()}
    rest: dict[str, dict[str, Any]] = {}
    for name, slots in optimizer["state"].items():
        tensors |= {f"optimizer.{name}.{slot}": value for slot, value in slots.items() if isinstance(value, Tensor)}
        rest[name] = {slot: value for slot, value in slots.items() if not isinstance(value, Tensor)}
    try:
        dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise next((cause for cause, _ in error.failures.values() if isinstance(cause, OSError)), error) from None
    own = {file.name: _checksum(file) for file in folder.glob(f"shard-{dist.get_rank() + 1:05}-*")}
    checksums: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(checksums, own)
    return {
        "optimizer": {**optimizer, "state": rest},
        "parts": {
            "folder": folder.name,
            "checksums": {name: value for each in checksums for name, value in each.items()},
        },
    }


def with_parts(state: dict[str, Any], checkpoints: Path) -> dict[str, Any]:
    """A checkpoint with whole weights and optimizer state, by one process alone.

    Args:
        state: what the file holds; returned as it is if nothing of it is in parts.
        checkpoints: the folder of the file.

    Raises:
        OSError: a part is gone.
        ValueError: a part is damaged.
        KeyError, TypeError: the state is not of this kind.
    """
    if "parts" not in state:
        return state
    folder = checkpoints / Path(state["parts"]["folder"]).name
    for name, checksum in state["parts"]["checksums"].items():
        if _checksum(folder / Path(name).name) != checksum:
            raise ValueError(f"the checksum of {folder.name}/{name} is not that of its content")
    reader = HuggingFaceStorageReader(str(folder))
    about: dict[str, Any] = reader.read_metadata().state_dict_metadata
    found = {name: torch.empty(tensor.size, dtype=tensor.properties.dtype) for name, tensor in about.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(found, storage_reader=reader, no_dist=True)
    whole = {name: value for name, value in state.items() if name != "parts"}
    whole["model"] = {}
    whole["optimizer"] = {**state["optimizer"], "state": {n: dict(s) for n, s in state["optimizer"]["state"].items()}}
    for name, value in found.items():
        part, _, place = name.partition(".")
        if part == "model":
            whole["model"][place] = value
        else:
            weight, _, slot = place.rpartition(".")
            whole["optimizer"]["state"][weight][slot] = value
    return whole


def unused_folder(checkpoints: Path) -> Path:
    """A folder for new parts that is not there yet."""
    return next(folder for n in count() if not (folder := checkpoints / f"parts-{n}").exists())


def remove_unused(files: list[Path]) -> None:
    """Remove the parts that no checkpoint names, of all those beside some checkpoints.

    Args:
        files: the checkpoints, of one folder; those that are gone or damaged name none.
    """
    found = list(files[0].parent.glob("parts-*"))
    if not found:
        return
    used = set()
    for file in files:
        try:
            used.add(torch.load(file, map_location="cpu", weights_only=True, mmap=True)["parts"]["folder"])
        except Exception:  # damage has many names
            continue
    for folder in found:
        if folder.name not in used:
            shutil.rmtree(folder, ignore_errors=True)


def _checksum(file: Path) -> int:
    value = 0
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value
