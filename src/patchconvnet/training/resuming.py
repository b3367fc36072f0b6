"""Resuming a run from its checkpoint: the same images, the weights, the kept model."""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

from patchconvnet.errors import UserError
from patchconvnet.training.launch import agreed
from patchconvnet.training.run import Run
from patchconvnet.training.run_folder import EpochPart, Standing


class Resumed(NamedTuple):
    """notes: lines about it, for people. threads: that the checkpoint was computed with, if it says so."""

    notes: list[str]
    threads: int | None


def resume(run: Run) -> Resumed:
    """Continue from the run's checkpoint, if there is one; all processes together.

    Raises:
        UserError: the checkpoint is damaged, its run is longer than the recipe, its images or its network are others,
            or the kept model is damaged and no epoch is left to choose from.
    """
    fabric, epochs = run.fabric, run.recipe.epochs
    if not fabric.broadcast(run.folder.has_checkpoint):
        return Resumed([], None)
    file = run.folder.checkpoint
    with agreed(fabric):
        if run.first:
            file, state = run.folder.load_checkpoint()
    origin = fabric.broadcast(str(file))
    with agreed(fabric):
        if not run.first:
            state = run.folder.read_checkpoint(Path(origin))
        _check_data(run, state["data"])
        run.learner.check(state, origin)
        run.standing = standing = Standing.of(state)
        part, batch = EpochPart.of(standing), run.batches.batch_size
        done = len(part.losses)
        if standing.part and (part.images != done * batch or done >= run.batches.steps):
            raise UserError(
                f"{origin} holds {part.images:,} images of an epoch of {run.batches.steps:,} steps of {batch}; resume "
                "it with as many processes as it was begun with"
            )
        if standing.epoch > epochs:
            raise UserError(
                f"the run in {run.folder.path} has done {standing.epoch} epochs, and {epochs} are asked for; "
                f"give --epochs {standing.epoch} or more, or begin a new run in another --out"
            )
    run.learner.load(state, origin)
    before = run.fabric.broadcast(run.folder.epochs() if run.first else None)
    notes = [f"resuming after epoch {standing.epoch}"]
    if standing.part:
        total = run.batches.steps * run.batches.batch_size
        notes = [f"resuming in epoch {standing.epoch + 1}, after {standing.part['images']:,} of its {total:,} images"]
    if run.is_finished:
        notes = [f"this run is finished, with epoch {standing.epoch} of {epochs}"]
    if before != epochs:
        standing.extensions.append([standing.epoch, epochs])
        notes.append(
            f"the run's length changes from {before} to {epochs} epochs: the learning rate follows the schedule of "
            f"{epochs} from here on (now {run.learning_rate(standing.epoch * run.batches.steps):.2g}), so the "
            f"result is not that of a run begun with {epochs}"
        )
    with agreed(run.fabric), run.folder.writing():
        if run.first:
            if before != epochs:
                run.folder.write_recipe(run.recipe)
            run.monitor.forget_after(standing.epoch)
            run.folder.write_metrics(standing.history)
    with agreed(run.fabric):
        if run.first:
            _restore_kept(run)
    standing.best_epoch, standing.best_top1 = run.fabric.broadcast((standing.best_epoch, standing.best_top1))
    return Resumed(notes, state.get("threads"))


def _check_data(run: Run, before: dict[str, Any]) -> None:
    """Other images would be split otherwise: what was trained on could come to be tested on."""
    name, folder = run.data.name, run.folder.path
    now = {part: value for part, value in run.fingerprint.items() if not part.startswith("all ")}
    changed = [part for part, value in now.items() if part in before and value != before[part]]
    if changed and all(part.endswith("contents") for part in changed):
        splits = " and ".join(part.removesuffix(" contents") for part in changed)
        raise UserError(
            f"{splits} images of {name} have been replaced by others of the same names since the run in "
            f"{folder} was begun; resume it with the same images, or begin a new run in another --out"
        )
    if changed := [part for part in changed if not part.endswith("contents")]:
        raise UserError(
            f"the {' and '.join(changed)} of {name} are not those that the run in {folder} was "
            "begun with; resume it with the same images, or begin a new run in another --out"
        )


def _restore_kept(run: Run) -> None:
    """Make `best/` what the checkpoint says that it is."""
    standing = run.standing
    if run.data.validation is None and standing.epoch < run.recipe.epochs:
        return  # it is written at the end
    if standing.epoch == 0:
        return  # there is none yet
    fault = run.kept.fault(standing.best_epoch + 1)
    if fault is None:
        return
    if run.last_is_kept and not standing.part:
        run.keep_last()
        return
    lost = f"{fault}; the checkpoint holds epoch {standing.epoch}, not the best one, {standing.best_epoch + 1}"
    if run.is_finished:
        raise UserError(
            f"{lost}. Continue with more --epochs, the best of which is then kept, or begin a new run in another --out"
        )
    warnings.warn(f"{lost}. The best of the epochs that follow is kept instead", stacklevel=2)
    standing.best_epoch, standing.best_top1 = -1, -1.0
