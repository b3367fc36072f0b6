"""One image's forward pass, kept so that it can be asked again what it would say without a part of the image."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patchconvnet.data.geometry import Geometry
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.explanation.patch_grid import Grid
from patchconvnet.explanation.removal import Region, Removal, covered_patches, greyed, region_pixels
from patchconvnet.models.classifier import AttentionClassifier
from patchconvnet.models.modes import evaluation_mode


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """One image's forward pass, kept so that it can be asked again.

    Args:
        model: the network.
        patches: (1, h, w, C) on the CPU, what its pooling read.
        grid: how they are placed on the network input.
        preprocessing: from image to network input.
    """

    model: AttentionClassifier
    patches: Tensor
    grid: Grid
    preprocessing: Preprocessing

    def without(self, image: Image.Image, geometry: Geometry, region: Region) -> Removal:
        """See `Explanation.without`."""
        pixels = region_pixels(region, geometry.image)
        removed = covered_patches(pixels, self.grid, geometry)
        grey = greyed(image, pixels, self.preprocessing.mean)
        with torch.no_grad(), evaluation_mode(self.model):
            logits = self.logits_of(~removed)
            *_, like = self.model.parameters()  # the classifier's: a fused trunk's may be bfloat16
            tensor = self.preprocessing(grey)[None].to(like.device, like.dtype)
            logits_of_grey = self.model(tensor)[0].float().cpu().numpy()
        return Removal(pixels, removed, self.grid, grey, logits, logits_of_grey)

    def logits_of(self, kept: np.ndarray) -> np.ndarray:
        """(K,) logits of the kept patches, (h, w) bool, pooled alone."""
        with torch.no_grad(), evaluation_mode(self.model):
            remaining = self.patches[:, torch.from_numpy(kept)][:, :, None]  # (1, n, 1, C)
            remaining = remaining.to(next(self.model.parameters()).device)
            return self.model.classify(self.model.pooling(remaining).vector)[0].float().cpu().numpy()
