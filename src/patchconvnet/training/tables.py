"""Tables as CSV. Without torch and matplotlib, which who has the figures need not wait for."""

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

MAX_COLUMNS = 100  # classes with a column of probabilities


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
    return as_csv(rows)


def as_csv(rows: list[list[Any]]) -> str:
    """Rows as CSV; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(["" if cell is None else cell for cell in row] for row in rows)
    return text.getvalue()
