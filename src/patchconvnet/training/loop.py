"""The training loop: epochs of steps, what is written after each, and when to stop.

A `Run` has the parts: images from `EpochBatches`, weights moved by a `Learner`, the best model as a `KeptModel`.
`resuming` continues from a checkpoint, `finishing` calibrates and tests what is kept. Lightning Fabric moves
all of it over devices and nodes.
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchconvnet.errors import UserError
from patchconvnet.files import write_atomic
from patchconvnet.hardware import ThreadCount, Threads
from patchconvnet.training.announcement import announcement, results
from patchconvnet.training.curves import curves_figure
from patchconvnet.training.epoch_batches import mix
from patchconvnet.training.finishing import finish
from patchconvnet.training.launch import Hardware, agreed, launch
from patchconvnet.training.probing import FEATURES_FILE, probe
from patchconvnet.training.progress import TrainingProgress
from patchconvnet.training.recipe import Recipe
from patchconvnet.training.resuming import resume as resume_run
from patchconvnet.training.run import Run
from patchconvnet.training.run_folder import Resume, RunFolder

REFRESH_SECONDS = 0.25  # between two readings of the running loss, which on a GPU wait for it
CHECK_STEPS = 20  # between two checks that the loss is still a number


def train(recipe: Recipe, run: Path, *, resume: Resume = "no", hardware: Hardware | None = None) -> Path:
    """Train by a recipe into a run folder.

    Args:
        recipe: what to do. A resumed run may have other `epochs`; the learning rate then follows the new schedule.
        run: the run folder; must be new or empty unless resumed.
        resume: "yes" continues from the run's last checkpoint, "auto" does so if there is one; on a CPU the result is
            bit-equal to that of an uninterrupted run while the number of threads stays the same; a run whose number was
            chosen ("auto") continues with the one that its checkpoint names.
        hardware: devices; one, of the best kind there is, when left out.

    Returns:
        The model folder of the best epoch.

    Raises:
        UserError: a mistake in the recipe, the data or the run folder; another training in the folder; a full disk; a
            loss that is not a number.
    """
    hardware, threads = hardware or Hardware(), torch.get_num_threads()
    fabric = launch(hardware, recipe, run)
    folder = RunFolder(Path(fabric.broadcast(str(run))), FEATURES_FILE if recipe.method == "probe" else "last.ckpt")
    try:
        with agreed(fabric):
            if fabric.is_global_zero:
                folder.open(recipe, resume)
        if recipe.method == "probe":
            if fabric.world_size > 1:
                raise UserError(
                    "method 'probe' runs on one device; leave out --devices and --nodes, or use method 'train'"
                )
            Threads(hardware.threads, fabric.device)
            return probe(recipe, folder, fabric.device)
        return _Loop(Run(fabric, recipe, folder)).train(hardware.threads)
    finally:
        folder.close()
        torch.set_num_threads(threads)


class _Loop:
    def __init__(self, run: Run):
        self.run = run

    def train(self, threads: ThreadCount | None) -> Path:
        run = self.run
        resumed = resume_run(run)
        run.start_clock()
        classes, first_epoch = len(run.data.class_names), run.standing.epoch
        with TrainingProgress(run.recipe.epochs, run.batches.steps, first_epoch, run.first, classes) as progress:
            progress.say("\n".join([*announcement(run), *resumed.notes]))
            if threads == "auto" and run.fabric.world_size > 1:
                threads = None
            self.threads = Threads(threads, run.fabric.device, progress.say, known=resumed.threads)
            while not run.is_finished:
                self._run_epoch(progress)
            with agreed(run.fabric), run.folder.writing():
                if run.first:
                    run.monitor.draw_evolution(run.learner.whole)
                    curves = curves_figure(run.standing.history)
                    write_atomic(run.folder.curves, lambda part: curves.savefig(part, format="png"))
            progress.say("\n".join(results(run, finish(run))))
        return run.folder.best

    def _run_epoch(self, progress: TrainingProgress) -> None:
        run, standing, started = self.run, self.run.standing, time.perf_counter()
        torch.manual_seed(mix(run.recipe.seed, standing.epoch, run.fabric.global_rank))  # dropout, stochastic depth
        losses, top1, top5 = self._train_epoch(progress)
        train_seconds = time.perf_counter() - started
        run.learner.gather()
        with agreed(run.fabric):
            self._check_weights()
        validation = run.evaluate(run.learner.whole, "validation") if run.data.validation is not None else None
        is_best = validation is None or validation.top1 > standing.best_top1
        if is_best:
            standing.best_epoch = standing.epoch
            standing.best_metrics = {"epoch": standing.epoch + 1}
            if validation is not None:
                standing.best_top1 = validation.top1
                standing.best_metrics["validation"] = validation.to_dict()
        steps = (standing.epoch + 1) * run.batches.steps
        row = {
            "epoch": standing.epoch + 1,
            "step": steps,
            "learning_rate": run.learning_rate(steps - 1),
            "train_loss": sum(losses) / len(losses),
            "train_top1": top1,
            "train_top5": top5,
            "val_loss": validation.loss if validation else None,
            "val_top1": validation.top1 if validation else None,
            "val_top5": validation.top5 if validation else None,
            "images_per_second": run.batches.steps * run.batches.batch_size / train_seconds,
            "seconds": run.count_seconds(),
        }
        with agreed(run.fabric), run.folder.writing():
            if run.first:
                self._log(row, losses)
        standing.history.append(row)
        standing.epoch += 1
        run.count_seconds()
        self._save()  # its time belongs to the next epoch's seconds
        progress.epoch(row, is_best and validation is not None)

    def _train_epoch(self, progress: TrainingProgress) -> tuple[list[float], float, float]:
        """Train; returns the loss of every step, and top-1 and top-5 over the epoch."""
        run = self.run
        device, steps, batch_size = run.fabric.device, run.batches.steps, run.batches.batch_size
        epoch, local = run.standing.epoch, batch_size // run.fabric.world_size
        losses, correct = torch.zeros(steps, device=device), torch.zeros(2, device=device)
        started = refreshed = time.perf_counter()
        run.learner.train_mode()
        batches = run.batches.epoch(epoch, run.learner.plain.patch_size)
        self.threads.begin()
        for step in range(steps):
            number = epoch * steps + step
            losses[step], hits = run.learner.update(batches, number, run.learning_rate(number))
            correct += hits
            done = step + 1
            if done % CHECK_STEPS == 0 or done == steps:
                self._check_losses(losses[:done])
            self.threads.step()
            now = time.perf_counter()
            if run.first and (now - refreshed > REFRESH_SECONDS or done == steps):
                refreshed = now
                loss_so_far, top1_so_far = losses[:done].mean().item(), correct[0].item() / (local * done)
                progress.step(epoch, done, loss_so_far, top1_so_far, batch_size * done / (now - started))
        losses = run.fabric.all_reduce(losses, reduce_op="mean")
        top1, top5 = run.fabric.all_reduce(correct, reduce_op="sum").tolist()
        return losses.tolist(), top1 / (steps * batch_size), top5 / (steps * batch_size)

    def _check_losses(self, losses: Tensor) -> None:
        run = self.run
        # summed over all processes, so that all of them stop at the same step
        bad = (~run.fabric.all_reduce(losses.clone(), reduce_op="sum").isfinite()).nonzero()
        if len(bad):
            with agreed(run.fabric):
                raise UserError(f"the loss is not a finite number from {self._place(int(bad[0]))} on; {self._remedy()}")

    def _check_weights(self) -> None:
        if not self.run.learner.is_finite():
            last = self.run.batches.steps - 1
            raise UserError(f"the weights are not finite numbers after {self._place(last)}; {self._remedy()}")

    def _place(self, step: int) -> str:
        return f"epoch {self.run.standing.epoch + 1}, step {step + 1}"

    def _remedy(self) -> str:
        o, epoch = self.run.recipe.optimization, self.run.standing.epoch
        kept = f"the checkpoint is that of epoch {epoch}" if epoch else "there is no checkpoint yet"
        return (
            f"{kept}. Try a lower optimization.learning_rate (now {o.learning_rate:g}), a longer optimization.warmup "
            f"(now {o.warmup:g}), optimization.clip_gradient 1, or precision 32-true, in a new run folder"
        )

    def _log(self, row: dict[str, Any], losses: list[float]) -> None:
        """TensorBoard's curves and the attention figure, if it is due."""
        run = self.run
        logger: Any = run.fabric.logger
        logger.log_metrics({key: value for key, value in row.items() if value is not None}, step=row["step"])
        for step, loss in enumerate(losses, row["step"] - len(losses) + 1):
            logger.experiment.add_scalar("step_loss", loss, step)
        if run.monitor.is_due(run.standing.epoch, run.recipe.epochs - 1):
            image = run.monitor.draw(run.learner.whole, run.standing.epoch, run.fabric.device)
            logger.experiment.add_image("attention", image, row["step"], dataformats="HWC")
        logger.experiment.flush()

    def _save(self) -> None:
        """The checkpoint first, since the rest follows from it and is made again where a kill comes between."""
        run = self.run
        state = {
            **run.learner.state(),
            "data": run.fingerprint,
            "threads": self.threads.count,
            **run.standing.to_dict(),
        }
        with agreed(run.fabric):
            if run.first:
                run.folder.save_checkpoint(state)
                run.folder.write_metrics(run.standing.history)
                if run.last_is_kept:
                    run.keep_last()
