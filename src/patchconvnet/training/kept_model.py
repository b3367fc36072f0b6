"""The model folder that a run keeps, `best/`: written after its best epoch, and again with its measurements."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from patchconvnet._version import __version__
from patchconvnet.data.splits import DataSplits
from patchconvnet.errors import UserError
from patchconvnet.models import AttentionClassifier, load
from patchconvnet.models.weights import Metadata, read_config
from patchconvnet.training.recipe import Recipe


class KeptModel:
    """A model folder in a run folder.

    Args:
        folder: its path.
        half: store the weights as float16.
    """

    def __init__(self, folder: Path, half: bool):
        self.folder, self.half = folder, half

    def write(self, model: AttentionClassifier, metadata: Metadata) -> None:
        """Write it from a network.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        model.metadata = metadata
        model.save_pretrained(self.folder, dtype="float16" if self.half else "float32")

    def metadata(self) -> Metadata:
        """Its metadata; empty when there is none, or none that can be read."""
        try:
            return read_config(self.folder)[1]
        except UserError:
            return Metadata()

    def load(self) -> AttentionClassifier:
        """The network, with its metadata.

        Raises:
            UserError: it is missing or damaged.
        """
        model = load(self.folder)
        if not all(value.isfinite().all() for value in model.state_dict().values()):
            raise UserError(f"{self.folder} is damaged: its weights are not finite numbers")
        return model

    def fault(self, epoch: int) -> str | None:
        """What is wrong with it, if it is not the readable model of an epoch (counted from 1)."""
        try:
            found = self.load().metadata.metrics.get("epoch")
        except UserError as error:
            return str(error)
        return None if found == epoch else f"{self.folder} holds the model of epoch {found}"


def metadata(
    recipe: Recipe,
    data: DataSplits,
    fingerprint: Mapping[str, Any],
    *,
    metrics: dict[str, Any],
    devices: str,
    seconds: float,
    **more: Any,
) -> Metadata:
    """A trained model's metadata: its classes, its preprocessing, and where it came from.

    Args:
        recipe: that it was trained by.
        data: that it was trained on.
        fingerprint: the data's.
        metrics: what was measured.
        devices: that it was trained on, for people.
        seconds: that the training took.
        more: of its provenance.
    """
    splits = {name: getattr(data, name) for name in ("train", "validation", "test")}
    counts = {name: len(split) for name, split in splits.items() if split is not None}
    recorded = recipe.to_dict()
    recorded["data"]["root"] = None  # a folder of this machine; the model folder travels
    provenance = {
        "recipe": recorded,
        "data": {"name": data.name, **counts, "fingerprint": dict(fingerprint)},
        "patchconvnet": __version__,
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "devices": devices,
        "seconds": round(seconds, 1),
        **more,
    }
    return Metadata(
        class_names=list(data.class_names),
        preprocessing=recipe.preprocessing.to_dict(),
        provenance=provenance,
        metrics=metrics,
    )
