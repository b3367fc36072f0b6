"""The training loop: Lightning Fabric moves it over devices and machines, everything else stands here.

A run folder holds the recipe, `metrics.csv`, TensorBoard events, `checkpoints/last.ckpt`, attention pictures and, in
`best/`, the model folder of the epoch with the best validation accuracy.
"""

import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from lightning.fabric.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from patchconvnet.data import datasets
from patchconvnet.data.augmentation import Augmentation
from patchconvnet.data.splits import DataSplits
from patchconvnet.errors import UserError
from patchconvnet.models.patchconvnet import PatchConvNet
from patchconvnet.models.weights import Metadata
from patchconvnet.training import checkpoint
from patchconvnet.training.distributed import synchronise_batch_norm
from patchconvnet.training.evaluation import Evaluation, evaluate
from patchconvnet.training.monitor import AttentionMonitor
from patchconvnet.training.optimization import build_optimizer, warmup_cosine
from patchconvnet.training.progress import TrainingProgress
from patchconvnet.training.recipe import Recipe, read_recipe
from patchconvnet.training.sources import batch_source

Resume = Literal["no", "yes", "auto"]

RECIPE_FILE = "recipe.yaml"
BEST = "best"
REFRESH_SECONDS = 0.25  # between two looks at the running loss, which on a GPU waits for it


@dataclass(frozen=True)
class Machine:
    """Where a training runs; all of it is Lightning Fabric's to arrange.

    Args:
        accelerator: cpu, cuda, mps or auto.
        devices: how many of them on each machine.
        nodes: machines; start the same command on each under torchrun.
        strategy: auto, ddp or fsdp.
    """

    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"


def train(recipe: Recipe, run: Path, *, resume: Resume = "no", machine: Machine | None = None) -> Path:
    """Train by a recipe into a run folder.

    Args:
        recipe: what to do.
        run: the run folder; must be new or empty unless resumed.
        resume: "yes" goes on from the run's last checkpoint, "auto" does so if there is one; on a CPU the result is bit-equal to
            that of an uninterrupted run.
        machine: devices; one, of the best kind there is, when left out.

    Returns:
        The model folder of the best epoch.

    Raises:
        UserError: a mistake in the recipe, the data or the run folder; a full disk; a loss that is not a number.
    """
    machine = machine or Machine()
    _check_run_folder(run, recipe, resume)
    fabric = _fabric(recipe, machine, run)
    fabric.launch()
    return _Training(fabric, recipe, run).run()


