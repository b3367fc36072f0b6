"""Which images are worth a look, from what `predict` wrote: those a model disagrees about, and those it is unsure of.

One part is read at a time, so memory does not grow with the number of images.
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from patchconvnet.bulk.parts import read_description, tables
from patchconvnet.errors import UserError

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ("id", "class_indices", "probabilities", "label_index", "label_loss")


class Reviewed(NamedTuple):
    """One image.

    Attributes:
        id: as in the rows of `predict`.
        label: its given class, or None.
        first, second: the two likeliest classes.
        first_probability, second_probability: theirs, 0..1.
        label_loss: cross-entropy of the given class, or None.
    """

    id: str
    label: str | None
    first: str
    first_probability: float
    second: str
    second_probability: float
    label_loss: float | None


class Confusion(NamedTuple):
    """Images of one class that are taken for another; `share` of all with that label."""

    label: str
    predicted: str
    images: int
    share: float


class Review(NamedTuple):
    """What is worth a look.

    Attributes:
        images, labelled: how many there are with a prediction, and with a label besides.
        failed: images that could not be predicted; they have no place in the lists.
        disagreed: images whose given class is not the likeliest one; the least expected label first.
        unsure: images whose two likeliest classes are nearly as likely; the nearest first.
        confusions: pairs of classes, the most frequent first.
        about: what `predict.json` says.
    """

    images: int
    labelled: int
    failed: int
    disagreed: list[Reviewed]
    unsure: list[Reviewed]
    confusions: list[Confusion]
    about: dict[str, Any]


def review(folder: Path, count: int = 100) -> Review:
    """The images of a folder of predictions that are worth a look.

    Args:
        folder: that `patchconvnet predict` wrote.
        count: at most so many in each list.

    Raises:
        UserError: the predictions are not complete, damaged, or have one class an image only.
    """
    about = read_description(folder)
    names = about["class_names"]
    if not about.get("finished"):
        raise UserError(f"{folder} is not complete: run the same patchconvnet predict again, which goes on")
    if about["settings"]["top"] < 2:
        raise UserError(f"{folder} has the likeliest class alone; predict with --top 2 or more")
    disagreed, unsure = _Most(count), _Most(count)
    pairs: Counter[tuple[int, int]] = Counter()
    labelled: Counter[int] = Counter()
    images = failed = 0
    for table in tables(folder, [*COLUMNS, "error"]):
        part = _Part(table.filter(table["error"].is_null()), names)
        images, failed = images + len(part), failed + len(table) - len(part)
        wrong = part.known & (part.classes[:, 0] != part.labels)
        labelled.update(part.labels[part.known].tolist())
        pairs.update(zip(part.labels[wrong].tolist(), part.classes[wrong, 0].tolist(), strict=True))
        disagreed.add(part, part.losses, wrong)
        unsure.add(part, part.probabilities[:, 1] - part.probabilities[:, 0], np.ones(len(part), bool))
    return Review(
        images,
        sum(labelled.values()),
        failed,
        disagreed.found,
        unsure.found,
        [
            Confusion(names[label], names[predicted], number, number / labelled[label])
            for (label, predicted), number in sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))[:count]
        ],
        about,
    )


class _Part:
    """The rows of one part as arrays: classes and probabilities (N, top), labels (N,) with −1 for none, losses (N,)."""

    def __init__(self, rows: "pyarrow.Table", names: list[str]) -> None:
        self._ids, self._names = rows["id"], names
        self.classes, self.probabilities = (
            rows[name].combine_chunks().flatten().to_numpy().reshape(len(rows), -1) if len(rows) else np.zeros((0, 2))
            for name in ("class_indices", "probabilities")
        )
        self.labels = rows["label_index"].fill_null(-1).to_numpy()
        self.losses = rows["label_loss"].fill_null(np.nan).to_numpy()
        self.known = self.labels >= 0

    def __len__(self) -> int:
        return len(self._ids)

    def row(self, at: int) -> Reviewed:
        known = bool(self.known[at])
        first, second = (self._names[place] for place in self.classes[at, :2].tolist())
        likeliest, next_likely = self.probabilities[at, :2].tolist()
        return Reviewed(
            id=self._ids[at].as_py(),
            label=self._names[self.labels[at]] if known else None,
            first=first,
            first_probability=likeliest,
            second=second,
            second_probability=next_likely,
            label_loss=float(self.losses[at]) if known else None,
        )


class _Most:
    """The `count` rows of the highest scores, in that order; equal ones in the order of the images."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: list[tuple[float, Reviewed]] = []

    def add(self, part: _Part, scores: np.ndarray, chosen: np.ndarray) -> None:
        """Consider the chosen rows (N,) bool of a part, by their scores (N,)."""
        places = np.flatnonzero(chosen)
        most = places[np.argsort(-scores[places], kind="stable")[: self._count]]
        self._kept += [(float(scores[at]), part.row(at)) for at in most.tolist()]
        self._kept.sort(key=lambda pair: -pair[0])
        del self._kept[self._count :]

    @property
    def found(self) -> list[Reviewed]:
        return [row for _, row in self._kept]
