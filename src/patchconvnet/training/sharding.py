"""Strategy fsdp: weights cut into pieces over the processes, and put together again for evaluation and files.

PyTorch's fully_shard ("FSDP2"). The tests run it with two CPU processes; on GPUs it has not been run yet.
"""

from typing import Any

from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer

from patchconvnet.models.trunk import PreactivationBlock, TrunkBlock


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Give each process its part of every weight; a device holds all of a block's only while it computes."""
    for block in model.modules():
        if isinstance(block, TrunkBlock | PreactivationBlock):
            fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(model, mesh=mesh["data_parallel"])
    return model


def gather(model: nn.Module, whole: nn.Module) -> None:
    """Copy all weights into an undivided network, on every process."""
    whole.load_state_dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)))


def state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Whole weights and optimizer state in the first process's memory; empty in the others."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, optimizer_state = get_state_dict(model, optimizer, options=options)
    return {"model": weights, "optimizer": optimizer_state}


def load(model: nn.Module, optimizer: Optimizer, whole: dict[str, Any]) -> None:
    """Give each process its part of what `state` returned; every process has all of it."""
    set_state_dict(
        model,
        optimizer,
        model_state_dict=whole["model"],
        optim_state_dict=whole["optimizer"],
        options=StateDictOptions(full_state_dict=True),
    )
