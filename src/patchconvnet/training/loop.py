"""The training loop: Lightning Fabric moves it over devices and nodes, everything else stands here.

A run folder holds the recipe, `metrics.csv`, TensorBoard events, `checkpoints/last.ckpt`, attention figures and, in
`best/`, the model folder of the epoch with the best validation accuracy. The loop reads the training images from
`EpochBatches`, moves the weights by a `Learner`, and keeps the best model as a `KeptModel`.
"""

import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from torch import Tensor

from patchconvnet._version import __version__
from patchconvnet.data.batches import batches
from patchconvnet.errors import UserError
from patchconvnet.files import write_atomic
from patchconvnet.hardware import ThreadCount, Threads, device_name
from patchconvnet.models import AttentionClassifier
from patchconvnet.models.weights import Metadata
from patchconvnet.training.calibration import calibrate
from patchconvnet.training.curves import curves_figure
from patchconvnet.training.epoch_batches import EpochBatches, mix
from patchconvnet.training.evaluation import FEWEST_FOR_TOP5, Evaluation, evaluate
from patchconvnet.training.kept_model import KeptModel
from patchconvnet.training.launch import Hardware, agreed, launch
from patchconvnet.training.learner import Learner
from patchconvnet.training.monitor import AttentionMonitor
from patchconvnet.training.optimization import learning_rate
from patchconvnet.training.probing import FEATURES_FILE, class_weights, fit_head, probe, with_pooling
from patchconvnet.training.progress import TrainingProgress, describe_data
from patchconvnet.training.recipe import Recipe
from patchconvnet.training.run_folder import Resume, RunFolder, Standing
from patchconvnet.training.sources import build_model, load_data, whiten

REFRESH_SECONDS = 0.25  # between two readings of the running loss, which on a GPU wait for it
CHECK_STEPS = 20  # between two checks that the loss is still a number
CALIBRATION_IMAGES = 10_000  # training images that the temperature is fitted to where there is no validation split


