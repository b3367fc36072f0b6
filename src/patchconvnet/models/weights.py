"""The model folder: `config.json` (architecture, class names, preprocessing, provenance, metrics), `model.safetensors`.

Beside them are a model card and, of a training with images to show, an explained one of these for the card.

Writing one, reading one, publishing one, and finding one by its path, its hub id or a published tag. Nothing here
imports the network: it arrives as an argument.
"""

import difflib
import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from patchconvnet.errors import UserError, first_line, shortened
from patchconvnet.files import write_atomic
from patchconvnet.models import hub
from patchconvnet.models.model_card import CARD_FILE, EXAMPLE_FILE, MARK, model_card
from patchconvnet.models.tensor_file import read_tensors, write_tensors

ModelT = TypeVar("ModelT", bound=nn.Module)
StateDict = dict[str, Tensor]

SHIPPED = Path(__file__).parents[1] / "pretrained"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CHECKSUM = "weights_sha256"  # in config.json, of the file of weights
FORMAT, FORMAT_OF_HALVES = 1, 2  # the second where of symmetric convolutions half is written
LARGEST_EXAMPLE = 5_000_000  # bytes
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass
class Metadata:
    """What a trained model knows besides its weights; it travels in the model folder's `config.json`.

    Attributes:
        class_names: one per logit, in order.
        preprocessing: fields of `patchconvnet.data.preprocessing.Preprocessing`.
        provenance: how it came to be: recipe, data, package version, date.
        metrics: what it reached, by name.
        temperature: what logits are divided by before a softmax makes probabilities of them (Guo et al. 2017, arXiv
            1706.04599); evidence sums to the undivided logit.
        example: a JPEG of an explained image of its data, for the card; a file of its own in the model folder.
    """

    class_names: list[str] = field(default_factory=list)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    example: bytes | None = field(default=None, repr=False)


def temperature_of(model: nn.Module) -> float:
    """What the model's logits are divided by to give probabilities; 1 where it does not say."""
    return float(getattr(getattr(model, "metadata", None), "temperature", 1.0))


# Writing and reading


def write_model_folder(
    folder: Path, architecture: dict[str, Any], metadata: Metadata, state: Mapping[str, Tensor], dtype: str = "float32"
) -> Path:
    """Write `config.json`, `model.safetensors` and a model card into `folder`, aside first and then renamed.

    Of convolutions that are symmetric in a mirror, half is written (see `tensor_file`).
    `config.json` gets the weights' checksum, by which `read_model_folder` notices a file that was damaged later.

    Args:
        folder: made when it does not exist; its other files stay.
        architecture: what rebuilds the network: `kind` and its configuration.
        state: the state dict.
        dtype: "float32", or "float16" or "bfloat16" for half the size. Vectors (biases, norms, layer scales,
            statistics) are float32 always: they are small, and a layer scale of 1e-6 is lost in float16.

    Raises:
        UserError: when the folder cannot be written (files that were there are still whole then), or for another dtype.
    """
    if dtype not in DTYPES:
        raise UserError(f"weights cannot be saved as {dtype!r}; known: {', '.join(DTYPES)}")
    stored = {
        name: value.to(DTYPES[dtype] if value.ndim > 1 else torch.float32) if value.is_floating_point() else value
        for name, value in state.items()
    }
    config = {"library": "patchconvnet", "architecture": architecture, **_in_config(metadata)}

    def write_both(config_part: Path) -> None:
        def write_weights(weights_part: Path) -> None:
            version = FORMAT_OF_HALVES if write_tensors(weights_part, stored) else FORMAT
            text = json.dumps({"format": version, **config, CHECKSUM: sha256(weights_part)}, indent=2)
            config_part.write_text(text + "\n")

        write_atomic(folder / WEIGHTS_FILE, write_weights)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / CONFIG_FILE, write_both)
        write_card(folder, architecture, metadata)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the model folder {folder}: {error}") from error
    return folder


