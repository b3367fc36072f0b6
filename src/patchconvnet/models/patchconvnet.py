"""PatchConvNet: convolutional stem → residual trunk at one resolution → attention-based aggregation → classifier.

Source: "Augmenting convolutional networks with attention-based aggregation", Touvron et al. 2021, arXiv 2112.13692, and
"Augmenting convnets with aggregated attention", A. R. Gosthipaty, keras.io 2022. `PatchConvNetConfig` says which.
"""

import difflib
import pickle
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._builder import resolve_pretrained_cfg
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint
from torch import Tensor, nn

from patchconvnet.errors import UserError
from patchconvnet.models import checkpoints, weights
from patchconvnet.models.layers import ActName, NormName
from patchconvnet.models.pooling import (
    AdditivePooling,
    AveragePooling,
    ClassAttentionPooling,
    ClassWiseLinear,
    KerasPooling,
    Pooled,
    PoolingName,
)
from patchconvnet.models.stem import ConvStem, StemPadding
from patchconvnet.models.trunk import ConvName, TrunkBlock


@dataclass(frozen=True)
class PatchConvNetConfig:
    """Everything that decides the network. The defaults are the paper's S60.

    in_chans, num_classes: channels of the image; classes K (0: no classifier, the network returns its pooled vector).
    embed_dim, depth: channels C and number of blocks of the trunk.
    stem_divisors: C divided by each gives the channels of the stem's stride-2 convolutions; patch size 2^len.
    stem_bias, stem_padding, stem_last_act: see `ConvStem`.
    conv, norm, act: the trunk's 3×3 convolution, its normalisation, GELU everywhere.
    se_ratio, se_bias: squeeze-and-excitation.
    layer_scale: initial value of the layer scales; None leaves the trunk without them.
    pooling: "class_attention" (paper), "class_attention_multi" (paper, a class token per class), "keras" (the example),
        "additive" (exact evidence per class), "additive_multi" (the same with a query per class), "average", or "none"
        (no pooling and no classifier: the network returns its patches).
    mlp_ratio: hidden width of the class attention's MLP.
    drop_rate, attn_drop_rate, drop_path_rate: dropout in the pooling head's MLP or on its vector; on the attention
        weights; stochastic depth, the same in every block.
    init: "paper" (truncated normal 0.02) or "keras" (Glorot uniform).
    """

    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 384
    depth: int = 60
    stem_divisors: tuple[int, ...] = (8, 4, 2, 1)
    stem_bias: bool = False
    stem_padding: StemPadding = "symmetric"
    stem_last_act: bool = False
    conv: ConvName = "depthwise"
    norm: NormName = "layer"
    act: ActName = "gelu"
    se_ratio: float = 0.25
    se_bias: bool = True
    layer_scale: float | None = 1e-4
    pooling: PoolingName = "class_attention"
    mlp_ratio: float = 3.0
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    init: Literal["paper", "keras"] = "paper"

    def __post_init__(self) -> None:
        object.__setattr__(self, "stem_divisors", tuple(self.stem_divisors))  # a list, as JSON brings it
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if (allowed := get_args(hint)) and isinstance(allowed[0], str) and value not in allowed:
                raise UserError(f"unknown {name} {value!r}; known: {', '.join(allowed)}")
        for name, least in {"in_chans": 1, "num_classes": 0, "embed_dim": 1, "depth": 1}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UserError(f"{name} must be a whole number of at least {least}, not {value!r}")
        for name in ("drop_rate", "attn_drop_rate", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 0 and below 1, not {getattr(self, name)!r}")
        if self.embed_dim % max(self.stem_divisors):
            raise UserError(
                f"embed_dim {self.embed_dim} must be a multiple of {max(self.stem_divisors)}, the stem's largest"
            )
        if int(self.embed_dim * self.se_ratio) < 1:
            raise UserError(f"se_ratio {self.se_ratio} leaves nothing of {self.embed_dim} channels")


class Output(NamedTuple):
    """What the network says and why.

    logits: (B, K).
    attention: (B, Q, h, w), softmax weights over the patches; Q = 1, or K where every class has its own query.
    evidence: (B, K, h, w), each patch's signed share of each logit, which sum to the logit less its bias, or None.
    """

    logits: Tensor
    attention: Tensor
    evidence: Tensor | None = None


class PatchConvNet(nn.Module):
    """Patches at one resolution, squeeze-and-excitation, attention pooling: (B, C_in, H, W) → logits (B, K).

    Any height and width of at least one patch. Follows timm's model contract.

    Args:
        config: the network; the S60 of the paper when left out.
        options: fields of `PatchConvNetConfig` to set on top.

    Raises:
        UserError: for an option that does not exist, or a value that the network can't have.
    """

    kind = "patchconvnet"  # in a model folder's config.json
    pretrained_cfg: dict[str, Any]  # set by timm

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
        self.grad_checkpointing = False
        self.metadata = weights.Metadata()

        self.stem = ConvStem(
            c.in_chans,
            [c.embed_dim // divisor for divisor in c.stem_divisors],
            bias=c.stem_bias,
            padding=c.stem_padding,
            last_act=c.stem_last_act,
            act=c.act,
        )
        self.trunk = nn.ModuleList(
            TrunkBlock(
                c.embed_dim,
                conv=c.conv,
                norm=c.norm,
                act=c.act,
                se_ratio=c.se_ratio,
                se_bias=c.se_bias,
                layer_scale=c.layer_scale,
                drop_path=c.drop_path_rate,
            )
            for _ in range(c.depth)
        )
        if c.init == "keras":  # the paper's code leaves convolutions, and so the blocks' 1×1 ones, at PyTorch's default
            self.stem.apply(_init_glorot)
            self.trunk.apply(_init_glorot)
        self.patch_size = self.stem.patch_size
        self.feature_info = [
            {"num_chs": c.embed_dim, "reduction": self.patch_size, "module": f"trunk.{i}"} for i in range(c.depth)
        ]
        self._build_head()

    def _build_head(self) -> None:
        c = self.config
        per_class = self.num_classes if c.pooling.endswith("_multi") else None
        drops: dict[str, Any] = {"attn_drop": c.attn_drop_rate, "drop": c.drop_rate}
        self.pooling: nn.Module
        if c.pooling.startswith("class_attention"):
            scale = 1.0 if c.layer_scale is None else c.layer_scale
            self.pooling = ClassAttentionPooling(
                c.embed_dim, per_class, mlp_ratio=c.mlp_ratio, layer_scale=scale, act=c.act, **drops
            )
        elif c.pooling == "keras":
            self.pooling = KerasPooling(c.embed_dim, act=c.act, **drops)
        elif c.pooling.startswith("additive"):
            self.pooling = AdditivePooling(c.embed_dim, per_class, norm=c.norm, **drops)
        elif c.pooling == "average":
            self.pooling = AveragePooling(c.embed_dim, norm=c.norm, drop=c.drop_rate)
        else:
            self.pooling = nn.Identity()
        self.class_wise: bool = per_class is not None
        self.head: nn.Module
        if not self.num_classes or c.pooling == "none":
            self.head = nn.Identity()
        elif self.class_wise:
            self.head = ClassWiseLinear(c.embed_dim, self.num_classes)
        else:
            self.head = nn.Linear(c.embed_dim, self.num_classes)
        init = _init_glorot if c.init == "keras" else _init_truncated_normal
        self.pooling.apply(init)
        self.head.apply(init)

    # The forward pass

    def forward_features(self, image: Tensor) -> Tensor:
        """Image (B, C_in, H, W) → patches after the trunk, (B, C, h, w) in channels-last memory."""
        patches = self._embed(image)
        for block in self.trunk:
            patches = self._run(block, patches)
        return patches.permute(0, 3, 1, 2)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Patches (B, C, h, w) → logits (B, K), or with `pre_logits` the pooled vector (B, C).

        Where every class has a vector of its own, `pre_logits` gives their mean. Pooling "none" returns the patches.
        """
        if self.config.pooling == "none":
            return features
        vector = self.pooling(features.permute(0, 2, 3, 1)).vector
        if pre_logits or not self.num_classes:
            return vector.mean(1) if vector.ndim == 3 else vector
        return self.head(vector)

    def forward(self, image: Tensor, return_attention: bool = False, return_evidence: bool = False) -> Tensor | Output:
        """Classify images and, on demand, say why, in the same pass.

        Args:
            image: (B, C_in, H, W) float, preprocessed; H and W at least one patch, of any ratio.
            return_attention: return `Output` with logits and attention maps instead of logits.
            return_evidence: the same with evidence maps; only for pooling heads that are linear after the softmax.

        Raises:
            UserError: for images smaller than one patch, of another channel count, or evidence from another head.
        """
        features = self.forward_features(image)
        if not (return_attention or return_evidence):
            return self.forward_head(features)
        if self.config.pooling == "none":
            raise UserError("this network has no pooling, so there is no attention and no evidence to return")
        pooled: Pooled = self.pooling(features.permute(0, 2, 3, 1))
        evidence = self._evidence(pooled) if return_evidence else None
        return Output(self.head(pooled.vector), pooled.attention, evidence)

    def _evidence(self, pooled: Pooled) -> Tensor:
        if pooled.values is None or not self.num_classes:
            raise UserError(
                f"evidence is exact only for pooling 'additive', 'additive_multi' or 'average' with a classifier; "
                f"this network has pooling {self.config.pooling!r} and {self.num_classes} classes"
            )
        shares = F.linear(pooled.values, self.get_parameter("head.weight"))  # (B, h, w, K): each patch's own logits
        return shares.permute(0, 3, 1, 2) * pooled.attention

    def _embed(self, image: Tensor) -> Tensor:
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
            _check_image(image, self.in_chans, self.patch_size)
        return self.stem(image)

    def _run(self, block: nn.Module, patches: Tensor) -> Tensor:
        return checkpoint(block, patches) if self.grad_checkpointing and self.training else block(patches)

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

    def get_classifier(self) -> nn.Module:
        """The layer that makes logits of the pooled vector."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier for `num_classes` classes (0: none), with fresh class tokens where each class has its own.

        Args:
            global_pool: a pooling of `PatchConvNetConfig` to change to ("" means "none", "avg" means "average"), or
                None to keep the present one.
        """
        pooling = self.config.pooling if global_pool is None else _POOLING_ALIASES.get(global_pool, global_pool)
        keep = self.pooling if pooling == self.config.pooling and not self.class_wise else None
        self.config = replace(self.config, num_classes=num_classes, pooling=pooling)  # type: ignore[arg-type]
        self.num_classes = num_classes
        like = next(self.stem.parameters())
        self._build_head()
        if keep is not None:
            self.pooling = keep
        for module in (self.pooling, self.head):
            module.to(like.device, like.dtype).train(self.training)
        self.metadata = weights.Metadata(preprocessing=self.metadata.preprocessing)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters of more than one axis that weight decay must spare: class tokens and queries."""
        return {f"pooling.{name}" for name, _ in self.pooling.named_parameters() if name in ("class_token", "query")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters from the image to the logits, for layer-wise learning rates."""
        return {"stem": r"^stem", "blocks": [(r"^trunk\.(\d+)", None), (r"^pooling", (99_999,))]}

    # Reading and writing

    def save_pretrained(self, folder: str | Path, dtype: str = "float32") -> Path:
        """Write the model folder: `config.json` and `model.safetensors` (see `weights.write_model_folder`)."""
        architecture = {"kind": self.kind, **asdict(self.config)}
        return weights.write_model_folder(Path(folder), architecture, self.metadata, self.state_dict(), dtype)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> "PatchConvNet":
        """A trained network in evaluation mode; see `weights.load_pretrained`.

        Args:
            source: a model folder, a hub id (`owner/name`) or a published tag (`patchconvnet_s60.fb_in1k`).
            options: fields of `PatchConvNetConfig` to change, such as `drop_path_rate`; another `num_classes` gets a
                fresh classifier.

        Raises:
            UserError: in one sentence, when there is no such model, or its config and weights disagree.
        """
        return weights.load_pretrained(cls, source, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the model folder to the Hugging Face hub; returns its address (see `weights.push_to_hub`)."""
        return weights.push_to_hub(self.save_pretrained, repo_id, **options)

    def depends_on_classes(self, key: str) -> bool:
        """Whether the state dict's entry `key` changes shape with the number of classes."""
        return key.startswith("head.") or (self.class_wise and key in self.no_weight_decay())


_POOLING_ALIASES = {"": "none", "avg": "average"}  # timm's words


def _check_image(image: Tensor, in_chans: int, patch_size: int) -> None:
    if image.ndim != 4 or image.shape[1] != in_chans:
        raise UserError(f"expected images of shape (B, {in_chans}, H, W), got {tuple(image.shape)}")
    if min(image.shape[2:]) < patch_size:
        raise UserError(
            f"an image of {image.shape[2]}×{image.shape[3]} pixels is smaller than one patch "
            f"({patch_size}×{patch_size}); resize it to at least that"
        )


def _init_truncated_normal(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _init_glorot(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# Variants and published weights


def _create(variant: str, pretrained: bool, options: dict[str, Any], **sizes: Any) -> PatchConvNet:
    options = {key: value for key, value in options.items() if value is not None}
    if "global_pool" in options:
        options["pooling"] = _POOLING_ALIASES.get(options["global_pool"], options["global_pool"])
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
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        if not pretrained:
            raise
        origin = cfg.file or cfg.url or cfg.hf_hub_id
        raise UserError(f"cannot load the weights of {variant} from {origin}: {weights.first_line(error)}") from error
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

# Our own members for pictures of about 32 pixels: patches of 4 × 4, dense 3×3 convolutions, batch norm, exact evidence
_SMALL: dict[str, Any] = {
    "stem_divisors": (2, 1), "stem_last_act": True, "conv": "dense", "norm": "batch", "layer_scale": None,
    "pooling": "additive", "num_classes": 10,
}  # fmt: skip


@register_model
def patchconvnet_keras(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """The Keras example's network, its two blocks with weights of their own."""
    return _create("patchconvnet_keras", pretrained, kwargs, **_KERAS)


@register_model
def patchconvnet_micro(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """For digits and other tiny pictures."""
    return _create("patchconvnet_micro", pretrained, kwargs, **_SMALL, embed_dim=48, depth=2)


@register_model
def patchconvnet_mini(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """For 32-pixel pictures on a CPU."""
    return _create("patchconvnet_mini", pretrained, kwargs, **_SMALL, embed_dim=128, depth=4)


@register_model
def patchconvnet_midi(pretrained: bool = False, **kwargs: Any) -> PatchConvNet:
    """For 32-pixel pictures where there is time, or a GPU."""
    return _create("patchconvnet_midi", pretrained, kwargs, **_SMALL, embed_dim=320, depth=6)


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
