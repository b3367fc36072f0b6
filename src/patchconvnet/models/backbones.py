"""Attention pooling on any timm network that averages a spatial map: ResNet, ConvNeXt, EfficientNet, Swin …

Only the averaging is replaced. The trunk, what stands between pooling and classifier (a norm, a layer with its
activation, dropout) and the classifier stay, so with queries at zero the logits are those of before: what follows the
pooling gets the pooled vector as a 1×1 map, through timm's own `forward_head`.

Source: Touvron et al. 2021, arXiv 2112.13692, section 3.2; pytorch-image-models (timm), which has the networks.
"""

import copy
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import BlurPool2d
from timm.layers.padding import get_same_padding
from timm.models.vgg import ConvMlp
from torch import Tensor, nn

from patchconvnet.errors import UserError, first_line
from patchconvnet.models import checkpoints, timm_models
from patchconvnet.models.classifier import AttentionClassifier, check_config, check_image, is_checking
from patchconvnet.models.layers import ActName, NormName
from patchconvnet.models.modes import evaluation_mode
from patchconvnet.models.pooling import ClassWiseLinear, Pooled, PoolingName, build_pooling
from patchconvnet.models.weights import Metadata, cfg_for_channels


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
        source = _create(name, {**options, **asked}, pretrained, weights)
    else:
        if comes_with_weights:
            raise UserError("a network comes with its weights; give its name instead of it for published ones")
        name, options = _origin(backbone, options)
        if own.get("in_chans") not in (None, backbone.in_chans):
            raise UserError(f"{name} takes {backbone.in_chans} channels, so in_chans can't be {own['in_chans']}")
        source = copy.deepcopy(backbone)
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
        self._look_at_backbone()
        self._build_head()
        if classifier is not None and isinstance(self.head, nn.Linear | ClassWiseLinear):
            with torch.no_grad():
                self.head.weight.copy_(classifier.weight.flatten(1))
                if classifier.bias is not None:
                    self.head.bias.copy_(classifier.bias)
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
            return self._map(self.backbone.forward_features(image))  # type: ignore[operator]
        check_image(image, self.in_chans, self.patch_size)
        try:
            return self._map(self.backbone.forward_features(image))  # type: ignore[operator]
        except AssertionError as error:  # how timm's networks of one input size say so
            height, width = image.shape[2:]
            raise UserError(
                f"{self.config.backbone} cannot read images of {height}×{width} pixels: {first_line(error)}"
            ) from error

    def neck(self, vector: Tensor) -> Tensor:
        """What stands between pooling and classifier, as the backbone has it."""
        flat = vector.flatten(0, -2)  # (B, C), or (B·K, C) where every class has a vector
        if self.neck_overwrites:
            flat = flat.clone()
        one_patch = flat[:, None, None, :] if self.channels_last else flat[:, :, None, None]
        return self.backbone.forward_head(one_patch).unflatten(0, vector.shape[:-1])  # type: ignore[operator]

    def _map(self, features: Tensor) -> Tensor:
        return self.unrolled(features.permute(0, 3, 1, 2) if self.channels_last else features)

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

    def _evidence(self, pooled: Pooled) -> Tensor:
        if self.between != "norm":
            return super()._evidence(pooled)
        # norm(Σ aᵢ·xᵢ) = Σ aᵢ·(γ·(xᵢ − mean xᵢ) / σ + β), σ being the pooled vector's deviation, because Σ aᵢ = 1
        assert pooled.values is not None
        norm: Any = self.backbone.get_submodule(self.norm_name)
        weight = self.get_parameter("head.weight")  # (K, C)
        spread = (pooled.vector.var(-1, correction=0) + norm.eps).sqrt()  # (B,), or (B, K)
        values = pooled.values - pooled.values.mean(-1, keepdim=True)
        scaled = weight if norm.weight is None else weight * norm.weight
        shares = F.linear(values, scaled).permute(0, 3, 1, 2) / spread.view(len(values), -1, 1, 1)
        if norm.bias is not None:
            shares = shares + (weight @ norm.bias)[:, None, None]
        return shares * pooled.attention

    # What the backbone is like

    def _look_at_backbone(self) -> None:
        """Run the backbone once, and find out what is needed to put a pooling into it.

        probed_size: (height, width) of the image it is run on.
        patch_size: pixels of the image to one patch.
        first_centre: (y, x) centre of the first patch in pixels, or None where patches divide any image evenly.
        channels_last: whether the features are (B, h, w, C).
        num_features, head_hidden_size: channels C of the map, and those that the classifier reads.
        between: what stands between pooling and classifier but for dropout: "none", a "norm" (a LayerNorm of the name
            `norm_name`), or other "layers".
        neck_overwrites: whether these begin with an operation in place.
        """
        backbone: Any = self.backbone
        name = self.config.backbone
        with evaluation_mode(backbone), torch.no_grad():
            self.probed_size, features, layers = _run_once(backbone, self.pretrained_cfg, self.in_chans, name)
            self.channels_last = features.shape[1] != backbone.num_features == features.shape[-1]
            grid = features.shape[1:3] if self.channels_last else features.shape[2:]
            self.first_centre: tuple[float, float] | None
            self.first_centre, self.patch_size = _follow(layers, self.probed_size, grid)
            # random features, so that a map that happens to be constant cannot hide what is done to it
            features = torch.randn(features.shape, generator=torch.Generator().manual_seed(0)).to(features)
            expected = backbone.forward_head(features)
            if isinstance(mlp := getattr(backbone, "pre_logits", None), ConvMlp):
                self.unrolled = UnrolledConv(mlp.fc1)
                backbone.pre_logits = nn.Sequential(mlp.act1, mlp.drop, mlp.fc2, mlp.act2)
                self.first_centre = None
            vector = self._map(features).mean((2, 3))
            given, called = vector.clone(), list[str]()
            self.neck_overwrites = False
            try:
                with _noting(backbone, nn.LayerNorm, called):
                    after = self.neck(given).clone()
            except (RuntimeError, ValueError, IndexError, AssertionError) as error:
                raise _unlike(name, f"its head does not take a vector ({first_line(error)})") from error
            if not _same(after, expected):
                raise _unlike(name, "its head does something else than to average the map and go on with the mean")
            self.neck_overwrites = not torch.equal(given, vector)
            self.num_features, self.head_hidden_size = vector.shape[1], after.shape[1]
            self.between, self.norm_name = "layers", ""
            if torch.equal(after, vector):
                self.between = "none"
            elif len(called) == 1:
                norm: Any = backbone.get_submodule(called[0])
                if _same(after, F.layer_norm(vector, (vector.shape[1],), norm.weight, norm.bias, norm.eps)):
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

    # The rest of timm's contract

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's blocks in the backward pass instead of keeping their activations.

        Raises:
            UserError: the backbone cannot.
        """
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


def _take_classifier(source: nn.Module, name: str) -> nn.Linear | nn.Conv2d | None:
    """Put an identity in the classifier's place, and return it; None where there is none."""
    if not all(hasattr(source, method) for method in ("forward_features", "forward_head", "get_classifier")):
        raise _unlike(name, "it is no classifier of timm's")
    classifier = source.get_classifier()  # type: ignore[operator]
    if isinstance(classifier, nn.Identity):
        return None
    inner = classifier.modules() if isinstance(classifier, nn.Module) else ()
    linear = [module for module in inner if _outputs(module) == source.num_classes]
    if len(linear) != 1:
        raise _unlike(name, f"it has not one linear classifier, but {type(classifier).__name__}")
    path = next(path for path, module in source.named_modules() if module is linear[0])
    source.set_submodule(path, nn.Identity())
    return linear[0]  # type: ignore[return-value]


