"""What an evaluation leaves behind: figures as JSON, tables as CSV, the confusion matrix as an image."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from patchconvnet.errors import UserError
from patchconvnet.files import write_atomic, write_text
from patchconvnet.training.evaluation import Evaluation
from patchconvnet.training.tables import as_csv

MAX_WRITTEN_CLASSES = 30  # above that, names and counts in the image's cells cannot be read


def save_evaluation(evaluation: Evaluation, folder: Path, origin: dict[str, Any]) -> list[Path]:
    """Write `evaluation.json`, `per_class.csv`, `confusion.csv` and `confusion.png` into a folder.

    Args:
        origin: which model and data it was; goes into the JSON.

    Returns:
        The paths written.

    Raises:
        UserError: the folder cannot be written.
    """
    names = evaluation.class_names
    rows = evaluation.per_class()
    contents = {
        "evaluation.json": json.dumps({**origin, **evaluation.to_dict(), "classes": rows}, indent=2) + "\n",
        "per_class.csv": as_csv([list(rows[0]), *(list(row.values()) for row in rows)]),
        "confusion.csv": as_csv(
            [
                ["true \\ predicted", *names],
                *([n, *c] for n, c in zip(names, evaluation.confusion.tolist(), strict=True)),
            ]
        ),
    }
    for name, text in contents.items():
        write_text(folder / name, text)
    image = folder / "confusion.png"
    try:
        write_atomic(image, lambda part: confusion_figure(evaluation).savefig(part, format="png"))
    except OSError as error:
        raise UserError(f"cannot write {image}: {error.strerror or error}") from error
    return [folder / name for name in contents] + [image]


def confusion_figure(evaluation: Evaluation) -> Figure:
    """The confusion matrix, rows true classes: colour is the share of a row, numbers are counts."""
    counts = evaluation.confusion.numpy()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    classes = len(counts)
    written = classes <= MAX_WRITTEN_CLASSES
    side = 2.4 + (0.42 * classes if written else 5.0)
    figure = Figure(figsize=(side + 0.6, side), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"top-1 {evaluation.top1:.2%} of {evaluation.count:,} images", loc="left", fontsize=10)
    if written:
        axes.set_xticks(range(classes), evaluation.class_names, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(classes), evaluation.class_names)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "black" if shares[row, column] > 0.55 else "white"
                axes.text(column, row, f"{count}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    return figure
