"""Attention pooling on any timm network that averages a spatial map: ResNet, ConvNeXt, EfficientNet, Swin …

Only the averaging is replaced. The trunk, what stands between pooling and classifier (a norm, a layer with its
activation, dropout) and the classifier stay, so with queries at zero the logits are those of before: what follows the
pooling gets the pooled vector as a 1×1 map, through timm's own `forward_head`.

Source: Touvron et al. 2021, arXiv 2112.13692, section 3.2; pytorch-image-models (timm), which has the networks.
"""

import copy
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from timm.models.vgg import ConvMlp
from torch import Tensor, nn

from patchconvnet.errors import UserError, first_line
from patchconvnet.hardware import fastest_dtype
from patchconvnet.models import checkpoints, timm_models
from patchconvnet.models.classifier import AttentionClassifier, check_config, check_image, is_checking
from patchconvnet.models.folding import convert_matrices, fold_batch_norms
from patchconvnet.models.fused import fuse_convolutions
from patchconvnet.models.layers import ActName, NormName
from patchconvnet.models.modes import evaluation_mode
from patchconvnet.models.patch_centres import Reduction, follow, noting_reductions, pair
from patchconvnet.models.pooling import ClassWiseLinear, Pooled, PoolingName, build_pooling
from patchconvnet.models.weights import Metadata, cfg_for_channels

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttentionPooledConfig:
    """Everything that decides the network.

    backbone: a timm model's name; with a tag ("resnet50.a1_in1k") also the preprocessing that goes with its weights.
    options: what else `timm.create_model` gets; numbers, words, and lists of them.
    in_chans, num_classes: channels of the image; classes K (0: no classifier, the network returns what one would read).
    pooling: as in `PatchConvNetConfig`.
    norm: what "additive" and "average" do to the patches first: "none" (the faithful start), "layer" or "batch".
    attn_drop_rate: dropout on the attention weights. (`drop_rate`, in front of the classifier, is the backbone's.)
    num_queries: of "additive_sliced", whose slices of the channels they weigh.
    mlp_ratio, layer_scale, act: of "class_attention"; `act` of "keras" too.
    """

    backbone: str
    options: dict[str, Any] = field(default_factory=dict)
    in_chans: int = 3
    num_classes: int = 1000
    pooling: PoolingName = "additive"
    norm: NormName | Literal["none"] = "none"
    attn_drop_rate: float = 0.0
    num_queries: int = 16
    mlp_ratio: float = 3.0
    layer_scale: float = 1e-4
    act: ActName = "gelu"

    def __post_init__(self) -> None:
        check_config(self)
        if "global_pool" in self.options:
            raise UserError("global_pool is what attention pooling replaces; give `pooling` instead")
        try:
            plain = json.loads(json.dumps(self.options))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"options of {self.backbone} must be numbers, words or lists, so that a model folder can hold them "
                f"({error}); timm takes names for layers, such as act_layer='relu'"
            ) from error
        object.__setattr__(self, "options", plain)


