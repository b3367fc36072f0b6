"""The training loop: epochs of steps, what is written after each, and when to stop.

A `Run` has the parts: images from `EpochBatches`, weights moved by a `Learner`, the best model as a `KeptModel`.
`resuming` continues from a checkpoint, `finishing` calibrates and tests what is kept. Lightning Fabric moves
all of it over devices and nodes. A checkpoint is written after every epoch, and within long ones in the background.
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchconvnet.errors import UserError, first_line
from patchconvnet.files import write_atomic
from patchconvnet.hardware import Threads, give_back_freed_memory
from patchconvnet.thread_count import ThreadCount
from patchconvnet.training.announcement import announcement, results
from patchconvnet.training.checkpoint_interval import CheckpointClock, CheckpointInterval
from patchconvnet.training.checkpoint_writer import CheckpointWriter
from patchconvnet.training.curves import curves_figure
from patchconvnet.training.epoch_batches import mix
from patchconvnet.training.finishing import finish
from patchconvnet.training.launch import Hardware, agreed, is_loss_of_a_process, is_sharded, launch
from patchconvnet.training.probing import FEATURES_FILE, probe
from patchconvnet.training.progress import TrainingProgress
from patchconvnet.training.recipe import Recipe
from patchconvnet.training.resuming import resume as resume_run
from patchconvnet.training.run import Run
from patchconvnet.training.run_folder import EpochPart, Resume, RunFolder
from patchconvnet.training.termination import Terminated, Termination

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
            loss that is not a number; another process of this training has ended.
        Terminated: SIGTERM; one process alone has written a checkpoint first.
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
    except RuntimeError as error:
        if fabric.world_size > 1 and is_loss_of_a_process(error):
            raise UserError(
                f"process {fabric.global_rank} of {fabric.world_size} has lost another one ({first_line(error)}); "
                f"continue with --resume auto --out {folder.path}, as torchrun does by itself with --max-restarts"
            ) from error
        raise
    finally:
        folder.close()
        torch.set_num_threads(threads)


class _Loop:
    def __init__(self, run: Run):
        self.run = run
        self.writer = CheckpointWriter(run.folder.save_checkpoint)
        every = run.recipe.checkpoint_every
        interval = None if every is None else CheckpointInterval.parse(every)
        self.clock = CheckpointClock(interval, run.fabric.broadcast)
        self.termination = Termination()

    def train(self, threads: ThreadCount | None) -> Path:
        try:
            with self.termination:
                return self._train(threads)
        finally:
            self.writer.close()

    def _train(self, threads: ThreadCount | None) -> Path:
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
            give_back_freed_memory()
            with agreed(run.fabric), run.folder.writing():
                if run.first:
                    run.monitor.draw_evolution(run.learner.whole)
                    curves = curves_figure(run.standing.history)
                    write_atomic(run.folder.curves, lambda part: curves.savefig(part, format="png"))
            progress.say("\n".join(results(run, finish(run))))
        return run.folder.best

    def _run_epoch(self, progress: TrainingProgress) -> None:
        run, standing = self.run, self.run.standing
        losses, top1, top5, train_seconds = self._train_epoch(progress)
        run.learner.gather()
        with agreed(run.fabric):
            self._check_weights(run.batches.steps - 1)
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
        standing.epoch, standing.part = standing.epoch + 1, {}
        run.count_seconds()
        self._save()  # its time belongs to the next epoch's seconds
        progress.epoch(row, is_best and validation is not None)

    def _train_epoch(self, progress: TrainingProgress) -> tuple[list[float], float, float, float]:
        """Train what is left of the epoch; returns the loss of its every step, its top-1 and top-5, and its seconds."""
        run = self.run
        fabric, seed, epoch, part = run.fabric, run.recipe.seed, run.standing.epoch, EpochPart.of(run.standing)
        steps, batch_size = run.batches.steps, run.batches.batch_size
        first, local = part.images // batch_size, batch_size // fabric.world_size
        losses, correct = torch.zeros(steps, device=fabric.device), torch.zeros(2, device=fabric.device)
        losses[:first] = torch.tensor(part.losses)
        started = refreshed = time.perf_counter()

        def so_far(done: int) -> EpochPart:
            """All processes together."""
            new = losses[first:done]
            if fabric.world_size > 1:  # gathered: how a reduction rounds may depend on how much is reduced at once
                new = fabric.all_gather(new).mean(0)
            hits = fabric.all_reduce(correct.clone(), reduce_op="sum").tolist()
            return EpochPart(
                images=done * batch_size,
                losses=[*part.losses, *new.tolist()],
                correct=[before + now for before, now in zip(part.correct, hits, strict=True)],
                seconds=part.seconds + time.perf_counter() - started,
            )

        run.learner.begin_epoch(epoch)
        batches = run.batches.epoch(epoch, run.learner.plain.patch_size, first_step=first)
        self.threads.begin()
        self.termination.deferred = fabric.world_size == 1
        for step in range(first, steps):
            number = epoch * steps + step
            torch.manual_seed(mix(seed, epoch, step, fabric.global_rank + 1))  # of dropout and stochastic depth
            losses[step], hits = run.learner.update(batches, number, run.learning_rate(number))
            correct += hits
            done = step + 1
            if done % CHECK_STEPS == 0 or done == steps:
                self._check_losses(losses[:done])
            self.threads.step()
            now = time.perf_counter()
            if run.first and (now - refreshed > REFRESH_SECONDS or done == steps):
                refreshed = now
                new = done - first
                loss_so_far, top1_so_far = losses[:done].mean().item(), correct[0].item() / (local * new)
                progress.step(epoch, done, loss_so_far, top1_so_far, batch_size * new / (now - started))
            if done < steps and (self.clock.is_due(done) or self.termination.requested):
                self._check_losses(losses[:done])
                self._save_part(so_far(done), done)
        self.termination.deferred = False
        self.writer.wait()  # before validation starts processes, which must not inherit a thread's half-done work
        whole = so_far(steps)
        top1, top5 = whole.correct
        return whole.losses, top1 / whole.images, top5 / whole.images, whole.seconds

    def _save_part(self, part: EpochPart, done: int) -> None:
        """A checkpoint in the middle of an epoch."""
        run = self.run
        with agreed(run.fabric):
            self._check_weights(done - 1)
        run.count_seconds()
        run.standing.part = part.to_dict()
        state = self._state()
        with agreed(run.fabric):
            if run.first:
                self.writer.begin(state)
        self.clock.restart()
        if self.termination.requested:
            self.writer.wait()
            raise Terminated

    def _check_losses(self, losses: Tensor) -> None:
        run = self.run
        # summed over all processes, so that all of them stop at the same step
        bad = (~run.fabric.all_reduce(losses.clone(), reduce_op="sum").isfinite()).nonzero()
        if len(bad):
            with agreed(run.fabric):
                raise UserError(f"the loss is not a finite number from {self._place(int(bad[0]))} on; {self._remedy()}")

    def _check_weights(self, step: int) -> None:
        if not self.run.learner.is_finite():
            raise UserError(f"the weights are not finite numbers after {self._place(step)}; {self._remedy()}")

    def _place(self, step: int) -> str:
        return f"epoch {self.run.standing.epoch + 1}, step {step + 1}"

    def _remedy(self) -> str:
        o, standing = self.run.recipe.optimization, self.run.standing
        kept = "there is no checkpoint yet"
        if standing.part:
            kept = (
                f"the checkpoint is that of {self._place(standing.part['images'] // self.run.batches.batch_size - 1)}"
            )
        elif standing.epoch:
            kept = f"the checkpoint is that of epoch {standing.epoch}"
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

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds; all processes together."""
        run, parts, failure = self.run, None, None
        if is_sharded(run.fabric):
            with agreed(run.fabric):
                if run.first:
                    self.writer.wait()  # it removes the parts that no checkpoint needs any more
                    parts = run.folder.new_parts()
            parts = run.fabric.broadcast(parts)
        try:
            learned = run.learner.state(parts)
        except OSError as error:  # in all processes
            failure = error
        with agreed(run.fabric), run.folder.writing():
            if failure is not None:
                raise failure
        return {
            **learned,
            "data": run.fingerprint,
            "threads": self.threads.count,
            **run.standing.to_dict(),
        }

    def _save(self) -> None:
        """The checkpoint first, since the rest follows from it and is made again where a kill comes between."""
        run, state = self.run, self._state()
        with agreed(run.fabric):
            if run.first:
                run.folder.save_checkpoint(state)
                run.folder.write_metrics(run.standing.history)
                if run.last_is_kept:
                    run.keep_last()
        self.clock.restart()
