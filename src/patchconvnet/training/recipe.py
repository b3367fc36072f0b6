"""The recipe: everything that decides a training, as typed dataclasses behind one YAML file.

Recipes that ship with the package are in `patchconvnet/recipes/` and are called by their bare names.
"""

import difflib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib import resources
from operator import attrgetter
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace, get_loader

from patchconvnet.data.augmentation import AugmentationConfig
from patchconvnet.data.labelled_images import LARGEST_BATCH, MOST_WORKERS
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.errors import UserError, first_line
from patchconvnet.models.recomputing import Recompute
from patchconvnet.training.checkpoint_interval import CheckpointInterval

# what nobody needs and no machine does: a typing error is refused instead of running for years or taking all memory
AT_MOST = {
    "epochs": 100_000,
    "batch_size": LARGEST_BATCH,
    "monitor.images": 1_000,
    "probe.views": 1_000,
    "probe.queries": 10_000,
    "data.workers": MOST_WORKERS,
}
Schedule = Literal["cosine", "linear"]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class DataOptions:
    """Which images.

    Args:
        name: cifar10, cifar100, digits, folder:PATH (one folder a class, or train/ val/ test/ of those), csv:FILE,
            parquet:FILE, hf:NAME, wds:PATTERN or litdata:FOLDER.
        root: where the data is, or is downloaded to; by default $PATCHCONVNET_DATA or ~/.cache/patchconvnet.
        validation: training images set aside to choose the best epoch by: a share below 1, a number, or
            0 for none (then the last epoch is kept). By default what fits the data set; CIFAR: the last 10,000.
        test: share or number of images set aside for the test, where the data comes without a test set.
        seed: of that choice.
        strict: stop at an image that cannot be read, instead of leaving it out with a warning.
        max_bad: how many images that cannot be read may be left out, such as 0.1% or 20; by default any number of a
            folder's, and none of another source's.
        memory_gb: images from files are decoded once and kept in memory while they need no more than this.
        workers: processes that read image files.
    """

    name: str = "cifar10"
    root: str | None = None
    validation: float | None = None
    test: float | None = None
    seed: int = 0
    strict: bool = False
    max_bad: str | None = None
    memory_gb: float = 4.0
    workers: int = 2


@dataclass(frozen=True)
class ModelOptions:
    """Which network.

    Args:
        name: a variant (see `patchconvnet models`), a published tag with `pretrained`, a model folder to start from, or
            a timm model such as resnet50, which gets attention pooling.
        pretrained: start from the tag's published weights; other classes get a new classifier.
        whiten: start with filters that decorrelate the training images' pixels; for networks with a pooled stem that
            are trained from scratch.
        mirror: tie the weights so that a mirrored image gets the same logits and mirrored maps; for what a mirror does
            not change, and networks with a pooled stem that are trained from scratch. Flips then change nothing.
        options: fields of `PatchConvNetConfig` to set, such as drop_path_rate or depth; of `AttentionPooledConfig` and
            `timm.create_model` for a timm model, such as pooling or drop_path_rate.
    """

    name: str = "patchconvnet_mini"
    pretrained: bool = False
    whiten: bool = False
    mirror: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizationOptions:
    """How the weights move.

    Args:
        optimizer: a timm optimizer: adamw, sgd, lamb, muon, ...
        learning_rate: at the top of the schedule. For muon the one of the hidden weight matrices.
        fallback_learning_rate: with muon, AdamW's rate for everything that is not a hidden weight matrix.
        weight_decay: of weight matrices; biases, norms, layer scales and class tokens are spared.
        momentum: for optimizers that have one.
        betas: for optimizers of Adam's kind.
        warmup: share of all steps in which the rate grows linearly from 0, before the schedule takes it back to 0.
        schedule: half a "cosine", or "linear", which is better for trainings of a few epochs.
        label_smoothing: share of the target spread evenly over all classes.
        clip_gradient: largest norm of the gradient; by default there is no limit.
        accumulate: parts that a batch is divided into, one after the other, when it does not fit into memory at once.
        layer_decay: each layer's rate is the next layer's times this; for pretrained networks, whose first layers need
            to change least.
        freeze_batch_norm: keep a pretrained network's batch norm statistics, where batches are too small to give good
            ones.
        balanced: weight the loss so that all classes count equally.
        ema_decay: decay per step of an exponential moving average of the weights, which is then what is validated and
            kept; it grows to this value over the first steps.
    """

    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    fallback_learning_rate: float | None = None
    weight_decay: float = 0.05
    momentum: float = 0.9
    betas: tuple[float, float] | None = None
    warmup: float = 0.15
    schedule: Schedule = "cosine"
    label_smoothing: float = 0.0
    clip_gradient: float | None = None
    accumulate: int = 1
    layer_decay: float | None = None
    freeze_batch_norm: bool = False
    balanced: bool = False
    ema_decay: float | None = None

    @property
    def has_fallback(self) -> bool:
        """Whether the optimizer is one of Muon's kind, with AdamW for what is not a hidden weight matrix."""
        return self.optimizer.endswith("muon")


