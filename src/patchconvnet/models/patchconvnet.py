"""PatchConvNet: convolutional stem → residual trunk at one resolution → attention-based aggregation → classifier.

Source: "Augmenting convolutional networks with attention-based aggregation", Touvron et al. 2021, arXiv 2112.13692, and
"Augmenting convnets with aggregated attention", A. R. Gosthipaty, keras.io 2022. `PatchConvNetConfig` says which.
"""

import difflib
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._builder import resolve_pretrained_cfg
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from patchconvnet.errors import UserError, first_line
from patchconvnet.models import checkpoints, weights
from patchconvnet.models.classifier import POOLING_ALIASES, AttentionClassifier, check_config, check_image, is_checking
from patchconvnet.models.fused import FusedNetwork
from patchconvnet.models.layers import ActName, NormName
from patchconvnet.models.pooling import PoolingName, build_pooling
from patchconvnet.models.recomputing import Recompute, run_block
from patchconvnet.models.stem import ConvStem, PooledStem, StemName, StemPadding
from patchconvnet.models.trunk import BlockName, ConvName, PreactivationBlock, TrunkBlock


@dataclass(frozen=True)
class PatchConvNetConfig:
    """Everything that decides the network. The defaults are the paper's S60.

    in_chans, num_classes: channels of the image; classes K (0: no classifier, the network returns its pooled vector).
    embed_dim, depth: channels C and number of blocks of the trunk.
    stem: "strided" convolutions (paper, example; see `ConvStem`) or "pooled" ones (see `PooledStem`).
    stem_divisors: C divided by each gives the channels of the stem's halving convolutions; patch size 2^len, times
        `stem_stride`.
    stem_filters, stem_stride: of the pooled stem's first convolution.
    stem_repeats: further convolutions of the pooled stem at each resolution between its first and its last.
    stem_bias, stem_padding, stem_last_act: of the strided stem, see `ConvStem`.
    block: "paper" (also the example's, see `TrunkBlock`) or "preactivation" (dense only, see `PreactivationBlock`).
    conv, norm, act: the trunk's 3×3 convolution, its normalisation, GELU everywhere.
    se_ratio, se_bias: squeeze-and-excitation.
    layer_scale: initial value of the layer scales; None or 0 leaves the trunk without them (`timm.create_model` takes
        None for "not said", so give it 0).
    pooling: "class_attention" (paper), "class_attention_multi" (paper, a class token per class), "keras" (the example),
        "additive" (exact evidence per class), "additive_multi" (the same with a query per class),
        "additive_sliced" (the same with several queries, each of which weighs a slice of the channels), "average", or
        "none" (no pooling and no classifier: the network returns its patches).
    pooling_norm: normalisation of the patches that "additive", "additive_multi" and "average" pool; "same" is `norm`.
        "layer" makes all patches equally long, so that choosing between them is left to the attention.
    mlp_ratio: hidden width of the class attention's MLP.
    num_heads, depth_token_only: heads and blocks of the class attention, under the names of the paper's code. Weights
        of any number of heads have the same shapes: with another number than they were trained with, they load without
        complaint and answer wrongly.
    num_queries: of "additive_sliced"; must divide embed_dim.
    drop_rate, attn_drop_rate, drop_path_rate: dropout in the pooling head's MLP or on its vector; on the attention
        weights; stochastic depth, the same in every block.
    init: "paper" (truncated normal 0.02) or "keras" (Glorot uniform).
    """

    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 384
    depth: int = 60
    stem: StemName = "strided"
    stem_divisors: tuple[int, ...] = (8, 4, 2, 1)
    stem_filters: int = 24
    stem_stride: int = 1
    stem_repeats: int = 0
    stem_bias: bool = False
    stem_padding: StemPadding = "symmetric"
    stem_last_act: bool = False
    block: BlockName = "paper"
    conv: ConvName = "depthwise"
    norm: NormName = "layer"
    act: ActName = "gelu"
    se_ratio: float = 0.25
    se_bias: bool = True
    layer_scale: float | None = 1e-4
    pooling: PoolingName = "class_attention"
    pooling_norm: Literal["same", "layer", "batch"] = "same"
    mlp_ratio: float = 3.0
    num_heads: int = 1
    depth_token_only: int = 1
    num_queries: int = 16
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    init: Literal["paper", "keras"] = "paper"

    def __post_init__(self) -> None:
        divisors = self.stem_divisors
        if not isinstance(divisors, list | tuple) or not all(isinstance(d, int) and d > 0 for d in divisors):
            raise UserError(f"stem_divisors must be whole numbers of at least 1, as in (8, 4, 2, 1), not {divisors!r}")
        if len(divisors) > 12:
            raise UserError(f"stem_divisors has {len(divisors)} entries, each of which halves the image; 12 at most")
        if not divisors or divisors[-1] != 1:
            raise UserError(f"stem_divisors must end with 1, since the stem gives embed_dim channels, not {divisors!r}")
        object.__setattr__(self, "stem_divisors", tuple(divisors))  # a list, as JSON brings it
        object.__setattr__(self, "layer_scale", self.layer_scale or None)
        check_config(self)
        if self.embed_dim % max(self.stem_divisors):
            raise UserError(
                f"embed_dim {self.embed_dim} must be a multiple of {max(self.stem_divisors)}, the stem's largest"
            )
        if not self.pooling.startswith("class_attention") and (self.num_heads, self.depth_token_only) != (1, 1):
            raise UserError(
                f"num_heads {self.num_heads} and depth_token_only {self.depth_token_only} are of the class attention; "
                f"pooling {self.pooling!r} has 1 of each"
            )
        if self.embed_dim % self.num_heads:
            raise UserError(f"embed_dim {self.embed_dim} must be a multiple of num_heads, {self.num_heads}")
        if self.block == "preactivation" and self.conv != "dense":
            raise UserError(f"block 'preactivation' has dense convolutions only; give conv 'dense', not {self.conv!r}")
        if int(self.embed_dim * self.se_ratio) < 1:
            raise UserError(f"se_ratio {self.se_ratio} leaves nothing of {self.embed_dim} channels")


