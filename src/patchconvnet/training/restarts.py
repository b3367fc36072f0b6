"""Processes that torchrun has started again must not find the addresses of the dead ones.

torchrun keeps one store through all restarts of a job, and its processes leave their addresses there under names that
are the same after each restart (PyTorch issue #135712; #135957, which was to mend it, makes a new store for a new
launcher only). A process that is ahead of another one reads where that one's predecessor was: gloo then fails after
some ten seconds, or both wait. With TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun begins a new store each time.
"""

import os
import warnings

import torch
import torch.distributed as dist


def meet(device: torch.device) -> None:
    """Connect the processes of a job on one node apart from what its earlier processes left; else leave it to Fabric.

    Args:
        device: this process's.

    Warns:
        UserWarning: the job has several nodes, which do not count its restarts alike, and may not survive one.
    """
    if dist.is_initialized():  # by an earlier training of this process
        return
    if not (dist.is_torchelastic_launched() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"):
        return
    if os.environ["GROUP_WORLD_SIZE"] == "1":
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        dist.init_process_group(
            dist.get_default_backend_for_device(device),
            store=dist.PrefixStore(f"restart {os.environ['TORCHELASTIC_RESTART_COUNT']}", store),
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
        )
    elif os.environ["RANK"] == "0" and os.environ["TORCHELASTIC_MAX_RESTARTS"] != "0":
        warnings.warn(
            "torchrun keeps the addresses of dead processes, and the nodes of this job may not find each other after a "
            "restart; use --rdzv-backend c10d, and set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on every node",
            stacklevel=2,
        )
