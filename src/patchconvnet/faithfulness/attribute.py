"""`attribute(model, inputs, target)`: maps of any method as tensors, one for each input; for research code."""

import difflib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from patchconvnet.errors import UserError
from patchconvnet.explanation.explainer import Model, class_names_of
from patchconvnet.explanation.maps import class_index
from patchconvnet.faithfulness.baselines import chosen_methods
from patchconvnet.faithfulness.methods import AttributionOptions
from patchconvnet.models.loading import as_model
from patchconvnet.models.modes import evaluation_mode

Target = int | str | Sequence[int | str] | Tensor | None


def attribute(
    model: Model,
    inputs: Tensor,
    target: Target = None,
    method: str = "evidence",
    *,
    pixels: bool = False,
    **options: Any,
) -> Tensor:
    """What each place of an input speaks for a class, by any method that an audit measures.

    Args:
        model: a network, or the name or folder of one, as for `load`; it is in evaluation mode while this runs.
        inputs: (B, C, H, W) float, preprocessed, on the model's device.
        target: the class, by index or name, or one for each input, as a list or a tensor (B,); by default the predicted
            one.
        method: "evidence" and "attention" are this package's own, from one forward pass; the others are the usual ones
            and controls, see `patchconvnet.faithfulness.baselines.METHODS`.
        pixels: whether each map is brought to the input's size, each value to its patch's place, bilinearly between.
        options: fields of `patchconvnet.faithfulness.methods.AttributionOptions`, such as `rise_masks=500`.

    Returns:
        (B, h, w) on the method's own grid, of patches for most and of pixels for some; (B, H, W) with `pixels`. The
        maps of this package's own methods carry gradients if `inputs` require them.

    Raises:
        UserError: the inputs are not a batch of preprocessed images, a class, method or option is unknown, or the
            method needs what the model has not, or what is not installed.

    Example:
        >>> import torch
        >>> from patchconvnet import attribute, load
        >>> model, inputs = load("cifar10"), torch.rand(2, 3, 32, 32)
        >>> attribute(model, inputs, "cat").shape
        torch.Size([2, 8, 8])
        >>> attribute(model, inputs, [3, 5], "attention", pixels=True).shape
        torch.Size([2, 32, 32])
    """
    network = as_model(model)
    _check_inputs(network, inputs)
    (chosen,) = chosen_methods([method])
    known = [field.name for field in fields(AttributionOptions)]
    if unknown := [name for name in options if name not in known]:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        meant = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(f"attribution has no option {unknown[0]!r}; known: {', '.join(known)}.{meant}")
    with evaluation_mode(network):
        classes = _classes(network, inputs, target)
        attribution = chosen(network, inputs, classes[:, None], AttributionOptions(**options))
        maps = attribution.pixels((inputs.shape[-2], inputs.shape[-1])) if pixels else attribution.values
    return maps[:, 0]


def _check_inputs(model: nn.Module, inputs: Tensor) -> None:
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        kind = f"tensor of {inputs.dtype}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise UserError(
            f"inputs are a {kind}; attribute() takes a float tensor of preprocessed images, (B, C, H, W). For images "
            "before preprocessing there is explain()."
        )
    if inputs.ndim != 4 or not len(inputs):
        raise UserError(
            f"inputs have the shape {tuple(inputs.shape)}; (B, C, H, W) is needed, with at least one image: for a "
            "single one, inputs[None]."
        )
    like = next(model.parameters())
    if inputs.device != like.device or inputs.dtype != like.dtype:
        raise UserError(
            f"inputs are {inputs.dtype} on {inputs.device}, the model {like.dtype} on {like.device}; bring them "
            "together with .to()."
        )


def _classes(model: nn.Module, inputs: Tensor, target: Target) -> Tensor:
    """(B,) int64: the class that each input is asked about."""
    if target is None:
        with torch.no_grad():
            return model(inputs).argmax(1)
    names = class_names_of(model)
    if isinstance(target, Tensor):
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise UserError(f"target is a tensor of {target.dtype}; classes are whole numbers.")
        target = target.tolist()
    if isinstance(target, int | str):
        target = [target] * len(inputs)
    if not isinstance(target, Sequence) or not all(isinstance(k, int | str) for k in target):
        raise UserError(f"target is {target!r}; give a class's index or name, or a list or tensor of one each input.")
    if len(target) != len(inputs):
        raise UserError(f"given {len(target)} targets for {len(inputs)} inputs; give one, or one for each input.")
    return torch.tensor([class_index(names, k) for k in target], device=inputs.device)
