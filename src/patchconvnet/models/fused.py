"""Fused networks: what is constant once training is over is computed once, for speed. Behind `PatchConvNet.fuse`.

A timm backbone's convolutions become such layers too (`fuse_convolutions`), behind `AttentionPooled.fuse`.

Exact in real numbers, so equal up to rounding: a norm's weight and bias, and batch statistics, go into the linear layer
behind it; a layer scale goes into the linear layer before it; the class query, its keys and the product of value and
output projections become constants. On a CPU the trunk may compute in bfloat16 with weights converted once.

What this gains over the network under autocast, measured on a CPU: 1.46 × for S60, 1.15 × for the Keras example's
network, 1.01 × for midi. Most of it comes from calling oneDNN's linear layer and convolution with the GELU behind them
and with weights in its own layout, as PyTorch's compiler does for a frozen network. These operators
(`torch.ops.mkldnn._linear_pointwise`, …) are private and may change with any release of PyTorch, which is why all of it
stands in this file and nothing but `fuse` needs it; where they are missing, plain layers are used.
"""

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, LayerScale
from timm.layers.padding import pad_same
from torch import Tensor, nn

from patchconvnet import hardware
from patchconvnet.errors import UserError
from patchconvnet.hardware import cpu_has_bfloat16
from patchconvnet.models.classifier import AttentionClassifier
from patchconvnet.models.layers import BatchNorm, SqueezeExcite
from patchconvnet.models.pooling import AttendingPooling, ClassAttention
from patchconvnet.models.recomputing import Recompute
from patchconvnet.models.stem import ConvStem, PooledStem
from patchconvnet.models.trunk import PreactivationBlock, TrunkBlock


class FusedNetwork(AttentionClassifier):
    """A network of stem, trunk and pooling for inference: whatever answers works, whatever changes weights is refused.

    Images come and answers go in the number format of the network that was fused, on the device that it was on. It is
    for calling as it is: on a CPU with oneDNN, torch.compile leaves its layers out and torch.export stops.

    Args:
        model: a `PatchConvNet` in evaluation mode; its class is the other base of the fused one.
        dtype: see `PatchConvNet.fuse`.
    """

    def __init__(self, model: Any, dtype: torch.dtype | Literal["auto"] | None):
        if model.training:
            raise UserError("a network in training mode can't be fused: its weights still change; call eval() first")
        nn.Module.__init__(self)
        like = next(model.parameters())
        self.dtype = hardware.fastest_dtype(like.device) if dtype == "auto" else dtype or like.dtype
        if not self.dtype.is_floating_point:
            raise UserError(f"a network can't be fused to {self.dtype}; use a floating point format, 'auto' or None")
        for name in (
            "config", "num_classes", "in_chans", "num_features", "head_hidden_size", "embed_dim", "patch_size",
            "feature_info", "class_wise", "metadata", "pretrained_cfg", "default_cfg",
        ):  # fmt: skip
            if hasattr(model, name):
                setattr(self, name, copy.deepcopy(getattr(model, name)))
        self.recompute: Recompute = "none"
        with torch.no_grad():
            self.stem = fuse_stem(model.stem, self.dtype)
            self.trunk = nn.ModuleList(fuse_block(block, self.dtype) for block in model.trunk)
            self.pooling = fuse_pooling(model.pooling)
            self.head = copy.deepcopy(model.head)
        self.requires_grad_(False)
        super().train(False)

    def forward_features(self, image: Tensor) -> Tensor:
        """Image (B, C_in, H, W) → patches (B, C, h, w); no gradient goes through it."""
        if image.requires_grad and torch.is_grad_enabled():
            raise UserError("a fused network gives no gradients; ask the network that it was made from")
        with torch.no_grad():
            return super().forward_features(image.to(self.dtype)).to(image.dtype)

    def fuse(self, dtype: torch.dtype | Literal["auto"] | None = None) -> Any:
        raise UserError("this network is fused already")

    def train(self, mode: bool = True) -> Self:
        if mode:
            raise UserError("a fused network can't be trained; train the network that it was made from")
        return self

    def save_pretrained(self, folder: str | Path, dtype: str = "float32") -> Path:
        raise UserError("a fused network can't be saved; save the network that it was made from")

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        raise UserError("a fused network can't be published; publish the network that it was made from")

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        raise UserError("a fused network keeps its classifier; change that of the network that it was made from")

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        raise UserError(_UNMOVABLE)

    def __reduce_ex__(self, protocol: Any) -> Any:  # of copy and pickle
        raise UserError(_UNCOPYABLE)


