"""What a training will take before it is begun: memory by part, time and cost of an epoch, and what bounds it.

Two steps of a few images are run here, and every operation in them is counted: what it calculates and the bytes that
it moves (operations.py). A step takes, for each kind of operation, what its amount takes at the hardware's rates: those
of a CPU are measured on operators alone (measured_rates.py), those of GPUs are stated shares of their makers' peaks
(rates.py).
"""

import math
import re
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from patchconvnet.errors import UserError
from patchconvnet.hardware import fastest_dtype
from patchconvnet.models import AttentionClassifier
from patchconvnet.models.stem import PooledStem
from patchconvnet.training.convolution_gradients import faster_backward
from patchconvnet.training.measured_rates import measured_rates
from patchconvnet.training.operations import Counter, Counts, combined
from patchconvnet.training.optimization import build_optimizer, whitening_rests
from patchconvnet.training.rates import GPUS, Rates, gpu_rates, stored_cpus, stored_rates
from patchconvnet.training.recipe import Recipe

COUNTED = (2, 4)  # images of the two steps whose difference is what an image takes
MOST_DEVICES = 100_000


@dataclass(frozen=True)
class Machine:
    """Some devices of one kind: `8xh100`, `2xcpu`; two CPUs are two machines like this one."""

    count: int
    kind: str

    @classmethod
    def parse(cls, words: str) -> "Machine":
        """Read "8xH100", "h100" or "cpu".

        Raises:
            UserError: there is no such kind, or too many.
        """
        found = re.fullmatch(r"(?:(\d{1,9})\s*[x×])?\s*([a-z0-9]+)", words.strip().lower())
        known = ("cpu", *stored_cpus(), *GPUS)
        if not found or found[2] not in known:
            raise UserError(f"unknown hardware {words!r}; give such as 2xcpu or 8xh100; known: {', '.join(known)}")
        count = int(found[1] or 1)
        if not 1 <= count <= MOST_DEVICES:
            raise UserError(f"{count} devices; give from 1 to {MOST_DEVICES:,}")
        return cls(count, found[2])


@dataclass(frozen=True)
class Counted:
    """One network's step: what each image takes, and what it takes whatever their number."""

    image: Counts
    step: Counts
    weights: int
    gradients: int
    optimizer: int
    activations: float


def count_step(model: AttentionClassifier, recipe: Recipe, dtype: torch.dtype, *, for_cpu: bool = True) -> Counted:
    """Run and count two steps of a few images, forward, backward and optimizer, on this CPU.

    Args:
        model: the network.
        recipe: the optimizer and the size of its input.
        dtype: of the forward pass.
        for_cpu: whether gradients are computed as a CPU does it best.
    """
    model = model.train().to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, recipe.optimization)
    preprocessing = recipe.preprocessing
    passes, saved = [], []
    for images in COUNTED:
        batch = torch.rand(images, preprocessing.channels, *preprocessing.size)
        batch = batch.contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(images, dtype=torch.int64)
        kept: dict[int, int] = {}
        own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}

        def keep(value: Tensor, kept: dict[int, int] = kept, own: set[int] = own) -> Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return value

        with Counter() as counter:
            with (
                torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value),
                torch.autocast("cpu", dtype, enabled=dtype is not torch.float32),
            ):
                loss = F.cross_entropy(model(batch).float(), labels)
            with faster_backward(model) if for_cpu else nullcontext():
                loss.backward()
        passes.append(counter.counts)
        saved.append(sum(kept.values()))
    few, more = COUNTED
    image = combined(1 / (more - few), passes[1], -1 / (more - few), passes[0])
    fixed = combined(1, passes[0], -few, image)
    with Counter() as counter:
        optimizer.step()
    states = [value for value in tree_leaves(list(optimizer.state.values())) if isinstance(value, Tensor)]
    return Counted(
        image=image,
        step=combined(1, fixed, 1, counter.counts),
        weights=_bytes([*model.parameters(), *model.buffers()]) * (2 if recipe.optimization.ema_decay else 1),
        gradients=_bytes([p.grad for p in model.parameters() if p.grad is not None]),
        optimizer=_bytes(states),
        activations=(saved[1] - saved[0]) / (more - few),
    )


