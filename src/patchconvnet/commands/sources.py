"""The model, the device and the images that a command is given by name."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from patchconvnet.errors import UserError

if TYPE_CHECKING:
    import torch

    from patchconvnet.data.preprocessing import Preprocessing
    from patchconvnet.data.splits import Split
    from patchconvnet.models import AttentionClassifier

Size = int | tuple[int, int] | None


class Subject(NamedTuple):
    """What `ModelAndData` names, loaded: the network on its device, and the images of a split."""

    network: "AttentionClassifier"
    device: "torch.device"
    preprocessing: "Preprocessing"
    images: "Split"
    data_name: str
    split: str


@dataclass(frozen=True)
class ModelAndData:
    """Which model is measured, on which images, and where that is computed.

    Args:
        model: a run folder, a model folder, cifar10 (ships with the package), imagenet, a published tag such as
            patchconvnet_s60.fb_in1k, any timm model such as resnet50, a hub id (owner/name), or an .onnx file.
        data: cifar10, cifar100, digits, folder:PATH, csv:FILE, parquet:FILE, hf:NAME, wds:PATTERN or
            litdata:FOLDER.
        split: the images to measure on; auto is the test split, or all images of a folder without one
            that the model has not seen.
        root: where CIFAR is kept or downloaded to.
        validation: share or number of images set aside for validation; by default as in the model's training.
        test: share or number of images set aside for the test; by default as in the model's training; 1 for all.
        data_seed: seed of that choice; by default as in the model's training.
        weights: a checkpoint of the timm model or variant that --model names: .safetensors, or a PyTorch file.
        strict: stop at an image that cannot be read, instead of leaving it out.
        max_bad: how many of these may be left out, such as 0.1% or 20; by default any number of a folder's, and none
            of another source's.
        size: another network input, such as 96 or 64x48 (height x width).
        device: cpu, cuda, mps or auto.
        threads: threads on a CPU, or auto: as many as are fastest by a short measurement, unless OMP_NUM_THREADS says.
    """

    model: str
    data: str
    split: Literal["auto", "train", "validation", "test", "all"] = "auto"
    root: str | None = None
    validation: float | None = None
    test: float | None = None
    data_seed: int | None = None
    weights: Path | None = None
    strict: bool = False
    max_bad: str | None = None
    size: Size = None
    device: str = "auto"
    threads: int | Literal["auto"] = "auto"

    @property
    def division(self) -> dict[str, float | int | None]:
        """How the data set is divided; None as in the model's training."""
        return {"validation": self.validation, "test": self.test, "seed": self.data_seed}

    def load(self) -> Subject:
        """Load both; warns where the model may have learned from the images.

        Raises:
            UserError: there is no such model, data set, split or device, or an option does not fit.
        """
        from patchconvnet.data.held_out import load_held_out
        from patchconvnet.thread_count import check_threads

        check_threads(self.threads)
        network, device = load_model(self.model, self.weights, self.device)
        preprocessing = preprocessing_for(network, self.size)
        splits, split = load_held_out(
            self.data, self.split, network.metadata.provenance, root=self.root, validation=self.validation,
            test=self.test, seed=self.data_seed, strict=self.strict, max_bad=self.max_bad, show_progress=True,
        )  # fmt: skip
        return Subject(network, device, preprocessing, splits.require(split), splits.name, split)


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
