"""What a training will take before it is begun: memory by part, time and cost of an epoch, and what bounds it.

Two steps of a few images are run here, and every operation in them is counted: multiplications and additions of matrix
products and convolutions, and bytes that the others read and write. A step takes, for each kind of operation, its
amount over the hardware's rate. CPU rates are measured on the spot; those of GPUs are the makers' peaks, of which a
stated share is taken.
"""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from patchconvnet.errors import UserError
from patchconvnet.hardware import fastest_dtype
from patchconvnet.models import AttentionClassifier
from patchconvnet.training.optimization import build_optimizer
from patchconvnet.training.recipe import Recipe

COUNTED = (2, 4)  # images of the two steps whose difference is what an image takes
SHARE_OF_PEAK = 0.4  # of a GPU's peak in a training of convolutions: our assumption, checked nowhere yet
SHARE_OF_BANDWIDTH = 0.7
MOST_DEVICES = 100_000
MATRIX, CONVOLUTION, GROUPED, BYTES = "matrix products", "convolutions", "depthwise convolutions", "memory traffic"


@dataclass(frozen=True)
class Gpu:
    """A GPU by its maker's figures.

    Attributes:
        title: what people call it.
        tera: peak of dense bfloat16 or float16 matrix products, in 10¹² multiplications and additions a second.
        tera_float32: the same in float32 (TF32 where it has that).
        bandwidth: of its memory, in 10⁹ bytes a second.
        memory: in 10⁹ bytes.
        source: of the figures.
    """

    title: str
    tera: float
    tera_float32: float
    bandwidth: float
    memory: float
    source: str


GPUS = {
    "h100": Gpu("NVIDIA H100 SXM", 989, 494, 3350, 80, "NVIDIA H100 data sheet, without sparsity"),
    "h200": Gpu("NVIDIA H200 SXM", 989, 494, 4800, 141, "NVIDIA H200 data sheet, without sparsity"),
    "a100": Gpu("NVIDIA A100 SXM 80 GB", 312, 156, 2039, 80, "NVIDIA A100 data sheet, without sparsity"),
    "v100": Gpu("NVIDIA V100 SXM2 32 GB", 125, 15.7, 900, 32, "NVIDIA V100 data sheet"),
    "l4": Gpu("NVIDIA L4", 121, 60, 300, 24, "NVIDIA L4 data sheet, without sparsity"),
    "t4": Gpu("NVIDIA T4", 65, 8.1, 320, 16, "NVIDIA T4 data sheet"),
}


@dataclass(frozen=True)
class Rates:
    """How fast one device computes, by kind of operation.

    Attributes:
        operations: multiplications and additions a second, of matrix products, convolutions and depthwise ones.
        bandwidth: bytes a second that the other operations read and write.
        memory: bytes that it has.
        checked: whether they were measured here.
        source: where they come from.
    """

    operations: dict[str, float]
    bandwidth: float
    memory: float
    checked: bool
    source: str


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
        if not found or found[2] not in ("cpu", *GPUS):
            raise UserError(f"unknown hardware {words!r}; give such as 2xcpu or 8xh100; known: cpu, {', '.join(GPUS)}")
        count = int(found[1] or 1)
        if not 1 <= count <= MOST_DEVICES:
            raise UserError(f"{count} devices; give from 1 to {MOST_DEVICES:,}")
        return cls(count, found[2])


@dataclass
class Counts:
    """What operations did: multiplications and additions by kind, bytes by name."""

    operations: dict[str, float] = field(default_factory=dict)
    traffic: float = 0.0

    def combined(self, factor: float, other: "Counts", weight: float) -> "Counts":
        """`factor` times these and `weight` times others; nothing below 0."""
        kinds = {**self.operations, **other.operations}
        mine, theirs = self.operations, other.operations
        operations = {k: max(factor * mine.get(k, 0) + weight * theirs.get(k, 0), 0.0) for k in kinds}
        return Counts(operations, max(factor * self.traffic + weight * other.traffic, 0.0))

    def seconds(self, rates: Rates) -> dict[str, float]:
        """By kind of operation."""
        times = {kind: value / rates.operations[kind] for kind, value in self.operations.items()}
        return {**times, BYTES: self.traffic / rates.bandwidth}


class _Counter(TorchDispatchMode):
    """Counts what is computed while it lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            kind = _kind(func, args)
            done = count(*args, **(kwargs or {}), out_val=out)
            self.counts.operations[kind] = self.counts.operations.get(kind, 0) + done
        elif not _is_view(func):
            given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
            made = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
            self.counts.traffic += sum(value.numel() * value.element_size() for value in (*given, *made))
        return out


def _is_view(func: Any) -> bool:
    # a new name for old memory, or an empty new one
    returns = func._schema.returns
    aliases = any(each.alias_info is not None and not each.alias_info.is_write for each in returns)
    return aliases or func._opname.startswith(("empty", "detach", "new_empty"))


def _kind(func: Any, args: Any) -> str:
    if "convolution" not in func._opname:
        return MATRIX
    groups = next((value for value in reversed(args) if isinstance(value, int) and not isinstance(value, bool)), 1)
    weight = args[2] if "backward" in func._opname else args[1]
    if groups > 1:
        return GROUPED
    return MATRIX if weight.shape[2:].numel() == 1 else CONVOLUTION


@dataclass(frozen=True)
class Counted:
    """One network's step: what each image takes, and what it takes whatever their number."""

    image: Counts
    step: Counts
    weights: int
    gradients: int
    optimizer: int
    activations: float