def rates_of(hardware: Machine, dtype: torch.dtype, counted: Counted) -> Rates:
    """The rates of one device for what a step has: measured here in some seconds, before, or by its maker's figures."""
    if hardware.kind == "cpu":
        return measured_rates(dtype, {**counted.image, **counted.step})
    return gpu_rates(hardware.kind, dtype) if hardware.kind in GPUS else stored_rates(hardware.kind, dtype)


@dataclass(frozen=True)
class Plan:
    """What a training takes.

    Attributes:
        memory: bytes on each device, by part.
        seconds: of a step on each device, by kind of operation.
        step: seconds of a step, the exchange of gradients included.
        epoch: seconds of an epoch of `images`.
        bound_by: the kind of operation that takes most of a step.
        fits: whether the memory of a device is enough.
        rates: of a device.
        cost: of an epoch, where a price was given.
    """

    memory: dict[str, float]
    seconds: dict[str, float]
    step: float
    epoch: float
    bound_by: str
    fits: bool
    rates: Rates
    cost: float | None


CPU_LINK, GPU_LINK = 1.25e9, 100e9  # bytes a second between devices: 10 Gbit/s, and GPUs of one machine


def plan(
    model: AttentionClassifier,
    recipe: Recipe,
    images: int,
    hardware: Machine,
    *,
    price: float | None = None,
    dtype: torch.dtype | None = None,
    rates: Rates | None = None,
    counted: Counted | None = None,
) -> Plan:
    """Calculate.

    Args:
        model: the network.
        recipe: batch size, input size, optimizer, precision.
        images: of an epoch.
        hardware: where.
        price: of one device for an hour, in whatever currency.
        dtype: of the forward pass; by default as the recipe's precision says.
        rates: of a device; by default as `rates_of`.
        counted: what `count_step` found before.

    Raises:
        UserError: the batch cannot be divided over the devices.
    """
    if recipe.batch_size % (hardware.count * recipe.optimization.accumulate):
        raise UserError(
            f"batch_size {recipe.batch_size} cannot be divided over {hardware.count} devices; choose a multiple of "
            f"{hardware.count * recipe.optimization.accumulate}"
        )
    dtype = dtype or dtype_of(recipe, hardware)
    _whiten(model, recipe, hardware.count)
    counted = counted or count_step(model, recipe, dtype, for_cpu=hardware.kind not in GPUS)
    rates = rates or rates_of(hardware, dtype, counted)
    on_each = recipe.batch_size // hardware.count
    counts = combined(on_each, counted.image, 1, counted.step)
    seconds = {kind: rates.kinds[kind].seconds(amount) for kind, amount in counts.items()}
    exchanged = 0.0
    if hardware.count > 1:  # a ring: each device sends and gets all gradients, less its own part, twice
        link = GPU_LINK if hardware.kind in GPUS else CPU_LINK
        exchanged = 2 * counted.gradients * (hardware.count - 1) / hardware.count / link
        seconds["exchange of gradients"] = exchanged
    step = sum(seconds.values())
    memory = {
        "weights": float(counted.weights),
        "gradients": float(counted.gradients),
        "optimizer": float(counted.optimizer),
        "activations": counted.activations * on_each / recipe.optimization.accumulate,
    }
    epoch = math.ceil(images / recipe.batch_size) * step
    cost = None if price is None else price * hardware.count * epoch / 3600
    fits = sum(memory.values()) <= rates.memory
    return Plan(memory, seconds, step, epoch, max(seconds, key=lambda k: seconds[k]), fits, rates, cost)


def _whiten(model: AttentionClassifier, recipe: Recipe, processes: int) -> None:
    """Train of the stem what is trained in the last epoch, if the recipe whitens it; with what values is the same."""
    stem = getattr(model, "stem", None)
    if recipe.model.whiten and isinstance(stem, PooledStem):
        stem.whiten(torch.rand(1, recipe.preprocessing.channels, *recipe.preprocessing.size))
        if whitening_rests(recipe.epochs - 1, processes):
            stem.freeze_whitening()


def dtype_of(recipe: Recipe, hardware: Machine) -> torch.dtype:
    """The format of the forward pass."""
    if recipe.precision == "auto":
        # CPUs whose rates are stored compute in bfloat16
        return fastest_dtype(torch.device("cpu")) if hardware.kind == "cpu" else torch.bfloat16
    return torch.float32 if recipe.precision == "32-true" else torch.bfloat16


def _bytes(values: list[Any]) -> int:
    return sum(value.numel() * value.element_size() for value in values)