class _Training:
    def __init__(self, fabric: Fabric, recipe: Recipe, run: Path):
        self.fabric, self.recipe, self.folder = fabric, recipe, run
        self.verbose = fabric.is_global_zero
        with fabric.rank_zero_first(local=True):
            self.data = load_data(recipe, show_progress=self.verbose)
        train_split = self.data.require("train")
        self.class_names = self.data.class_names
        self.steps, self.batch_size = _steps(len(train_split), recipe.batch_size, self._parts())
        self.augmentation = Augmentation(
            recipe.augmentation,
            recipe.preprocessing,
            len(self.class_names),
            label_smoothing=recipe.optimization.label_smoothing,
            seed=recipe.seed,
        )
        size = recipe.augmentation.canvas or recipe.preprocessing.size
        self.source = batch_source(
            train_split,
            recipe.preprocessing.with_size(size),
            fabric.device,
            memory_gb=recipe.data.memory_gb,
            workers=recipe.data.workers,
            show_progress=self.verbose,
        )
        torch.manual_seed(recipe.seed)
        self.plain = build_model(recipe, len(self.class_names)).to(memory_format=torch.channels_last)
        if fabric.world_size > 1:
            synchronise_batch_norm(self.plain)
        optimizer = build_optimizer(self.plain, recipe.optimization)
        compiled = torch.compile(self.plain) if recipe.compile else self.plain
        self.model, self.optimizer = fabric.setup(compiled, optimizer)
        decay = recipe.optimization.ema_decay
        self.ema = (
            AveragedModel(self.plain, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) if decay else None
        )
        self.monitor = AttentionMonitor(
            self.data.validation or train_split, recipe.preprocessing, recipe.monitor, run, recipe.seed
        )
        self.epoch = 0
        self.seconds = 0.0
        self.best_epoch = -1
        self.best_top1 = -1.0
        self.history: list[dict[str, Any]] = []

    def run(self) -> Path:
        self._resume()
        if self.verbose:
            self._announce()
        last = self.recipe.epochs - 1
        with TrainingProgress(self.recipe.epochs, self.steps, self.epoch, self.verbose) as progress:
            while self.epoch <= last:
                self._run_epoch(progress, last)
        if self.verbose:
            self.monitor.draw_evolution()
        self.fabric.barrier()
        return self._test(progress)

    # One epoch

    def _run_epoch(self, progress: TrainingProgress, last: int) -> None:
        started = time.perf_counter()
        torch.manual_seed(_mix(self.recipe.seed, self.epoch, self.fabric.global_rank))  # dropout, stochastic depth
        loss, top1 = self._train_epoch(progress)
        train_seconds = time.perf_counter() - started
        validation = self._validate()
        is_best = validation is None or validation.top1 > self.best_top1
        if is_best:
            self.best_epoch, self.best_top1 = self.epoch, validation.top1 if validation else -1.0
        row = {
            "epoch": self.epoch + 1,
            "step": (self.epoch + 1) * self.steps,
            "learning_rate": self._learning_rate((self.epoch + 1) * self.steps - 1),
            "train_loss": loss,
            "train_top1": top1,
            "val_loss": validation.loss if validation else None,
            "val_top1": validation.top1 if validation else None,
            "val_top5": validation.top5 if validation else None,
            "images_per_second": self.steps * self.batch_size / train_seconds,
            "seconds": self.seconds + time.perf_counter() - started,
        }
        picture = None
        if self.verbose and self.monitor.is_due(self.epoch, last):
            picture = self.monitor.draw(self._evaluated(), self.epoch, self.fabric.device)
        self.seconds += time.perf_counter() - started
        self.history.append(row)
        self._record(row, picture, is_best and (validation is not None or self.epoch == last), validation)
        progress.epoch(row, is_best and validation is not None)
        self.epoch += 1
        checkpoint.save_checkpoint(self.fabric, self.folder, self._state())

    def _train_epoch(self, progress: TrainingProgress) -> tuple[float, float]:
        self.model.train()
        device = self.fabric.device
        total_loss, correct = torch.zeros((), device=device), torch.zeros((), device=device)
        started = refreshed = time.perf_counter()
        batches = self._batches()
        for step in range(self.steps):
            self._set_learning_rate(self.epoch * self.steps + step)
            parts = self.recipe.optimization.accumulate
            for part in range(parts):
                images, labels, targets = next(batches)
                with self.fabric.no_backward_sync(self.model, enabled=part < parts - 1):
                    logits = self.model(images)
                    loss = self._loss(logits, targets) / parts
                    self.fabric.backward(loss)
                total_loss += loss.detach()
                correct += (logits.detach().argmax(1) == labels).sum()
            if self.recipe.optimization.clip_gradient is not None:
                self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.recipe.optimization.clip_gradient)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.ema is not None:
                self.ema.update_parameters(self.plain)
            now = time.perf_counter()
            if now - refreshed > REFRESH_SECONDS or step == self.steps - 1:
                refreshed = now
                mean_loss = total_loss.item() / (step + 1)
                self._check_loss(mean_loss, step)
                local = self.batch_size / self.fabric.world_size
                progress.step(
                    self.epoch,
                    step + 1,
                    mean_loss,
                    correct.item() / (local * (step + 1)),
                    self.batch_size * (step + 1) / (now - started),
                )
        total_loss = self.fabric.all_reduce(total_loss, reduce_op="mean")
        correct = self.fabric.all_reduce(correct, reduce_op="sum")
        return total_loss.item() / self.steps, correct.item() / (self.steps * self.batch_size)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """This process's (images, labels, targets) of an epoch, part after part of every global batch."""
        seed, epoch = self.recipe.seed, self.epoch
        count = len(self.data.require("train"))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(_mix(seed, epoch)))
        parts, rank = self.recipe.optimization.accumulate, self.fabric.global_rank
        size = self.batch_size // self._parts()
        slices = [
            slice(begin, begin + size)
            for part in range(parts)
            for begin in [(part * self.fabric.world_size + rank) * size]
        ]
        global_batches = order[: self.steps * self.batch_size].split(self.batch_size)
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
            yield augmented, labels, targets

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        soft = targets.ndim == 2  # Mixup's and CutMix's targets are smoothed already
        smoothing = 0.0 if soft else self.recipe.optimization.label_smoothing
        return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)

    def _check_loss(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            o = self.recipe.optimization
            kept = "the checkpoint of the epoch before is whole" if self.epoch else "there is no checkpoint yet"
            raise UserError(
                f"the loss is {loss} in epoch {self.epoch + 1}, step {step + 1}; {kept}. Try a lower "
                f"optimization.learning_rate (now {o.learning_rate:g}), a longer optimization.warmup (now {o.warmup:g}), "
                f"optimization.clip_gradient 1, or precision 32-true"
            )

    def _learning_rate(self, step: int) -> float:
        # counted from 1 to the last step of a run one longer: neither the first nor the last update has a rate of 0
        o, total = self.recipe.optimization, self.recipe.epochs * self.steps
        return warmup_cosine(step + 1, total + 1, int(o.warmup * total), o.learning_rate)

    def _set_learning_rate(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(step)

    # Validation, checkpoints, the end

    def _evaluated(self) -> nn.Module:
        return self.ema.module if self.ema is not None else self.model

    def _validate(self) -> Evaluation | None:
        return None if self.data.validation is None else self._evaluate(self._evaluated(), "validation")

    def _evaluate(
        self, model: nn.Module, split: Literal["validation", "test"], full_precision: bool = False
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

    def _record(
        self, row: dict[str, Any], picture: np.ndarray | None, keep: bool, validation: Evaluation | None
    ) -> None:
        """Logs, curves, and the model folder if this epoch is the one to keep."""
        step = row["step"]
        figures = {key: value for key, value in row.items() if key not in ("epoch", "step") and value is not None}
        self.fabric.log_dict(figures, step=step)
        if picture is not None:
            for logger in self.fabric.loggers:
                logger.experiment.add_image("attention", picture, step, dataformats="HWC")
        if self.verbose:
            checkpoint.write_metrics(self.folder, self.history)
        if keep:
            metrics: dict[str, Any] = {"epoch": row["epoch"]}
            if validation is not None:
                metrics["validation"] = validation.to_dict()
            self._save_model(metrics)

    def _save_model(self, metrics: dict[str, Any]) -> None:
        if not self.verbose:
            return
        model = self.ema.module if self.ema is not None else self.plain
        model.metadata = Metadata(
            class_names=list(self.class_names),
            preprocessing=self.recipe.preprocessing.to_dict(),
            provenance=self._provenance(),
            metrics=metrics,
        )
        model.save_pretrained(self.folder / BEST, dtype="float16" if self.recipe.half_weights else "float32")

    def _provenance(self) -> dict[str, Any]:
        from patchconvnet import __version__

        return {
            "recipe": self.recipe.to_dict(),
            "data": {
                "name": self.data.name,
                **{
                    name: len(split)
                    for name in ("train", "validation", "test")
                    if (split := getattr(self.data, name)) is not None
                },
            },
            "patchconvnet": __version__,
            "torch": torch.__version__,
            "date": datetime.now(UTC).date().isoformat(),
            "precision": self.fabric._precision.precision,
            "devices": f"{self.fabric.world_size} × {_device_name(self.fabric.device)}",
            "seconds": round(self.seconds, 1),
        }

    def _test(self, progress: TrainingProgress) -> Path:
        """The test set, touched once, with the model folder that was kept."""
        kept = self.folder / BEST
        model = PatchConvNet.from_pretrained(kept)
        if self.data.test is None:
            progress.say(f"no test set; the model of epoch {self.best_epoch + 1} is in {kept}")
            return kept
        result = self._evaluate(model.to(self.fabric.device), "test", full_precision=True)
        if self.verbose:
            model.cpu().metadata.metrics["test"] = result.to_dict()
            model.metadata.provenance["seconds"] = round(self.seconds, 1)
            model.save_pretrained(kept, dtype="float16" if self.recipe.half_weights else "float32")
        progress.say(
            f"test set, epoch {self.best_epoch + 1}: loss {result.loss:.4f}  top-1 {result.top1:.2%}  top-5 {result.top5:.2%}  "
            f"({result.count:,} pictures, {self.seconds:,.0f} s of training)"
        )
        self.fabric.barrier()
        return kept

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "best_epoch": self.best_epoch,
            "best_top1": self.best_top1,
            "history": self.history,
        }
        if self.ema is not None:
            state["ema"] = self.ema
        return state

    def _resume(self) -> None:
        if not (self.folder / checkpoint.LAST).is_file():
            if self.verbose:
                self.folder.mkdir(parents=True, exist_ok=True)
                checkpoint.write_text(self.folder / RECIPE_FILE, self.recipe.to_yaml())
            return
        state = self._state()
        checkpoint.load_checkpoint(self.fabric, self.folder, state)
        for name in ("epoch", "seconds", "best_epoch", "best_top1", "history"):
            setattr(self, name, state[name])

    def _announce(self) -> None:
        r = self.recipe
        size = "×".join(map(str, r.preprocessing.size))
        print(
            f"{r.model.name} ({sum(p.numel() for p in self.plain.parameters()):,} parameters) on {self.data.name}: "
            f"{len(self.data.require('train')):,} pictures, {len(self.class_names)} classes, {size} pixels\n"
            f"{r.epochs} epochs of {self.steps} steps of {self.batch_size}, {r.optimization.optimizer}, "
            f"{self.fabric._precision.precision}, {self.fabric.world_size} × {_device_name(self.fabric.device)} → {self.folder}"
            + (f"\ngoing on after epoch {self.epoch}" if self.epoch else ""),
            flush=True,
        )

    def _parts(self) -> int:
        return self.fabric.world_size * self.recipe.optimization.accumulate


def load_data(recipe: Recipe, *, show_progress: bool = False) -> DataSplits:
    """The data sets that a recipe names."""
    d = recipe.data
    return datasets.load(
        d.name,
        root=d.root,
        validation=d.validation,
        test=d.test,
        seed=d.seed,
        strict=d.strict,
        show_progress=show_progress,
    )


def build_model(recipe: Recipe, num_classes: int) -> PatchConvNet:
    """The network that a recipe names, with a classifier for `num_classes`."""
    m = recipe.model
    if Path(m.name).is_dir():
        model = PatchConvNet.from_pretrained(m.name, **m.options)
        if model.num_classes != num_classes:
            model.reset_classifier(num_classes)
        return model
    if not timm.is_model(m.name) or not m.name.startswith("patchconvnet"):
        known = ", ".join(timm.list_models("patchconvnet*"))
        raise UserError(f"unknown model {m.name!r}; it is neither a model folder nor one of {known}")
    return timm.create_model(m.name, pretrained=m.pretrained, num_classes=num_classes, **m.options)


def _check_run_folder(run: Path, recipe: Recipe, resume: Resume) -> None:
    has_checkpoint = (run / checkpoint.LAST).is_file()
    if resume == "yes" and not has_checkpoint:
        raise UserError(f"nothing to resume: there is no {run / checkpoint.LAST}; leave --resume away to begin")
    if resume == "no" and has_checkpoint:
        raise UserError(f"{run} holds a run already; give --resume to go on with it, or another --out")
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file; --out must be a folder")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the run folder {run}: {error.strerror}") from error
    if not os.access(run, os.W_OK | os.X_OK):
        raise UserError(f"the run folder {run} cannot be written to; choose another --out")
    if has_checkpoint:
        changed = [
            name for name in read_recipe(run / RECIPE_FILE).differences(recipe) if not name.startswith("monitor.")
        ]
        if changed:
            raise UserError(
                f"the run in {run} was begun with other values of {', '.join(changed)}; resume it with its own recipe "
                f"({run / RECIPE_FILE}), or begin a new run in another --out"
            )


def _fabric(recipe: Recipe, machine: Machine, run: Path) -> Fabric:
    if machine.strategy not in ("auto", "ddp", "fsdp"):
        raise UserError(f"unknown strategy {machine.strategy!r}; known: auto, ddp, fsdp")
    if machine.strategy == "fsdp" and recipe.optimization.ema_decay:
        raise UserError("optimization.ema_decay needs whole weights on each device; leave it away with fsdp")
    parts = machine.devices * machine.nodes * recipe.optimization.accumulate
    if recipe.batch_size % parts:
        raise UserError(
            f"batch_size {recipe.batch_size} cannot be divided over {parts} equal parts (devices × nodes × "
            f"optimization.accumulate); choose a multiple of {parts}"
        )
    strategy: Any = machine.strategy
    if strategy == "fsdp":
        from lightning.fabric.strategies import FSDPStrategy

        strategy = FSDPStrategy(state_dict_type="full")
    try:
        return Fabric(
            accelerator=machine.accelerator,
            devices=machine.devices,
            num_nodes=machine.nodes,
            strategy=strategy,
            precision=resolve_precision(recipe.precision, machine.accelerator),
            loggers=TensorBoardLogger(root_dir=run, name="tensorboard", version=""),
        )
    except (ValueError, RuntimeError) as error:  # Fabric says in words what the machine does not have
        raise UserError(f"cannot train on {machine.devices} × {machine.accelerator}: {error}") from error


def resolve_precision(precision: str, accelerator: str) -> Any:
    """ "auto" becomes bfloat16 autocast where the device computes in it, else float32."""
    if precision != "auto":
        return precision
    if accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if accelerator == "mps" or (accelerator == "auto" and torch.backends.mps.is_available()):
        return "32-true"
    return "bf16-mixed" if _cpu_has_bfloat16() else "32-true"


def _cpu_has_bfloat16() -> bool:
    # without these instructions bfloat16 is emulated, several times slower than float32
    probes: list[Callable[[], bool]] = [
        getattr(torch.cpu, name, lambda: False) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    return any(probe() for probe in probes)


def _steps(pictures: int, batch_size: int, parts: int) -> tuple[int, int]:
    """Steps of an epoch, and pictures in each. What does not fill the last batch waits for another epoch's order."""
    if pictures >= batch_size:
        return pictures // batch_size, batch_size
    if pictures < parts:
        raise UserError(f"{pictures} training pictures are too few for {parts} equal parts of a batch")
    return 1, pictures // parts * parts


def _mix(*numbers: int) -> int:
    """One seed from several numbers, so that neighbours have nothing in common."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint32)[0])


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = os.cpu_count() or 1
    return f"{platform.machine()} CPU with {cores} cores" if device.type == "cpu" else device.type
