"""What an evaluation leaves behind: figures as JSON, tables as CSV, the confusion matrix as an image."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from patchconvnet.errors import UserError
from patchconvnet.files import write_atomic
from patchconvnet.training.evaluation import Evaluation
from patchconvnet.training.run_folder import write_text

MAX_COLUMNS = 100  # classes with a column of probabilities
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
        "per_class.csv": _csv([list(rows[0]), *(list(row.values()) for row in rows)]),
        "confusion.csv": _csv(
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


def predictions_csv(
    paths: Sequence[str], class_names: Sequence[str], probabilities: np.ndarray, labels: Sequence[int] | None = None
) -> str:
    """A table of images: path, true class where it is known, predicted class, its probability, and those of all.

    Args:
        paths: one for each of N images.
        class_names: K names; with more than `MAX_COLUMNS` the last columns are left out.
        probabilities: (N, K).
        labels: N indices of true classes.
    """
    shown = class_names if len(class_names) <= MAX_COLUMNS else ()
    rows: list[list[Any]] = [["path", *(["true class"] if labels is not None else []), "class", "probability", *shown]]
    for i, (path, row) in enumerate(zip(paths, probabilities, strict=True)):
        best = int(row.argmax())
        true = [] if labels is None else [class_names[labels[i]]]
        shares = [f"{share:.6g}" for share in (row[best], *(row if shown else ()))]
        rows.append([path, *true, class_names[best], *shares])
    return _csv(rows)


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


def _csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(["" if cell is None else cell for cell in row] for row in rows)
    return text.getvalue()