def _outputs(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    is_linear = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    return module.out_channels if is_linear else None  # type: ignore[return-value]


def _unlike(name: str, why: str) -> UserError:
    return UserError(
        f"{name} cannot get attention pooling: {why}. Networks can that average a map (B, C, h, w) over its places in "
        "front of a linear classifier: convolutional ones, and hierarchical ones such as Swin"
    )


def _run_once(
    backbone: Any, cfg: dict[str, Any], in_chans: int, name: str
) -> tuple[tuple[int, int], Tensor, "list[_Reduction]"]:
    """The size of an image, small where the network takes small ones, its features, and the layers that reduced it."""
    like, size = next(backbone.parameters()), _SMALL
    with _noting_reductions(backbone) as layers:
        try:
            features = backbone.forward_features(_noise(in_chans, size, like))
        except (AssertionError, RuntimeError, ValueError):
            layers.clear()
            size = _pair(cfg["input_size"][1:])
            features = backbone.forward_features(_noise(in_chans, size, like))
    if not isinstance(features, Tensor) or features.ndim != 4:
        tokens = isinstance(features, Tensor) and f"a sequence of tokens, (B, {str(tuple(features.shape[1:]))[1:]}"
        raise _unlike(name, f"it has no spatial map; its features are {tokens or 'several'}")
    return size, features, layers


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


# Where patches lie


class _Reduction(NamedTuple):
    """A layer as it was run that made the map smaller: (height, width) before and behind it, and for both axes how far
    its kernel reaches, its stride, and how many pixels were padded in front."""

    size: tuple[int, int]
    behind: tuple[int, int]
    reach: tuple[int, int]
    stride: tuple[int, int]
    front: tuple[int, int]


@contextmanager
def _noting_reductions(backbone: nn.Module) -> Iterator[list[_Reduction]]:
    reductions: list[_Reduction] = []

    def note(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs[0].shape[-2:] == output.shape[-2:]:
            return
        size, behind = _pair(inputs[0].shape[-2:]), _pair(output.shape[-2:])
        blurs = isinstance(layer, BlurPool2d)
        kernel, stride = _pair(layer.filt_size if blurs else layer.kernel_size), _pair(layer.stride)
        dilation, padding = _pair(getattr(layer, "dilation", 1)), _pair(layer.padding[::2] if blurs else layer.padding)
        reach, front = [0, 0], [0, 0]
        for i in (0, 1):
            reach[i] = (kernel[i] - 1) * dilation[i] + 1
            told = (size[i] + 2 * padding[i] - reach[i]) // stride[i] + 1 == behind[i]
            # else TensorFlow's padding, or a length that was rounded up
            front[i] = padding[i] if told else get_same_padding(size[i], kernel[i], stride[i], dilation[i]) // 2
        reductions.append(_Reduction(size, behind, _pair(reach), stride, _pair(front)))

    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, BlurPool2d)
    handles = [layer.register_forward_hook(note) for layer in backbone.modules() if isinstance(layer, kinds)]
    try:
        yield reductions
    finally:
        for handle in handles:
            handle.remove()


def _follow(layers: list[_Reduction], size: Sequence[int], grid: Sequence[int]) -> tuple[tuple[float, float], int]:
    """Centre (y, x) of the first patch's receptive field, and the distance of patches, in pixels of the image.

    Followed from the image to the map. Of several layers that lead on, the one that reduces least is the way (others
    serve attention), and of those alike the one that reaches farthest (shortcuts are short). What reduces without a
    convolution or a pooling merges neighbours (Swin), which leaves centres in the middle.
    """
    centre, step, at = [0.5, 0.5], [1, 1], _pair(size)
    while at != _pair(grid) and (ways := [layer for layer in layers if layer.size == at]):
        way = max(ways, key=lambda layer: (layer.behind, layer.reach))
        for i in (0, 1):
            centre[i] += ((way.reach[i] - 1) / 2 - way.front[i]) * step[i]
            step[i] *= way.stride[i]
        at = way.behind
    for i in (0, 1):
        merged = round(at[i] / grid[i])
        centre[i] += (merged - 1) / 2 * step[i]
        step[i] *= merged
    return (centre[0], centre[1]), step[0]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
