"""Strategy fsdp: weights cut into pieces over the processes, and put together again for evaluation.

PyTorch's fully_shard ("FSDP2"). The tests run it with two and four CPU processes; on GPUs it has not been run yet.
"""

from pathlib import Path
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
from patchconvnet.training.parts import save_parts


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


def save(model: nn.Module, optimizer: Optimizer, folder: Path) -> dict[str, Any]:
    """Let each process write its part of weights and optimizer state; returns what a checkpoint holds instead.

    Raises:
        OSError: in all processes, when one of them could not write.
    """
    weights, optimizer_state = get_state_dict(model, optimizer, options=StateDictOptions(cpu_offload=True))
    return save_parts(weights, optimizer_state, folder)


def load(model: nn.Module, optimizer: Optimizer, whole: dict[str, Any]) -> None:
    """Give each process its part of a checkpoint of which every process has all, whatever strategy wrote it."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    now = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    groups = whole["optimizer"]["param_groups"]
    before = [key for group in groups for key in group["params"]]  # numbers, unless fsdp wrote it
    named = dict(zip(before, now, strict=True))
    set_state_dict(
        model,
        optimizer,
        model_state_dict=whole["model"],
        optim_state_dict={
            "state": {named[key]: slots for key, slots in whole["optimizer"]["state"].items()},
            "param_groups": [{**group, "params": [named[key] for key in group["params"]]} for group in groups],
        },
        options=StateDictOptions(full_state_dict=True),
    )