def write_metadata(folder: Path, metadata: Metadata) -> None:
    """Write `config.json` and the card of a model folder anew; architecture and weights stay.

    Raises:
        UserError: it is no model folder, or cannot be written.
    """
    architecture, _ = read_config(folder)
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")) | _in_config(metadata)
        write_atomic(folder / CONFIG_FILE, lambda part: part.write_text(json.dumps(config, indent=2) + "\n"))
        write_card(folder, architecture, metadata)
    except OSError as error:
        raise UserError(f"cannot write the model folder {folder}: {error}") from error


def _in_config(metadata: Metadata) -> dict[str, Any]:
    """The fields that `config.json` has."""
    values = {name: value for name, value in asdict(metadata).items() if name != "example"}
    try:
        json.dumps(values)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"config.json cannot hold the model's metadata: {error}; give numbers, words and lists"
        ) from error
    return values


def write_card(folder: Path, architecture: Mapping[str, Any], metadata: Metadata) -> None:
    """Write `README.md`, unless there is one that somebody else has written or made his own, and its example.

    Raises:
        OSError: it cannot be read or written.
    """
    file, example = folder / CARD_FILE, metadata.example
    if example is None:
        (folder / EXAMPLE_FILE).unlink(missing_ok=True)  # of another model that was written here
    else:
        write_atomic(folder / EXAMPLE_FILE, lambda path: path.write_bytes(example))
    if file.is_file() and MARK not in file.read_text(encoding="utf-8", errors="replace"):
        return
    text = model_card(
        architecture, metadata.class_names, metadata.preprocessing, metadata.provenance, metadata.metrics,
        has_example=example is not None,
    )  # fmt: skip
    write_atomic(file, lambda path: path.write_text(text, encoding="utf-8"))


def sha256(path: Path) -> str:
    """A file's SHA-256 checksum in hexadecimal digits.

    300 MB take 0.2 to 0.7 s, measured on a busy core that has instructions for it.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cfg_for_channels(cfg: Mapping[str, Any], in_chans: int) -> dict[str, Any]:
    """timm's `pretrained_cfg` for a network of so many channels: mean and deviation are averaged where they differ."""
    adapted = {**cfg, "input_size": (in_chans, *cfg["input_size"][1:])}
    for key in ("mean", "std"):
        if cfg.get(key) and len(cfg[key]) != in_chans:
            adapted[key] = (sum(cfg[key]) / len(cfg[key]),) * in_chans
    return adapted


def preprocessing_of_cfg(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluation preprocessing that timm's `pretrained_cfg` asks for, as fields of our `Preprocessing`."""
    channels, height, width = cfg.get("input_size") or (3, 224, 224)
    resize = {"squash": "stretch", "border": "letterbox"}.get(cfg.get("crop_mode") or "", "crop")
    known = cfg.get("interpolation") in ("bicubic", "nearest")
    return {
        "size": [height, width],
        "resize": resize,
        "crop_ratio": (cfg.get("crop_pct") or 0.875) if resize == "crop" else 1.0,
        "interpolation": cfg["interpolation"] if known else "bilinear",
        "antialias": cfg.get("interpolation") != "nearest",
        "mean": list(cfg.get("mean") or IMAGENET_DEFAULT_MEAN[:channels]),
        "std": list(cfg.get("std") or IMAGENET_DEFAULT_STD[:channels]),
    }


def read_model_folder(folder: Path) -> tuple[dict[str, Any], Metadata, StateDict]:
    """Read a model folder: architecture, metadata, state dict.

    Raises:
        UserError: when a file is missing, can't be read, is not what it should be, is cut short, or is not the one
            whose checksum `config.json` has. Folders written before there were checksums are read without one.
    """
    _require(folder, CONFIG_FILE)
    _require(folder, WEIGHTS_FILE)
    architecture, metadata = read_config(folder)
    checksum = _checksum(folder / CONFIG_FILE)
    try:
        is_damaged = checksum is not None and sha256(folder / WEIGHTS_FILE) != checksum
        state = read_tensors(folder / WEIGHTS_FILE)
    except OSError as error:
        raise UserError(f"{folder / WEIGHTS_FILE} cannot be read: {first_line(error)}") from error
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS_FILE} is truncated or damaged: {error}") from error
    if is_damaged:
        raise UserError(
            f"{folder / WEIGHTS_FILE} is damaged or was replaced: its SHA-256 checksum is not {CHECKSUM} in "
            f"{CONFIG_FILE}; copy or download the folder again, or, if you replaced the weights yourself, delete that "
            "line"
        )
    return architecture, metadata, state


