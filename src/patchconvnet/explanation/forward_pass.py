"""One image's forward passes, kept so that they can be asked again what they would say without a part of the image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patchconvnet.explanation.crops import Crop
from patchconvnet.explanation.patch_grid import Grid
from patchconvnet.explanation.removal import Region, Removal, removal
from patchconvnet.models.classifier import AttentionClassifier
from patchconvnet.models.modes import evaluation_mode


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """One image's forward passes, one for each of its crops, kept so that they can be asked again.

    Args:
        model: the network.
        patches: (n, h, w, C) on the CPU, what its pooling read of each crop.
        grid: how they are placed on the network input.
        crops: n.
    """

    model: AttentionClassifier
    patches: Tensor
    grid: Grid
    crops: tuple[Crop, ...]

    def without(self, image: Image.Image, region: Region) -> Removal:
        """See `Explanation.without`."""
        with torch.no_grad(), evaluation_mode(self.model):
            return removal(image, region, self.crops, self.grid, self.logits_of, self._logits_of_images)

    def logits_of(self, crop: int, kept: np.ndarray) -> np.ndarray:
        """(K,) logits of a crop's kept patches, (h, w) bool, pooled alone."""
        with torch.no_grad(), evaluation_mode(self.model):
            remaining = self.patches[crop : crop + 1, torch.from_numpy(kept)][:, :, None]  # (1, n, 1, C)
            remaining = remaining.to(next(self.model.parameters()).device)
            return self.model.classify(self.model.pooling(remaining).vector)[0].float().cpu().numpy()

    def _logits_of_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """(n, K) logits of the crops, run again through the whole network."""
        *_, like = self.model.parameters()  # the classifier's: a fused trunk's may be bfloat16
        inputs = torch.stack([crop.preprocessing(one) for crop, one in zip(self.crops, images, strict=True)])
        return self.model(inputs.to(like.device, like.dtype)).float().cpu().numpy()