@dataclass(frozen=True)
class ProgressiveOptions:
    """Smaller images in the first epochs, which cost less; the network has no positional encoding, so it takes them.

    Args:
        start: share of the side that training images are shrunk to in the first epoch; 1 for no change.
        until: share of the epochs after which they have their full size; in between they grow, patch by patch.

    Source: Tan & Le 2021, "EfficientNetV2", arXiv 2104.00298, without its change of augmentation.
    """

    start: float = 1.0
    until: float = 0.5

    def size(self, full: tuple[int, int], patch: int, epoch: int, epochs: int) -> tuple[int, int]:
        """(height, width) of training images in an epoch, counted from 0: whole patches, or the full size."""
        share = min(epoch / (self.until * epochs), 1.0) if self.start < 1 else 1.0
        scale = self.start + (1 - self.start) * share
        height, width = (min(max(math.floor(scale * side / patch), 1) * patch, side) for side in full)
        return full if share == 1 else (height, width)


@dataclass(frozen=True)
class MonitorOptions:
    """The attention figures drawn while training.

    Args:
        every: epochs between two figures; 0 for none. The last epoch always gets one.
        images: how many validation images are shown.
    """

    every: int = 1
    images: int = 8


@dataclass(frozen=True)
class ProbeOptions:
    """What `method: probe` fits on the frozen backbone's patches.

    Args:
        views: versions of each training image: itself, and augmented ones. The backbone runs once for each.
        queries: how many learn to attend, each to an equal slice of the channels; 0 keeps attention uniform.
        balanced: weight the loss so that all classes count equally.
    """

    views: int = 4
    queries: int = 16
    balanced: bool = False

    @property
    def pooling(self) -> dict[str, Any]:
        """The pooling that is fitted, as options of a model."""
        return {"pooling": "additive_sliced", "num_queries": self.queries} if self.queries else {"pooling": "additive"}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training.

    Args:
        data: which images.
        model: which network.
        preprocessing: from image to network input; it travels in the model folder.
        augmentation: what is done to training images at random.
        optimization: how the weights move.
        progressive: smaller images in the first epochs.
        monitor: the attention figures drawn while training.
        method: "train" all weights by gradient descent; or "probe": the backbone is frozen, pooling and classifier are
            fitted to its patches, in seconds; or "finetune": such a probe first, then all weights.
        probe: of `method: probe` and `finetune`.
        patience: stop after this many epochs without a better validation accuracy; by default all epochs are run.
        epochs: passes over the training set.
        batch_size: images in a step, all devices together.
        precision: number format of the forward pass; "auto" takes bfloat16 where the device computes in it.
        seed: of the weights, the order and the augmentation.
        half_weights: store the model folder's weights as float16 (half the size); these are tested.
        compile: compile the network with torch.compile first.
        recompute: save memory: what the backward pass computes again instead of keeping it. "pointwise" is all but
            convolutions and linear layers; "blocks" is everything, for a third more arithmetic.
        checkpoint_every: within an epoch, a time such as 10min or a number of steps such as "500 steps"; null for
            checkpoints at the ends of epochs only.
    """

    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    preprocessing: Preprocessing = field(default_factory=lambda: Preprocessing(size=(32, 32)))
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimization: OptimizationOptions = field(default_factory=OptimizationOptions)
    progressive: ProgressiveOptions = field(default_factory=ProgressiveOptions)
    monitor: MonitorOptions = field(default_factory=MonitorOptions)
    method: Literal["train", "probe", "finetune"] = "train"
    probe: ProbeOptions = field(default_factory=ProbeOptions)
    patience: int | None = None
    epochs: int = 10
    batch_size: int = 128
    precision: Precision = "auto"
    seed: int = 0
    half_weights: bool = False
    compile: bool = False
    recompute: Recompute = "none"
    checkpoint_every: str | None = "10min"

    def __post_init__(self) -> None:
        o = self.optimization
        at_least_one = {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "monitor.images": self.monitor.images,
            "probe.views": self.probe.views,
            "optimization.accumulate": o.accumulate,
        }
        for name, value in at_least_one.items():
            if value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        not_negative = {
            "monitor.every": self.monitor.every,
            "probe.queries": self.probe.queries,
            "data.memory_gb": self.data.memory_gb,
            "data.workers": self.data.workers,
            "optimization.weight_decay": o.weight_decay,
        }
        for name, number in not_negative.items():
            if not 0 <= number < math.inf:
                raise UserError(f"{name} must be 0 or more, not {number}")
        for name, most in AT_MOST.items():
            if (given := attrgetter(name)(self)) > most:
                raise UserError(f"{name} must be at most {most:,}, not {given}")
        for name, seed in {"seed": self.seed, "data.seed": self.data.seed}.items():
            if not 0 <= seed < 2**63:
                raise UserError(f"{name} must be 0 or more and below 2⁶³, not {seed}")
        above_zero = {
            "optimization.learning_rate": o.learning_rate,
            "optimization.fallback_learning_rate": o.fallback_learning_rate,
            "optimization.clip_gradient": o.clip_gradient,
        }
        for name, rate in above_zero.items():
            if rate is not None and not 0 < rate < math.inf:
                raise UserError(f"{name} must be above 0, not {rate}")
        if not 0 <= o.warmup < 1:
            raise UserError(f"optimization.warmup is a share of all steps, from 0 to below 1, not {o.warmup}")
        for name in ("momentum", "label_smoothing"):
            if not 0 <= getattr(o, name) < 1:
                raise UserError(f"optimization.{name} must be at least 0 and below 1, not {getattr(o, name)}")
        for name in ("start", "until"):
            if not 0 < getattr(self.progressive, name) <= 1:
                raise UserError(
                    f"progressive.{name} is a share, above 0 up to 1, not {getattr(self.progressive, name)}"
                )
        if o.layer_decay is not None and not 0 < o.layer_decay <= 1:
            raise UserError(f"optimization.layer_decay must be above 0 and at most 1, not {o.layer_decay}")
        if self.patience is not None and self.patience < 1:
            raise UserError(f"patience must be at least 1 epoch, or null for all epochs, not {self.patience}")
        if o.ema_decay is not None and not 0 < o.ema_decay < 1:
            raise UserError(f"optimization.ema_decay must be between 0 and 1, not {o.ema_decay}")
        if self.batch_size % o.accumulate:
            raise UserError(
                f"batch_size {self.batch_size} cannot be divided into {o.accumulate} equal parts; choose an "
                f"optimization.accumulate that divides it"
            )
        if o.fallback_learning_rate is not None and not o.has_fallback:
            raise UserError(
                f"optimization.fallback_learning_rate belongs to muon; {o.optimizer} has one learning_rate for all"
            )

        if self.compile and self.recompute != "none":
            raise UserError("torch.compile decides by itself what to compute again; leave out compile or recompute")
        if self.checkpoint_every is not None:
            CheckpointInterval.parse(self.checkpoint_every)
        asked, fitted = self.model.options.get("pooling"), self.probe.pooling["pooling"]
        if self.method != "train" and asked not in (None, fitted):
            raise UserError(
                f"method {self.method} fits pooling {fitted} (with probe.queries 0: additive), and "
                f"model.options.pooling is {asked!r}; leave it out, or choose method train, which trains any pooling"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, numbers and strings, as they stand in YAML."""
        return _plain(asdict(self))

    def to_yaml(self) -> str:
        """The recipe as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def differences(self, other: "Recipe") -> list[str]:
        """Dotted names of the fields in which two recipes differ."""
        return _differences(self, other, "")


Parser = TypeVar("Parser", bound=ArgumentParser)


def recipe_parser(kind: type[Parser] = ArgumentParser, **options: Any) -> Parser:  # type: ignore[assignment]
    """A command line of a recipe's fields, and `--recipe`, a file or shipped recipe that sets many at once."""
    parser = kind(**options)
    parser.add_argument("--recipe", action=_RecipeFile, help="a YAML file, or one of: " + ", ".join(shipped_recipes()))
    parser.add_class_arguments(Recipe)
    return parser


