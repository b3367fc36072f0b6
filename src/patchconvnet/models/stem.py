"""The convolutional stem: an image becomes a grid of patches (paper, section 3.1; Keras example, "Stem block")."""

from collections.abc import Sequence
from itertools import islice, pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchconvnet.errors import UserError
from patchconvnet.models.layers import ActName, NormName, act_layer, norm_layer

StemName = Literal["strided", "pooled"]
StemPadding = Literal["symmetric", "same"]

# least variance that whitening divides by: stronger amplification of what is nearly constant is mostly noise (airbench)
_WHITENING_FLOOR = 5e-4


class ConvStem(nn.Module):
    """3×3 convolutions of stride 2, one after the other, with GELU between them: (B, C_in, H, W) → (B, h, w, C).

    Args:
        in_chans: channels of the image.
        channels: output channels of each convolution; each halves the resolution: the patch size is 2^len(channels).
        bias: whether the convolutions have biases.
        padding: "symmetric" pads one pixel on each side; "same" is TensorFlow's rule, which at stride 2 pads an even
            length by 0 before and 1 after. Both give ⌈H/patch⌉ × ⌈W/patch⌉ patches.
        last_act: whether the last convolution is followed by GELU too (the Keras example: yes, the paper: no).
        act: which GELU.
    """

    def __init__(
        self,
        in_chans: int,
        channels: Sequence[int],
        *,
        bias: bool = False,
        padding: StemPadding = "symmetric",
        last_act: bool = False,
        act: ActName = "gelu",
    ):
        super().__init__()
        self.patch_size = 2 ** len(channels)
        self.padding = padding
        self.last_act = last_act
        self.act = act_layer(act)
        widths = [in_chans, *channels]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=2, padding=1 if padding == "symmetric" else 0, bias=bias)
            for i, o in pairwise(widths)
        )

    def first_centre(self, size: tuple[int, int]) -> tuple[float, float]:
        """Centre (y, x) of the first patch's receptive field, in pixels of an image of `size` (height, width).

        A convolution of stride 2 with a pixel of padding on both sides reads around pixel 0, 2, 4, …, so a stack of
        them around 0, 16, 32, … and not in the middle of 16 × 16 squares: half a patch away. Training does not undo it:
        with patches of 4 pixels, the maps of CIFAR-10 images and of their mirror images agree best (correlation 0.90)
        when centres are taken at 0.5 of the 4 pixels, as here, and less (0.85) at their middle. TensorFlow's padding
        shifts them the other way.
        """

        def first(length: int) -> float:
            centre, stride = 0.5, 1  # the first pixel's, whole numbers being the edges between pixels
            for _ in self.convs:
                padded_before = 1 if self.padding == "symmetric" else length % 2
                centre += (1 - padded_before) * stride
                stride *= 2
                length = (length + 1) // 2
            return centre

        return first(size[0]), first(size[1])

    def forward(self, image: Tensor) -> Tensor:
        x = image.contiguous(memory_format=torch.channels_last)
        for i, conv in enumerate(self.convs):
            if self.padding == "same":
                x = F.pad(x, (x.shape[-1] % 2, 1, x.shape[-2] % 2, 1))
            x = conv(x)
            if self.last_act or i < len(self.convs) - 1:
                x = self.act(x)
        return x.permute(0, 2, 3, 1)  # (B, h, w, C), a view of channels-last memory


def _halved(x: Tensor) -> Tensor:
    """2×2 max pooling of (B, C, H, W), rounded up."""
    if torch.compiler.is_exporting():  # of any H and W it cannot follow the rounding; a border of −∞ does the same
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 2)
    return F.max_pool2d(x, 2, ceil_mode=True)