def fuse_stem(stem: ConvStem | PooledStem, dtype: torch.dtype) -> ConvStem | PooledStem:
    """The stem with each GELU inside the convolution before it, where nothing stands between them."""
    if isinstance(stem, PooledStem):
        return FusedPooledStem(stem, dtype)
    fused = copy.deepcopy(stem)
    last = len(stem.convs) - 1
    fused.convs = nn.ModuleList(
        FusedConv(conv, stem.act if stem.last_act or i < last else None, dtype) for i, conv in enumerate(stem.convs)
    )
    fused.act = nn.Identity()
    return fused


def fuse_block(block: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A trunk block of either kind, with everything constant in its layers."""
    return FusedPreactivationBlock(block, dtype) if isinstance(block, PreactivationBlock) else FusedBlock(block, dtype)


def fuse_pooling(pooling: nn.Module) -> nn.Module:
    """The pooling with what its class tokens make constant computed: the first block's attention, if it has one head.

    What has no constants is copied.
    """
    fused = copy.deepcopy(pooling)
    if isinstance(fused, AttendingPooling) and fused.attn.num_heads == 1:
        fused.attn = FusedClassAttention(fused.attn, fused.norm1(fused.class_token[0]))
    return fused


class FusedBlock(nn.Module):
    """A trunk block with its norm's weight and bias in `conv1`, its layer scale in `conv3`, GELUs with their layers."""

    def __init__(self, block: nn.Module, dtype: torch.dtype):
        super().__init__()
        assert isinstance(block, TrunkBlock)
        conv1, conv3, last = block.conv1, block.conv3, block.layer_scale
        self.norm, scale, shift = _split_norm(block.norm)
        # W·(scale∘x + shift) + b = (W·diag(scale))·x + (b + W·shift)
        self.conv1 = FusedLinear(conv1.weight * scale, conv1.bias + conv1.weight @ shift, block.act, dtype)
        self.conv2 = FusedConv(block.conv2, block.act, dtype)
        self.se = FusedSqueezeExcite(block.se)
        gamma = last.gamma if isinstance(last, LayerScale) else torch.ones_like(conv3.bias)
        self.conv3 = FusedLinear(conv3.weight * gamma[:, None], conv3.bias * gamma, None, dtype)

    def forward(self, patches: Tensor) -> Tensor:
        x = self.conv1(self.norm(patches))
        x = self.conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # views of channels-last memory
        return self.conv3(self.se(x)).add_(patches)


class FusedPooledStem(PooledStem):
    """A pooled stem with its first GELU in the convolution before it."""

    def __init__(self, stem: PooledStem, dtype: torch.dtype):
        nn.Module.__init__(self)
        self.stride, self.patch_size, self.act = stem.stride, stem.patch_size, stem.act
        first, *further = stem.convs
        self.convs = nn.ModuleList([FusedConv(first, stem.act, dtype), *(FusedConv(c, None, dtype) for c in further)])
        self.norms = nn.ModuleList(FusedNorm(norm, dtype) for norm in stem.norms)
        self.repeats = stem.repeats
        self.repeat_convs = nn.ModuleList(FusedConv(conv, None, dtype) for conv in stem.repeat_convs)
        self.repeat_norms = nn.ModuleList(FusedNorm(norm, dtype) for norm in stem.repeat_norms)

    def _first(self, image: Tensor) -> Tensor:
        return self.convs[0](image)


class FusedPreactivationBlock(nn.Module):
    """A pre-activation block with its second batch norm in `conv1`, its layer scale in the excitation."""

    def __init__(self, block: PreactivationBlock, dtype: torch.dtype):
        super().__init__()
        self.act = block.act
        self.norm1 = FusedNorm(block.norm1, dtype)
        if isinstance(block.norm2, BatchNorm):
            _, scale, shift = _split_norm(block.norm2)
            self.norm2: nn.Module = nn.Identity()
            self.conv1 = FusedConv(_with_bias(block.conv1, scale, shift), block.act, dtype)
        else:
            self.norm2 = nn.Sequential(FusedNorm(block.norm2, dtype), block.act)
            self.conv1 = FusedConv(block.conv1, None, dtype)
        gamma = block.layer_scale.gamma if isinstance(block.layer_scale, LayerScale) else None
        self.conv2 = FusedConv(block.conv2, None, dtype)
        self.se = FusedSqueezeExcite(block.se, gamma)

    def forward(self, patches: Tensor) -> Tensor:
        x = self.act(self.norm1(patches))
        x = self.norm2(self.conv1(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return self.se(self.conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)).add_(patches)


class FusedNorm(nn.Module):
    """A norm whose weight and bias no layer can take over, since GELU follows; batch norm as one multiply-add."""

    def __init__(self, norm: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.norm, scale, shift = _split_norm(norm)
        self.scale, self.shift = scale.detach().to(dtype), shift.detach().to(dtype)

    def forward(self, patches: Tensor) -> Tensor:
        return torch.addcmul(self.shift, self.norm(patches), self.scale)


class FusedLinear(nn.Module):
    """A linear layer over the last axis of (B, h, w, C) and the GELU behind it, if there is one."""

    def __init__(self, weight: Tensor, bias: Tensor, act: nn.Module | None, dtype: torch.dtype):
        super().__init__()
        self.weight, self.bias = weight.detach().to(dtype), bias.detach().to(dtype)
        self.gelu = act.approximate if isinstance(act, nn.GELU) else None
        # 5 to 15 % faster than F.linear and F.gelu, but for small float32 layers, where MKL needs 20 µs less for a call
        self.packed = _has_onednn(self.weight) and (dtype is torch.bfloat16 or len(weight) >= 256)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def forward(self, patches: Tensor) -> Tensor:
        if self.packed:
            _leave_graph()
            kind, algorithm = ("none", "") if self.gelu is None else ("gelu", self.gelu)
            return torch.ops.mkldnn._linear_pointwise(patches, self.weight, self.bias, kind, [], algorithm)
        x = F.linear(patches, self.weight, self.bias)
        return x if self.gelu is None else F.gelu(x, approximate=self.gelu)


class FusedConv(nn.Module):
    """A convolution of channels-last (B, C, h, w) and the activation behind it, if there is one."""

    def __init__(self, conv: nn.Module, act: nn.Module | None, dtype: torch.dtype):
        super().__init__()
        assert isinstance(conv, nn.Conv2d)
        self.weight = conv.weight.detach().to(dtype, memory_format=torch.channels_last)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self.act = act
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        self.pads_by_size = isinstance(conv, Conv2dSame)
        self.padding = [0, 0] if self.pads_by_size else [int(side) for side in conv.padding]  # a word, says its type
        self.onednn = _has_onednn(self.weight)
        self.laid_out: tuple[torch.Size | None, Tensor] = (None, self.weight)

    def forward(self, image: Tensor) -> Tensor:
        image = image.to(self.weight.dtype)
        if self.pads_by_size:
            height, width = self.weight.shape[2:]
            image = pad_same(image, [height, width], self.stride, self.dilation)
        if self.onednn:
            _leave_graph()
            return torch.ops.mkldnn._convolution_pointwise(
                image, self._weight_for(image.shape), self.bias, self.padding, self.stride, self.dilation, self.groups,
                *_onednn_activation(self.act),
            )  # fmt: skip
        x = F.conv2d(image, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return x if self.act is None else self.act(x)

    def _weight_for(self, shape: torch.Size) -> Tensor:
        """The weight as oneDNN wants it for images of this shape, made when the shape changes.

        In another shape's layout the same convolution may take ten times as long; laid out anew in every call, as in
        `F.conv2d`, it takes a quarter longer at batch 1.
        """
        known, weight = self.laid_out
        if known != shape:
            weight = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, self.padding, self.stride, self.dilation, self.groups, list(shape)
            )
            self.laid_out = shape, weight
        return weight

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        raise UserError(_UNMOVABLE)

    def __reduce_ex__(self, protocol: Any) -> Any:  # of copy and pickle
        raise UserError(_UNCOPYABLE)


def fuse_convolutions(network: nn.Module, dtype: torch.dtype, run: Callable[[], Tensor]) -> None:
    """Put a `FusedConv` in the place of each convolution of a network of torch's own layers, and of its activation.

    With one thread and few images PyTorch calls no oneDNN for 1×1 convolutions, and lays weights out anew in every
    call: EfficientNet-Lite0 answers 71 images a second instead of 52, in batches of four at 224 pixels on one core.
    Only activations that overwrite the convolution's output are taken, since nothing else can need it.

    Args:
        network: in evaluation mode, channels-last; changed in place, or left as it is where oneDNN is not there.
        dtype: of the convolutions.
        run: calls the network once, whatever it takes of it, and returns what must stay as it is, to rounding.
    """
    outputs: dict[int, tuple[nn.Module, Tensor]] = {}  # the tensors are kept, or another might get the same id
    acts: dict[nn.Module, nn.Module] = {}
    calls: Counter[nn.Module] = Counter()
    layers = [
        layer
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d)
        and type(layer) in (nn.Conv2d, Conv2dSame)
        and not (layer.padding_mode != "zeros" or isinstance(layer.padding, str))
        and _has_onednn(layer.weight.to(dtype))
    ]

    def note(layer: nn.Module, _: Any, output: Tensor) -> None:
        calls[layer] += 1
        outputs[id(output)] = (layer, output)

    def match(act: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls[act] += 1
        if (found := outputs.get(id(inputs[0]))) is not None:
            acts[found[0]] = act

    handles = [layer.register_forward_hook(note) for layer in layers]
    handles += [
        layer.register_forward_pre_hook(match)
        for layer in network.modules()
        if type(layer) in _ONEDNN_ACTIVATIONS and getattr(layer, "inplace", False)
    ]
    try:
        before = run()
    finally:
        for handle in handles:
            handle.remove()
    layers = [layer for layer in layers if calls[layer]]  # what `run` does not call may be called without autocast
    acts = {layer: act for layer, act in acts.items() if calls[layer] == calls[act] == 1}
    paths = {module: path for path, module in network.named_modules()}
    for layer in layers:
        act = acts.get(layer)
        network.set_submodule(paths[layer], FusedConv(layer, act, layer.weight.dtype))
        if act is not None:
            network.set_submodule(paths[act], nn.Identity())
    after = run()
    fits = (after - before).abs().max() <= 1e-4 * before.abs().max()
    for layer in layers:
        if not fits:  # a convolution's output went elsewhere, too
            network.set_submodule(paths[layer], layer)
            if (act := acts.get(layer)) is not None:
                network.set_submodule(paths[act], act)
        elif dtype != layer.weight.dtype:
            network.set_submodule(paths[layer], FusedConv(layer, acts.get(layer), dtype))


def _onednn_activation(act: nn.Module | None) -> tuple[str, list[float], str]:
    """What oneDNN calls an activation: its name, its numbers, and how it is computed."""
    if act is None:
        return "none", [], ""
    name, numbers = _ONEDNN_ACTIVATIONS[type(act)]
    return name, numbers, act.approximate if isinstance(act, nn.GELU) else ""


_ONEDNN_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.GELU: ("gelu", []),
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}
_UNMOVABLE = "a fused network can't be moved or converted; do so before fusing"
_UNCOPYABLE = (
    "a fused network can't be copied or pickled: its weights are in this CPU's own layout; copy or save the "
    "network that it was made from, and fuse that"
)


class FusedSqueezeExcite(SqueezeExcite):
    """Squeeze-and-excitation that averages by `avg_pool2d` (twice as fast as `mean`), and has no part in bfloat16.

    Its two products are so small that a call of oneDNN's bfloat16 one costs four times as much as of MKL's float32 one.
    """

    def __init__(self, se: SqueezeExcite, gamma: Tensor | None = None):
        nn.Module.__init__(self)
        self.reduce, self.expand = copy.deepcopy(se.reduce), copy.deepcopy(se.expand)
        self.gamma = gamma  # (C) a layer scale behind it

    def forward(self, patches: Tensor) -> Tensor:
        squeezed = F.avg_pool2d(patches.permute(0, 3, 1, 2), patches.shape[1:3]).flatten(1)  # (B, C)
        hidden = torch.relu(self.reduce(squeezed.to(self.reduce.weight.dtype)))
        scale = self.expand(hidden).sigmoid()
        if self.gamma is not None:
            scale = scale * self.gamma
        return patches * scale.to(patches.dtype)[:, None, None, :]


class FusedClassAttention(ClassAttention):
    """Class attention of one head for class tokens that don't change any more; takes what `ClassAttention` takes.

    The query's product with the key projection and that of value and output projections are made once. The key bias
    adds the same to every score, which the softmax drops.

    Args:
        attn: its layers are kept, since first-order evidence reads them.
        tokens: normalised class tokens (Q, C).
    """

    keys: Tensor
    own: Tensor
    value: Tensor
    value_bias: Tensor

    def __init__(self, attn: ClassAttention, tokens: Tensor):
        nn.Module.__init__(self)
        self.scale, self.num_queries, self.num_heads = attn.scale, attn.num_queries, 1
        self.folded, self.drop = attn.folded, attn.drop
        self.q, self.k, self.v, self.proj = attn.q, attn.k, attn.v, attn.proj
        keys = attn.q(tokens) * attn.scale @ attn.k.weight
        self.register_buffer("keys", keys, persistent=False)  # (Q, C)
        self.register_buffer("own", (keys * tokens).sum(-1, keepdim=True), persistent=False)  # (Q, 1)
        self.register_buffer("value", attn.proj.weight @ attn.v.weight, persistent=False)  # (C, C)
        self.register_buffer("value_bias", attn.proj.weight @ attn.v.bias, persistent=False)  # (C)

    def forward(self, tokens: Tensor, patches: Tensor, attend_self: bool) -> tuple[Tensor, Tensor]:
        scores = (patches @ self.keys.mT).mT  # (B, Q, N)
        if attend_self:
            weights = torch.cat([self.own.expand(len(patches), -1, -1), scores], -1).softmax(-1)
            own, weights = weights[..., :1], weights[..., 1:]
            value = F.linear(weights @ patches + own * tokens, self.value)
        else:
            weights = scores.softmax(-1)
            value = F.linear(weights @ patches, self.value) if self.folded else weights @ F.linear(patches, self.value)
        return value + self.value_bias + self.proj.bias, weights[:, None]


def _split_norm(norm: nn.Module) -> tuple[nn.Module, Tensor, Tensor]:
    """A norm as one without parameters, and the factor and the summand (C) behind it."""
    if isinstance(norm, BatchNorm):
        mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        scale = norm.weight / (variance + norm.eps).sqrt()
        return nn.Identity(), scale, norm.bias - mean * scale
    assert isinstance(norm, nn.LayerNorm)
    return nn.LayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False), norm.weight, norm.bias


def _with_bias(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> nn.Conv2d:
    """scale∘conv(x) + shift as one convolution, for one without a bias."""
    folded = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, device="meta")
    folded.weight, folded.bias = nn.Parameter(conv.weight * scale[:, None, None, None]), nn.Parameter(shift)
    return folded


def _leave_graph() -> None:
    """Weights laid out for oneDNN are opaque to graphs: torch.compile runs the layer outside, torch.export stops."""
    if torch.compiler.is_compiling():
        raise UserError(
            "a fused network can't be exported, nor compiled as one graph: it calls oneDNN with weights laid out for "
            "this CPU; export or compile the network that `fuse()` was called on"
        )


def _has_onednn(weight: Tensor) -> bool:
    """Whether layers with this weight can call oneDNN the way PyTorch's compiler does; its names there may change."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    operations = ("linear", "convolution")
    names = [n for what in operations for n in (f"_{what}_pointwise", f"_reorder_{what}_weight")]
    if not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return weight.dtype is torch.float32 or (weight.dtype is torch.bfloat16 and cpu_has_bfloat16())