def train(recipe: Recipe, run: Path, *, resume: Resume = "no", hardware: Hardware | None = None) -> Path:
    """Train by a recipe into a run folder.

    Args:
        recipe: what to do. A resumed run may have other `epochs`; the learning rate then follows the new schedule.
        run: the run folder; must be new or empty unless resumed.
        resume: "yes" goes on from the run's last checkpoint, "auto" does so if there is one; on a CPU the result is
            bit-equal to that of an uninterrupted run while the number of threads stays the same; a run whose number was
            chosen ("auto") goes on with the one that its checkpoint names.
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
        return _Training(fabric, recipe, folder).run(hardware.threads)
    finally:
        folder.close()
        torch.set_num_threads(threads)


class _Training:
    def __init__(self, fabric: Fabric, recipe: Recipe, folder: RunFolder):
        self.fabric, self.recipe, self.folder = fabric, recipe, folder
        self.first = fabric.is_global_zero
        self.kept = KeptModel(folder.best, recipe.half_weights)
        self.standing = Standing()
        self._load_data()
        with agreed(fabric):
            self._build()
        self.learner.set_up()

    def _load_data(self) -> None:
        # the first process of each node goes ahead, since it may download, and warns of unreadable files for all
        for turn in (True, False):
            with agreed(self.fabric):
                if turn is (self.fabric.local_rank == 0):
                    with warnings.catch_warnings():
                        if not self.first:
                            warnings.simplefilter("ignore")
                        self.data = load_data(self.recipe, show_progress=self.first)
                    self.fingerprint = self.data.fingerprint()

    def _build(self) -> None:
        recipe, images = self.recipe, self.data.require("train")
        self.batches = EpochBatches(images, recipe, self.fabric)
        torch.manual_seed(recipe.seed)
        if recipe.method == "finetune":
            recipe = with_pooling(recipe)
        model = build_model(recipe, len(self.data.class_names))
        if recipe.method == "finetune" and not self.folder.checkpoint.is_file():
            fit_head(model, recipe, self.data, self.fabric.device)
        model.metadata.temperature = 1.0  # of a model folder that training starts from
        if recipe.model.whiten:
            whiten(model, recipe, self.batches.source, len(images))
        weights = class_weights(images.labels, model.num_classes) if recipe.optimization.balanced else None
        self.learner = Learner(model, recipe, self.fabric, weights)
        self.monitor = AttentionMonitor(
            self.data.validation or images, recipe.preprocessing, recipe.monitor, self.folder.attention, recipe.seed
        )

    def run(self, threads: ThreadCount | None) -> Path:
        epochs = self.recipe.epochs
        self.known_threads: int | None = None
        notes = self._resume()
        self.counted = time.perf_counter()  # up to when `seconds` has been counted
        classes = len(self.data.class_names)
        with TrainingProgress(epochs, self.batches.steps, self.standing.epoch, self.first, classes) as progress:
            progress.say("\n".join([*self._announcement(), *notes]))
            if threads == "auto" and self.fabric.world_size > 1:
                threads = None
            self.threads = Threads(threads, self.fabric.device, progress.say, known=self.known_threads)
            while not self._is_finished():
                self._run_epoch(progress)
            with agreed(self.fabric), self.folder.writing():
                if self.first:
                    self.monitor.draw_evolution(self.learner.whole)
                    curves = curves_figure(self.standing.history)
                    write_atomic(self.folder.curves, lambda part: curves.savefig(part, format="png"))
            self._finish(progress)
            progress.say(f"model folder: {self.folder.best}")
            if self.recipe.monitor.every:
                progress.say(f"attention figures: {self.folder.attention}")
        return self.folder.best

    def _is_finished(self) -> bool:
        return self.standing.epoch >= self.recipe.epochs or self._is_out_of_patience()

    def _is_out_of_patience(self) -> bool:
        patience, standing = self.recipe.patience, self.standing
        if patience is None or self.data.validation is None:
            return False
        return standing.epoch - 1 - standing.best_epoch >= patience

    # One epoch

    def _run_epoch(self, progress: TrainingProgress) -> None:
        standing, started = self.standing, time.perf_counter()
        torch.manual_seed(mix(self.recipe.seed, standing.epoch, self.fabric.global_rank))  # dropout, stochastic depth
        losses, top1, top5 = self._train_epoch(progress)
        train_seconds = time.perf_counter() - started
        self.learner.gather()
        with agreed(self.fabric):
            self._check_weights()
        validation = self._evaluate(self.learner.whole, "validation") if self.data.validation is not None else None
        is_best = validation is None or validation.top1 > standing.best_top1
        if is_best:
            standing.best_epoch = standing.epoch
            standing.best_metrics = {"epoch": standing.epoch + 1}
            if validation is not None:
                standing.best_top1 = validation.top1
                standing.best_metrics["validation"] = validation.to_dict()
        steps = (standing.epoch + 1) * self.batches.steps
        row = {
            "epoch": standing.epoch + 1,
            "step": steps,
            "learning_rate": self._learning_rate(steps - 1),
            "train_loss": sum(losses) / len(losses),
            "train_top1": top1,
            "train_top5": top5,
            "val_loss": validation.loss if validation else None,
            "val_top1": validation.top1 if validation else None,
            "val_top5": validation.top5 if validation else None,
            "images_per_second": self.batches.steps * self.batches.batch_size / train_seconds,
            "seconds": self._count_seconds(),
        }
        with agreed(self.fabric), self.folder.writing():
            if self.first:
                self._log(row, losses)
        standing.history.append(row)
        standing.epoch += 1
        self._count_seconds()
        self._save()  # its time belongs to the next epoch's seconds
        progress.epoch(row, is_best and validation is not None)

    def _count_seconds(self) -> float:
        """Seconds of this run, images and checkpoints included, however often it was resumed."""
        now = time.perf_counter()
        self.standing.seconds, self.counted = self.standing.seconds + now - self.counted, now
        return self.standing.seconds

    def _train_epoch(self, progress: TrainingProgress) -> tuple[list[float], float, float]:
        """Train; returns the loss of every step, and top-1 and top-5 over the epoch."""
        device, steps, batch_size = self.fabric.device, self.batches.steps, self.batches.batch_size
        epoch, local = self.standing.epoch, batch_size // self.fabric.world_size
        losses, correct = torch.zeros(steps, device=device), torch.zeros(2, device=device)
        started = refreshed = time.perf_counter()
        self.learner.train_mode()
        batches = self.batches.epoch(epoch, self.learner.plain.patch_size)
        self.threads.begin()
        for step in range(steps):
            number = epoch * steps + step
            losses[step], hits = self.learner.update(batches, number, self._learning_rate(number))
            correct += hits
            done = step + 1
            if done % CHECK_STEPS == 0 or done == steps:
                self._check_losses(losses[:done])
            self.threads.step()
            now = time.perf_counter()
            if self.first and (now - refreshed > REFRESH_SECONDS or done == steps):
                refreshed = now
                loss_so_far, top1_so_far = losses[:done].mean().item(), correct[0].item() / (local * done)
                progress.step(epoch, done, loss_so_far, top1_so_far, batch_size * done / (now - started))
        losses = self.fabric.all_reduce(losses, reduce_op="mean")
        top1, top5 = self.fabric.all_reduce(correct, reduce_op="sum").tolist()
        return losses.tolist(), top1 / (steps * batch_size), top5 / (steps * batch_size)

    def _learning_rate(self, step: int) -> float:
        return learning_rate(self.recipe.optimization, step, self.recipe.epochs * self.batches.steps)

    def _check_losses(self, losses: Tensor) -> None:
        # summed over all processes, so that all of them stop at the same step
        bad = (~self.fabric.all_reduce(losses.clone(), reduce_op="sum").isfinite()).nonzero()
        if len(bad):
            with agreed(self.fabric):
                raise UserError(f"the loss is not a finite number from {self._place(int(bad[0]))} on; {self._remedy()}")

    def _check_weights(self) -> None:
        if not self.learner.is_finite():
            raise UserError(
                f"the weights are not finite numbers after {self._place(self.batches.steps - 1)}; {self._remedy()}"
            )

    def _place(self, step: int) -> str:
        return f"epoch {self.standing.epoch + 1}, step {step + 1}"

    def _remedy(self) -> str:
        o, epoch = self.recipe.optimization, self.standing.epoch
        kept = f"the checkpoint is that of epoch {epoch}" if epoch else "there is no checkpoint yet"
        return (
            f"{kept}. Try a lower optimization.learning_rate (now {o.learning_rate:g}), a longer optimization.warmup "
            f"(now {o.warmup:g}), optimization.clip_gradient 1, or precision 32-true, in a new run folder"
        )

    def _evaluate(
        self, model: AttentionClassifier, split: Literal["validation", "test"], full_precision: bool = False
    ) -> Evaluation:
        return evaluate(
            model,
            self.data.require(split),
            self.recipe.preprocessing,
            batch_size=max(self.batches.batch_size, 256),
            device=self.fabric.device,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
            autocast=nullcontext if full_precision else self.fabric.autocast,
            workers=self.recipe.data.workers,
        )

    # What is written

    def _log(self, row: dict[str, Any], losses: list[float]) -> None:
        """TensorBoard's curves and the attention figure, if it is due."""
        logger: Any = self.fabric.logger
        logger.log_metrics({key: value for key, value in row.items() if value is not None}, step=row["step"])
        for step, loss in enumerate(losses, row["step"] - len(losses) + 1):
            logger.experiment.add_scalar("step_loss", loss, step)
        if self.monitor.is_due(self.standing.epoch, self.recipe.epochs - 1):
            image = self.monitor.draw(self.learner.whole, self.standing.epoch, self.fabric.device)
            logger.experiment.add_image("attention", image, row["step"], dataformats="HWC")
        logger.experiment.flush()

    def _save(self) -> None:
        """The checkpoint first, since the rest follows from it and is made again where a kill comes between."""
        state = {
            **self.learner.state(),
            "data": self.fingerprint,
            "threads": self.threads.count,
            **self.standing.to_dict(),
        }
        with agreed(self.fabric):
            if self.first:
                self.folder.save_checkpoint(state)
                self.folder.write_metrics(self.standing.history)
                if self._is_to_keep():
                    self.kept.write(self.learner.whole, self._metadata())

    def _is_to_keep(self) -> bool:
        """Whether the last epoch's model is the one in `best/`; without a validation split that is known at the end."""
        chosen = self.data.validation is not None or self.standing.epoch == self.recipe.epochs
        return chosen and self.standing.best_epoch == self.standing.epoch - 1

    def _metadata(self) -> Metadata:
        splits = {name: getattr(self.data, name) for name in ("train", "validation", "test")}
        counts = {name: len(split) for name, split in splits.items() if split is not None}
        recipe = self.recipe.to_dict()
        recipe["data"]["root"] = None  # a folder of this machine; the model folder travels
        provenance = {
            "recipe": recipe,
            "data": {"name": self.data.name, **counts, "fingerprint": self.fingerprint},
            "patchconvnet": __version__,
            "torch": torch.__version__,
            "date": datetime.now(UTC).date().isoformat(),
            "precision": self._precision(),
            "devices": self._devices(),
            "seconds": round(self.standing.seconds, 1),
        }
        if self.standing.extensions:
            provenance["extensions"] = self.standing.extensions
        return Metadata(
            class_names=list(self.data.class_names),
            preprocessing=self.recipe.preprocessing.to_dict(),
            provenance=provenance,
            metrics=self.standing.best_metrics,
        )

    def _finish(self, progress: TrainingProgress) -> None:
        """Calibrate the kept model, and measure it on the test set, which is touched once."""
        kept = self.kept.metadata()
        if "calibration" not in kept.provenance and "test" not in kept.metrics:  # old runs have the second only
            with agreed(self.fabric):
                model = self.kept.load().to(self.fabric.device)
            calibrate(model, *self._calibration_images(model))
            kept = replace(model.metadata, metrics={**model.metadata.metrics, **self._measured(model)})
            kept.provenance["seconds"] = round(self._count_seconds(), 1)
            with agreed(self.fabric):
                if self.first:
                    self.kept.write(model.cpu(), kept)
        epoch = self.standing.best_epoch + 1
        if t := kept.metrics.get("test"):
            top5 = f"  top-5 {t['top5']:.2%}" if len(self.data.class_names) >= FEWEST_FOR_TOP5 else ""
            progress.say(
                f"test set, model of epoch {epoch}: loss {t['loss']:.4f}  top-1 {t['top1']:.2%}{top5}  calibration "
                f"error {t['calibration_error']:.2%}  ({t['images']:,} images, {self.standing.seconds:,.0f} s of "
                "training)"
            )
        else:
            progress.say(f"no test set; kept is the model of epoch {epoch}")
        if source := kept.provenance.get("calibration"):
            progress.say(f"probabilities: softmax of the logits over a temperature of {kept.temperature:g} ({source})")

    def _calibration_images(self, model: AttentionClassifier) -> tuple[Callable[[], Any] | None, str]:
        """What the temperature is fitted to.

        Training images were learned, so that they show too much confidence; but label smoothing takes away more than
        that: for the shipped CIFAR-10 model they bring the calibration error from 11.0 to 4.7 %, where images that were
        not learned would bring it to 2.0 %.
        """
        split = self.data.validation
        if split is not None:
            ours = torch.arange(self.fabric.global_rank, len(split), self.fabric.world_size)
            return (
                lambda: (
                    batches(
                        split,
                        self.recipe.preprocessing,
                        max(self.batches.batch_size, 256),
                        device=self.fabric.device,
                        indices=ours,
                        workers=self.recipe.data.workers,
                    )
                    if len(ours)
                    else ()
                ),
                "fitted to the validation images",
            )
        if self.recipe.optimization.label_smoothing:
            augmented = "fitted to augmented training images, for want of others"
            return lambda: self.batches.unmixed(model.patch_size, CALIBRATION_IMAGES), augmented
        return None, "not fitted: there are no validation images"

    def _measured(self, model: AttentionClassifier) -> dict[str, Any]:
        names: tuple[Literal["validation", "test"], ...] = ("validation", "test")
        return {
            name: self._evaluate(model, name, full_precision=True).to_dict()
            for name in names
            if getattr(self.data, name) is not None
        }

    # Going on with a run

    def _resume(self) -> list[str]:
        """Take up the run's checkpoint, if there is one; returns what there is to say about it."""
        if not self.fabric.broadcast(self.folder.checkpoint.is_file()):
            return []
        origin, epochs = str(self.folder.checkpoint), self.recipe.epochs
        with agreed(self.fabric):
            state = self.folder.load_checkpoint()
            self._check_data(state["data"])
            self.learner.check(state, origin)
            self.standing = standing = Standing.of(state)
            if standing.epoch > epochs:
                raise UserError(
                    f"the run in {self.folder.path} has done {standing.epoch} epochs, and {epochs} are asked for; "
                    f"give --epochs {standing.epoch} or more, or begin a new run in another --out"
                )
        self.learner.load(state, origin)
        self.known_threads = state.get("threads")
        before = self.fabric.broadcast(self.folder.epochs() if self.first else None)
        notes = [f"going on after epoch {standing.epoch}"]
        if self._is_finished():
            notes = [f"this run is finished, with epoch {standing.epoch} of {epochs}"]
        if before != epochs:
            standing.extensions.append([standing.epoch, epochs])
            notes.append(
                f"the run's length changes from {before} to {epochs} epochs: the learning rate follows the schedule of "
                f"{epochs} from here on (now {self._learning_rate(standing.epoch * self.batches.steps):.2g}), so the "
                f"result is not that of a run begun with {epochs}"
            )
        with agreed(self.fabric), self.folder.writing():
            if self.first:
                if before != epochs:
                    self.folder.write_recipe(self.recipe)
                self.monitor.forget_after(standing.epoch)
                self.folder.write_metrics(standing.history)
        with agreed(self.fabric):
            if self.first:
                self._restore_kept()
        standing.best_epoch, standing.best_top1 = self.fabric.broadcast((standing.best_epoch, standing.best_top1))
        return notes

    def _restore_kept(self) -> None:
        """Make `best/` what the checkpoint says that it is.

        Raises:
            UserError: it is damaged, the checkpoint holds another epoch's weights, and no epoch is left to choose from.
        """
        standing = self.standing
        if self.data.validation is None and standing.epoch < self.recipe.epochs:
            return  # it is written at the end
        fault = self.kept.fault(standing.best_epoch + 1)
        if fault is None:
            return
        if self._is_to_keep():
            self.kept.write(self.learner.whole, self._metadata())
            return
        lost = f"{fault}; the checkpoint holds epoch {standing.epoch}, not the best one, {standing.best_epoch + 1}"
        if self._is_finished():
            raise UserError(
                f"{lost}. Train on with more --epochs, the best of which is then kept, or begin a new run in another "
                "--out"
            )
        warnings.warn(f"{lost}. The best of the epochs that follow is kept instead", stacklevel=2)
        standing.best_epoch, standing.best_top1 = -1, -1.0

    def _check_data(self, before: dict[str, Any]) -> None:
        """Other images would be split otherwise: what was trained on could come to be tested on."""
        now = {name: value for name, value in self.fingerprint.items() if name != "all images"}
        changed = [name for name, value in now.items() if name in before and value != before[name]]
        if changed and all(name.endswith("contents") for name in changed):
            splits = " and ".join(name.removesuffix(" contents") for name in changed)
            raise UserError(
                f"{splits} images of {self.data.name} have been replaced by others of the same names since the run in "
                f"{self.folder.path} was begun; resume it with the same images, or begin a new run in another --out"
            )
        if changed := [name for name in changed if not name.endswith("contents")]:
            raise UserError(
                f"the {' and '.join(changed)} of {self.data.name} are not those that the run in {self.folder.path} was "
                "begun with; resume it with the same images, or begin a new run in another --out"
            )

    # Words

    def _announcement(self) -> list[str]:
        r = self.recipe
        size = "×".join(map(str, r.preprocessing.size))
        epochs = "1 epoch" if r.epochs == 1 else f"{r.epochs} epochs"
        weights = sum(p.numel() for p in self.learner.whole.parameters())
        return [
            f"{r.model.name} ({weights:,} parameters) on {self.data.name}, {size} pixels: {describe_data(self.data)}",
            f"{epochs} of {self.batches.steps} steps of {self.batches.batch_size}, {r.optimization.optimizer}, "
            f"{self._precision()}, {self._devices()} → {self.folder.path}",
        ]

    def _precision(self) -> str:
        return str(self.fabric.strategy.precision.precision)

    def _devices(self) -> str:
        return f"{self.fabric.world_size} × {device_name(self.fabric.device)}"
