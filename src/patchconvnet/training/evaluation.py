"""How good a model is on a split: loss, top-1, top-5, per class, and whether its probabilities come true."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from patchconvnet.data.batches import batches
from patchconvnet.data.labelled_images import LARGEST_BATCH, MOST_WORKERS, reading_order
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.data.splits import Split
from patchconvnet.errors import UserError
from patchconvnet.models.modes import evaluation_mode
from patchconvnet.models.weights import temperature_of

MOST_IN_BATCH = 256
PIXELS_ON_CPU = (
    2**20
)  # of a batch: 20 images of 224 × 224; with 256, each layer of a network in float32 takes a gigabyte
CALIBRATION_BINS = 15
FIRST = 5  # likeliest classes that top-5 counts
FEWEST_FOR_TOP5 = 6  # classes: of five, all are among the first five


@dataclass(frozen=True)
class Evaluation:
    """What was measured on a split, each image counted once.

    Attributes:
        loss: mean cross-entropy of the probabilities, which are the softmax of the logits over the temperature.
        top1, top5: share of images whose class is the first, or among the first five, in 0..1.
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
        """Number of images."""
        return int(self.confusion.sum())

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have images, so that a rare class counts as much as a common one."""
        recalls = [row["recall"] for row in self.per_class() if row["recall"] is not None]
        return sum(recalls) / len(recalls)

    @property
    def macro_f1(self) -> float:
        """Mean F1 score of the classes that have images or predictions."""
        scores = [row["f1"] for row in self.per_class() if row["f1"] is not None]
        return sum(scores) / len(scores)

    def per_class(self) -> list[dict[str, Any]]:
        """For each class: its images (its support), recall, precision, F1; None where there is nothing to divide by."""
        right = self.confusion.diagonal().tolist()
        true = self.confusion.sum(1).tolist()
        predicted = self.confusion.sum(0).tolist()
        return [
            {
                "class": name,
                "images": int(true[k]),
                "recall": right[k] / true[k] if true[k] else None,
                "precision": right[k] / predicted[k] if predicted[k] else None,
                "f1": 2 * right[k] / (true[k] + predicted[k]) if true[k] + predicted[k] else None,
            }
            for k, name in enumerate(self.class_names)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The figures without the tables."""
        return {
            "images": self.count,
            "loss": self.loss,
            "top1": self.top1,
            "top5": self.top5,
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "calibration_error": self.calibration_error,
        }

    def summary(self) -> str:
        """The figures as one line."""
        top5 = f", top-5 {self.top5:.2%}" if len(self.class_names) >= FEWEST_FOR_TOP5 else ""
        return (
            f"{self.count:,} images: loss {self.loss:.4f}, top-1 {self.top1:.2%}{top5}, balanced accuracy "
            f"{self.balanced_accuracy:.2%}, macro F1 {self.macro_f1:.2%}, calibration error "
            f"{self.calibration_error:.2%}"
        )