class PooledStem(nn.Module):
    """A 3×3 convolution, then 3×3 convolutions with a 2×2 max pool behind each: (B, C_in, H, W) → (B, h, w, C).

    It works where strides would skip, at the image's own resolution, which on small images gives more accuracy for
    its operations than anything later does. GELU after each; norms after the pools.

    Args:
        in_chans: channels of the image.
        filters: output channels of the first convolution.
        channels: output channels of the further ones, each of which halves the resolution, rounded up.
        stride: of the first convolution; the patch size is stride · 2^len(channels).
        repeats: further 3×3 convolutions, each with norm and GELU, at every resolution between the first and the last.
        norm: "layer" or "batch" normalisation after each pool.
        act: which GELU.
    """

    def __init__(
        self,
        in_chans: int,
        filters: int,
        channels: Sequence[int],
        *,
        stride: int = 1,
        repeats: int = 0,
        norm: NormName = "batch",
        act: ActName = "gelu",
    ):
        super().__init__()
        self.stride, self.patch_size = stride, stride * 2 ** len(channels)
        self.convs = nn.ModuleList([nn.Conv2d(in_chans, filters, 3, stride=stride, padding=1)])
        self.convs.extend(nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in pairwise([filters, *channels]))
        self.norms = nn.ModuleList(norm_layer(norm, width) for width in channels)
        repeated = [width for width in channels[:-1] for _ in range(repeats)]
        self.repeats = repeats
        self.repeat_convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for width in repeated)
        self.repeat_norms = nn.ModuleList(norm_layer(norm, width) for width in repeated)
        self.act = act_layer(act)

    def first_centre(self, size: tuple[int, int]) -> tuple[float, float]:
        """Centre (y, x) of the first patch's receptive field, in pixels of an image of any `size`.

        The first convolution's fields have their centres at 0.5, `stride` apart; a pool's is in the middle of what it
        pools.
        """
        first = 0.5 + (self.patch_size - self.stride) / 2
        return first, first

    def forward(self, image: Tensor) -> Tensor:
        x = self._first(image.contiguous(memory_format=torch.channels_last))  # (B, C, h, w)
        repeated = zip(self.repeat_convs, self.repeat_norms, strict=True)
        for conv, norm in zip(self.convs[1:], self.norms, strict=True):
            x = self._normalised(norm, _halved(conv(x)))
            for again, its_norm in islice(repeated, self.repeats):
                x = self._normalised(its_norm, again(x))
        return x.permute(0, 2, 3, 1)  # (B, h, w, C), a view of channels-last memory

    def _normalised(self, norm: nn.Module, x: Tensor) -> Tensor:
        return self.act(norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    def _first(self, image: Tensor) -> Tensor:
        return self.act(self.convs[0](image))

    @torch.no_grad()
    def whiten(self, images: Tensor, *, mirrored: bool = False) -> None:
        """Give the first convolution filters whose answers over patches of `images` are uncorrelated, of variance 1.

        They are the eigenvectors of the patches' covariance and their negatives, the strongest first, as far as there
        are channels; they are not trained any more, the bias, which starts at 0, is until `freeze_whitening`.

        Args:
            images: (B, C_in, H, W), normalised as in training; some thousand 32-pixel images are enough.
            mirrored: of their mirror images, too, so that filters are their own mirror images or their negatives.

        Raises:
            UserError: the images are not images of at least 3 × 3 pixels, or all the same.

        Source: K. Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498, section 3.2.
        """
        conv = self.convs[0]
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        channels = conv.in_channels
        if images.ndim != 4 or images.shape[1] != channels or min(images.shape[2:]) < 3:
            raise UserError(f"whitening needs images (B, {channels}, H, W) of 3 × 3 pixels or more, not {images.shape}")
        # every third patch in each direction: their neighbours say nearly the same
        columns = F.unfold(images.float(), 3, stride=3)  # (B, 9·C_in, N)
        patches = columns.movedim(1, 2).flatten(0, 1).double()
        patches -= patches.mean(0)
        covariance = patches.T @ patches / len(patches)
        if mirrored:
            places = torch.arange(len(covariance)).view(channels, 3, 3).flip(2).flatten()
            covariance = (covariance + covariance[places][:, places]) / 2
        values, vectors = torch.linalg.eigh(covariance)
        if not values[-1] > 0:
            raise UserError("whitening needs images that differ; in these every pixel has the same colour")
        filters = (vectors / (values + _WHITENING_FLOOR).sqrt()).T.flip(0)
        half = min(len(filters), conv.out_channels // 2)
        filters = torch.cat([filters[:half], -filters[:half]]).to(conv.weight)
        conv.weight[: 2 * half] = filters.unflatten(1, (channels, 3, 3))
        conv.bias.zero_()
        conv.weight.requires_grad_(False)

    def freeze_whitening(self) -> None:
        """Train the bias of whitening filters no more, so that no gradient of the second convolution's input is needed.

        It does nothing where the first convolution is trained like the others.
        """
        first = self.convs[0]
        assert isinstance(first, nn.Conv2d)
        if not first.weight.requires_grad and first.bias is not None:
            first.bias.requires_grad_(False)