class PatchConvNet(AttentionClassifier):
    """Patches at one resolution, squeeze-and-excitation, attention pooling: (B, C_in, H, W) → logits (B, K).

    Any height and width of at least one patch. Follows timm's model contract.

    Args:
        config: the network; the S60 of the paper when left out.
        options: fields of `PatchConvNetConfig` to set on top.

    Raises:
        UserError: for an option that does not exist, or a value that the network can't have.
    """

    kind = "patchconvnet"
    shapes_without_values = True
    config: PatchConvNetConfig

    def __init__(self, config: PatchConvNetConfig | None = None, **options: Any):
        super().__init__()
        known = [f.name for f in fields(PatchConvNetConfig)]
        if unknown := sorted(set(options) - set(known)):
            close = difflib.get_close_matches(unknown[0], known)
            raise UserError(f"unknown option {unknown[0]!r} for a PatchConvNet; known: {', '.join(close or known)}")
        self.config = c = PatchConvNetConfig(**{**(asdict(config) if config else {}), **options})
        self.num_classes = c.num_classes
        self.in_chans = c.in_chans
        self.num_features = self.head_hidden_size = self.embed_dim = c.embed_dim
        self.recompute: Recompute = "none"
        self.metadata = weights.Metadata()

        self.stem = _stem(c)
        self.trunk = nn.ModuleList(_block(c) for _ in range(c.depth))
        if c.init == "keras":  # the paper's code leaves convolutions, and so the blocks' 1×1 ones, at PyTorch's default
            self.stem.apply(_init_glorot)
            self.trunk.apply(_init_glorot)
        self.patch_size = self.stem.patch_size
        self.feature_info = [
            {"num_chs": c.embed_dim, "reduction": self.patch_size, "module": f"trunk.{i}"} for i in range(c.depth)
        ]
        self._build_head()

    def _new_pooling(self, per_class: int | None) -> nn.Module:
        c = self.config
        return build_pooling(
            c.pooling,
            c.embed_dim,
            per_class,
            norm=c.norm if c.pooling_norm == "same" else c.pooling_norm,
            act=c.act,
            mlp_ratio=c.mlp_ratio,
            layer_scale=1.0 if c.layer_scale is None else c.layer_scale,
            num_heads=c.num_heads,
            depth=c.depth_token_only,
            num_queries=c.num_queries,
            attn_drop=c.attn_drop_rate,
            drop=c.drop_rate,
        )

    def _config_for(self, num_classes: int, pooling: str) -> PatchConvNetConfig:
        changes: dict[str, Any] = {"num_classes": num_classes, "pooling": pooling}
        if not pooling.startswith("class_attention"):
            changes |= {"num_heads": 1, "depth_token_only": 1}
        return replace(self.config, **changes)

    def _init_new(self, module: nn.Module) -> None:
        if self.config.init == "keras":
            _init_glorot(module)
        else:
            super()._init_new(module)

    # The forward pass

    def forward_features(self, image: Tensor) -> Tensor:
        """Image (B, C_in, H, W) → patches after the trunk, (B, C, h, w) in channels-last memory."""
        patches = self._embed(image)
        for block in self.trunk:
            patches = self._run(block, patches)
        return patches.permute(0, 3, 1, 2)

    def _embed(self, image: Tensor) -> Tensor:
        if is_checking():
            check_image(image, self.in_chans, self.patch_size)
        return self.stem(image)

    def _run(self, block: nn.Module, patches: Tensor) -> Tensor:
        return run_block(block, patches, self.recompute if self.training else "none")

    def patch_positions(
        self, size: tuple[int, int], shape: tuple[int, int]
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Centre of the first patch's receptive field and distance of neighbours; the stem knows."""
        step = float(self.patch_size)
        return self.stem.first_centre(size), (step, step)

    # The rest of timm's contract

    def forward_intermediates(
        self,
        image: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Outputs (B, C, h, w) of chosen trunk blocks, and the last one's; arguments as everywhere in timm."""
        if output_fmt not in ("NCHW", "NHWC"):
            raise UserError(f"output_fmt must be 'NCHW' or 'NHWC', not {output_fmt!r}")
        take, last = feature_take_indices(len(self.trunk), indices)
        patches = self._embed(image)
        intermediates = []
        for i, block in enumerate(self.trunk[: last + 1] if stop_early else self.trunk):
            patches = self._run(block, patches)
            if i in take:
                intermediates.append(patches if output_fmt == "NHWC" else patches.permute(0, 3, 1, 2))
        return intermediates if intermediates_only else (patches.permute(0, 3, 1, 2), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks behind the last wanted one, and the classifier; returns the absolute indices kept."""
        take, last = feature_take_indices(len(self.trunk), indices)
        self.trunk = self.trunk[: last + 1]
        self.feature_info = self.feature_info[: last + 1]
        self.config = replace(self.config, depth=last + 1)
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def set_grad_checkpointing(self, enable: bool = True, *, pointwise: bool = False) -> None:
        """Recompute each block in the backward pass instead of keeping its activations.

        Args:
            enable: whether to.
            pointwise: keep what convolutions and linear layers return, and recompute only what lies between them.
        """
        self.recompute = ("pointwise" if pointwise else "blocks") if enable else "none"

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters from the image to the logits, for layer-wise learning rates."""
        return {"stem": r"^stem", "blocks": [(r"^trunk\.(\d+)", None), (r"^pooling", (99_999,))]}

    # Inference

    def fuse(self, dtype: torch.dtype | Literal["auto"] | None = None) -> "FusedPatchConvNet":
        """A copy for inference: the same answers, faster (`fused.py` says how and how much). This one stays as it is.

        Args:
            dtype: number format of stem and trunk. None keeps the weights' own, and answers are equal up to rounding
                (float32: 1e-5); "auto" takes bfloat16 where the device computes in it, to about 1 %. Pooling
                and classifier keep the weights' format in any case.

        Raises:
            UserError: while the network is in training mode, or for a dtype that is no floating point format.
        """
        return FusedPatchConvNet(self, dtype)


class FusedPatchConvNet(FusedNetwork, PatchConvNet):
    """What `PatchConvNet.fuse` returns; `FusedNetwork` says what it does."""


def _stem(c: PatchConvNetConfig) -> ConvStem | PooledStem:
    channels = [c.embed_dim // divisor for divisor in c.stem_divisors]
    if c.stem == "pooled":
        return PooledStem(
            c.in_chans, c.stem_filters, channels, stride=c.stem_stride, repeats=c.stem_repeats, norm=c.norm, act=c.act
        )
    return ConvStem(c.in_chans, channels, bias=c.stem_bias, padding=c.stem_padding, last_act=c.stem_last_act, act=c.act)


def _block(c: PatchConvNetConfig) -> TrunkBlock | PreactivationBlock:
    options: dict[str, Any] = {
        "norm": c.norm, "act": c.act, "se_ratio": c.se_ratio, "se_bias": c.se_bias, "layer_scale": c.layer_scale,
        "drop_path": c.drop_path_rate,
    }  # fmt: skip
    if c.block == "preactivation":
        return PreactivationBlock(c.embed_dim, **options)
    return TrunkBlock(c.embed_dim, conv=c.conv, **options)


def _init_glorot(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# Variants and published weights


def _create(variant: str, pretrained: bool, options: dict[str, Any], **sizes: Any) -> PatchConvNet:
    options = {key: value for key, value in options.items() if value is not None}
    if "global_pool" in options:
        options["pooling"] = POOLING_ALIASES.get(options["global_pool"], options["global_pool"])
        del options["global_pool"]
    depth = options.get("depth", sizes["depth"])
    out_indices = options.pop("out_indices", tuple(sorted({depth // 4, depth // 2, 3 * depth // 4, depth - 1})))
    cfg = resolve_pretrained_cfg(variant, options.get("pretrained_cfg"), options.get("pretrained_cfg_overlay"))
    if pretrained and not (cfg.has_weights or cfg.state_dict):
        raise UserError(
            f"there are no published weights of {variant}; published: {', '.join(weights.published_tags())}"
        )
    try:
        model: Any = build_model_with_cfg(
            PatchConvNet,
            variant,
            pretrained,
            pretrained_filter_fn=checkpoints.filter_checkpoint,
            feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
            **{**sizes, **options},
        )
    except UserError:
        raise
    except Exception as error:  # of a file that is none of PyTorch's, its reader raises whatever it stumbles over
        if not pretrained:
            raise
        origin = cfg.file or cfg.url or cfg.hf_hub_id
        raise UserError(f"cannot load the weights of {variant} from {origin}: {first_line(error)}") from error
    networks = [model] if isinstance(model, PatchConvNet) else [model, model.model]  # the second with features_only
    for network in networks:
        cfg = weights.cfg_for_channels(network.pretrained_cfg, networks[-1].in_chans)
        network.pretrained_cfg = network.default_cfg = cfg
    if pretrained and isinstance(model, PatchConvNet):
        model.metadata = checkpoints.published_metadata(model.pretrained_cfg, model.num_classes)
    return model


def _cfg(file: str = "", size: int = 224, crop_pct: float = 0.9, **kwargs: Any) -> dict[str, Any]:
    return {
        "url": f"https://dl.fbaipublicfiles.com/deit/{file}.pth" if file else "",
        "num_classes": 1000,
        "input_size": (3, size, size),
        "pool_size": None,
        "crop_pct": crop_pct,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.convs.0",
        "classifier": "head",
        "license": "apache-2.0",
        "origin_url": "https://github.com/facebookresearch/deit",
        "paper_ids": "arXiv:2112.13692",
        **kwargs,
    }


def _small_cfg(size: int) -> dict[str, Any]:
    return _cfg(
        size=size, crop_pct=1.0, num_classes=10, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bilinear",
        origin_url=None, paper_ids=None,
    )  # fmt: skip


default_cfgs = generate_default_cfgs(
    {
        "patchconvnet_keras.untrained": _small_cfg(48),
        "patchconvnet_micro.untrained": _small_cfg(16),
        "patchconvnet_mini.untrained": _small_cfg(32),
        "patchconvnet_midi.untrained": _small_cfg(32),
        "patchconvnet_maxi.untrained": _small_cfg(32),
        "patchconvnet_s60.fb_in1k": _cfg("s60_224_1k"),
        "patchconvnet_s60.fb_in21k_ft_in1k": _cfg("s60_224_21k"),
        "patchconvnet_s60.fb_in21k_ft_in1k_384": _cfg("s60_384_21k", 384, 1.0),
        "patchconvnet_s60.fb_in21k_ft_in1k_512": _cfg("s60_512_21k", 512, 1.0),
        "patchconvnet_s120.fb_in1k": _cfg("s120_224_1k"),
        "patchconvnet_b60.fb_in1k": _cfg("b60_224_1k"),
        "patchconvnet_b60.fb_in21k_ft_in1k": _cfg("b60_224_21k"),
        "patchconvnet_b60.fb_in21k_ft_in1k_384": _cfg("b60_384_21k", 384, 1.0),
        "patchconvnet_b120.fb_in1k": _cfg("b120_224_1k"),
        "patchconvnet_b120.fb_in21k_ft_in1k": _cfg("b120_224_21k"),
        "patchconvnet_b120.fb_in21k_ft_in1k_384": _cfg("b120_384_21k", 384, 1.0),
        "patchconvnet_l60.untrained": _cfg(),
        "patchconvnet_l120.untrained": _cfg(),
        "patchconvnet_s60_multi.fb_in1k": _cfg("s60_multi_finetune_1k"),
        "patchconvnet_s60_multi.fb_in1k_scratch": _cfg("s60_multi_scratch_1k"),
    }
)

_KERAS: dict[str, Any] = {
    "embed_dim": 256, "depth": 2, "stem_divisors": (2, 1), "stem_bias": True, "stem_padding": "same",
    "stem_last_act": True, "conv": "dense", "act": "gelu_tanh", "se_ratio": 1 / 8, "se_bias": False,
    "layer_scale": None, "pooling": "keras", "num_classes": 10, "drop_rate": 0.2, "attn_drop_rate": 0.2,
    "init": "keras",
}  # fmt: skip

# Our own members for images of about 32 pixels: patches of 4 × 4, dense 3×3 convolutions, batch norm, exact evidence
_SMALL: dict[str, Any] = {
    "stem": "pooled", "stem_divisors": (2, 1), "block": "preactivation", "conv": "dense", "norm": "batch",
    "layer_scale": None, "pooling": "additive", "pooling_norm": "layer", "num_classes": 10,
}  # fmt: skip


@register_model
def patchconvnet_keras(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """The Keras example's network, its two blocks with weights of their own."""
    return _create("patchconvnet_keras", pretrained, kwargs, **_KERAS)


@register_model
def patchconvnet_micro(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """For digits and other tiny images."""
    return _create("patchconvnet_micro", pretrained, kwargs, **_SMALL, embed_dim=48, depth=2)


@register_model
def patchconvnet_mini(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """For 32-pixel images in minutes of a CPU."""
    return _create("patchconvnet_mini", pretrained, kwargs, **_SMALL, embed_dim=128, depth=2)


@register_model
def patchconvnet_midi(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """For 32-pixel images in an hour or two of a CPU."""
    return _create("patchconvnet_midi", pretrained, kwargs, **_SMALL, embed_dim=192, depth=2, stem_repeats=1)


@register_model
def patchconvnet_maxi(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """For 32-pixel images with a GPU, or hours of a CPU."""
    return _create("patchconvnet_maxi", pretrained, kwargs, **_SMALL, embed_dim=320, depth=4, stem_repeats=1)


@register_model
def patchconvnet_s60(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """The paper's S60."""
    return _create("patchconvnet_s60", pretrained, kwargs, embed_dim=384, depth=60)


@register_model
def patchconvnet_s120(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """The paper's S120."""
    return _create("patchconvnet_s120", pretrained, kwargs, embed_dim=384, depth=120, layer_scale=1e-6)


@register_model
def patchconvnet_b60(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """The paper's B60."""
    return _create("patchconvnet_b60", pretrained, kwargs, embed_dim=768, depth=60, layer_scale=1e-6)


@register_model
def patchconvnet_b120(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """The paper's B120."""
    return _create("patchconvnet_b120", pretrained, kwargs, embed_dim=768, depth=120, layer_scale=1e-6)


@register_model
def patchconvnet_l60(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """The paper's L60."""
    return _create("patchconvnet_l60", pretrained, kwargs, embed_dim=1024, depth=60, layer_scale=1e-6)


@register_model
def patchconvnet_l120(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """The paper's L120."""
    return _create("patchconvnet_l120", pretrained, kwargs, embed_dim=1024, depth=120, layer_scale=1e-6)


@register_model
def patchconvnet_s60_multi(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """The paper's S60 with a class token per class."""
    return _create(
        "patchconvnet_s60_multi", pretrained, kwargs, embed_dim=384, depth=60, pooling="class_attention_multi"
    )
