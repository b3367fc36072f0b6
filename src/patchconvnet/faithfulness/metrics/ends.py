"""Both ends of deletion and insertion are the same for every map: the network is asked once an image, for all maps."""

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchconvnet.faithfulness.passes import answers

BLUR_KERNEL, BLUR_SIGMA = 11, 5.0  # as in RISE's code


class Ends:
    """Images as they are, blurred, and removed, with what a network says of each; made and asked when first needed.

    Args:
        model: in eval mode.
        images: (B, C, H, W), preprocessed.
        forward_batch: images in one forward pass, at most.
    """

    def __init__(self, model: nn.Module, images: Tensor, forward_batch: int):
        self.model, self.images, self.forward_batch = model, images, forward_batch

    @cached_property
    def original(self) -> Tensor:
        """(B, K) probabilities of the images."""
        return answers(self.model, self.images, self.forward_batch)

    @cached_property
    def blurred_images(self) -> Tensor:
        """(B, C, H, W) of `blurred`."""
        return blurred(self.images)

    @cached_property
    def blurred(self) -> Tensor:
        """(B, K) probabilities of the blurred images."""
        return answers(self.model, self.blurred_images, self.forward_batch)

    @cached_property
    def removed(self) -> Tensor:
        """(B, K) probabilities of an image of zeros, the same for all."""
        zeros = torch.zeros_like(self.images[:1])
        return answers(self.model, zeros, self.forward_batch).expand(len(self.images), -1)


def blurred(images: Tensor) -> Tensor:
    """The start of insertion: (B, C, H, W) through RISE's blur, a kernel of 11 × 11 with sigma 5, zeros around.

    Its kernel is a point, smoothed by a Gaussian that is reflected at the kernel's borders, as RISE's code has it.
    """
    offsets = torch.arange(-int(4 * BLUR_SIGMA + 0.5), int(4 * BLUR_SIGMA + 0.5) + 1)
    weights = torch.exp(-0.5 * (offsets / BLUR_SIGMA) ** 2)
    places = (offsets + BLUR_KERNEL // 2) % (2 * BLUR_KERNEL)
    places = torch.where(places < BLUR_KERNEL, places, 2 * BLUR_KERNEL - 1 - places)
    line = torch.zeros(BLUR_KERNEL).index_add_(0, places, weights / weights.sum()).to(images)
    channels = images.shape[1]
    rows = F.conv2d(
        images, line.view(1, 1, -1, 1).expand(channels, -1, -1, -1), padding=(BLUR_KERNEL // 2, 0), groups=channels
    )
    return F.conv2d(
        rows, line.view(1, 1, 1, -1).expand(channels, -1, -1, -1), padding=(0, BLUR_KERNEL // 2), groups=channels
    )
