"""How good a model is on a split: loss, top-1, top-5, calibration, per class."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassConfusionMatrix

from patchconvnet.data.batches import batches
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.data.splits import Split
from patchconvnet.errors import UserError

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Evaluation:
    """What was measured on a split, each picture counted once.

    loss: mean cross-entropy.
    top1, top5: share of pictures whose class is the first, or among the first five, in 0..1.
    calibration_error: expected calibration error over 15 bins (Guo et al. 2017, arXiv 1706.04599), in 0..1.
    confusion: (K, K) counts, rows true classes, columns predicted ones.
    class_names: K names.
    """

    loss: float
    top1: float
    top5: float
    calibration_error: float
    confusion: Tensor
    class_names: list[str]

    @property
    def count(self) -> int:
        """Number of pictures."""
        return int(self.confusion.sum())

    def per_class(self) -> list[dict[str, Any]]:
        """For each class: its pictures, recall (its own top-1), precision; None where there is nothing to divide by."""
        right = self.confusion.diagonal().tolist()
        true = self.confusion.sum(1).tolist()
        predicted = self.confusion.sum(0).tolist()
        return [
            {
                "class": name,
                "pictures": int(true[k]),
                "recall": right[k] / true[k] if true[k] else None,
                "precision": right[k] / predicted[k] if predicted[k] else None,
            }
            for k, name in enumerate(self.class_names)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The figures without the tables."""
        return {
            "pictures": self.count,
            "loss": self.loss,
            "top1": self.top1,
            "top5": self.top5,
            "calibration_error": self.calibration_error,
        }


def evaluate(
    model: nn.Module,
    split: Split,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    workers: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Classify every picture of a split once and count.

    Args:
        model: images (B, C, h, w) → logits (B, K); in evaluation mode while this runs.
        rank, world_size: with several processes, each takes its own pictures and all get the same result.
        autocast: gives the context of the forward pass.
        workers: processes that read picture files.
        on_batch: called with the number of pictures done, after each batch.

    Raises:
        UserError: the split is empty, or the model has another number of classes than the split.
    """
    if not len(split):
        raise UserError("there are no pictures to evaluate on")
    classes = len(split.class_names)
    metrics = MetricCollection(
        {
            # validate_args would look at every batch's values, for which a GPU has to be waited for
            "loss": MeanMetric(nan_strategy="disable"),
            "top5": MulticlassAccuracy(classes, top_k=min(5, classes), average="micro", validate_args=False),
            "calibration_error": MulticlassCalibrationError(classes, n_bins=CALIBRATION_BINS, validate_args=False),
            "confusion": MulticlassConfusionMatrix(classes, validate_args=False),
        },
        compute_groups=False,
    ).to(device)
    indices = torch.arange(rank, len(split), world_size)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for images, labels, _ in batches(
                split, preprocessing, batch_size, device=device, indices=indices, workers=workers
            ):
                with autocast():
                    logits = model(images)
                if logits.shape[1] != classes:
                    raise UserError(
                        f"the model has {logits.shape[1]} classes, the data {classes}; they do not belong together"
                    )
                logits = logits.float()
                metrics["loss"].update(F.cross_entropy(logits, labels, reduction="none"))
                metrics["top5"].update(logits, labels)
                metrics["calibration_error"].update(logits.softmax(1), labels)
                metrics["confusion"].update(logits.argmax(1), labels)
                if on_batch:
                    on_batch(len(labels))
            results = metrics.compute()
    finally:
        model.train(was_training)
    confusion = results["confusion"].cpu()
    return Evaluation(
        loss=float(results["loss"]),
        top1=int(confusion.diagonal().sum()) / int(confusion.sum()),
        top5=float(results["top5"]),
        calibration_error=float(results["calibration_error"]),
        confusion=confusion,
        class_names=split.class_names,
    )
