"""The lines that a training prints: before it starts, about data, network and devices; at its end, its results."""

import warnings

from patchconvnet.data.splits import DataSplits
from patchconvnet.models.weights import Metadata
from patchconvnet.training.evaluation import FEWEST_FOR_TOP5
from patchconvnet.training.run import Run


def announcement(run: Run) -> list[str]:
    """Two lines before it starts: network and data, schedule and devices."""
    r = run.recipe
    size = "×".join(map(str, r.preprocessing.size))
    epochs = "1 epoch" if r.epochs == 1 else f"{r.epochs} epochs"
    weights = sum(p.numel() for p in run.learner.whole.parameters())
    return [
        f"{r.model.name} ({weights:,} parameters) on {run.data.name}, {size} pixels: {describe_data(run.data)}",
        f"{epochs} of {run.batches.steps} steps of {run.batches.batch_size}, {r.optimization.optimizer}, "
        f"{run.precision}, {run.devices} → {run.folder.path}",
    ]


def results(run: Run, kept: Metadata) -> list[str]:
    """Lines at its end: accuracy on the test set, how probabilities are calibrated, where everything is."""
    epoch = run.standing.best_epoch + 1
    lines = [f"no test set; kept is the model of epoch {epoch}"]
    if t := kept.metrics.get("test"):
        top5 = f"  top-5 {t['top5']:.2%}" if len(run.data.class_names) >= FEWEST_FOR_TOP5 else ""
        lines = [
            f"test set, model of epoch {epoch}: loss {t['loss']:.4f}  top-1 {t['top1']:.2%}{top5}  calibration error "
            f"{t['calibration_error']:.2%}  ({t['images']:,} images, {run.standing.seconds:,.0f} s of training)"
        ]
    if source := kept.provenance.get("calibration"):
        lines.append(f"probabilities: softmax of the logits over a temperature of {kept.temperature:g} ({source})")
    lines.append(f"model folder: {run.folder.best}")
    if run.recipe.monitor.every:
        lines.append(f"attention figures: {run.folder.attention}")
    return lines


def describe_data(data: DataSplits) -> str:
    """One line: how many images each split has, and how evenly the training images are divided over the classes.

    Warns:
        UserWarning: classes have one training image, or none.
    """
    train = data.require("train")
    others = {"validation": data.validation, "test": data.test}
    sizes = [f"{len(train):,} training images", *(f"{len(s):,} {n}" for n, s in others.items() if s is not None)]
    counts = train.labels.bincount(minlength=len(data.class_names))
    few, many = int(counts.min()), int(counts.max())
    balance = f"{few:,} each" if few == many else f"{few:,} ({data.class_names[int(counts.argmin())]}) to {many:,}"
    if few != many:
        balance += f" ({data.class_names[int(counts.argmax())]}) each"
    scarce = [name for name, count in zip(data.class_names, counts.tolist(), strict=True) if count < 2]
    if scarce:
        shown = ", ".join(scarce[:5]) + (f" and {len(scarce) - 5} more" if len(scarce) > 5 else "")
        warnings.warn(
            f"{shown}: one training image or none is too few to learn a class from; add images or remove the class",
            stacklevel=2,
        )
    return f"{', '.join(sizes)}; {len(data.class_names)} classes with {balance}"
