"""Weights that strategy fsdp has cut into pieces, made whole for evaluation and files, and cut again.

Not run on GPUs yet: the tests run it with two CPU processes.
"""

from typing import Any

from lightning.fabric.wrappers import _FabricModule, _FabricOptimizer
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel


def gather(model: _FabricModule, whole: nn.Module) -> None:
    """Copy all weights into a network that has them whole, on every process."""
    whole.load_state_dict(get_model_state_dict(_root(model), options=StateDictOptions(full_state_dict=True)))


def state(model: _FabricModule, optimizer: _FabricOptimizer) -> dict[str, Any]:
    """Whole weights and optimizer state in the first process's memory; empty in the others."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, optimizer_state = get_state_dict(_root(model), optimizer.optimizer, options=options)
    return {"model": weights, "optimizer": optimizer_state}


def load(model: _FabricModule, optimizer: _FabricOptimizer, whole: dict[str, Any]) -> None:
    """Give each process its part of what `state` returned; every process has all of it."""
    set_state_dict(
        _root(model),
        optimizer.optimizer,
        model_state_dict=whole["model"],
        optim_state_dict=whole["optimizer"],
        options=StateDictOptions(full_state_dict=True),
    )


def _root(model: _FabricModule) -> FullyShardedDataParallel:
    return FullyShardedDataParallel.fsdp_modules(model, root_only=True)[0]
