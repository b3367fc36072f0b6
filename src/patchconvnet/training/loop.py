"""The training loop: Lightning Fabric moves it over devices and machines, everything else stands here.

A run folder holds the recipe, `metrics.csv`, TensorBoard events, `checkpoints/last.ckpt`, attention figures and, in
`best/`, the model folder of the epoch with the best validation accuracy.
"""

import copy
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from timm.utils import ModelEmaV3
from torch import Tensor

from patchconvnet._version import __version__
from patchconvnet.data.augmentation import Augmentation
from patchconvnet.errors import UserError
from patchconvnet.files import write_atomic
from patchconvnet.hardware import device_name
from patchconvnet.models import AttentionClassifier, load
from patchconvnet.models.weights import Metadata
from patchconvnet.training import sharding
from patchconvnet.training.curves import curves_figure
from patchconvnet.training.distributed import synchronise_batch_norm
from patchconvnet.training.evaluation import Evaluation, evaluate
from patchconvnet.training.launch import Hardware, agreed, is_sharded, launch
from patchconvnet.training.monitor import AttentionMonitor
from patchconvnet.training.optimization import build_optimizer, warmup_cosine, warmup_linear
from patchconvnet.training.probing import FEATURES_FILE, probe
from patchconvnet.training.progress import TrainingProgress
from patchconvnet.training.recipe import Recipe
from patchconvnet.training.run_folder import Resume, RunFolder
from patchconvnet.training.sources import batch_source, build_model, load_data, whiten

REFRESH_SECONDS = 0.25  # between two looks at the running loss, which on a GPU waits for it
CHECK_STEPS = 20  # between two looks at whether the loss is still a number
# what an epoch changes besides weights; the checkpoint holds it
PROGRESS = ("epoch", "seconds", "best_epoch", "best_top1", "best_metrics", "history")


def train(recipe: Recipe, run: Path, *, resume: Resume = "no", hardware: Hardware | None = None) -> Path:
    """Train by a recipe into a run folder.

    Args:
        recipe: what to do.
        run: the run folder; must be new or empty unless resumed.
        resume: "yes" goes on from the run's last checkpoint, "auto" does so if there is one; on a CPU the result is
            bit-equal to that of an uninterrupted run.
        hardware: devices; one, of the best kind there is, when left out.

    Returns:
        The model folder of the best epoch.

    Raises:
        UserError: a mistake in the recipe, the data or the run folder; a full disk; a loss that is not a number.
    """
    fabric = launch(hardware or Hardware(), recipe, run)
    folder = RunFolder(Path(fabric.broadcast(str(run))), FEATURES_FILE if recipe.method == "probe" else "last.ckpt")
    with agreed(fabric):
        if fabric.is_global_zero:
            folder.open(recipe, resume)
    if recipe.method == "probe":
        if fabric.world_size > 1:
            raise UserError("method 'probe' runs on one device; leave out --devices and --nodes, or use method 'train'")
        return probe(recipe, folder, fabric.device)
    return _Training(fabric, recipe, folder).run()