def recipe_from(parser: ArgumentParser, values: Namespace) -> Recipe:
    """The recipe in what a `recipe_parser` parsed."""
    _check_kinds(Recipe, values, "")
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.5x
    built = instantiate(values)
    return Recipe(**{f.name: built[f.name] for f in fields(Recipe)})


def _check_kinds(kind: Any, values: Namespace, group: str) -> None:
    """Refuse what jsonargparse lets through: nothing where a value is needed, and a value in a group's place.

    Raises:
        UserError: there is one.
    """
    hints = get_type_hints(kind)
    for f in fields(kind):
        name, value, hint = f"{group}{f.name}", values[f.name], hints[f.name]
        if value is None and NoneType not in get_args(hint):
            raise UserError(f"{name} has no value; give one, or leave the field out")
        if is_dataclass(hint):
            if not isinstance(value, Namespace):
                raise UserError(f"{name} is {value!r}; it is a group, whose fields are given by name")
            _check_kinds(hint, value, f"{name}.")


def read_recipe(source: str | os.PathLike[str] | Recipe, changes: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe from a YAML file, or a shipped one by name, with other values for some of its fields.

    Args:
        source: a path, a name, or a recipe to change.
        changes: values by field: `{"epochs": 5, "optimization": {"learning_rate": 0.001}}` or
            `{"optimization.learning_rate": 0.001}`. A word for data or model is its name.

    Raises:
        UserError: there is none, or it has fields or values that a recipe can't have.
    """
    parser: ArgumentParser = recipe_parser(exit_on_error=False)
    asked = _by_field(changes or {})
    if asked.get("preprocessing.resize", "crop") != "crop":
        asked.setdefault("preprocessing.crop_ratio", 1.0)  # a recipe's own has no meaning then
    try:
        if isinstance(source, Recipe):
            values = parser.parse_object(source.to_dict())
        else:
            values = parser.parse_args(["--recipe", str(recipe_path(str(source)))])
    except ArgumentError as error:
        raise UserError(f"{source}: {error}") from error
    try:
        return recipe_from(parser, parser.parse_object(asked, values) if asked else values)
    except ArgumentError as error:
        message = re.sub(r"<class '(.+?)'>", r"\1", " ".join(str(error).split()))
        raise UserError(message.replace("Parser key", "recipe field")) from error


def _by_field(changes: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """Changes of a recipe by dotted field name; unknown fields are refused."""
    known, found = list(_leaves(Recipe())), {}
    for key, value in changes.items():
        name = f"{group}{key}"
        if name in ("data", "model") and isinstance(value, str):
            name = f"{name}.name"
        if name in known:
            found[name] = _plain(value)
        elif not any(leaf.startswith(f"{name}.") for leaf in known):
            close = difflib.get_close_matches(name, known, n=1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            raise UserError(f"a recipe has no field {name!r}.{meant} It has: {', '.join(vars(Recipe()))}.")
        elif is_dataclass(value) and not isinstance(value, type):
            found |= _by_field(asdict(value), f"{name}.")
        elif isinstance(value, Mapping):
            found |= _by_field(value, f"{name}.")
        else:
            raise UserError(f"{name} is a group of a recipe's fields; give them by name, as a mapping, not {value!r}.")
    return found


def _leaves(options: Any, prefix: str = "") -> Iterator[str]:
    for f in fields(options):
        value = getattr(options, f.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}"


class _RecipeFile(ActionConfigFile):
    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        path = recipe_path(str(values))
        super().__call__(parser, cfg, yaml.safe_dump(read_yaml(path)), option_string)
        cfg[self.dest][-1] = path


def read_yaml(path: Path) -> dict[str, Any]:
    """What a recipe's file holds, unchecked, in today's words: `monitor.images` was once called `monitor.pictures`.

    Raises:
        UserError: it cannot be read, or is not YAML of names and values.
    """
    try:
        recipe = get_loader("yaml")(path.read_text(encoding="utf-8"))  # which takes 1e-3 for a number, as YAML 1.2 does
        json.dumps(recipe, default=str)  # a ValueError for a list that holds itself, over which others stumble later
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not a recipe, which is a YAML file: {first_line(error)}") from error
    if not isinstance(recipe, dict):
        raise UserError(f"{path} is not a recipe: it has no fields such as `epochs: 10`")
    monitor = recipe.get("monitor")
    if isinstance(monitor, dict) and "pictures" in monitor:
        monitor["images"] = monitor.pop("pictures")
    return recipe


def shipped_recipes() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(Path(entry.name).stem for entry in _recipe_folder().iterdir() if entry.name.endswith(".yaml"))


def recipe_path(name: str) -> Path:
    """The file of a recipe, given as a path or by the name of a shipped one.

    Raises:
        UserError: there is neither such a file nor such a recipe.
    """
    if Path(name).is_file():
        return Path(name)
    if name in shipped_recipes():
        return Path(str(_recipe_folder() / f"{name}.yaml"))
    raise UserError(f"no recipe {name!r}: it is neither a YAML file nor one of {', '.join(shipped_recipes())}")


def _recipe_folder() -> Any:
    return resources.files("patchconvnet") / "recipes"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _differences(one: Any, other: Any, prefix: str) -> list[str]:
    if not is_dataclass(one):
        return [] if _plain(one) == _plain(other) else [prefix]
    return [
        name
        for f in fields(one)
        for name in _differences(
            getattr(one, f.name), getattr(other, f.name), f"{prefix}.{f.name}" if prefix else f.name
        )
    ]