def with_attention_pooling(
    backbone: str | nn.Module,
    pooling: PoolingName = "additive",
    *,
    num_classes: int | None = None,
    pretrained: bool = False,
    weights: timm_models.Weights | None = None,
    **options: Any,
) -> "AttentionPooled":
    """A timm network with attention pooling in place of its global average pooling.

    With an additive pooling or "average" it answers as before, to rounding: queries begin at zero, which is
    the average, and fine-tuning learns where to look. "class_attention" and "keras" put fresh layers in front of the
    old classifier and have to be trained.

    Args:
        backbone: a timm model's name, such as "resnet50" or "convnext_tiny.fb_in1k", or a network that timm made, which
            is copied with its weights.
        pooling: as in `PatchConvNetConfig`; "average" leaves the network as it is and adds its evidence maps. With a
            query per class ("_multi"), layers between pooling and classifier are run for every class.
        num_classes: K; the backbone's own by default. Another number gets a fresh classifier.
        pretrained: with timm's published weights of that name, which are downloaded.
        weights: instead of these a checkpoint of that network: a file (`.safetensors`, or a `.pth` of weights alone),
            or a state dict under timm's names.
        options: fields of `AttentionPooledConfig`; all others go to `timm.create_model`: `drop_rate`, `drop_path_rate`,
            `img_size`, or `strict_img_size=False` for a Swin that takes images of any size. Of a network, which they
            do not change, they tell how to make it again where timm has not noted it.

    Raises:
        UserError: there is no such model, it does not take an option, or it does not average a spatial map.

    Example:
        >>> import torch
        >>> from patchconvnet import with_attention_pooling
        >>> model = with_attention_pooling("resnet18", num_classes=37).eval()  # pretrained=True fetches weights
        >>> logits, attention, evidence = model(torch.rand(1, 3, 96, 64), return_evidence=True)
        >>> attention.shape, evidence.shape
        (torch.Size([1, 1, 3, 2]), torch.Size([1, 37, 3, 2]))
    """
    own = {name: options.pop(name) for name in _OWN_OPTIONS if name in options}
    comes_with_weights = pretrained or weights is not None
    if isinstance(backbone, str):
        name = backbone
        asked = {"in_chans": own["in_chans"]} if own.get("in_chans") is not None else {}
        if num_classes is not None and weights is None:
            asked["num_classes"] = max(num_classes, 1)
        if "dynamic_img_size" not in options and timm_models.takes(name, "dynamic_img_size"):
            options["dynamic_img_size"] = True
        source = _create(name, {**options, **asked}, pretrained, weights)
    else:
        if comes_with_weights:
            raise UserError("a network comes with its weights; give its name instead of it for published ones")
        name, options = _origin(backbone, options)
        if own.get("in_chans") not in (None, backbone.in_chans):
            raise UserError(f"{name} takes {backbone.in_chans} channels, so in_chans can't be {own['in_chans']}")
        source = copy.deepcopy(backbone)
    if not hasattr(source, "reset_classifier"):
        raise _unlike(name, "it is no classifier of timm's")
    if num_classes not in (None, 0, getattr(source, "num_classes", None)):
        source.reset_classifier(num_classes)  # type: ignore[operator]
    fixed = {"in_chans": source.in_chans, "num_classes": source.num_classes if num_classes is None else num_classes}
    options = {key: value for key, value in options.items() if key not in _WEIGHT_SOURCES}
    config = AttentionPooledConfig(name, options, pooling=pooling, **{**own, **fixed})
    model = AttentionPooled(config, source=source)
    if not isinstance(backbone, str):
        model.check_rebuilt()
    elif comes_with_weights:
        published = checkpoints.published_metadata(model.pretrained_cfg, model.num_classes)
        model.metadata = Metadata(class_names=published.class_names, provenance=published.provenance)
        if not model.averages and num_classes in (None, model.pretrained_cfg.get("num_classes")):
            _logger.warning(
                "%s does not average its patches in front of its classifier, but reads a token or pools by attention; "
                "with their average instead, its published answers change until it is trained on your images",
                name,
            )
    return model


_WEIGHT_SOURCES = ("pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")  # of no use to a folder
_OWN_OPTIONS = [f.name for f in fields(AttentionPooledConfig) if f.name not in ("backbone", "options", "pooling")]