class _Training:
    def __init__(self, fabric: Fabric, recipe: Recipe, folder: RunFolder):
        self.fabric, self.recipe, self.folder = fabric, recipe, folder
        self.first = fabric.is_global_zero
        self._load_data()
        with agreed(fabric):
            self._build()
        self._set_up()
        self.epoch = 0
        self.seconds = 0.0
        self.best_epoch = -1
        self.best_top1 = -1.0
        self.best_metrics: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []

    def _load_data(self) -> None:
        # the first process of each machine goes ahead, since it may download, and warns of unreadable files for all
        for turn in (True, False):
            with agreed(self.fabric):
                if turn is (self.fabric.local_rank == 0):
                    with warnings.catch_warnings():
                        if not self.first:
                            warnings.simplefilter("ignore")
                        self.data = load_data(self.recipe, show_progress=self.first)

        self.fingerprint = self.data.fingerprint()

    def _build(self) -> None:
        fabric, recipe = self.fabric, self.recipe
        images = self.data.require("train")
        self.class_names = self.data.class_names
        self.steps, self.batch_size = _steps(len(images), recipe.batch_size, self._parts())
        self.augmentation = Augmentation(
            recipe.augmentation,
            recipe.preprocessing,
            len(self.class_names),
            label_smoothing=recipe.optimization.label_smoothing,
            seed=recipe.seed,
        )
        self.source = batch_source(images, recipe, fabric.device, show_progress=self.first)
        torch.manual_seed(recipe.seed)
        # plain: the network without what Fabric puts around it; whole: the one that is validated, drawn and kept, with
        # all its weights on this process
        self.plain = self.whole = build_model(recipe, len(self.class_names))
        if recipe.model.whiten:
            whiten(self.plain, recipe, self.source, len(images))
        if is_sharded(fabric):
            self.whole = copy.deepcopy(self.plain).to(fabric.device)
        else:  # the other takes weights in their plain memory layout only
            self.plain.to(memory_format=torch.channels_last)
        if fabric.world_size > 1:
            synchronise_batch_norm(self.plain)
        build_optimizer(self.plain, recipe.optimization)  # for its complaints; the real one follows in _set_up
        self.monitor = AttentionMonitor(
            self.data.validation or images, recipe.preprocessing, recipe.monitor, self.folder.attention, recipe.seed
        )

    def _set_up(self) -> None:
        fabric, decay = self.fabric, self.recipe.optimization.ema_decay
        compiled = torch.compile(self.plain) if self.recipe.compile else self.plain
        self.model = fabric.setup_module(compiled)
        self.optimizer = fabric.setup_optimizers(build_optimizer(self.plain, self.recipe.optimization))
        self.ema = ModelEmaV3(self.plain, decay, use_warmup=True) if decay else None
        if self.ema is not None:
            self.whole = self.ema.module

    def run(self) -> Path:
        self._resume()
        self.counted = time.perf_counter()  # up to when `seconds` has been counted
        epochs = self.recipe.epochs
        with TrainingProgress(epochs, self.steps, self.epoch, self.first) as progress:
            progress.say(self._announcement())
            while self.epoch < epochs:
                self._run_epoch(progress)
            with agreed(self.fabric), self.folder.writing():
                if self.first:
                    self.monitor.draw_evolution(self.whole)
                    curves = curves_figure(self.history)
                    write_atomic(self.folder.curves, lambda part: curves.savefig(part, format="png"))
            self._test(progress)
            progress.say(f"model folder: {self.folder.best}")
            if self.recipe.monitor.every:
                progress.say(f"attention figures: {self.folder.attention}")
        return self.folder.best

    # One epoch

    def _run_epoch(self, progress: TrainingProgress) -> None:
        started = time.perf_counter()
        torch.manual_seed(_mix(self.recipe.seed, self.epoch, self.fabric.global_rank))  # dropout, stochastic depth
        losses, top1, top5 = self._train_epoch(progress)
        train_seconds = time.perf_counter() - started
        if is_sharded(self.fabric):
            sharding.gather(self.plain, self.whole)
        with agreed(self.fabric):
            self._check_weights()
        validation = self._evaluate(self.whole, "validation") if self.data.validation is not None else None
        is_best = validation is None or validation.top1 > self.best_top1
        if is_best:
            self.best_epoch = self.epoch
            self.best_metrics = {"epoch": self.epoch + 1}
            if validation is not None:
                self.best_top1 = validation.top1
                self.best_metrics["validation"] = validation.to_dict()
        row = {
            "epoch": self.epoch + 1,
            "step": (self.epoch + 1) * self.steps,
            "learning_rate": self._learning_rate((self.epoch + 1) * self.steps - 1),
            "train_loss": sum(losses) / len(losses),
            "train_top1": top1,
            "train_top5": top5,
            "val_loss": validation.loss if validation else None,
            "val_top1": validation.top1 if validation else None,
            "val_top5": validation.top5 if validation else None,
            "images_per_second": self.steps * self.batch_size / train_seconds,
            "seconds": self._count_seconds(),
        }
        with agreed(self.fabric), self.folder.writing():
            if self.first:
                self._log(row, losses)
        self.history.append(row)
        self.epoch += 1
        self._count_seconds()
        self._save()  # its time belongs to the next epoch's seconds
        progress.epoch(row, is_best and validation is not None)

    def _count_seconds(self) -> float:
        """Seconds of this run, images and checkpoints included, however often it was resumed."""
        now = time.perf_counter()
        self.seconds, self.counted = self.seconds + now - self.counted, now
        return self.seconds

    def _train_epoch(self, progress: TrainingProgress) -> tuple[list[float], float, float]:
        """Train; returns the loss of every step, and top-1 and top-5 over the epoch."""
        self.model.train()
        device, parts = self.fabric.device, self.recipe.optimization.accumulate
        local = self.batch_size // self.fabric.world_size
        losses, correct = torch.zeros(self.steps, device=device), torch.zeros(2, device=device)
        started = refreshed = time.perf_counter()
        batches = self._batches()
        for step in range(self.steps):
            self._set_learning_rate(self.epoch * self.steps + step)
            for part in range(parts):
                images, labels, targets = next(batches)
                with self.fabric.no_backward_sync(self.model, enabled=part < parts - 1):
                    logits = self.model(images)
                    loss = self._loss(logits, targets) / parts
                    self.fabric.backward(loss)
                losses[step] += loss.detach()
                correct += _correct(logits.detach(), labels)
            if self.recipe.optimization.clip_gradient is not None:
                self.fabric.clip_gradients(
                    self.model,
                    self.optimizer,
                    max_norm=self.recipe.optimization.clip_gradient,
                    error_if_nonfinite=False,  # _check_losses and _check_weights have more to say
                )
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.ema is not None:
                self.ema.update(self.plain, self.epoch * self.steps + step)
            done = step + 1
            if done % CHECK_STEPS == 0 or done == self.steps:
                self._check_losses(losses[:done])
            now = time.perf_counter()
            if self.first and (now - refreshed > REFRESH_SECONDS or done == self.steps):
                refreshed = now
                loss_so_far, top1_so_far = losses[:done].mean().item(), correct[0].item() / (local * done)
                progress.step(self.epoch, done, loss_so_far, top1_so_far, self.batch_size * done / (now - started))
        losses = self.fabric.all_reduce(losses, reduce_op="mean")
        top1, top5 = self.fabric.all_reduce(correct, reduce_op="sum").tolist()
        count = self.steps * self.batch_size
        return losses.tolist(), top1 / count, top5 / count

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """This process's (images, labels, targets) of an epoch, part after part of every global batch."""
        seed, epoch = self.recipe.seed, self.epoch
        count = len(self.data.require("train"))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(_mix(seed, epoch)))
        parts, rank = self.recipe.optimization.accumulate, self.fabric.global_rank
        count_here = self.batch_size // self._parts()
        slices = [
            slice(begin, begin + count_here)
            for part in range(parts)
            for begin in [(part * self.fabric.world_size + rank) * count_here]
        ]
        global_batches = order[: self.steps * self.batch_size].split(self.batch_size)
        size = self.recipe.progressive.size(
            self.recipe.preprocessing.size, self.plain.patch_size, epoch, self.recipe.epochs
        )
        places = [indices[part] for indices in global_batches for part in slices]
        for i, (images, labels) in enumerate(self.source(places)):
            step, part = divmod(i, parts)
            # every part of a global batch draws the same random numbers and takes its own
            generator = torch.Generator().manual_seed(_mix(seed, epoch, step))
            augmented, targets = self.augmentation(
                images,
                labels,
                indices=global_batches[step],
                epoch=epoch,
                generator=generator,
                batch_slice=slices[part],
            )
            if size != self.recipe.preprocessing.size:
                augmented = F.interpolate(augmented, size=size, mode="bilinear", antialias=True)
            yield augmented, labels, targets

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        soft = targets.ndim == 2  # Mixup's and CutMix's targets are smoothed already
        smoothing = 0.0 if soft else self.recipe.optimization.label_smoothing
        return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)

    def _check_losses(self, losses: Tensor) -> None:
        # summed over all processes, so that all of them stop at the same step
        bad = (~self.fabric.all_reduce(losses.clone(), reduce_op="sum").isfinite()).nonzero()
        if len(bad):
            with agreed(self.fabric):
                raise UserError(f"the loss is not a finite number from {self._place(int(bad[0]))} on; {self._remedy()}")

    def _check_weights(self) -> None:
        if not all(value.isfinite().all() for value in self.whole.state_dict().values()):
            raise UserError(f"the weights are not finite numbers after {self._place(self.steps - 1)}; {self._remedy()}")

    def _place(self, step: int) -> str:
        return f"epoch {self.epoch + 1}, step {step + 1}"

    def _remedy(self) -> str:
        o = self.recipe.optimization
        kept = "the checkpoint of the epoch before is whole" if self.epoch else "there is no checkpoint yet"
        return (
            f"{kept}. Try a lower optimization.learning_rate (now {o.learning_rate:g}), a longer optimization.warmup "
            f"(now {o.warmup:g}), optimization.clip_gradient 1, or precision 32-true, in a new run folder"
        )

    def _learning_rate(self, step: int) -> float:
        # counted from 1 to the last step of a run one longer: neither the first nor the last update has a rate of 0
        o, total = self.recipe.optimization, self.recipe.epochs * self.steps
        schedule = warmup_linear if o.schedule == "linear" else warmup_cosine
        return schedule(step + 1, total + 1, int(o.warmup * total), o.learning_rate)

    def _set_learning_rate(self, step: int) -> None:
        share = self._learning_rate(step) / self.recipe.optimization.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = share * group["initial_lr"]

    def _evaluate(
        self, model: AttentionClassifier, split: Literal["validation", "test"], full_precision: bool = False
    ) -> Evaluation:
        return evaluate(
            model,
            self.data.require(split),
            self.recipe.preprocessing,
            batch_size=max(self.batch_size, 256),
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
        if self.monitor.is_due(self.epoch, self.recipe.epochs - 1):
            image = self.monitor.draw(self.whole, self.epoch, self.fabric.device)
            logger.experiment.add_image("attention", image, row["step"], dataformats="HWC")
        logger.experiment.flush()

    def _save(self) -> None:
        """The checkpoint first, since the rest follows from it and is made again where a kill comes between."""
        state = self._state()
        with agreed(self.fabric):
            if self.first:
                self.folder.save_checkpoint(state)
                self.folder.write_metrics(self.history)
                self._keep_best()

    def _keep_best(self) -> None:
        """Write `best/` if the epoch just finished is the one to keep and is not there yet."""
        if self.best_epoch != self.epoch - 1 or self.folder.best_metrics().get("epoch") == self.epoch:
            return
        if self.data.validation is None and self.epoch < self.recipe.epochs:
            return  # nothing to choose by: the last epoch is kept
        self.whole.metadata = Metadata(
            class_names=list(self.class_names),
            preprocessing=self.recipe.preprocessing.to_dict(),
            provenance=self._provenance(),
            metrics=self.best_metrics,
        )
        self._save_model(self.whole)

    def _save_model(self, model: AttentionClassifier) -> None:
        model.save_pretrained(self.folder.best, dtype="float16" if self.recipe.half_weights else "float32")

    def _provenance(self) -> dict[str, Any]:
        splits = {name: getattr(self.data, name) for name in ("train", "validation", "test")}
        counts = {name: len(split) for name, split in splits.items() if split is not None}
        recipe = self.recipe.to_dict()
        recipe["data"]["root"] = None  # a folder of this machine; the model folder travels
        return {
            "recipe": recipe,
            "data": {"name": self.data.name, **counts, "fingerprint": self.fingerprint},
            "patchconvnet": __version__,
            "torch": torch.__version__,
            "date": datetime.now(UTC).date().isoformat(),
            "precision": self._precision(),
            "devices": self._devices(),
            "seconds": round(self.seconds, 1),
        }

    def _test(self, progress: TrainingProgress) -> None:
        """The test set, touched once, with the model folder that was kept."""
        metrics = self.folder.best_metrics()
        if self.data.test is None:
            progress.say(f"no test set; kept is the model of epoch {self.best_epoch + 1}")
            return
        if "test" not in metrics:
            with agreed(self.fabric):
                model = load(self.folder.best).to(self.fabric.device)
            result = self._evaluate(model, "test", full_precision=True).to_dict()
            metrics = {**model.metadata.metrics, "test": result}
            with agreed(self.fabric):
                if self.first:
                    model.metadata.metrics = metrics
                    model.metadata.provenance["seconds"] = round(self._count_seconds(), 1)
                    self._save_model(model.cpu())
        t = metrics["test"]
        progress.say(
            f"test set, model of epoch {self.best_epoch + 1}: loss {t['loss']:.4f}  top-1 {t['top1']:.2%}  "
            f"top-5 {t['top5']:.2%}  ({t['images']:,} images, {self.seconds:,.0f} s of training)"
        )

    # Checkpoints

    def _state(self) -> dict[str, Any]:
        if is_sharded(self.fabric):
            state = sharding.state(self.plain, self.optimizer.optimizer)
        else:
            state = {"model": self.plain.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.ema is not None:
            state["ema"] = self.ema.module.state_dict()
        state["precision"] = self.fabric.strategy.precision.state_dict()  # float16's loss scale
        state["data"] = self.fingerprint
        return {**state, **{name: getattr(self, name) for name in PROGRESS}}

    def _resume(self) -> None:
        if not self.fabric.broadcast(self.folder.checkpoint.is_file()):
            return
        with agreed(self.fabric):
            state = self.folder.load_checkpoint()
            self._check_data(state.get("data", {}))
        for name in PROGRESS:
            setattr(self, name, state[name])
        if state.get("precision"):
            self.fabric.strategy.precision.load_state_dict(state["precision"])
        if is_sharded(self.fabric):
            sharding.load(self.plain, self.optimizer.optimizer, state)
            sharding.gather(self.plain, self.whole)
        else:
            self.plain.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        with agreed(self.fabric), self.folder.writing():
            if self.first:
                self.monitor.forget_after(self.epoch)
                self.folder.write_metrics(self.history)
                self._keep_best()

    def _check_data(self, before: dict[str, Any]) -> None:
        """Other images would be split otherwise: what was trained on could come to be tested on."""
        now = {name: value for name, value in self.fingerprint.items() if name != "all images"}
        changed = [name for name, value in now.items() if name in before and value != before[name]]
        if changed:
            raise UserError(
                f"the {' and '.join(changed)} of {self.data.name} are not those that the run in {self.folder.path} was "
                "begun with; resume it with the same images, or begin a new run in another --out"
            )

    # Words

    def _announcement(self) -> str:
        r = self.recipe
        size = "×".join(map(str, r.preprocessing.size))
        epochs = "1 epoch" if r.epochs == 1 else f"{r.epochs} epochs"
        lines = [
            f"{r.model.name} ({sum(p.numel() for p in self.whole.parameters()):,} parameters) on {self.data.name}: "
            f"{len(self.data.require('train')):,} images, {len(self.class_names)} classes, {size} pixels",
            f"{epochs} of {self.steps} steps of {self.batch_size}, {r.optimization.optimizer}, "
            f"{self._precision()}, {self._devices()} → {self.folder.path}",
        ]
        if self.epoch:
            lines.append(f"going on after epoch {self.epoch}")
        return "\n".join(lines)

    def _precision(self) -> str:
        return str(self.fabric.strategy.precision.precision)

    def _devices(self) -> str:
        return f"{self.fabric.world_size} × {device_name(self.fabric.device)}"

    def _parts(self) -> int:
        return self.fabric.world_size * self.recipe.optimization.accumulate


def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many images have their class first, and among the first five: (2,)."""
    hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    return torch.stack((hits[:, 0].sum(), hits.sum()))


def _steps(images: int, batch_size: int, parts: int) -> tuple[int, int]:
    """Steps of an epoch, and images in each. What does not fill the last batch waits for another epoch's order."""
    if images >= batch_size:
        return images // batch_size, batch_size
    if images < parts:
        raise UserError(f"{images} training images are too few for {parts} equal parts of a batch")
    return 1, images // parts * parts


def _mix(*numbers: int) -> int:
    """One seed from several numbers, so that neighbours have nothing in common."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint32)[0])