def images_of_a_batch(size: tuple[int, int], device: torch.device | str) -> int:
    """How many images (h, w) are classified at a time: 256, on a CPU fewer large ones, whose layers take gigabytes."""
    if torch.device(device).type != "cpu":
        return MOST_IN_BATCH
    return max(1, min(MOST_IN_BATCH, PIXELS_ON_CPU // (size[0] * size[1])))


def evaluate(
    model: nn.Module,
    split: Split,
    preprocessing: Preprocessing,
    *,
    batch_size: int | None = None,
    mirror: bool = False,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    workers: int = 0,
    on_batch: Callable[[int], None] | None = None,
    on_probabilities: Callable[[Tensor, Tensor], None] | None = None,
) -> Evaluation:
    """Classify every image of a split once and count.

    Args:
        model: images (B, C, h, w) → logits (B, K); in evaluation mode while this runs. Its `metadata.temperature`
            divides the logits for loss and calibration error; 1 where it has none.
        batch_size: images in one forward pass; if not given, as `images_of_a_batch` says.
        mirror: whether each image is seen twice, as it is and mirrored left to right, and the mean of both logits
            counts (test-time augmentation; to be reported separately).
        rank, world_size: with several processes, each takes its own images and all get the same result.
        autocast: gives the context of the forward pass.
        workers: processes that read image files.
        on_batch: called with the number of images done, after each batch.
        on_probabilities: called with the places (B,) of a batch's images in the split and their probabilities (B, K).

    Raises:
        UserError: the split is empty, the model has another number of classes than the split, or a count is too small.
    """
    if batch_size is None:
        batch_size = images_of_a_batch(preprocessing.size, device)
    if not 1 <= batch_size <= LARGEST_BATCH or not 0 <= workers <= MOST_WORKERS:
        raise UserError(
            f"batch_size is {batch_size} and workers {workers}; give 1 to {LARGEST_BATCH:,} images, and 0 to "
            f"{MOST_WORKERS:,} processes that read them"
        )
    if not len(split):
        raise UserError("there are no images to evaluate on")
    tally = Tally(len(split.class_names), torch.device(device))
    temperature = temperature_of(model)
    indices = reading_order(split, batch_size, workers, rank=rank, world_size=world_size)
    with evaluation_mode(model), torch.inference_mode():
        ours = batches(split, preprocessing, batch_size, device=device, indices=indices, workers=workers)
        for images, labels, places in ours if len(indices) else ():
            with autocast():
                logits = model(images)
                if mirror:
                    logits = (logits + model(images.flip(-1))) / 2
            logits = logits.float() / temperature
            tally.add(**_said(logits, labels, len(split.class_names)))
            if on_probabilities:
                on_probabilities(places, logits.softmax(1))
            if on_batch:
                on_batch(len(labels))
        if world_size > 1:
            tally.join()
    return tally.evaluation(split.class_names)


class Tally:
    """Sums over images, on their device, from which every figure follows; those of several processes add up.

    Args:
        classes: how many there are.
        device: where the answers are.
    """

    def __init__(self, classes: int, device: torch.device):
        exact = torch.float32 if device.type == "mps" else torch.float64  # which mps does not have
        self.loss = torch.zeros((), dtype=exact, device=device)
        self.top5 = torch.zeros((), dtype=torch.int64, device=device)
        # over the images in each bin of confidence: (its confidence, whether it is right)
        self.bins = torch.zeros((2, CALIBRATION_BINS), dtype=exact, device=device)
        self.confusion = torch.zeros((classes, classes), dtype=torch.int64, device=device)
        self.edges = torch.arange(1, CALIBRATION_BINS, device=device) / CALIBRATION_BINS

    def add(self, labels: Tensor, likeliest: Tensor, confidence: Tensor, losses: Tensor) -> None:
        """Count a batch.

        Args:
            labels: (B,) int64.
            likeliest: (B, 5) int64, or (B, K) where there are fewer classes; the likeliest first.
            confidence: (B,) probability of the first.
            losses: (B,) cross-entropy.
        """
        predicted, classes = likeliest[:, 0], len(self.confusion)
        self.loss += losses.to(self.loss.dtype).sum()
        self.top5 += (likeliest == labels[:, None]).sum()
        self.confusion.view(-1).scatter_add_(0, labels * classes + predicted, torch.ones_like(labels))
        bins = torch.bucketize(confidence, self.edges)
        for row, values in zip(self.bins, (confidence, predicted == labels), strict=True):
            row.scatter_add_(0, bins, values.to(row.dtype))

    def join(self) -> None:
        """Add up what all processes counted."""
        for value in (self.loss, self.top5, self.bins, self.confusion):
            dist.all_reduce(value)

    def evaluation(self, class_names: list[str]) -> Evaluation:
        """The figures."""
        count = int(self.confusion.sum())
        confidence, right = self.bins
        return Evaluation(
            loss=self.loss.item() / count,
            top1=int(self.confusion.diagonal().sum()) / count,
            top5=int(self.top5) / count,
            calibration_error=(confidence - right).abs().sum().item() / count,
            confusion=self.confusion.cpu(),
            class_names=class_names,
        )


def _said(logits: Tensor, labels: Tensor, classes: int) -> dict[str, Tensor]:
    if logits.shape[1] != classes:
        raise UserError(f"the model has {logits.shape[1]} classes, the data {classes}; they do not match")
    likeliest = logits.topk(min(FIRST, classes)).indices
    confidence = logits.softmax(1).gather(1, likeliest[:, :1])[:, 0]
    losses = F.cross_entropy(logits, labels, reduction="none")
    return {"labels": labels, "likeliest": likeliest, "confidence": confidence, "losses": losses}
