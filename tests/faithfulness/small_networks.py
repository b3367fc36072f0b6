"""A small network and images for measures, and methods whose maps are known."""

from collections.abc import Callable

import timm
import torch
from torch import nn

import patchconvnet  # noqa: F401, registers the models
from patchconvnet.explanation.patch_grid import Grid
from patchconvnet.faithfulness.methods import Attribution, Method


def trained_like() -> nn.Module:
    """A network with random weights and statistics of batch norms, as after a training, in evaluation mode."""
    torch.manual_seed(0)
    network = timm.create_model("patchconvnet_micro", embed_dim=16, depth=2, num_classes=4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        for name, buffer in network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))
    return network.eval()


def smooth_images() -> torch.Tensor:
    """(3, 3, 32, 32)."""
    rough = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(rough, (32, 32), mode="bilinear")


def known_method(compute: Callable[[torch.Tensor], torch.Tensor]) -> Method:
    """A method whose maps are a function of the images: (B, H, W)."""

    def attribution(network, images, classes, options):
        maps = compute(images)
        return Attribution(maps[:, None], Grid(tuple(maps.shape[1:]), (1.0, 1.0), (0.5, 0.5)))

    return Method("test", "Test", "", "control", attribution)