def count_step(model: AttentionClassifier, recipe: Recipe, dtype: torch.dtype) -> Counted:
    """Run and count two steps of a few images, forward, backward and optimizer, on this CPU.

    Args:
        model: the network.
        recipe: the optimizer and the size of its input.
        dtype: of the forward pass.
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

        with _Counter() as counter:
            with (
                torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value),
                torch.autocast("cpu", dtype, enabled=dtype is not torch.float32),
            ):
                loss = F.cross_entropy(model(batch).float(), labels)
            loss.backward()
        passes.append(counter.counts)
        saved.append(sum(kept.values()))
    few, more = COUNTED
    image = passes[1].combined(1 / (more - few), passes[0], -1 / (more - few))
    fixed = passes[0].combined(1, image, -few)
    with _Counter() as counter:
        optimizer.step()
    states = [value for value in tree_leaves(list(optimizer.state.values())) if isinstance(value, Tensor)]
    return Counted(
        image=image,
        step=fixed.combined(1, counter.counts, 1),
        weights=_bytes([*model.parameters(), *model.buffers()]) * (2 if recipe.optimization.ema_decay else 1),
        gradients=_bytes([p.grad for p in model.parameters() if p.grad is not None]),
        optimizer=_bytes(states),
        activations=(saved[1] - saved[0]) / (more - few),
    )


def rates_of(hardware: Machine, dtype: torch.dtype) -> Rates:
    """The rates of one device: measured here in a second or two, or by its maker's figures."""
    if hardware.kind == "cpu":
        return measured_rates(dtype)
    gpu = GPUS[hardware.kind]
    operations = (gpu.tera_float32 if dtype is torch.float32 else gpu.tera) * 1e12 * SHARE_OF_PEAK
    return Rates(
        # depthwise convolutions are bound by memory, and their operations are few
        {MATRIX: operations, CONVOLUTION: operations, GROUPED: operations / 20},
        gpu.bandwidth * 1e9 * SHARE_OF_BANDWIDTH,
        gpu.memory * 1e9,
        False,
        f"{gpu.title}: {SHARE_OF_PEAK:.0%} of its peak, {SHARE_OF_BANDWIDTH:.0%} of its bandwidth ({gpu.source})",
    )


def measured_rates(dtype: torch.dtype) -> Rates:
    """This CPU's, on as many threads as torch has: the best of a few repetitions of each kind of operation."""
    import os

    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        rates = {
            MATRIX: _layer_rate(nn.Conv2d(384, 384, 1), 14, dtype),
            CONVOLUTION: _layer_rate(nn.Conv2d(128, 128, 3, padding=1), 24, dtype),
            GROUPED: _layer_rate(nn.Conv2d(192, 192, 3, padding=1, groups=192), 28, dtype),
        }
    values = torch.rand(16, 256, 28, 28).contiguous(memory_format=torch.channels_last).to(dtype)
    norm = nn.BatchNorm2d(256).train()

    def traffic() -> Tensor:
        return F.gelu(norm(values) + values)

    bandwidth = _rate(traffic)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return Rates(rates, bandwidth, float(memory), True, f"measured here on {torch.get_num_threads()} threads")


def _layer_rate(layer: nn.Conv2d, side: int, dtype: torch.dtype) -> float:
    """Multiplications and additions a second of a layer's forward and backward pass."""
    layer = layer.to(memory_format=torch.channels_last)
    given = torch.rand(16, layer.in_channels, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
    given.requires_grad_()  # in the format that a layer gets from the one before it

    def step() -> Tensor:
        out = layer(given)
        out.backward(torch.ones_like(out))
        return out

    return _rate(step, operations=True)


def _rate(call: Callable[[], Any], *, operations: bool = False) -> float:
    with _Counter() as counter:
        call()
    amount = sum(counter.counts.operations.values()) if operations else counter.counts.traffic
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < 3 or time.perf_counter() - began < 0.3:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return amount / sorted(seconds)[len(seconds) // 2]


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
    counted = counted or count_step(model, recipe, dtype)
    rates = rates or rates_of(hardware, dtype)
    on_each = recipe.batch_size // hardware.count
    seconds = counted.image.combined(on_each, counted.step, 1).seconds(rates)
    exchanged = 0.0
    if hardware.count > 1:  # a ring: each device sends and gets all gradients, less its own part, twice
        link = CPU_LINK if hardware.kind == "cpu" else GPU_LINK
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


def dtype_of(recipe: Recipe, hardware: Machine) -> torch.dtype:
    """The format of the forward pass."""
    if recipe.precision == "auto":
        return fastest_dtype(torch.device("cpu")) if hardware.kind == "cpu" else torch.bfloat16
    return torch.float32 if recipe.precision == "32-true" else torch.bfloat16


def _bytes(values: list[Any]) -> int:
    return sum(value.numel() * value.element_size() for value in values)