def _checksum(path: Path) -> str | None:
    checksum = json.loads(path.read_text(encoding="utf-8")).get(CHECKSUM)
    if checksum is None or (isinstance(checksum, str) and len(checksum) == 64):
        return checksum
    raise UserError(f"{CHECKSUM} in {path} must be the 64 hexadecimal digits of a checksum, not {shortened(checksum)}")


def read_config(folder: Path) -> tuple[dict[str, Any], Metadata]:
    """Architecture and metadata from a model folder's `config.json`, in today's words where an old version wrote it.

    Raises:
        UserError: when it is missing, can't be read, or is not what it should be.
    """
    path = folder / CONFIG_FILE
    _require(folder, CONFIG_FILE)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        architecture = dict(config["architecture"])
        known = {f.name for f in fields(Metadata)} & set(config) - {"example"}
        metadata = Metadata(**{name: config[name] for name in known}, example=_example(folder))
        file_format = int(config.get("format", FORMAT))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged or not a patchconvnet config: {first_line(error)}") from error
    if file_format > FORMAT_OF_HALVES:
        raise UserError(f"{folder} was written by a newer patchconvnet (format {file_format}); update the package")
    _check_metadata(metadata, path)
    return architecture, _in_present_words(metadata)


def _example(folder: Path) -> bytes | None:
    """The example of the card, if there is one that can be read."""
    file = folder / EXAMPLE_FILE
    try:
        return file.read_bytes() if file.is_file() and file.stat().st_size <= LARGEST_EXAMPLE else None
    except OSError:
        return None


def _require(folder: Path, name: str) -> None:
    try:
        with (folder / name).open("rb"):
            pass
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"{folder} is not a model folder: it has no {name}") from error
    except OSError as error:
        raise UserError(f"{folder / name} cannot be read: {first_line(error)}") from error


def _check_metadata(metadata: Metadata, path: Path) -> None:
    names = metadata.class_names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"class_names in {path} must be a list of words, one a class, not {shortened(names)}")
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise UserError(f"class_names in {path} has {name!r}, which is not valid Unicode; give it another name")
    temperature = metadata.temperature
    if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        raise UserError(f"temperature in {path} must be a number above 0, not {shortened(temperature)}")
    for key in ("preprocessing", "provenance", "metrics"):
        if not isinstance(value := getattr(metadata, key), dict):
            raise UserError(f"{key} in {path} must be a table of names and values, not {shortened(value)}")


def _in_present_words(metadata: Metadata) -> Metadata:
    metrics = {name: in_present_words(value) for name, value in metadata.metrics.items()}
    provenance = dict(metadata.provenance)
    if isinstance(data := provenance.get("data"), dict) and "fingerprint" in data:
        provenance["data"] = {**data, "fingerprint": in_present_words(data["fingerprint"])}
    return replace(metadata, metrics=metrics, provenance=provenance)


def in_present_words(table: Any) -> Any:
    """A table that version 0.1.0 wrote before it said image for picture, with today's keys; other values unchanged."""
    if not isinstance(table, dict):
        return table
    return {
        key.removesuffix("pictures") + "images" if key.endswith("pictures") else key: value
        for key, value in table.items()
    }


