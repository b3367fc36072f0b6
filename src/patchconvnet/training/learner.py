"""The network while it learns: its optimizer, its average, one update, and their state in a checkpoint."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from patchconvnet.errors import UserError, first_line
from patchconvnet.models import AttentionClassifier
from patchconvnet.models.mirror import MirrorSymmetry
from patchconvnet.models.stem import PooledStem
from patchconvnet.models.weights import check_state
from patchconvnet.models.winograd import by_winograd
from patchconvnet.training import sharding
from patchconvnet.training.convolution_gradients import faster_backward
from patchconvnet.training.distributed import synchronise_batch_norm
from patchconvnet.training.launch import is_sharded
from patchconvnet.training.optimization import build_optimizer, set_learning_rate, whitening_rests
from patchconvnet.training.recipe import Recipe


class Learner:
    """A network and what moves its weights. Call `set_up` before anything else.

    Args:
        model: the network, freshly built.
        recipe: says how it learns.
        fabric: devices and precision.
        class_weights: (K,) of the loss; all alike by default.

    Attributes:
        plain: the network without what Fabric puts around it.
        whole: the one that is validated, drawn and kept, with all its weights on this process: the average of the
            weights where there is one.

    Raises:
        UserError: the optimizer does not exist or does not take these options.
    """

    def __init__(self, model: AttentionClassifier, recipe: Recipe, fabric: Fabric, class_weights: Tensor | None = None):
        self.fabric, self.recipe = fabric, recipe
        self.class_weights = None if class_weights is None else class_weights.to(fabric.device)
        self.plain = self.whole = model
        if recipe.recompute != "none":
            model.set_grad_checkpointing(pointwise=recipe.recompute == "pointwise")
        if is_sharded(fabric):  # which takes weights in their plain memory layout only
            self.whole = copy.deepcopy(model).to(fabric.device)
        else:
            model.to(memory_format=torch.channels_last)
        if fabric.world_size > 1:
            synchronise_batch_norm(model, fabric.device)
        self.symmetry = MirrorSymmetry(model) if recipe.model.mirror else None
        build_optimizer(model, recipe.optimization)  # for its complaints; the real one follows

    def set_up(self) -> None:
        """Let Fabric take the network to its device; all processes at once."""
        options = self.recipe.optimization
        compiled = torch.compile(self.plain) if self.recipe.compile else self.plain
        self.model = self.fabric.setup_module(compiled)
        self.optimizer = self.fabric.setup_optimizers(build_optimizer(self.plain, options))
        self.ema = ModelEmaV3(self.plain, options.ema_decay, use_warmup=True) if options.ema_decay else None
        if self.ema is not None:
            self.whole = self.ema.module

    def _faster(self, way: Callable[[nn.Module], AbstractContextManager[Any]]) -> AbstractContextManager[Any]:
        """Another way to some operators of the network on a CPU."""
        if self.recipe.compile or self.fabric.device.type != "cpu":  # what is compiled has its operators already
            return nullcontext()
        return way(self.plain)

    def begin_epoch(self, epoch: int) -> None:
        """Training mode, but for the batch norms that keep their statistics, and for whitening once it rests."""
        self.model.train()
        stem = getattr(self.plain, "stem", None)
        if isinstance(stem, PooledStem) and whitening_rests(epoch, self.fabric.world_size):
            stem.freeze_whitening()
        if self.recipe.optimization.freeze_batch_norm:
            for module in self.plain.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def update(self, batches: Iterator[tuple[Tensor, Tensor, Tensor]], step: int, rate: float) -> tuple[Tensor, Tensor]:
        """Take the parts of one batch and move the weights once.

        Args:
            batches: (images, labels, targets) of this process.
            step: counted from 0 over the whole run.
            rate: the learning rate.

        Returns:
            The batch's mean loss here, and how many images have their class first and among the first five (2,).
        """
        options = self.recipe.optimization
        set_learning_rate(self.optimizer, rate / options.learning_rate)
        loss, correct = torch.zeros((), device=self.fabric.device), torch.zeros(2, device=self.fabric.device)
        for part in range(options.accumulate):
            images, labels, targets = next(batches)
            synchronised = self.fabric.no_backward_sync(self.model, enabled=part < options.accumulate - 1)
            with synchronised, self._faster(by_winograd):
                logits = self.model(images)
                share = self._loss(logits, targets) / options.accumulate
                with self._faster(faster_backward):
                    self.fabric.backward(share)
            loss += share.detach()
            correct += _correct(logits.detach(), labels)
        if self.symmetry is not None:
            self.symmetry.tie_gradients()
        if options.clip_gradient is not None:
            self.fabric.clip_gradients(
                self.model,
                self.optimizer,
                max_norm=options.clip_gradient,
                error_if_nonfinite=False,  # the loop checks losses and weights, and has more to say
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.symmetry is not None:
            self.symmetry.keep()
        if self.ema is not None:
            self.ema.update(self.plain, step)
        return loss, correct

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        soft = targets.ndim == 2  # Mixup's and CutMix's targets are smoothed already
        smoothing = 0.0 if soft else self.recipe.optimization.label_smoothing
        return F.cross_entropy(logits.float(), targets, self.class_weights, label_smoothing=smoothing)

    def gather(self) -> None:
        """Bring `whole` up to date where weights are divided over processes."""
        if is_sharded(self.fabric):
            sharding.gather(self.plain, self.whole)

    def is_finite(self) -> bool:
        """Whether all weights and statistics are finite numbers; where weights are divided, this process's part."""
        values = [value for module in {self.plain, self.whole} for value in module.state_dict().values()]
        return all(bool(getattr(value, "to_local", lambda v=value: v)().isfinite().all()) for value in values)

    def state(self, parts: Path | None = None) -> dict[str, Any]:
        """What a checkpoint holds of weights and optimizer.

        Args:
            parts: where weights are divided, a folder into which each process writes its own.

        Raises:
            OSError: in all processes, when one of them could not write its part.
        """
        if parts is not None:
            state = sharding.save(self.plain, self.optimizer.optimizer, parts)
        else:
            state = {"model": self.plain.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.ema is not None:
            state["ema"] = self.ema.module.state_dict()
        state["precision"] = self.fabric.strategy.precision.state_dict()  # float16's loss scale
        return state

    def check(self, state: dict[str, Any], origin: str) -> None:
        """Whether a checkpoint's weights are this network's.

        Args:
            state: what `state` returned, in this or an earlier process.
            origin: the checkpoint's name, for the message.

        Raises:
            UserError: an entry is missing, of another shape or not a finite number.
        """
        for part in ("model", "ema") if self.ema is not None else ("model",):
            if not isinstance(state.get(part), dict):
                raise UserError(f"{origin} has no weights called {part!r}; begin a new run in another --out")
            check_state(self.whole, state[part], origin)
            broken = [name for name, value in state[part].items() if not value.isfinite().all()]
            if broken:
                raise UserError(
                    f"{origin} is damaged: {broken[0]} has values that are not finite numbers; begin a new run in "
                    "another --out"
                )

    def load(self, state: dict[str, Any], origin: str) -> None:
        """Go on from what `state` returned; every process has all of it.

        Raises:
            UserError: the optimizer's part belongs to another network.
        """
        try:
            if state.get("precision"):
                self.fabric.strategy.precision.load_state_dict(state["precision"])
            if is_sharded(self.fabric):
                sharding.load(self.plain, self.optimizer.optimizer, state)
            else:
                self.plain.load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{origin} does not fit this run's optimizer ({first_line(error)}); begin a new run in another --out"
            ) from error
        self.gather()
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])


def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many images have their class first, and among the first five: (2,)."""
    hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    return torch.stack((hits[:, 0].sum(), hits.sum()))
