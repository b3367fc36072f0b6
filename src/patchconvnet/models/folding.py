"""Batch norms folded into the convolutions in front of them, for inference, in any network of torch's own layers.

Which convolution feeds which norm is seen by running the network once, so nothing has to be traced or rewritten. A norm
behind a convolution is affine, γ·(W·x + b − μ)/σ + β = (γ/σ·W)·x + (γ/σ·(b − μ) + β); the activation that timm's norms
have besides stays in their place.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, Conv2dSame)  # others may compute with their weights first


def fold_batch_norms(network: nn.Module, run: Callable[[], Tensor]) -> int:
    """Fold every batch norm that follows a convolution into it, in place; returns how many.

    Args:
        network: in evaluation mode.
        run: calls the network once, whatever it takes of it, and returns what must stay as it is, to rounding.
    """
    outputs: dict[int, tuple[Any, Tensor]] = {}  # the tensors are kept, or another might get the same id
    pairs: dict[Any, Any] = {}
    calls: Counter[Any] = Counter()

    def note(layer: nn.Module, _: Any, output: Tensor) -> None:
        calls[layer] += 1
        outputs[id(output)] = (layer, output)

    def match(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls[norm] += 1
        if (found := outputs.get(id(inputs[0]))) is not None:
            pairs[norm] = found[0]

    handles = [layer.register_forward_hook(note) for layer in network.modules() if type(layer) in _CONVOLUTIONS] + [
        layer.register_forward_pre_hook(match) for layer in network.modules() if _is_foldable(layer)
    ]
    try:
        before = run()
    finally:
        for handle in handles:
            handle.remove()
    paths = {module: path for path, module in network.named_modules()}
    shared = Counter(pairs.values())
    folded = {n: c for n, c in pairs.items() if shared[c] == 1 and calls[n] == calls[c] == 1}
    replaced = [(paths[layer], layer) for pair in folded.items() for layer in pair]
    for norm, conv in folded.items():
        network.set_submodule(paths[conv], fuse_conv_bn_eval(conv, norm))
        rest = [layer for name in ("drop", "act") if (layer := getattr(norm, name, None)) is not None]
        network.set_submodule(paths[norm], nn.Sequential(*rest))
    after = run()
    if (after - before).abs().max() > 1e-4 * before.abs().max():  # a convolution's output went elsewhere, too
        for path, layer in replaced:
            network.set_submodule(path, layer)
        return 0
    return len(folded)


def _is_foldable(layer: Any) -> bool:
    return isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.track_running_stats


def convert_matrices(network: nn.Module, dtype: torch.dtype, run: Callable[[], Tensor]) -> None:
    """Weights of the convolutions and linear layers that `run` calls in another number format, once and for all.

    Autocast would convert them in every forward pass. What `run` does not call may be called without autocast.
    """
    called: set[nn.Module] = set()
    layers = [layer for layer in network.modules() if type(layer) in (*_CONVOLUTIONS, nn.Linear)]
    handles = [layer.register_forward_pre_hook(lambda layer, _: called.add(layer)) for layer in layers]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    for layer in called:
        layer.to(dtype)
