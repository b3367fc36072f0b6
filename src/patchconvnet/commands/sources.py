"""The model, the device and the images that a command is given by name."""

from pathlib import Path
from typing import TYPE_CHECKING

from patchconvnet.errors import UserError

if TYPE_CHECKING:
    import torch

    from patchconvnet.data.preprocessing import Preprocessing
    from patchconvnet.models import AttentionClassifier

Size = int | tuple[int, int] | None


def load_model(name: str, weights: Path | None, device: str) -> "tuple[AttentionClassifier, torch.device]":
    """A trained network on a device.

    Args:
        name: whatever `load` takes.
        weights: a checkpoint of the network of that name.
        device: cpu, cuda, mps, or auto.

    Raises:
        UserError: there is no such model, checkpoint or device.
    """
    from patchconvnet.hardware import find_device
    from patchconvnet.models import load

    chosen = find_device(device)
    if not name or "\0" in name:
        raise UserError(f"there is no model {name!r}")
    return load(name, weights=weights).to(chosen), chosen


def preprocessing_for(model: "AttentionClassifier", size: Size) -> "Preprocessing":
    """The model's preprocessing, for another input size where one is given."""
    from patchconvnet.explanation.explainer import preprocessing_of

    preprocessing = preprocessing_of(model)
    return preprocessing if size is None else preprocessing.with_size(size)
