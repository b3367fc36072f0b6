"""A network as exporters can follow it: the same answers from layers whose sizes are simple formulas of the image's."""

import copy
from typing import Any

import timm.layers
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from patchconvnet.deploy.description import Placement
from patchconvnet.deploy.first_order import first_order_evidence, has_formulas
from patchconvnet.errors import UserError
from patchconvnet.explanation.evidence import MAX_FIRST_ORDER_CLASSES
from patchconvnet.models.backbones import AttentionPooled, FusedAttentionPooled
from patchconvnet.models.classifier import AttentionClassifier
from patchconvnet.models.folding import fold_batch_norms
from patchconvnet.models.fused import FusedNetwork
from patchconvnet.models.patch_centres import pair
from patchconvnet.models.pooling import Pooled, Pooling
from patchconvnet.models.stem import ConvStem

LIKELIEST = 5  # classes that get first-order evidence where there are many

# layers of timm that compute their padding from the image's size, which no exporter can follow at any size
_SAME = tuple(
    layer for name in ("Conv2dSame", "AvgPool2dSame", "MaxPool2dSame") if (layer := getattr(timm.layers, name, None))
)


class Answers(nn.Module):
    """The network as it is exported: `image` (B, C, H, W) → logits, attention, and evidence if it is wanted.

    Args:
        model: in evaluation mode; stays as it is, and is exported in float32.
        evidence: for how many classes: all, or of first order for as many as are likeliest; 0 for none.

    Attributes:
        outputs: names of what it returns: `logits` (B, K), `attention` (B, Q, h, w), then, unless there is none,
            `evidence` (B, K', h, w), and where K' < K `evidence_classes` (B, K') int64, sorted.
        follows_any_size: whether its layers' sizes are formulas that an exporter follows for any image.
    """

    def __init__(self, model: AttentionClassifier, evidence: int):
        super().__init__()
        self.model = copy.deepcopy(model).float().eval().requires_grad_(False)
        if isinstance(self.model, AttentionPooled):
            size = self.model.probed_size
            image = torch.randn(1, self.model.in_chans, *size, generator=torch.Generator().manual_seed(0))
            image = image.to(next(self.model.parameters()))
            with torch.no_grad():
                fold_batch_norms(self.model.backbone, lambda: self.model.forward_features(image))
        self.flipped = _flip(self.model)
        self.follows_any_size = not any(isinstance(layer, _SAME) for layer in self.model.modules())
        self.exact = model.has_exact_evidence
        self.evidence = evidence
        self.outputs = ["logits", "attention"]
        if evidence:
            self.outputs += ["evidence"] + (["evidence_classes"] if evidence < model.num_classes else [])

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        features = self.model.forward_features(image.flip(-1, -2) if self.flipped else image)
        patches = (features.flip(-1, -2) if self.flipped else features).permute(0, 2, 3, 1)  # (B, h, w, C)
        pooling = self.model.pooling
        pooled: Pooled = pooling(patches)
        logits = self.model.classify(pooled.vector)
        answers = [logits, pooled.attention]
        if self.evidence and self.exact:
            answers.append(self.model.evidence_of(pooled))
        elif self.evidence:
            classes = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[0], -1)
            if few := self.evidence < self.model.num_classes:
                classes = logits.topk(self.evidence, 1).indices.sort(1).values
            answers.append(first_order_evidence(self.model, patches, classes))
            answers += [classes] if few else []
        return tuple(answers)


def check_exportable(model: nn.Module) -> AttentionClassifier:
    """The network, if it can be exported.

    Raises:
        UserError: it has no attention pooling or no classifier, or is fused.
    """
    if isinstance(model, FusedNetwork | FusedAttentionPooled):
        raise UserError("a fused network can't be exported; export the network that it was made from")
    if not (isinstance(model, AttentionClassifier) and isinstance(model.pooling, Pooling)):
        raise UserError(
            f"{type(model).__name__} has no attention pooling, so there is no map to export; give a timm network to "
            "with_attention_pooling()"
        )
    if not model.num_classes:
        raise UserError("this network has no classifier (0 classes), so there is no decision to export")
    return model


