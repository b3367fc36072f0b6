"""The model, the device and the images that a command is given by name."""

from pathlib import Path
from typing import TYPE_CHECKING

from patchconvnet.errors import UserError

if TYPE_CHECKING:
    import torch

    from patchconvnet.data.preprocessing import Preprocessing
    from patchconvnet.models import AttentionClassifier

DEVICES = ("cpu", "cuda", "mps", "xpu")
Size = int | tuple[int, int] | None


def load_model(name: str, device: str) -> "tuple[AttentionClassifier, torch.device]":
    """A trained network on a device.

    Args:
        name: whatever `load` takes, or a run folder, of which the best model is taken.
        device: cpu, cuda, mps, or auto.

    Raises:
        UserError: there is no such model or device.
    """
    from patchconvnet.models import load

    chosen = find_device(device)
    model = load(model_source(name))
    try:
        return model.to(chosen), chosen
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's words for a device that is not there
        raise UserError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error


def model_source(name: str) -> str:
    """The model folder of a run folder; any other name as it is."""
    best = Path(name, "best")
    is_run = (best / "config.json").is_file() and not Path(name, "config.json").is_file()
    return str(best) if is_run else name


def find_device(name: str) -> "torch.device":
    """The device of a name; "auto" is the fastest kind there is.

    Raises:
        UserError: no such device is known.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise _unknown_device(name) from error
    if device.type not in DEVICES:
        raise _unknown_device(name)
    return device


def _unknown_device(name: str) -> UserError:
    return UserError(f"unknown device {name!r}; known: auto, {', '.join(DEVICES)}, or one of several, such as cuda:1")


def preprocessing_for(model: "AttentionClassifier", size: Size) -> "Preprocessing":
    """The model's preprocessing, for another input size where one is given."""
    from patchconvnet.explanation.explainer import preprocessing_of

    preprocessing = preprocessing_of(model)
    return preprocessing if size is None else preprocessing.with_size(size)