class AttentionPooled(AttentionClassifier):
    """A timm network with attention in place of its average pooling: (B, C_in, H, W) → logits (B, K).

    With an additive or average pooling, evidence is exact where only dropout stands between pooling and classifier
    (ResNet, EfficientNet, Swin, …), or a LayerNorm (ConvNeXt): given the pooled vector's own deviation a LayerNorm is
    linear, as the pooling is given its own attention. Behind a layer with an activation (MobileNetV3, VGG) it is first
    order.

    Args:
        config: the network; or its fields as `options`. Further options are the backbone's.
        source: a network of that kind that timm made, which becomes the backbone, weights and all. Fresh by default.

    Raises:
        UserError: for options that the network can't have, and for a backbone that does not average a spatial map.
    """

    kind = "attention_pooled"
    config: AttentionPooledConfig

    def __init__(self, config: AttentionPooledConfig | None = None, *, source: nn.Module | None = None, **options: Any):
        super().__init__()
        given = {**(asdict(config) if config else {}), **options}
        further = {key: given.pop(key) for key in set(given) - {f.name for f in fields(AttentionPooledConfig)}}
        if "backbone" not in given:
            raise UserError("an AttentionPooled needs a backbone, the name of a timm model such as resnet50")
        given["options"] = {**given.get("options", {}), **further}
        self.config = c = AttentionPooledConfig(**given)
        if source is None:
            source = _create(c.backbone, {**c.options, "in_chans": c.in_chans, "num_classes": c.num_classes or 1})
        self.num_classes = c.num_classes
        self.in_chans = c.in_chans
        self.metadata = Metadata()
        self.pretrained_cfg = _preprocessing_cfg(source, c)

        classifier = _take_classifier(source, c.backbone)
        self.backbone = source
        self.unrolled: nn.Module = nn.Identity()
        self._measure_backbone()
        self._build_head()
        if classifier is not None and isinstance(self.head, nn.Linear | ClassWiseLinear):
            with torch.no_grad():
                self.head.weight.copy_(classifier[0])
                self.head.bias.copy_(classifier[1])
        like = next(source.parameters())
        self.to(like.device, like.dtype).train(source.training)

    def _new_pooling(self, per_class: int | None) -> nn.Module:
        c = self.config
        return build_pooling(
            c.pooling,
            self.num_features,
            per_class,
            norm=c.norm,
            act=c.act,
            mlp_ratio=c.mlp_ratio,
            layer_scale=c.layer_scale,
            num_queries=c.num_queries,
            attn_drop=c.attn_drop_rate,
        )

    # The forward pass

    def forward_features(self, image: Tensor) -> Tensor:
        """Image (B, C_in, H, W) → the map that the backbone would average, (B, C, h, w)."""
        if not is_checking():
            return self._map(image)
        check_image(image, self.in_chans, self.patch_size)
        try:
            return self._map(image)
        except (AssertionError, RuntimeError) as error:  # how timm's networks of one input size say so
            if isinstance(error, RuntimeError) and image.shape[2:] == self.probed_size:
                raise
            height, width = image.shape[2:]
            raise UserError(
                f"{self.config.backbone} cannot read images of {height}×{width} pixels: {first_line(error)}"
            ) from error

    def _map(self, image: Tensor) -> Tensor:
        backbone: Any = self.backbone
        if self.layout == "tokens":
            return token_map(backbone, image, self.norms_tokens)
        features = backbone.forward_features(image)
        return self.unrolled(features.permute(0, 3, 1, 2) if self.layout == "channels last" else features)

    def neck(self, vector: Tensor) -> Tensor:
        """What stands between pooling and classifier, as the backbone has it."""
        flat = vector.flatten(0, -2)  # (B, C), or (B·K, C) where every class has a vector
        if self.neck_overwrites:
            flat = flat.clone()
        if self.layout == "tokens":  # whatever the backbone takes of them, it takes the vector
            one_patch = flat[:, None].expand(-1, self.prefix_tokens + 1, -1)
        else:
            one_patch = flat[:, :, None, None] if self.layout == "channels first" else flat[:, None, None, :]
        return self.backbone.forward_head(one_patch).unflatten(0, vector.shape[:-1])  # type: ignore[operator]

    def patch_positions(
        self, size: tuple[int, int], shape: tuple[int, int]
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Centre of the first patch's receptive field and distance of neighbours, as followed through the backbone."""
        if self.first_centre is None:
            return super().patch_positions(size, shape)
        step = float(self.patch_size)
        return self.first_centre, (step, step)

    @property
    def has_exact_evidence(self) -> bool:
        """Whether patches' shares sum to logit − bias by construction."""
        return super().has_exact_evidence and self.between != "layers"

    def _checked_evidence(self, pooled: Pooled) -> Tensor:
        if self.between == "layers":
            raise UserError(
                f"{self.config.backbone} has layers between pooling and classifier, so its evidence is not exact; "
                "explain() gives it to first order"
            )
        return super()._checked_evidence(pooled)

    def evidence_of(self, pooled: Pooled) -> Tensor:
        if self.between != "norm":
            return super().evidence_of(pooled)
        # norm(Σ aᵢ·xᵢ) = Σ aᵢ·(γ·(xᵢ − mean xᵢ) / σ + β), σ being the pooled vector's deviation, because Σ aᵢ = 1
        assert pooled.values is not None
        norm: Any = self.backbone.get_submodule(self.norm_name)
        weight = self.get_parameter("head.weight")  # (K, C)
        spread = (pooled.vector.var(-1, correction=0) + norm.eps).sqrt()  # (B,), or (B, K)
        values = pooled.values - pooled.values.mean(-1, keepdim=True)
        scaled = weight if norm.weight is None else weight * norm.weight
        shares = F.linear(values, scaled).permute(0, 3, 1, 2) / spread.view(values.shape[0], -1, 1, 1)
        if norm.bias is not None:
            shares = shares + (weight @ norm.bias)[:, None, None]
        return shares * pooled.attention

    # What the backbone is like

    def _measure_backbone(self) -> None:
        """Run the backbone once, and find out what is needed to put a pooling into it.

        probed_size: (height, width) of the image it is run on.
        patch_size: pixels of the image to one patch.
        first_centre: (y, x) centre of the first patch in pixels, or None where patches divide any image evenly.
        layout: of the features: "channels first" (B, C, h, w), "channels last" (B, h, w, C), or "tokens" (B, P + N, C),
            of which P = `prefix_tokens` have no place in the image; `norms_tokens`: whether the last norm is in them.
        num_features, head_hidden_size: channels C of the map, and those that the classifier reads.
        averages: whether the backbone's own pooling is the average over the map, so that ours begins as its own.
        between: what stands between pooling and classifier but for dropout: "none", a "norm" (a LayerNorm of the name
            `norm_name`), or other "layers".
        neck_overwrites: whether these begin with an operation in place.
        """
        backbone: Any = self.backbone
        name = self.config.backbone
        self.layout: Layout
        self.norms_tokens, self.prefix_tokens = False, 0
        with evaluation_mode(backbone), torch.no_grad():
            self.probed_size, image, features, layers = _run_once(backbone, self.pretrained_cfg, self.in_chans, name)
            if features.ndim == 3:
                self.layout = "tokens"
                self.norms_tokens, shape = find_token_map(backbone, image, features, name)
                grid: Sequence[int] = shape[2:]
                self.prefix_tokens = features.shape[1] - shape[2:].numel()
            elif features.shape[1] != backbone.num_features == features.shape[-1]:
                self.layout, grid = "channels last", features.shape[1:3]
            else:
                self.layout, grid = "channels first", features.shape[2:]
            self.first_centre: tuple[float, float] | None
            self.first_centre, self.patch_size = follow(layers, self.probed_size, grid)
            # random features, so that a map that happens to be constant cannot hide what is done to it
            features = torch.randn(features.shape, generator=torch.Generator().manual_seed(0)).to(features)
            try:
                expected = backbone.forward_head(features)
            except _FAULTS as error:
                raise _unlike(name, f"its head does not take other features ({first_line(error)})") from error
            if isinstance(mlp := getattr(backbone, "pre_logits", None), ConvMlp):
                self.unrolled = UnrolledConv(mlp.fc1)
                backbone.pre_logits = nn.Sequential(mlp.act1, mlp.drop, mlp.fc2, mlp.act2)
                self.first_centre = None
            head: Any = getattr(backbone, "head", None)
            if hasattr(head, "in_conv"):  # EfficientViT's, in front of the average
                self.unrolled, head.in_conv = head.in_conv, nn.Identity()
            if self.layout == "tokens":
                vector = features[:, self.prefix_tokens :].mean(1)
            else:
                vector = (
                    self.unrolled(features).mean((2, 3)) if self.layout == "channels first" else features.mean((1, 2))
                )
            given, called = vector.clone(), list[str]()
            self.neck_overwrites = False
            try:
                with _noting(backbone, nn.LayerNorm, called):
                    after = self.neck(given).clone()
            except _FAULTS as error:
                raise _unlike(name, f"its head does not take a vector ({first_line(error)})") from error
            self.averages = _same(after, expected)
            if not self.averages and self.layout != "tokens":
                raise _unlike(name, "its head does something else than to average the map and go on with the mean")
            self.neck_overwrites = not torch.equal(given, vector)
            self.num_features, self.head_hidden_size = vector.shape[1], after.shape[1]
            self.between, self.norm_name = "layers", ""
            if torch.equal(after, vector):
                self.between = "none"
            elif len(called) == 1:
                norm: Any = backbone.get_submodule(called[0])
                width = (vector.shape[1],)
                if norm.normalized_shape == width and _same(
                    after, F.layer_norm(vector, width, norm.weight, norm.bias, norm.eps)
                ):
                    self.between, self.norm_name = "norm", called[0]

    def check_rebuilt(self) -> None:
        """Refuse a backbone that its name and options do not tell, so that it could not be loaded from a model folder.

        Raises:
            UserError: saying to give the name and all options instead of the network.
        """
        twin = AttentionPooled(self.config).to(next(self.parameters()))
        told = f"{self.config.backbone!r} with options {self.config.options}"
        sentence = (
            f"the given network is not {told}; give with_attention_pooling its name and all options it was made with"
        )
        try:
            twin.load_state_dict(self.state_dict())
        except RuntimeError as error:
            raise UserError(sentence) from error
        with evaluation_mode(self), evaluation_mode(twin), torch.no_grad():
            image = _noise(self.in_chans, self.probed_size, next(self.parameters()))
            if not _same(self.forward_head(self.forward_features(image)), twin(image)):
                raise UserError(sentence)

    # Inference

    def fuse(self, dtype: torch.dtype | Literal["auto"] | None = None) -> "FusedAttentionPooled":
        """A copy for inference: the same answers, faster. This network stays as it is.

        Batch norms go into the convolutions in front of them, and on a CPU memory is channels-last and convolutions are
        oneDNN's with their activation, of which no gradient is known.

        Args:
            dtype: number format of the backbone's convolutions and matrices, by autocast. None keeps the weights' own,
                and answers are equal to 1e-4; "auto" takes bfloat16 where the device computes in it, to some percent.
                Pooling and classifier keep the weights' format in any case.

        Raises:
            UserError: while the network is in training mode.
        """
        if self.training:
            raise UserError("a network in training mode can't be fused: its weights still change; call eval() first")
        return FusedAttentionPooled(self, dtype)

    # The rest of timm's contract

    def set_grad_checkpointing(self, enable: bool = True, *, pointwise: bool = False) -> None:
        """Recompute the backbone's blocks in the backward pass instead of keeping their activations.

        Args:
            enable: whether to.
            pointwise: only our own networks can recompute less than a block.

        Raises:
            UserError: the backbone cannot.
        """
        if enable and pointwise:
            raise UserError(
                f"{self.config.backbone} can recompute whole blocks only, not what lies between convolutions: "
                "choose recompute blocks"
            )
        try:
            self.backbone.set_grad_checkpointing(enable)  # type: ignore[operator]
        except (AssertionError, AttributeError) as error:
            raise UserError(f"{self.config.backbone} cannot recompute its activations") from error

    def no_weight_decay(self) -> set[str]:
        """Names of parameters of more than one axis that weight decay must spare: the backbone's, and queries."""
        theirs: Callable[[], set[str]] = getattr(self.backbone, "no_weight_decay", set)
        return {f"backbone.{name}" for name in theirs()} | super().no_weight_decay()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters from the image to the logits: the backbone's own, then everything behind them."""
        theirs = self.backbone.group_matcher(coarse)  # type: ignore[operator]
        return {
            group: [(_inside(pattern), suffix) for pattern, suffix in spec]
            if isinstance(spec, list | tuple)
            else _inside(spec)
            for group, spec in theirs.items()
            if spec is not None
        }


class FusedAttentionPooled(AttentionPooled):
    """What `AttentionPooled.fuse` returns: it answers as before, and refuses what needs the weights it was made of."""

    def __init__(self, model: AttentionPooled, dtype: torch.dtype | Literal["auto"] | None):
        nn.Module.__init__(self)
        self.__dict__.update(copy.deepcopy(model).__dict__)
        like = next(model.parameters())
        self.dtype = fastest_dtype(like.device) if dtype == "auto" else dtype or like.dtype
        if not self.dtype.is_floating_point:
            raise UserError(f"a network can't be fused to {self.dtype}; use a floating point format, 'auto' or None")
        self.requires_grad_(False)
        with torch.no_grad():
            image = _noise(self.in_chans, self.probed_size, like).contiguous(memory_format=torch.channels_last)
            fold_batch_norms(self.backbone, lambda: AttentionPooled._map(self, image))
            self.to(memory_format=torch.channels_last)
            fuse_convolutions(self.backbone, self.dtype, lambda: AttentionPooled._map(self, image))
            if self.dtype != like.dtype:
                convert_matrices(self.backbone, self.dtype, lambda: FusedAttentionPooled._map(self, image))

    def _map(self, image: Tensor) -> Tensor:
        if image.requires_grad and torch.is_grad_enabled():
            raise UserError("a fused network gives no gradients; ask the network that it was made from")
        features = image.contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast(image.device.type, self.dtype, enabled=self.dtype != image.dtype):
            features = super()._map(features)
        return features.to(image.dtype)

    def fuse(self, dtype: torch.dtype | Literal["auto"] | None = None) -> "FusedAttentionPooled":
        raise UserError("this network is fused already")

    def train(self, mode: bool = True) -> Self:
        if mode:
            raise UserError("a fused network can't be trained; train the network that it was made from")
        return super().train(False)

    def save_pretrained(self, folder: str | Path, dtype: str = "float32") -> Path:
        raise UserError("a fused network can't be saved; save the network that it was made from")


class UnrolledConv(nn.Module):
    """A k×k convolution over a k×k map as a linear layer for each place, whose mean over the places is the convolution.

    So a flattening classifier (VGG) becomes a map that attention can pool: (B, C, h, w) → (B, D, k, k). Maps of another
    size are averaged or repeated to k×k, as in torchvision's VGG.

    Args:
        conv: the convolution to take the weights from.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.size = (conv.kernel_size[0], conv.kernel_size[1])
        self.weight = nn.Parameter(conv.weight.detach().permute(2, 3, 1, 0).flatten(0, 1).contiguous())  # (k², C, D)
        self.bias = nn.Parameter(conv.bias.detach() if conv.bias is not None else torch.zeros(conv.out_channels))

    def forward(self, features: Tensor) -> Tensor:
        places = F.adaptive_avg_pool2d(features, self.size).flatten(2).permute(2, 0, 1)  # (k², B, C)
        values = torch.baddbmm(self.bias, places * len(self.weight), self.weight)  # (k², B, D)
        return values.permute(1, 2, 0).unflatten(2, self.size)


# Transformers

Layout = Literal["channels first", "channels last", "tokens"]


def token_map(backbone: Any, image: Tensor, norm: bool) -> Tensor:
    """The last patches of a network of tokens as timm makes a map of them (B, C, h, w), its last norm done or not."""
    return backbone.forward_intermediates(image, indices=1, norm=norm, output_fmt="NCHW", intermediates_only=True)[-1]


def find_token_map(backbone: Any, image: Tensor, tokens: Tensor, name: str) -> tuple[bool, torch.Size]:
    """Whether `token_map` with the norm or without it gives the tokens that go into the head, and its shape.

    A head that reads nothing but a class token may be given others, of which the class token was made (XCiT): these
    with the norm, then.

    Args:
        tokens: what `forward_features` made of the image, (B, P + N, C).

    Raises:
        UserError: neither does.
    """
    if not hasattr(backbone, "forward_intermediates"):
        raise _unlike(name, f"timm does not tell where its tokens, (B, {str(tuple(tokens.shape[1:]))[1:]}, lie")
    told = ""
    shapes: list[torch.Size] = []
    for norm in (True, False):
        try:
            found = token_map(backbone, image, norm)
        except _FAULTS as error:
            told = first_line(error)
            continue
        prefix = tokens.shape[1] - found.shape[2:].numel()
        if prefix >= 0 and _same(found.mean((2, 3)), tokens[:, prefix:].mean(1)):
            return norm, found.shape
        told = f"a map of {tuple(found.shape)} is not tokens of {tuple(tokens.shape)}"
        if norm and prefix > 0 and found.shape[1] == tokens.shape[2]:
            others = torch.cat([tokens[:, :prefix], torch.zeros_like(tokens[:, prefix:])], 1)
            if torch.equal(backbone.forward_head(others), backbone.forward_head(tokens)):
                shapes.append(found.shape)
    if shapes:
        return True, shapes[0]
    raise _unlike(name, f"its tokens are not those that timm lays out as a map ({told})")


# Making, and taking apart


def _create(
    name: str, options: dict[str, Any], pretrained: bool = False, weights: timm_models.Weights | None = None
) -> nn.Module:
    if name.startswith("patchconvnet"):
        raise UserError(f"{name} pools by attention as it is; its option `pooling` says how")
    return timm_models.create(name, options, pretrained=pretrained, weights=weights)


def _origin(network: nn.Module, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the options that timm makes a network of this kind by, as far as it tells."""
    cfg = getattr(network, "pretrained_cfg", None)
    if not cfg or not cfg.get("architecture"):
        raise UserError(
            f"a {type(network).__name__} that timm has not made cannot be rebuilt; give a timm model's name"
        )
    name = f"{cfg['architecture']}.{cfg['tag']}" if cfg.get("tag") else cfg["architecture"]
    told = {
        key: value
        for key, value in getattr(network, "_model_args", {}).items()
        if value is not None and key not in ("num_classes", "in_chans", "global_pool")  # these the network says itself
    }
    return name, {**told, **options}


def _preprocessing_cfg(source: nn.Module, config: AttentionPooledConfig) -> dict[str, Any]:
    """timm's `pretrained_cfg`, with the input size and channels that the network really has."""
    cfg: dict[str, Any] = dict(getattr(source, "pretrained_cfg", {}))
    size = config.options.get("img_size", cfg.get("input_size", (3, 224, 224))[1:])
    cfg["input_size"] = (config.in_chans, *((size, size) if isinstance(size, int) else size))
    return cfg_for_channels(cfg, config.in_chans)


def _take_classifier(source: Any, name: str) -> tuple[Tensor, Tensor] | None:
    """Put identities in the classifier's place, and return its weight (K, C) and bias (K,); None where there is none.

    Of two heads whose logits are averaged (distilled networks), which both get the pooled vector now, it is the mean.
    """
    if not all(hasattr(source, method) for method in ("forward_features", "forward_head", "get_classifier")):
        raise _unlike(name, "it is no classifier of timm's")
    if getattr(source, "aux_head", None) is not None:  # VOLO's, whose logits for each token were added by their maximum
        source.aux_head = None
    found: Any = source.get_classifier()
    classifiers: list[Any] = list(found) if isinstance(found, tuple | list | nn.ModuleList) else [found]
    if all(isinstance(classifier, nn.Identity) for classifier in classifiers):
        return None
    inner: list[Any] = [
        m for c in classifiers if isinstance(c, nn.Module) for m in c.modules() if _outputs(m) == source.num_classes
    ]
    if len(inner) == 1 == len(classifiers):
        linear = inner[0]
        weight = linear.weight.detach().flatten(1)
        bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias.detach()
        _replace(source, linear)
        return weight, bias
    if len(inner) < 2 or len({linear.weight.shape for linear in inner}) > 1:
        raise _unlike(name, f"it has not one linear classifier, but {type(found).__name__}")
    with evaluation_mode(source), torch.no_grad():
        like = inner[0].weight
        units = torch.eye(like.shape[1]).to(like)
        noise = torch.randn(3, len(units), generator=torch.Generator().manual_seed(0)).to(like)
        answers = torch.stack([c(torch.cat([torch.zeros_like(units[:1]), units, noise])) for c in classifiers]).mean(0)
    bias, weight = answers[0], (answers[1:-3] - answers[0]).mT
    if not _same(noise @ weight.mT + bias, answers[-3:]):
        raise _unlike(name, f"its classifier, a {type(found).__name__}, is not linear")
    for classifier in classifiers:
        _replace(source, classifier)
    return weight, bias


def _replace(source: nn.Module, module: nn.Module) -> None:
    path = next(path for path, each in source.named_modules() if each is module)
    source.set_submodule(path, nn.Identity())


def _outputs(module: Any) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    is_linear = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    return module.out_channels if is_linear else None


def _unlike(name: str, why: str) -> UserError:
    return UserError(
        f"{name} cannot get attention pooling: {why}. Networks can whose features are a map or tokens of patches that "
        "are pooled in front of a linear classifier: convolutional ones, and transformers"
    )


def _run_once(
    backbone: Any, cfg: dict[str, Any], in_chans: int, name: str
) -> tuple[tuple[int, int], Tensor, Tensor, list[Reduction]]:
    """The size of an image, small where the network takes small ones, the image, its features, and the layers that
    reduced it."""
    like = next(backbone.parameters())
    with noting_reductions(backbone) as layers:
        for size in (_SMALL, own := pair(cfg["input_size"][1:])):
            layers.clear()
            image = _noise(in_chans, size, like)
            try:
                features = backbone.forward_features(image)
                break
            except _FAULTS as error:
                if size == own:
                    raise _unlike(name, f"it cannot read an image of its own size ({first_line(error)})") from error
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise _unlike(name, f"its features are {'several' if not isinstance(features, Tensor) else 'one vector'}")
    return size, image, features, layers


_FAULTS = (AssertionError, RuntimeError, ValueError, IndexError, TypeError, AttributeError)  # of networks unlike others
_SMALL = (64, 96)  # pixels; not square, so that no two axes are alike


def _noise(in_chans: int, size: tuple[int, int], like: Tensor) -> Tensor:
    return torch.randn(1, in_chans, *size, generator=torch.Generator().manual_seed(0)).to(like)


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= 1e-4 * theirs.abs().max())


def _inside(pattern: str) -> str:
    """A regular expression for the backbone's parameter names, as one for ours."""
    anchorless = re.sub(r"(?<![\[\\])\^", "", pattern)  # what is matched begins with "backbone." now
    return rf"^backbone\.(?:{anchorless})"


@contextmanager
def _noting(model: nn.Module, kind: type[nn.Module], names: list[str]) -> Iterator[None]:
    """Note the names of the modules of a kind that are called."""
    handles = [
        module.register_forward_hook(lambda *_, name=name: names.append(name))
        for name, module in model.named_modules()
        if isinstance(module, kind)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
