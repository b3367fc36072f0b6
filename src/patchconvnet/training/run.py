"""The parts of one training: its images, its network, the model that it keeps, and its progress."""

import json
import time
import warnings
from contextlib import nullcontext
from typing import Literal

import torch
from lightning.fabric import Fabric

from patchconvnet.files import write_text
from patchconvnet.hardware import device_name
from patchconvnet.models import AttentionClassifier
from patchconvnet.training.epoch_batches import EpochBatches
from patchconvnet.training.evaluation import Evaluation, evaluate, images_of_a_batch
from patchconvnet.training.kept_model import KeptModel, metadata
from patchconvnet.training.launch import agreed
from patchconvnet.training.learner import Learner
from patchconvnet.training.monitor import AttentionMonitor
from patchconvnet.training.optimization import learning_rate
from patchconvnet.training.probing import adopt_pooling, class_weights, fit_head, with_pooling
from patchconvnet.training.recipe import Recipe
from patchconvnet.training.run_folder import RunFolder, Standing
from patchconvnet.training.sources import build_model, load_data, make_symmetric, warn_of_blocks, whiten


class Run:
    """A training that can begin; all processes make one together.

    Args:
        fabric: devices and precision, launched.
        recipe: what to do.
        folder: the run folder, opened.

    Attributes:
        first: whether this process writes files and messages.
        data: the images by split.
        fingerprint: identifies these images.
        batches: the training images, epoch by epoch.
        learner: the network while it learns.
        monitor: draws its attention maps.
        kept: the model folder of the best epoch.
        standing: how far the training is.

    Raises:
        UserError: a mistake in the recipe or the data.
    """

    def __init__(self, fabric: Fabric, recipe: Recipe, folder: RunFolder):
        self.fabric, self.recipe, self.folder = fabric, recipe, folder
        self.first = fabric.is_global_zero
        self.kept = KeptModel(folder.best, recipe.half_weights)
        self.standing = Standing()
        self.start_clock()
        self._load_data()
        with agreed(fabric):
            self._build()
        self.learner.set_up()
        with agreed(fabric), folder.writing():
            if self.first:
                write_text(folder.reading, json.dumps(self.data.reading(), indent=1) + "\n")

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
        if self.first:
            warn_of_blocks(self.data, self.recipe)

    def _build(self) -> None:
        recipe, images = self.recipe, self.data.require("train")
        self.batches = EpochBatches(images, recipe, self.fabric)
        torch.manual_seed(recipe.seed)
        if recipe.method == "finetune":
            recipe = with_pooling(recipe)
        model = build_model(recipe, len(self.data.class_names))
        if recipe.method == "finetune":
            adopt_pooling(model, recipe)
            if not self.folder.has_checkpoint:
                fit_head(model, recipe, self.data, self.fabric.device)
        model.metadata.temperature = 1.0  # of a model folder that training starts from
        if recipe.model.whiten:
            whiten(model, recipe, self.batches.source, len(images))
        if recipe.model.mirror:
            make_symmetric(model, recipe)
        weights = class_weights(images.labels, model.num_classes) if recipe.optimization.balanced else None
        self.learner = Learner(model, recipe, self.fabric, weights)
        self.monitor = AttentionMonitor(
            self.data.validation or images, recipe.preprocessing, recipe.monitor, self.folder.attention, recipe.seed
        )

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or validation accuracy has not improved for the recipe's `patience`."""
        return self.standing.epoch >= self.recipe.epochs or self._is_out_of_patience()

    def _is_out_of_patience(self) -> bool:
        patience, standing = self.recipe.patience, self.standing
        if patience is None or self.data.validation is None:
            return False
        return standing.epoch - 1 - standing.best_epoch >= patience

    @property
    def last_is_kept(self) -> bool:
        """Whether the last epoch's model is the one in `best/`; without a validation split that is known at the end."""
        chosen = self.data.validation is not None or self.standing.epoch == self.recipe.epochs
        return chosen and self.standing.best_epoch == self.standing.epoch - 1

    def keep_last(self) -> None:
        """Write the last epoch's model to `best/`.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        extensions = {"extensions": self.standing.extensions} if self.standing.extensions else {}
        about = metadata(
            self.recipe,
            self.data,
            self.fingerprint,
            metrics=self.standing.best_metrics,
            devices=self.devices,
            seconds=self.standing.seconds,
            precision=self.precision,
            **extensions,
        )
        self.kept.write(self.learner.whole, about)

    def learning_rate(self, step: int) -> float:
        """The schedule's, at a step counted from 0 over all epochs."""
        return learning_rate(self.recipe.optimization, step, self.recipe.epochs * self.batches.steps)

    def evaluate(
        self, model: AttentionClassifier, split: Literal["validation", "test"], full_precision: bool = False
    ) -> Evaluation:
        """Measure a network on a split, all processes together."""
        return evaluate(
            model,
            self.data.require(split),
            self.recipe.preprocessing,
            batch_size=self.evaluation_batch,
            device=self.fabric.device,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
            autocast=nullcontext if full_precision else self.fabric.autocast,
            workers=self.recipe.data.workers,
        )

    @property
    def evaluation_batch(self) -> int:
        """Images in a batch where no gradients are needed."""
        return max(self.batches.batch_size, images_of_a_batch(self.recipe.preprocessing.size, self.fabric.device))

    def start_clock(self) -> None:
        """`count_seconds` counts from now on."""
        self._counted = time.perf_counter()

    def count_seconds(self) -> float:
        """Seconds of this run, images and checkpoints included, however often it was resumed."""
        now = time.perf_counter()
        self.standing.seconds, self._counted = self.standing.seconds + now - self._counted, now
        return self.standing.seconds

    @property
    def precision(self) -> str:
        """In Lightning's words, such as "bf16-mixed"."""
        return str(self.fabric.strategy.precision.precision)

    @property
    def devices(self) -> str:
        """How many of which, such as "1 × cpu"."""
        return f"{self.fabric.world_size} × {device_name(self.fabric.device)}"
