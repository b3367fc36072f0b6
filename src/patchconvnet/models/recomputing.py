"""Training memory for time: what the backward pass computes again instead of keeping it.

Keeping only what products return (convolutions, linear layers) and computing norms, GELU, squeeze-and-excitation and
conversions of number formats again costs far less time than computing whole blocks again, since the products are
nearly all of the arithmetic, and saves nearly as much memory.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from patchconvnet.models import winograd

Recompute = Literal["none", "pointwise", "blocks"]

_aten = torch.ops.aten
_PRODUCTS = {
    _aten.convolution.default, _aten.addmm.default, _aten.mm.default, _aten.bmm.default, _aten.linear.default,
    winograd.CONVOLUTION,
}  # fmt: skip


def run_block(block: nn.Module, patches: Tensor, recompute: Recompute) -> Tensor:
    """The block's output; the backward pass will have to compute what `recompute` says once more.

    Args:
        block: of the trunk.
        patches: (B, h, w, C).
        recompute: "none", "pointwise": all but convolutions and linear layers, or "blocks": everything in the block.
    """
    if recompute == "none":
        return block(patches)
    return checkpoint(block, patches, use_reentrant=False, context_fn=partial(_contexts, block, recompute))


def _contexts(block: nn.Module, recompute: Recompute) -> tuple[AbstractContextManager, AbstractContextManager]:
    """What is around the forward pass, and around what is computed again."""
    if recompute == "blocks":
        return nullcontext(), _statistics_as_they_are(block)
    forward, again = create_selective_checkpoint_contexts(_policy)
    return forward, _statistics_as_they_are(block, again)


@contextmanager
def _statistics_as_they_are(block: nn.Module, within: AbstractContextManager | None = None) -> Iterator[None]:
    """Batch norms have counted these images in the forward pass already."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        with within or nullcontext():
            yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum, norm.num_batches_tracked = momentum, count


def _policy(_context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE
