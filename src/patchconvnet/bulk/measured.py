"""Evaluation of predictions that are written already, without the network."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patchconvnet.bulk.parts import read_description, tables
from patchconvnet.errors import UserError
from patchconvnet.training.evaluation import FIRST, Evaluation, Tally


def stored_maps(folder: Path, fingerprint: str) -> tuple[str, Iterator[tuple[str, np.ndarray]]]:
    """The maps that `predict` wrote.

    Args:
        folder: of the predictions.
        fingerprint: of the model that they must be of, see `predictor.fingerprint_of`.

    Returns:
        Which they are, and of each image that could be predicted its id and its map, (h, w) float16.

    Raises:
        UserError: the predictions are not complete, have no maps, or are of another model.
    """
    about = read_description(folder)
    kind = about["settings"]["maps"]
    if not about.get("finished"):
        raise UserError(f"{folder} is not complete: run the same patchconvnet predict again, which goes on")
    if kind == "none":
        raise UserError(f"{folder} has no maps; predict with --maps evidence or --maps attention")
    if about["model"]["sha256"] != fingerprint:
        raise UserError(
            f"{folder} is of {about['model']['name']} with other weights or another preprocessing than this model's; "
            "give the --model and --size that it was predicted with"
        )

    def rows() -> Iterator[tuple[str, np.ndarray]]:
        for table in tables(folder, ["id", kind]):
            good = table.filter(table[kind].is_valid())
            if len(good):
                maps = good[kind].combine_chunks().flatten().to_numpy().reshape(-1, *about["map_shape"])
                yield from zip(good["id"].to_pylist(), maps, strict=True)

    return kind, rows()


def evaluate_predictions(folder: Path) -> tuple[Evaluation, dict[str, Any]]:
    """What `evaluate` finds on the same images, from what `predict` wrote.

    Returns:
        The evaluation, and what `predict.json` says.

    Raises:
        UserError: the predictions are not complete, or hold no labels or too few classes; or an image could not be
            predicted.
    """
    about = read_description(folder)
    names = about["class_names"]
    if not about.get("finished"):
        raise UserError(f"{folder} is not complete: run the same patchconvnet predict again, which goes on")
    if failed := about["failed"]["images"]:
        raise UserError(
            f"{failed:,} images of {folder} could not be predicted (column error), so it is no evaluation of the data"
        )
    wanted = min(FIRST, len(names))
    if about["settings"]["top"] < wanted:
        raise UserError(f"{folder} has the likeliest {about['settings']['top']} classes; predict with --top {wanted}")
    tally = Tally(len(names), torch.device("cpu"))
    for table in tables(folder, ["label_index", "class_indices", "probabilities", "label_loss"]):
        labels = table["label_index"]
        if labels.null_count:
            raise UserError(
                f"{folder} has images without a label; predict a data set, or a folder whose folders have the names of "
                "the model's classes"
            )
        rows = len(labels)
        classes, probabilities = (
            table[name].combine_chunks().flatten().to_numpy().reshape(rows, -1)
            for name in ("class_indices", "probabilities")
        )
        tally.add(
            labels=torch.from_numpy(labels.to_numpy().astype(np.int64)),
            likeliest=torch.from_numpy(classes[:, :wanted].astype(np.int64)),
            confidence=torch.from_numpy(probabilities[:, 0].copy()),
            losses=torch.from_numpy(table["label_loss"].to_numpy().copy()),
        )
    return tally.evaluation(names), about
