"""The curves of a run: loss, accuracy and learning rate over the epochs, as one image."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

TRAIN, VALIDATION = "#1f4e8c", "#d1495b"  # apart for colour-blind readers, and dashed against solid in print


def curves_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the rows of `metrics.csv`.

    Args:
        history: a row an epoch with `epoch`, `train_loss`, `train_top1`, `val_loss`, `val_top1`, `learning_rate`; the
            validation's may be None.
    """
    figure = Figure(figsize=(11, 3.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in history]
    for axes, name, title in ((loss, "loss", "loss"), (accuracy, "top1", "top-1 accuracy")):
        axes.plot(epochs, [row[f"train_{name}"] for row in history], "--", color=TRAIN, label="training (augmented)")
        if all(row[f"val_{name}"] is not None for row in history):
            axes.plot(epochs, [row[f"val_{name}"] for row in history], color=VALIDATION, label="validation")
        axes.set_title(title, loc="left", fontsize=10)
        axes.legend(frameon=False, fontsize=8)
    accuracy.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    rate.plot(epochs, [row["learning_rate"] for row in history], color="#555555")
    rate.set_title("learning rate", loc="left", fontsize=10)
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(x=0.02)
    return figure