def evidence_count(model: AttentionClassifier, wanted: str | int) -> int:
    """For how many classes evidence is exported.

    Args:
        wanted: "auto" (all, or the likeliest five of a first-order head with many classes), "all", "none", or the
            number of the likeliest classes.

    Raises:
        UserError: it is none of these, or only some were asked for of evidence that comes for all classes at once.
    """
    exact, classes = model.has_exact_evidence, model.num_classes
    if wanted != "none" and not exact and not has_formulas(model):
        raise UserError(
            "this network's evidence is of first order through layers whose derivatives can't be exported; give "
            "evidence 'none' (--evidence none) for a file with attention only"
        )
    if wanted == "auto":
        return classes if exact or classes <= MAX_FIRST_ORDER_CLASSES else LIKELIEST
    if wanted in ("all", "none"):
        return classes if wanted == "all" else 0
    try:
        count = int(wanted)
    except ValueError:
        count = 0
    if not 1 <= count <= classes:
        raise UserError(f"evidence is {wanted!r}; it must be auto, all, none, or a number of classes up to {classes}")
    if exact and count < classes:
        raise UserError(
            f"this network's evidence is exact and comes for all {classes} classes at once; give auto, all or none"
        )
    return count


def placement_of(model: AttentionClassifier, size: tuple[int, int]) -> Placement:
    """Where a network's patches are on its input, for inputs of any size.

    Args:
        size: an input that it takes.
    """
    stem = getattr(model, "stem", None)
    period = model.patch_size if isinstance(stem, ConvStem) and stem.padding == "same" else 1
    places = [model.patch_positions((model.patch_size * 8 + i,) * 2, (8, 8)) for i in range(period)]
    if type(model).patch_positions is AttentionClassifier.patch_positions or getattr(model, "first_centre", 0) is None:
        return Placement()
    return Placement((tuple(first[0] for first, _ in places), tuple(first[1] for first, _ in places)), places[0][1])


def _flip(model: nn.Module) -> bool:
    """Turn a network with TensorFlow's padding by 180°, in place, so that it pads alike on both sides.

    That padding puts the last pixel of a side, and not the first, in the middle of a window of stride 2, whatever the
    length. On the turned image with turned kernels it is the first, as with the usual padding.
    """
    same = [layer for layer in model.modules() if isinstance(layer, Conv2dSame)]
    usual = all(
        set(layer.kernel_size) <= {3, 5, 7} and layer.stride == (2, 2) and layer.dilation == (1, 1) for layer in same
    )
    others = any(isinstance(layer, _SAME) and not isinstance(layer, Conv2dSame) for layer in model.modules())
    convolutions = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    symmetric = all(_is_symmetric(layer) for _, layer in convolutions if not isinstance(layer, Conv2dSame))
    if not same or not usual or others or not symmetric:
        return False
    for name, layer in convolutions:
        turned: Any = nn.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride,  # type: ignore[arg-type]
            padding=pair([(k - 1) * d // 2 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]),
            dilation=layer.dilation, groups=layer.groups, bias=layer.bias is not None,  # type: ignore[arg-type]
        )  # fmt: skip
        with torch.no_grad():
            turned.weight.copy_(layer.weight.flip(-1, -2))
            if layer.bias is not None:
                turned.bias.copy_(layer.bias)
        model.set_submodule(name, turned.to(layer.weight).requires_grad_(False))
    return True


def _is_symmetric(layer: nn.Conv2d) -> bool:
    """Whether a convolution of stride 1 keeps the size of the map and reads as far on one side as on the other."""
    reach = tuple((k - 1) * d for k, d in zip(layer.kernel_size, layer.dilation, strict=True))
    padding = layer.padding if isinstance(layer.padding, tuple) else tuple(r // 2 for r in reach)
    return layer.stride == (1, 1) and all(r == 2 * p for r, p in zip(reach, padding, strict=True))
