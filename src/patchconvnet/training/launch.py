"""Where a training runs: devices, processes and precision, all of which Lightning Fabric arranges."""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.loggers import TensorBoardLogger
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy
from lightning.fabric.utilities.exceptions import MisconfigurationException

from patchconvnet.errors import UserError
from patchconvnet.hardware import cpu_has_bfloat16, keep_freed_memory
from patchconvnet.thread_count import ThreadCount, check_threads
from patchconvnet.training.recipe import Recipe
from patchconvnet.training.restarts import meet
from patchconvnet.training.sharding import shard

STRATEGIES = ("auto", "ddp", "fsdp")
MOST_DEVICES, MOST_NODES = 1024, 100_000
# fsdp cuts every weight into pieces; these optimizers treat each number by itself and so do not mind
ELEMENTWISE_OPTIMIZERS = ("adam", "adamw", "nadam", "nadamw", "radam", "lion", "sgd", "momentum")


@dataclass(frozen=True)
class Hardware:
    """Where a training runs.

    Args:
        accelerator: cpu, cuda, mps or auto.
        devices: how many of them on each node; by default as many as torchrun starts processes, else one.
        nodes: by default what torchrun says, else one. All must see the run folder under one path.
        strategy: auto, ddp (each device has the whole network) or fsdp (each has a part of it).
        threads: of one process on a CPU: a number, "auto" for the fastest by a short measurement, or None to leave
            torch as it is. Several processes share the cores as torchrun says, and "auto" leaves them alone.
    """

    accelerator: str = "auto"
    devices: int | None = None
    nodes: int | None = None
    strategy: str = "auto"
    threads: ThreadCount | None = None


def launch(hardware: Hardware, recipe: Recipe, run: Path) -> Fabric:
    """Start a process for each device; each returns from here with its own Fabric.

    Raises:
        UserError: there are no such devices, or the recipe's batch can't be divided over its devices.
    """
    devices, nodes = _devices_and_nodes(hardware)
    count = devices * nodes
    if hardware.strategy not in STRATEGIES:
        raise UserError(f"unknown strategy {hardware.strategy!r}; known: {', '.join(STRATEGIES)}")
    _check_batch(recipe, count)
    check_threads(hardware.threads)
    keep_freed_memory()
    strategy: Any = hardware.strategy
    if strategy == "fsdp":
        _check_sharding(recipe)
        strategy = ModelParallelStrategy(shard, data_parallel_size=count, tensor_parallel_size=1)
    elif strategy == "ddp" or count > 1:
        # every process computes the same running statistics, so nothing is broadcast before a forward pass, and a
        # process may run one by itself (the monitor's)
        strategy = DDPStrategy(broadcast_buffers=False)
    try:
        fabric = Fabric(
            accelerator=hardware.accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=strategy,
            precision=_resolved_precision(recipe.precision, hardware.accelerator),
            loggers=TensorBoardLogger(root_dir=run, name="tensorboard", version=""),
        )
        if count > 1:
            meet(fabric.device)
        fabric.launch()
    except (ValueError, RuntimeError, MisconfigurationException) as error:  # devices that are not there
        raise UserError(f"cannot train on {count} × {hardware.accelerator}: {error}") from error
    if fabric.world_size > 1:
        atexit.register(_leave)
    return fabric


def _leave() -> None:
    """End gloo's threads, which can abort a process whose work is done. Fabric ends NCCL's where it began them."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def agreed(fabric: Fabric) -> Iterator[None]:
    """What goes wrong inside on one process stops all of them, and the first alone says why.

    Nothing inside may wait for other processes.

    Raises:
        UserError: in the first process, with the message of whichever failed.
        SystemExit: in the others, with exit code 2.
    """
    failure: UserError | None = None
    try:
        yield
    except UserError as error:
        failure = error
    if fabric.world_size == 1:
        if failure:
            raise failure
        return
    messages: list[str | None] = [None] * fabric.world_size
    dist.all_gather_object(messages, str(failure) if failure else None)
    failed = [rank for rank, message in enumerate(messages) if message is not None]
    if not failed:
        return
    if not fabric.is_global_zero:
        raise SystemExit(2)
    where = f" (process {failed[0]} of {fabric.world_size})" if failed[0] else ""
    raise failure or UserError(f"{messages[failed[0]]}{where}")


def is_loss_of_a_process(error: RuntimeError) -> bool:
    """Whether an error says that another process cannot be reached; gloo has no class of errors for it."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def is_sharded(fabric: Fabric) -> bool:
    """Whether each process holds a part of the weights only."""
    return isinstance(fabric.strategy, ModelParallelStrategy)


def _devices_and_nodes(hardware: Hardware) -> tuple[int, int]:
    devices, nodes = hardware.devices, hardware.nodes
    if dist.is_available() and dist.is_torchelastic_launched():
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        devices, nodes = devices or local, nodes or world // local
    devices, nodes = 1 if devices is None else devices, 1 if nodes is None else nodes
    if devices < 1 or nodes < 1:
        raise UserError(f"devices and nodes must be at least 1, not {devices} and {nodes}")
    if devices > MOST_DEVICES or nodes > MOST_NODES:
        raise UserError(f"devices must be at most {MOST_DEVICES:,} and nodes {MOST_NODES:,}, not {devices} and {nodes}")
    return devices, nodes


def _check_batch(recipe: Recipe, count: int) -> None:
    parts = count * recipe.optimization.accumulate
    if recipe.batch_size % parts:
        raise UserError(
            f"batch_size {recipe.batch_size} cannot be divided into {parts} equal parts (devices × nodes × "
            f"optimization.accumulate); choose a multiple of {parts}"
        )


def _check_sharding(recipe: Recipe) -> None:
    o = recipe.optimization
    if o.ema_decay is not None:
        raise UserError(
            "optimization.ema_decay needs whole weights on each device; set it to null, or use strategy ddp"
        )
    if recipe.model.mirror:
        raise UserError("model.mirror needs whole weights on each device; set it to false, or use strategy ddp")
    if o.optimizer not in ELEMENTWISE_OPTIMIZERS:
        raise UserError(
            f"optimizer {o.optimizer!r} may need whole weight matrices, which strategy fsdp cuts into pieces; use one "
            f"of {', '.join(ELEMENTWISE_OPTIMIZERS)}, or strategy ddp"
        )


def _resolved_precision(precision: str, accelerator: str) -> Any:
    """ "auto" becomes bfloat16 autocast where the device computes in it, else float32."""
    if precision != "auto":
        return precision
    if accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if accelerator == "mps" or (accelerator == "auto" and torch.backends.mps.is_available()):
        return "32-true"
    return "bf16-mixed" if cpu_has_bfloat16() else "32-true"
