"""What a network costs: parameters and multiply-accumulates, counted in its forward pass, without running it."""

from dataclasses import dataclass, replace

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from patchconvnet.models.patchconvnet import PatchConvNet, PatchConvNetConfig
from patchconvnet.models.pooling import ClassAttention
from patchconvnet.models.weights import published_tags


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates for one image.

    Attributes:
        ours: what this package computes.
        published: what the same network costs with keys and values made for every patch, as papers and tables count it.
    """

    ours: int
    published: int


def multiply_accumulates(model: PatchConvNet, height: int, width: int) -> Cost:
    """The cost of classifying one image of `height` × `width` pixels, without attention or evidence asked for.

    Matrix products and convolutions are counted; norms, activations and biases are not.

    Raises:
        UserError: when the image is smaller than one patch.
    """
    shallow, deeper = (_count(replace(model.config, depth=depth), height, width) for depth in (1, 2))
    ours = shallow + (model.config.depth - 1) * (deeper - shallow)  # the trunk's blocks are all alike
    grid = -(-height // model.patch_size) * -(-width // model.patch_size)
    # the single class token is a key and a value itself, class tokens of their own classes are not
    attentions = [module for module in model.pooling.modules() if isinstance(module, ClassAttention)]
    saved = sum(_saved(attention, patches=grid, keys=grid + (not model.class_wise)) for attention in attentions)
    return Cost(ours, ours + saved)


def _count(config: PatchConvNetConfig, height: int, width: int) -> int:
    with torch.device("meta"):  # shapes without numbers
        model = PatchConvNet(config).eval().requires_grad_(False)
        image = torch.empty(1, config.in_chans, height, width)
    with FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2


def _saved(attention: ClassAttention, patches: int, keys: int) -> int:
    """What folding the query into the key projection, and projecting after pooling, saves (see pooling.py)."""
    if not attention.folded:
        return 0
    dim, queries = attention.q.in_features, attention.num_queries
    published = 2 * keys * dim**2 + 2 * queries * keys * dim  # keys and values; scores and their sum
    # W_kᵀq and W_v·Σ, as much for all heads as for one; scores and sums of whole patches for each head
    folded = 2 * queries * dim**2 + 2 * attention.num_heads * queries * patches * dim
    return published - folded


@dataclass(frozen=True)
class Variant(Cost):
    """A registered variant, and what it costs for one image of its input size.

    Attributes:
        name: for `timm.create_model`.
        parameters: their number, with the default number of classes.
        input_size: (height, width) it is made for; any other works too.
        tags: its published weights, good for `PatchConvNet.from_pretrained`.
    """

    name: str
    parameters: int
    input_size: tuple[int, int]
    tags: list[str]


def family() -> list[Variant]:
    """Every registered variant, the smallest first."""
    variants = []
    for name in timm.list_models("patchconvnet*"):
        with torch.device("meta"):
            model = timm.create_model(name)
        size = model.pretrained_cfg["input_size"][1:]
        cost = multiply_accumulates(model, *size)
        variants.append(
            Variant(
                ours=cost.ours,
                published=cost.published,
                name=name,
                parameters=sum(parameter.numel() for parameter in model.parameters()),
                input_size=size,
                tags=[tag for tag in published_tags() if tag.startswith(f"{name}.")],
            )
        )
    return sorted(variants, key=lambda variant: variant.parameters)
