"""The usual methods on the same network and class, and controls that don't ask the network at all.

Grad-CAM and its kin come from `pytorch-grad-cam`, integrated gradients from `captum` (pip install patchconvnet[audit]);
RISE, which neither has, is written here.
"""

import difflib
import importlib
import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchconvnet.errors import UserError
from patchconvnet.explanation.patch_grid import Grid, patch_grid
from patchconvnet.faithfulness.methods import (
    MOST_RIVALS,
    OURS,
    Attribution,
    AttributionOptions,
    Compute,
    Method,
    frozen,
    generator_of,
)
from patchconvnet.faithfulness.passes import probabilities
from patchconvnet.models.passes import for_each, images_at_once

RISE_CELLS = 7  # a side of its masks before they are enlarged, and the share of cells that are kept: as in the paper
RISE_KEPT = 0.5


# Controls


def _random_patches(model: nn.Module, images: Tensor, classes: Tensor, options: AttributionOptions) -> Attribution:
    height, width = images.shape[-2:]
    patch = getattr(model, "patch_size", 16)
    if not isinstance(patch, int):
        patch = 16
    grid = patch_grid(model, (height, width), (math.ceil(height / patch), math.ceil(width / patch)))
    return Attribution(_noise(images, classes, grid.shape, options.seed), grid)


def _random_pixels(_: nn.Module, images: Tensor, classes: Tensor, options: AttributionOptions) -> Attribution:
    grid = _pixel_grid(images)
    return Attribution(_noise(images, classes, grid.shape, options.seed), grid)


def _noise(images: Tensor, classes: Tensor, shape: tuple[int, int], seed: int) -> Tensor:
    """The same image always gets the same noise, and another image other noise, however slightly it differs."""
    maps = torch.stack([torch.rand(shape, generator=generator_of(image, seed)) for image in images])
    return maps.to(images)[:, None].expand(-1, classes.shape[1], -1, -1)


def _centre(_: nn.Module, images: Tensor, classes: Tensor, __: AttributionOptions) -> Attribution:
    rows, columns = (
        torch.exp(-0.5 * ((torch.arange(side, device=images.device) + 0.5 - side / 2) / (side / 4)) ** 2)
        for side in images.shape[-2:]
    )
    return Attribution((rows[:, None] * columns).expand(*classes.shape, -1, -1).to(images.dtype), _pixel_grid(images))


def _edges(_: nn.Module, images: Tensor, classes: Tensor, __: AttributionOptions) -> Attribution:
    across = images.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    kernels = torch.stack([across, across.mT])[:, None]
    grey = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    magnitude = F.conv2d(grey, kernels).square().sum(1, keepdim=True).sqrt()
    return Attribution(magnitude.expand(-1, classes.shape[1], -1, -1), _pixel_grid(images))


def _pixel_grid(images: Tensor) -> Grid:
    return Grid((images.shape[-2], images.shape[-1]), (1.0, 1.0), (0.5, 0.5))


# Methods


