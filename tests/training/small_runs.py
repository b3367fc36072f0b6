"""Trainings small enough for tests: some hundred digits of 16 pixels, a network of some thousand weights."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from patchconvnet.data.augmentation import AugmentationConfig
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.training.launch import Hardware
from patchconvnet.training.loop import train
from patchconvnet.training.recipe import DataOptions, ModelOptions, MonitorOptions, OptimizationOptions, Recipe

CPU = Hardware(accelerator="cpu")
TIMINGS = ("images_per_second", "seconds")

MICRO = Recipe(
    data=DataOptions(name="digits", validation=200, test=1200, workers=0),  # and 397 to train on
    model=ModelOptions(name="patchconvnet_micro", options={"embed_dim": 16, "depth": 1}),
    preprocessing=Preprocessing(size=(16, 16), antialias=False, mean=(0.3,) * 3, std=(0.38,) * 3),
    augmentation=AugmentationConfig(random_crop_padding=2),
    optimization=OptimizationOptions(learning_rate=0.03, warmup=0.2),
    monitor=MonitorOptions(every=0, images=3),
    epochs=3,
    batch_size=64,  # 6 steps an epoch
    precision="32-true",
)


# no max pool: where two of its values are nearly equal, rounding decides which one learns
NO_MAX_POOL = {"stem": "strided"}
LAYER_NORM = {"options": {"norm": "layer", **NO_MAX_POOL}}  # for what batch norm, which sees the batch, would change


def micro(**changes: Any) -> Recipe:
    """`MICRO` with other values; a dict changes fields of a part: `micro(epochs=3, optimization={"accumulate": 2})`."""
    return replace(MICRO, **{name: _changed(getattr(MICRO, name), value) for name, value in changes.items()})


def _changed(part: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return replace(part, **{name: {**part.options, **v} if name == "options" else v for name, v in value.items()})


def write_digits(folder: Path, count: int, ids: bool = False) -> Path:
    """`count` digits as files, one folder a class; with `ids` each is one colour instead, which is its number."""
    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images[:count], digits.target[:count], strict=True)):
        file = folder / str(label) / f"{i:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        if ids:
            Image.new("RGB", (16, 16), (i % 256, i // 256, 0)).save(file)
        else:
            Image.fromarray((image * 15).astype("uint8")).resize((16, 16)).save(file)
    return folder


def from_files(folder: Path, **changes: Any) -> Recipe:
    """`MICRO` on `write_digits`' images, each read from its file whenever it is needed."""
    data = {"name": f"folder:{folder}", "memory_gb": 0.0, "workers": 1, "validation": 12, "test": 12}
    return micro(**{"data": {**data, **changes.pop("data", {})}, "batch_size": 16, **changes})


def run(recipe: Recipe, folder: Path, **options: Any) -> Path:
    """Train on the CPU into a folder; returns the folder."""
    train(recipe, folder, **{"hardware": CPU, **options})
    return folder


def kept(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the model folder that a run kept."""
    return load_file(folder / "best" / "model.safetensors")


def checkpoint(folder: Path) -> dict[str, Any]:
    """The last checkpoint of a run."""
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def rows(folder: Path) -> list[dict[str, str]]:
    """`metrics.csv` of a run."""
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def untimed(folder: Path) -> list[dict[str, str]]:
    """`metrics.csv` without what differs from run to run."""
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows(folder)]


def events(folder: Path) -> EventAccumulator:
    """TensorBoard's events of a run."""
    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return accumulator.Reload()


def step_losses(folder: Path) -> list[float]:
    """The loss of every step of a run."""
    return [event.value for event in events(folder).Scalars("step_loss")]


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different
