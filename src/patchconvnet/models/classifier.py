"""What all networks here share behind their patches: attention pooling, the classifier, evidence, reading and writing.

A network brings its patches and its configuration: `PatchConvNet` those of the paper, `AttentionPooled` those of a timm
model. The contract is timm's (`forward_features`, `forward_head`, `get_classifier`, `reset_classifier`, …).
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Self,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchconvnet.errors import UserError, shortened
from patchconvnet.models import weights
from patchconvnet.models.pooling import ClassWiseLinear, Pooled, Pooling


class Output(NamedTuple):
    """What the network says and why.

    Attributes:
        logits: (B, K).
        attention: (B, Q, h, w), softmax weights over the patches; Q = 1, or K where every class has its own query.
        evidence: (B, K, h, w), each patch's signed share of each logit, which sum to the logit less its bias, or None.
    """

    logits: Tensor
    attention: Tensor
    evidence: Tensor | None = None


class WholeAnswer(NamedTuple):
    """What a network answers that can be asked as a whole only.

    Attributes:
        logits: (B, K).
        attention: (B, Q, h, w).
        classes: (B, K') int64, those that have evidence.
        evidence: (B, K', h, w).
    """

    logits: Tensor
    attention: Tensor
    classes: Tensor
    evidence: Tensor


class AttentionClassifier(nn.Module):
    """Images (B, C_in, H, W) → patches (B, C, h, w) → pooled vector(s) → logits (B, K).

    A subclass sets `config` (a frozen dataclass with at least `num_classes` and `pooling`), `num_classes`, `in_chans`,
    `patch_size`, `num_features` (C), `head_hidden_size` (what the classifier reads) and `metadata`, then calls
    `_build_head`; it gives `forward_features`, `_new_pooling` and, where layers stand between, `neck`.
    """

    kind: ClassVar[str]  # in a model folder's config.json
    shapes_without_values: ClassVar[bool] = False  # whether it can be made on PyTorch's "meta" device
    config: Any
    pretrained_cfg: dict[str, Any]  # set by timm
    num_classes: int
    in_chans: int
    patch_size: int
    num_features: int
    head_hidden_size: int
    class_wise: bool
    metadata: weights.Metadata
    pooling: nn.Module
    head: nn.Module

    # What a subclass gives

    @property
    def knows_all_evidence(self) -> bool:
        """Whether evidence can be had for any class of any image, and not only for an image's likeliest ones."""
        return True

    def whole_answer(self, image: Tensor) -> WholeAnswer | None:
        """What an exported file answers; None from networks, whose patches and pooling can be asked themselves."""
        return None

    def forward_features(self, image: Tensor) -> Tensor:
        """Image (B, C_in, H, W) → patches (B, C, h, w)."""
        raise NotImplementedError

    def neck(self, vector: Tensor) -> Tensor:
        """What stands between pooling and classifier, on (B, C) or (B, K, C); nothing, unless a subclass says so."""
        return vector

    def _new_pooling(self, per_class: int | None) -> nn.Module:
        """The pooling that `config.pooling` names, with a query per class for `per_class` classes or one for all."""
        raise NotImplementedError

    def _config_for(self, num_classes: int, pooling: str) -> Any:
        """The configuration with another classifier or pooling."""
        return replace(self.config, num_classes=num_classes, pooling=pooling)

    def _init_new(self, module: nn.Module) -> None:
        """Initial values of one layer of a fresh pooling or classifier."""
        _init_truncated_normal(module)

    def _build_head(self) -> None:
        pooling = self.config.pooling
        per_class = self.num_classes if pooling.endswith("_multi") else None
        self.class_wise = per_class is not None
        self.pooling = nn.Identity() if pooling == "none" else self._new_pooling(per_class)
        if not self.num_classes or pooling == "none":
            self.head = nn.Identity()
        elif self.class_wise:
            self.head = ClassWiseLinear(self.head_hidden_size, self.num_classes)
        else:
            self.head = nn.Linear(self.head_hidden_size, self.num_classes)
        self.pooling.apply(self._init_new)
        self.head.apply(self._init_new)

    # The forward pass

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Patches (B, C, h, w) → logits (B, K), or with `pre_logits` what the classifier reads, (B, C).

        Where every class has a vector of its own, `pre_logits` gives their mean. Pooling "none" returns the patches.
        """
        if self.config.pooling == "none":
            return features
        vector = self.pooling(features.permute(0, 2, 3, 1)).vector
        return _one_vector(self.neck(vector)) if pre_logits else self.classify(vector)

    @overload
    def forward(
        self, image: Tensor, return_attention: Literal[False] = False, return_evidence: Literal[False] = False
    ) -> Tensor: ...

    @overload
    def forward(self, image: Tensor, return_attention: Literal[True], return_evidence: bool = False) -> Output: ...

    @overload
    def forward(self, image: Tensor, return_attention: bool = False, *, return_evidence: Literal[True]) -> Output: ...

    @overload
    def forward(
        self, image: Tensor, return_attention: bool = False, return_evidence: bool = False
    ) -> Tensor | Output: ...

    def forward(self, image: Tensor, return_attention: bool = False, return_evidence: bool = False) -> Tensor | Output:
        """Classify images and, on demand, say why, in the same pass.

        Args:
            image: (B, C_in, H, W) float, preprocessed; H and W at least one patch, of any ratio.
            return_attention: return `Output` with logits and attention maps instead of logits.
            return_evidence: the same with evidence maps; only where `has_exact_evidence`.

        Raises:
            UserError: for images smaller than one patch, of another channel count, or evidence that would not be exact.
        """
        features = self.forward_features(image)
        if not (return_attention or return_evidence):
            return self.forward_head(features)
        if self.config.pooling == "none":
            raise UserError("this network has no pooling, so there is no attention and no evidence to return")
        pooled: Pooled = self.pooling(features.permute(0, 2, 3, 1))
        evidence = self._checked_evidence(pooled) if return_evidence else None
        return Output(self.classify(pooled.vector), pooled.attention, evidence)

    if TYPE_CHECKING:  # nn.Module tells type checkers that a call returns anything
        __call__ = forward

    def patch_positions(
        self, size: tuple[int, int], shape: tuple[int, int]
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Where the patches are on the network's input: they divide it evenly, unless a subclass knows better.

        Args:
            size: (height, width) of the input.
            shape: (h, w) patches that it gives.

        Returns:
            Centre (y, x) of the first patch and distance (y, x) of neighbouring ones, in pixels; the first pixel's
            centre is at 0.5.
        """
        step = (size[0] / shape[0], size[1] / shape[1])
        return (step[0] / 2, step[1] / 2), step

    def classify(self, vector: Tensor) -> Tensor:
        """Pooled vector (B, C), or (B, K, C) where every class has its own → logits (B, K); without classes (B, C)."""
        vector = self.neck(vector)
        return self.head(vector) if self.num_classes else _one_vector(vector)

    @property
    def has_exact_evidence(self) -> bool:
        """Whether patches' shares sum to logit − bias by construction."""
        return isinstance(self.pooling, Pooling) and self.pooling.additive

    def _checked_evidence(self, pooled: Pooled) -> Tensor:
        if not (self.has_exact_evidence and self.num_classes):
            raise UserError(
                f"evidence is exact only for additive poolings and 'average' with a classifier; "
                f"this network has pooling {self.config.pooling!r} and {self.num_classes} classes"
            )
        return self.evidence_of(pooled)

    def evidence_of(self, pooled: Pooled) -> Tensor:
        """(B, K, h, w): each patch's share of each logit, from an additive pooling."""
        assert pooled.values is not None
        shares = F.linear(pooled.values, self.get_parameter("head.weight"))  # (B, h, w, K): each patch's own logits
        return shares.permute(0, 3, 1, 2) * pooled.attention

    # The rest of timm's contract

    def get_classifier(self) -> nn.Module:
        """The layer that makes logits of the pooled vector."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier for `num_classes` classes (0: none), with fresh class tokens where each class has its own.

        Args:
            global_pool: a pooling of the configuration to change to ("" means "none", "avg" means "average"), or None
                to keep the present one.
        """
        pooling = self.config.pooling if global_pool is None else POOLING_ALIASES.get(global_pool, global_pool)
        keep = self.pooling if pooling == self.config.pooling and not self.class_wise else None
        self.config = self._config_for(num_classes, pooling)
        self.num_classes = num_classes
        like = next(self.parameters())
        self._build_head()
        if keep is not None:
            self.pooling = keep
        for module in (self.pooling, self.head):
            module.to(like.device, like.dtype).train(self.training)
        self.metadata = weights.Metadata(preprocessing=self.metadata.preprocessing)

    def set_grad_checkpointing(self, enable: bool = True, *, pointwise: bool = False) -> None:
        """Save memory in training: the backward pass computes blocks again, or with `pointwise` all but products."""
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Names of parameters of more than one axis that weight decay must spare: class tokens and queries."""
        return {f"pooling.{name}" for name, _ in self.pooling.named_parameters() if name in ("class_token", "query")}

    # What it knows of its training

    @property
    def class_names(self) -> list[str]:
        """Its classes' names, or "class 0", "class 1", … where it was given none.

        Raises:
            UserError: `metadata` has more names than there are classes, or fewer.
        """
        names = self.metadata.class_names
        if names and len(names) != self.num_classes:
            raise UserError(
                f"this model has {self.num_classes} classes and {len(names)} class names; set "
                "`model.metadata.class_names` to a name for each class"
            )
        return list(names) or [f"class {k}" for k in range(self.num_classes)]

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How images become its input, as fields of `patchconvnet.data.preprocessing.Preprocessing`.

        They are its model folder's, or those that timm has registered its variant with; empty where it has neither.
        """
        if self.metadata.preprocessing:
            return self.metadata.preprocessing
        cfg = getattr(self, "pretrained_cfg", None)
        return weights.preprocessing_of_cfg(cfg) if cfg else {}

    # Reading and writing

    def save_pretrained(self, folder: str | Path, dtype: str = "float32") -> Path:
        """Write the model folder: configuration, weights and a model card (see `weights.write_model_folder`)."""
        architecture = {"kind": self.kind, **asdict(self.config)}
        return weights.write_model_folder(Path(folder), architecture, self.metadata, self.state_dict(), dtype)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Self:
        """A trained network of this kind in evaluation mode; `patchconvnet.load` takes any kind.

        Args:
            source: a model folder, a hub id (`owner/name`) or a published tag (`patchconvnet_s60.fb_in1k`).
            options: fields of the configuration to change, such as `drop_path_rate`; another `num_classes` gets a fresh
                classifier.

        Raises:
            UserError: in one sentence, when there is no such model, or its config and weights disagree.
        """
        return weights.load_pretrained([cls], source, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the model folder to the Hugging Face hub; returns its address (see `weights.push_to_hub`)."""
        return weights.push_to_hub(self.save_pretrained, repo_id, **options)

    def depends_on_classes(self, key: str) -> bool:
        """Whether the state dict's entry `key` changes shape with the number of classes."""
        return key.startswith("head.") or (self.class_wise and key in ("pooling.class_token", "pooling.query"))


def _one_vector(vector: Tensor) -> Tensor:
    """(B, C) of (B, C), or the mean of every class's own (B, K, C)."""
    return vector.mean(1) if vector.ndim == 3 else vector


POOLING_ALIASES = {"": "none", "avg": "average"}  # timm's words


def check_config(config: Any) -> None:
    """Refuse a configuration whose words, counts or rates can't be; `config` is a frozen dataclass.

    Raises:
        UserError: naming the field, its value and what is allowed.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if (allowed := _words(hint)) and value not in allowed:
            raise UserError(f"unknown {name} {value!r}; known: {', '.join(allowed)}")
        if hint is bool and not isinstance(value, bool):
            raise UserError(f"{name} must be true or false, not {value!r}")
        if name in _COUNTS:
            least, most = _COUNTS[name]
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise UserError(f"{name} must be a whole number from {least:,} to {most:,}, not {shortened(value)}")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in _RATES and not (is_number and 0 <= value < 1):
            raise UserError(f"{name} must be at least 0 and below 1, not {shortened(value)}")
        if name in _RATIOS and not (value is None or (is_number and 0 <= value <= _RATIOS[name])):
            raise UserError(f"{name} must be a number from 0 to {_RATIOS[name]}, not {shortened(value)}")


def _words(hint: Any) -> tuple[Any, ...]:
    """What a Literal, or a union of them, allows; nothing for other types."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(word for part in get_args(hint) for word in _words(part))


# Bounds of what a configuration may ask for, far above any network that was ever trained: a mistyped or hostile one is
# refused at once, not when it has taken the memory.
_COUNTS = {
    "in_chans": (1, 65_536),
    "num_classes": (0, 10_000_000),
    "embed_dim": (1, 65_536),
    "depth": (1, 1_000),
    "stem_filters": (1, 65_536),
    "stem_stride": (1, 1_024),
    "stem_repeats": (0, 100),
    "num_heads": (1, 65_536),
    "depth_token_only": (1, 1_000),
}
_RATES = ("drop_rate", "attn_drop_rate", "drop_path_rate")
_RATIOS = {"se_ratio": 64, "mlp_ratio": 1_024, "layer_scale": 1_000_000}


def check_image(image: Tensor, in_chans: int, patch_size: int) -> None:
    """Refuse images that no network of `in_chans` channels and patches of `patch_size` pixels can read.

    Raises:
        UserError: naming the shape that was given, and what is expected.
    """
    if image.ndim != 4 or image.shape[1] != in_chans:
        raise UserError(f"expected images of shape (B, {in_chans}, H, W), got {tuple(image.shape)}")
    if min(image.shape[2:]) < patch_size:
        raise UserError(
            f"an image of {image.shape[2]}×{image.shape[3]} pixels is smaller than one patch "
            f"({patch_size}×{patch_size}); resize it to at least that"
        )


def is_checking() -> bool:
    """Whether inputs can be checked: not while torch.compile or an export looks at the code with unknown shapes."""
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing())


def _init_truncated_normal(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
