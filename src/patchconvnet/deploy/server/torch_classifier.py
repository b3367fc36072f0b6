"""A network in PyTorch behind the server."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn

from patchconvnet.data.preprocessing import Geometry
from patchconvnet.deploy.server.classifier import Outputs, Signature
from patchconvnet.explanation.evidence import ForwardMaps, forward_with_maps
from patchconvnet.explanation.explainer import class_names_of, preprocessing_of
from patchconvnet.explanation.patch_grid import patch_grid
from patchconvnet.models.pooling import AdditivePooling, AveragePooling
from patchconvnet.models.weights import temperature_of


class TorchClassifier:
    """A `Classifier` that runs a network as `patchconvnet.explain` does.

    Args:
        network: with attention pooling; put into evaluation mode.
        threads: that torch computes with in this process; None leaves them as they are.

    Raises:
        UserError: it has no maps, or no preprocessing.
    """

    platform = "pytorch"

    def __init__(self, network: nn.Module, threads: int | None = None):
        if threads is not None:
            torch.set_num_threads(threads)
        self._network = network.eval().requires_grad_(False)
        self._preprocessing = preprocessing_of(network)
        self.size = self._preprocessing.size
        self.class_names = class_names_of(network)
        self.temperature = temperature_of(network)
        channels = self._preprocessing.channels
        seen = self._forward(np.zeros((1, channels, *self.size), np.float32))
        pooling = getattr(network, "pooling", None)  # several queries that share one decision have a sum each
        self.removal = seen.exact and isinstance(pooling, AdditivePooling | AveragePooling)
        self.exact, self.bias = seen.exact, seen.bias.float().numpy()
        queries, height, width = seen.attention.shape[1:]
        self.grid = patch_grid(network, self.size, (height, width))
        all_classes = seen.evidence.shape[1] == len(self.class_names)
        self.signature = Signature(
            "image", "FP32", (channels, *self.size), queries, len(self.class_names) if all_classes else -1
        )

    def prepare(self, image: Image.Image) -> tuple[np.ndarray, Geometry]:
        """See `Classifier`."""
        return self._preprocessing(image).numpy(), self._preprocessing.geometry(image.height, image.width)

    def run(self, batch: np.ndarray, classes: Sequence[int] = (), top: int = 5) -> Outputs:
        """See `Classifier`."""
        seen = self._forward(batch, tuple(classes), top)
        tensors = {"logits": seen.logits, "attention": seen.attention, "evidence": seen.evidence}
        return {name: values.float().numpy() for name, values in tensors.items()} | {
            "evidence_classes": seen.classes.numpy()
        }

    @torch.no_grad()
    def _forward(self, batch: np.ndarray, classes: tuple[int, ...] = (), top: int = 1) -> ForwardMaps:
        return forward_with_maps(self._network, torch.from_numpy(batch), classes, top)