# Loading


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], origin: str, name: Callable[[str], str] = lambda key: key
) -> None:
    """Load a state dict into the network, in the network's own dtype, with every entry accounted for.

    Args:
        origin: where the weights come from, for the message.
        name: what the author of the weights calls an entry of ours.

    Raises:
        UserError: naming an entry that is missing, unexpected, of another shape, or of whole numbers for real ones.
    """
    check_state(model, state, origin, name)
    model.load_state_dict(state)


def check_state(
    model: nn.Module,
    state: Mapping[str, Tensor],
    origin: str,
    name: Callable[[str], str] = lambda key: key,
    any_shape: Collection[str] = (),
) -> None:
    """The check in `load_state` alone; entries in `any_shape` need only be there."""
    expected = model.state_dict()
    missing = [name(key) for key in expected if key not in state]
    unexpected = [name(key) for key in state if key not in expected]
    mistyped = [
        f"{name(key)!r} as {str(state[key].dtype).removeprefix('torch.')} where the network has "
        f"{str(value.dtype).removeprefix('torch.')}"
        for key, value in expected.items()
        if key in state and _kind(state[key].dtype) != _kind(value.dtype)
    ]
    misshaped = [
        f"{name(key)!r} of shape {tuple(state[key].shape)} where the network has {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and key not in any_shape and state[key].shape != value.shape
    ]
    faults = []
    if missing:
        faults.append(f"lacks {missing[0]!r}{_and_more(missing)}")
    if unexpected:
        faults.append(f"has {unexpected[0]!r}{_and_more(unexpected)}, which the network does not know")
    if misshaped:
        faults.append(f"has {misshaped[0]}{_and_more(misshaped)}")
    if mistyped:
        faults.append(f"has {mistyped[0]}{_and_more(mistyped)}")
    if faults:
        raise UserError(f"{origin} does not fit the network: it {', '.join(faults)}")


