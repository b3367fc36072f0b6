"""Images that a model has not learned: a data set divided as the model's training divided it, or a warning.

A model folder's provenance says how: the recipe's data options, and a fingerprint of each split.
"""

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from patchconvnet.data import datasets
from patchconvnet.data.splits import DataSplits, SplitName


def load_held_out(
    name: str,
    split: SplitName | Literal["auto"],
    provenance: Mapping[str, Any],
    *,
    root: str | os.PathLike[str] | None = None,
    validation: float | None = None,
    test: float | None = None,
    seed: int | None = None,
    strict: bool = False,
    max_bad: str | None = None,
    show_progress: bool = False,
) -> tuple[DataSplits, SplitName]:
    """A data set for measuring a trained model: divided as its training divided it, if it was trained on this data.

    Args:
        name: of the data set, as for `patchconvnet.data.datasets.load`.
        split: the one to measure on; "auto" as for `chosen_split`.
        provenance: the model's `metadata.provenance`; empty where nothing is known.
        validation, test, seed: how to divide it instead; a `test` of 1 makes all images the test split.
        root, strict, max_bad, show_progress: as for `datasets.load`.

    Returns:
        The data set, and the name of the split to measure on.

    Warns:
        UserWarning: as `warn_if_learned`.

    Raises:
        UserError: the name is unknown, the data is not there, or the options don't fit it.
    """
    division = {"validation": validation, "test": test, "seed": seed}
    if _is_training_data(name, root, provenance):
        options = provenance.get("recipe", {}).get("data", {})
        division = {key: options.get(key) if value is None else value for key, value in division.items()}
    everything = division["test"] == 1
    data = datasets.load(
        name,
        root=root,
        validation=None if everything else division["validation"],
        test=None if everything else division["test"],
        seed=int(division["seed"] or 0),
        strict=strict,
        max_bad=max_bad,
        show_progress=show_progress,
    )
    if everything:
        warn_if_learned(data, "all", provenance, root=root)
        data = replace(data, train=None, validation=None, test=data.require("all"), drawn=False)
        return data, chosen_split(data, split, provenance, root=root)
    chosen = chosen_split(data, split, provenance, root=root)
    warn_if_learned(data, chosen, provenance, root=root)
    return data, chosen


def chosen_split(
    data: DataSplits,
    split: SplitName | Literal["auto"],
    provenance: Mapping[str, Any],
    *,
    root: str | os.PathLike[str] | None = None,
) -> SplitName:
    """The split to measure on: "auto" is "all" for a folder without a test folder that the model has not seen.

    Args: as `warn_if_learned`.

    Returns:
        `split` if it is not "auto"; "test" for all other data.
    """
    if split != "auto":
        return split
    return "all" if data.drawn and not _has_seen(data, provenance, root) else "test"


def warn_if_learned(
    data: DataSplits, split: SplitName, provenance: Mapping[str, Any], *, root: str | os.PathLike[str] | None = None
) -> None:
    """Warn where a split of the data that a model was trained on is not the split of that name which training left out.

    Args:
        data: the data set, divided.
        split: the one to measure on.
        provenance: the model's `metadata.provenance`.
        root: the folder that the training's own relative `folder:PATH` would lie in.

    Warns:
        UserWarning: with other numbers or another seed, or other files, images may be measured that the model learned.
    """
    before, now, asked = _fingerprint(provenance), data.fingerprint(), f"{split} images"
    if not _has_seen(data, provenance, root) or asked not in before:
        return
    same_images = before.get("all images") == now["all images"]
    if split == "all":
        warnings.warn(f"all images of {data.name} include those that the model was trained on", stacklevel=2)
    elif before[asked] != now[asked]:
        how = "divided otherwise" if same_images else "not the same images"
        warnings.warn(
            f"{data.name} is {how} than when the model was trained: its {asked} may be some that it has learned",
            stacklevel=2,
        )


def _has_seen(data: DataSplits, provenance: Mapping[str, Any], root: str | os.PathLike[str] | None) -> bool:
    """Whether the model was trained on these images, or on others of this data set."""
    before, now = _fingerprint(provenance), data.fingerprint()
    # by their names, or, whatever they are called, by their contents
    same_images = any(part in now and before.get(part) == now[part] for part in ("all images", "all contents"))
    return same_images or _is_training_data(data.name, None, provenance, root)


def _fingerprint(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    return provenance.get("data", {}).get("fingerprint", {})


def _is_training_data(
    name: str,
    root: str | os.PathLike[str] | None,
    provenance: Mapping[str, Any],
    training_root: str | os.PathLike[str] | None = None,
) -> bool:
    """Whether the data set is the one that the model was trained on, by its name or its folder's place."""
    options, trained = provenance.get("recipe", {}).get("data", {}), provenance.get("data", {})
    names = (_place(options.get("name", ""), training_root or root), _place(trained.get("name", "")))
    return _place(name, root) in names


def _place(name: str, root: str | os.PathLike[str] | None = None) -> str:
    """The name of a data set; of a folder, its full path."""
    if not name.startswith("folder:") or "\0" in name:
        return name
    return "folder:" + os.path.realpath(os.path.expanduser(Path(root or "", name.removeprefix("folder:"))))