class _FromFeatures(nn.Module):
    """A network cut before its head, with the features as a layer that can be hooked and that gradients end at.

    The features are a leaf of the graph, so a backward pass goes through the head only: the time measured is the
    method's own, without gradients that it does not need.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.features = nn.Identity()
        self.at: Tensor

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.model.forward_features(images)  # type: ignore[operator]  # (B, C, h, w)
        if features.ndim != 4:
            raise UserError(f"{type(self.model).__name__} has no spatial map before its head, so there is no Grad-CAM.")
        self.at = features.requires_grad_()
        return self.model.forward_head(self.features(self.at))  # type: ignore[operator]


def _class_activation(which: str) -> Any:
    def compute(model: nn.Module, images: Tensor, classes: Tensor, _: AttributionOptions) -> Attribution:
        library = _imported("pytorch_grad_cam")
        targets = importlib.import_module("pytorch_grad_cam.utils.model_targets")
        count = classes.shape[1]
        with frozen(model), torch.enable_grad():
            network = _FromFeatures(model)
            cam = getattr(library, which)(model=network, target_layers=[network.features])
            # the library would enlarge its maps as if patches were side by side from edge to edge, and `Attribution`
            # knows where they are: keep them at their own size
            cam.get_target_width_height = lambda _: tuple(cam.activations_and_grads.activations[0].shape[:1:-1])
            asked = [targets.ClassifierOutputTarget(k) for k in classes.flatten().tolist()]
            values = cam(images.repeat_interleave(count, 0), asked)
            cam.activations_and_grads.release()
        maps = torch.from_numpy(values).to(images).unflatten(0, (-1, count))
        h, w = maps.shape[-2:]
        return Attribution(maps, patch_grid(model, (images.shape[-2], images.shape[-1]), (h, w)))

    return compute


def _gradcam_contrast(model: nn.Module, images: Tensor, classes: Tensor, _: AttributionOptions) -> Attribution:
    with frozen(model), torch.enable_grad():
        network = _FromFeatures(model)
        logits, features = network(images), network.at
        ranked = logits.detach().argsort(1, descending=True)[:, :MOST_RIVALS]  # (B, R)
        asked = torch.cat([classes, ranked], 1)
        cams = []
        for k in asked.unbind(1):
            gradient = torch.autograd.grad(logits.gather(1, k[:, None]).sum(), features, retain_graph=True)[0]
            cams.append((gradient.mean((2, 3), keepdim=True) * features.detach()).sum(1))
    own, rivals = torch.stack(cams, 1).split([classes.shape[1], ranked.shape[1]], 1)  # (B, T, h, w), (B, R, h, w)
    same = classes[:, :, None] == ranked[:, None]  # (B, T, R)
    best = rivals[:, None].masked_fill(same[..., None, None], -torch.inf).amax(2)
    h, w = own.shape[-2:]
    return Attribution(own - best, patch_grid(model, (images.shape[-2], images.shape[-1]), (h, w)))


def _integrated_gradients(
    model: nn.Module, images: Tensor, classes: Tensor, options: AttributionOptions
) -> Attribution:
    method = _imported("captum.attr").IntegratedGradients(model)
    black = torch.zeros_like(images[:1])
    at_once = images_at_once(images, options.forward_batch)
    maps = []
    with frozen(model):
        for part, asked in zip(images.split(at_once), classes.split(at_once), strict=True):
            shares = [
                method.attribute(part, black, k, n_steps=options.gradient_steps, internal_batch_size=at_once).sum(1)
                for k in asked.unbind(1)
            ]
            maps.append(torch.stack(shares, 1).detach().to(images))
        with torch.no_grad():
            total = (model(images) - model(black)).gather(1, classes)
    return Attribution(torch.cat(maps), _pixel_grid(images), total)


def _rise(model: nn.Module, images: Tensor, classes: Tensor, options: AttributionOptions) -> Attribution:
    masks = rise_masks(options.rise_masks, (images.shape[-2], images.shape[-1]), options.seed).to(images)  # (N, H, W)
    parts = masks.split(images_at_once(images, options.forward_batch))

    def asked(image: Tensor, wanted: Tensor, part: Tensor) -> Tensor:
        return probabilities(model, image * part[:, None])[:, wanted]  # (n, T)

    maps = []
    with frozen(model):
        for image, wanted in zip(images, classes, strict=True):
            chances = torch.cat(for_each(partial(asked, image, wanted), parts, images.device))  # (N, T)
            values = chances.to(masks).mT @ masks.flatten(1)
            maps.append(values.unflatten(1, image.shape[1:]) / (len(masks) * RISE_KEPT))
    return Attribution(torch.stack(maps), _pixel_grid(images))


def rise_masks(count: int, size: tuple[int, int], seed: int) -> Tensor:
    """RISE's random masks, (count, H, W) in 0..1 (Petsiuk et al. 2018, arXiv 1806.07421, section 3.2).

    7 × 7 cells, each kept with probability one half, enlarged bilinearly to a little more than the image, and cut out
    at a random place.
    """
    generator = torch.Generator().manual_seed(seed)
    cells = (torch.rand((count, 1, RISE_CELLS, RISE_CELLS), generator=generator) < RISE_KEPT).float()
    cell = [math.ceil(side / RISE_CELLS) for side in size]
    large = F.interpolate(cells, [(RISE_CELLS + 1) * side for side in cell], mode="bilinear", align_corners=False)
    rows, columns = (
        torch.randint(0, step, (count, 1), generator=generator) + torch.arange(side)
        for step, side in zip(cell, size, strict=True)
    )
    return large[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]]


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = {"pytorch_grad_cam": "grad-cam", "captum.attr": "captum"}[name]
        raise UserError(
            f"{package} cannot be imported ({error}); install it with pip install 'patchconvnet[audit]', or name the "
            "methods you want without it."
        ) from error


def _control(name: str, title: str, about: str, compute: Compute) -> Method:
    return Method(name, title, about, "control", compute, passes=lambda _: 0.0, all_classes_at_once=True)


BASELINES = (
    Method(
        "gradcam",
        "Grad-CAM",
        "channels of the last layer, weighed by the class's mean gradient (Selvaraju et al. 2017, arXiv 1610.02391)",
        "method",
        _class_activation("GradCAM"),
        needs="pytorch_grad_cam",
    ),
    Method(
        "gradcam++",
        "Grad-CAM++",
        "the same with weights by place (Chattopadhay et al. 2018, arXiv 1710.11063)",
        "method",
        _class_activation("GradCAMPlusPlus"),
        needs="pytorch_grad_cam",
    ),
    Method(
        "layercam",
        "LayerCAM",
        "activations times their own positive gradients (Jiang et al. 2021, IEEE TIP 30)",
        "method",
        _class_activation("LayerCAM"),
        needs="pytorch_grad_cam",
    ),
    Method(
        "gradcam_contrast",
        "Contrastive Grad-CAM",
        "Grad-CAM, before its cut at zero, less that of the strongest other class at each place: how much of the gain "
        "of contrastive evidence comes from the contrast alone",
        "method",
        _gradcam_contrast,
        signed=True,
        passes=lambda _: 2.0,
    ),
    Method(
        "integrated_gradients",
        "Integrated gradients",
        "gradients along the way from a zero input, summed over channels (Sundararajan et al. 2017, arXiv 1703.01365)",
        "method",
        _integrated_gradients,
        signed=True,
        passes=lambda options: 3.0 * options.gradient_steps,
        differentiates=True,
        needs="captum.attr",
    ),
    Method(
        "rise",
        "RISE",
        "mean of random masks, weighed by the class's probability under each (Petsiuk et al. 2018, arXiv 1806.07421)",
        "method",
        _rise,
        passes=lambda options: float(options.rise_masks),
        all_classes_at_once=True,
    ),
    _control("edges", "Edges", "Sobel's filter on the image; ignores the network", _edges),
    _control("centre", "Centre", "a Gaussian at the centre, sigma a quarter of the side", _centre),
    _control("random", "Random patches", "noise, one value a patch", _random_patches),
    _control("random_pixels", "Random pixels", "noise, one value a pixel", _random_pixels),
)

RENAMED = {"lead": "contrast", "gradcam_lead": "gradcam_contrast"}  # as earlier versions called them
METHODS = {method.name: method for method in (*OURS, *BASELINES)}


def chosen_methods(names: Iterable[str]) -> list[Method]:
    """Methods by name, in the given order.

    Raises:
        UserError: a name is unknown, comes twice, or needs something that is not installed; or there is no name.
    """
    methods = []
    for name in names:
        if name not in METHODS:
            close = [RENAMED[name]] if name in RENAMED else difflib.get_close_matches(name, METHODS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UserError(f"unknown method {name!r}; known: {', '.join(METHODS)}.{hint}")
        if METHODS[name] in methods:
            raise UserError(f"method {name!r} is named twice.")
        if METHODS[name].needs:
            _imported(str(METHODS[name].needs))
        methods.append(METHODS[name])
    if not methods:
        raise UserError(f"no method is named; known: {', '.join(METHODS)}.")
    return methods