def _kind(dtype: torch.dtype) -> tuple[bool, bool]:
    return dtype.is_floating_point, dtype.is_complex


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def load_pretrained(kinds: Sequence[type[ModelT]], source: str | Path, **options: Any) -> ModelT:
    """A trained network, ready to use (in evaluation mode, float32), from any place that models live in.

    Args:
        kinds: classes that it may be of; `kind` is a class's name in `config.json`, and called with the architecture
            that stands there it builds the network.
        source: a model folder, a hub id (`owner/name`, `owner/name@revision`), a published tag such as
            `patchconvnet_s60.fb_in1k`, or a model that ships with the package (`cifar10`). A folder goes first.
        options: configuration fields to change, such as `drop_path_rate`. Another `num_classes` gets a fresh
            classifier, with fresh class tokens or queries where there is one a class, and no class names.

    Raises:
        UserError: in one sentence, when there is no such model, or its config and weights disagree.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _from_folder(kinds, folder, str(source), options)
    if isinstance(source, str) and source.count("/") == 1 and not source.startswith(("/", ".", "~")):
        return _from_folder(kinds, download_model_folder(source), source, options)
    if "/" in str(source) or isinstance(source, Path):
        raise UserError(f"there is no model folder {source}")
    if source in shipped_models():
        return _from_folder(kinds, SHIPPED / source, source, options)
    return _from_tag(kinds, source, options)


def download_model_folder(repo: str) -> Path:
    """The model folder of a hub id (`owner/name`, `owner/name@revision`), from the cache or downloaded.

    Raises:
        UserError: as `hub.fetch`.
    """
    folder = hub.fetch(repo, CONFIG_FILE).parent
    hub.fetch(repo, WEIGHTS_FILE)
    return folder


def shipped_models() -> list[str]:
    """Names of the models that ship with the package, each good for `from_pretrained`."""
    return sorted(path.name for path in SHIPPED.glob("*") if (path / CONFIG_FILE).is_file())


def _from_folder(kinds: Sequence[type[ModelT]], folder: Path, origin: str, options: dict[str, Any]) -> ModelT:
    architecture, metadata, state = read_model_folder(folder)
    kind, classes = architecture.pop("kind", None), {getattr(cls, "kind", None): cls for cls in kinds}
    if kind not in classes:
        raise UserError(
            f"{origin} holds a network of kind {kind!r}, and {' or '.join(map(repr, classes))} is wanted here; "
            "patchconvnet.load reads every kind that this version of patchconvnet knows"
        )
    cls = classes[kind]
    asked = {**architecture, **options}
    if getattr(cls, "shapes_without_values", False):  # a config of absurd sizes is refused before it takes the memory
        with torch.device("meta"):
            outline = _build(cls, {**asked, "num_classes": architecture.get("num_classes")}, folder, options)
        check_state(outline, state, origin)
    model: Any = _build(cls, asked, folder, options)
    num_classes = architecture.get("num_classes", model.num_classes)
    if metadata.class_names and len(metadata.class_names) != num_classes:
        raise UserError(
            f"{folder / CONFIG_FILE} names {len(metadata.class_names)} classes for a network of {num_classes}"
        )
    if model.num_classes != num_classes:
        kept = {key: value for key, value in state.items() if not model.depends_on_classes(key)}
        state = {key: value for key, value in model.state_dict().items() if model.depends_on_classes(key)} | kept
        metadata = Metadata(preprocessing=metadata.preprocessing)
    load_state(model, state, origin)
    model.metadata = metadata
    return model.eval()


def _build(cls: type[ModelT], asked: dict[str, Any], folder: Path, options: dict[str, Any]) -> ModelT:
    try:
        return cls(**{key: value for key, value in asked.items() if value is not None or key != "num_classes"})
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        with_options = f" with options {options}" if options else ""
        raise UserError(f"{folder / CONFIG_FILE}{with_options} describes no network: {first_line(error)}") from error


def published_tags() -> list[str]:
    """The names of all published weights, `variant.tag`, each good for `from_pretrained` and `timm.create_model`."""
    return timm.list_models("patchconvnet*", pretrained=True)


def _from_tag(kinds: Sequence[type[ModelT]], tag: str, options: dict[str, Any]) -> ModelT:
    published = published_tags()
    if tag not in published and not any(name.startswith(f"{tag}.") for name in published):
        close = difflib.get_close_matches(tag, published, n=3, cutoff=0.4) or published
        raise UserError(
            f"{tag!r} is neither a model folder, nor a hub id (owner/name), nor a model that ships with the package "
            f"({', '.join(shipped_models())}), nor a published tag; "
            f"{'close to it' if close != published else 'published'}: {', '.join(close)}"
        )
    model: Any = timm.create_model(tag, pretrained=True, **options).eval()
    if not any(isinstance(model, kind) for kind in kinds):
        raise UserError(f"{tag} is a {type(model).__name__}; patchconvnet.load reads it")
    return model


# Publishing


def push_to_hub(write: Callable[[Path], Any], repo_id: str, **options: Any) -> str:
    """Upload a model folder to the Hugging Face hub.

    Args:
        write: writes the model folder into the directory it is given.
        repo_id: `owner/name`, or `name` for the account that is logged in; made when it does not exist.
        options: `private`, `token` and whatever else `HfApi.create_repo` takes.

    Returns:
        The model's address.

    Raises:
        UserError: when the name is none the hub allows, no one is logged in, or the hub refuses.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} cannot be the name of a model on the hub; give owner/name: {error}") from error
    api = HfApi(token=options.pop("token", None))
    try:
        address = api.create_repo(repo_id, exist_ok=True, **options)
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message="Upload the model folder")
    except TypeError as error:
        raise UserError(f"push_to_hub does not know an option that was given: {error}") from error
    except OSError as error:
        raise UserError(
            f"the hub did not take {repo_id}: {first_line(error)} (log in with `hf auth login` or set HF_TOKEN, "
            "and check that the account may write there)"
        ) from error
    return str(address)
