"""`explain(model, images)` → `Explanation`: what a network says about an image, with its attention and its evidence."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Self, TypedDict, Unpack, cast, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from patchconvnet.data.images import ImageLike, Source, read_image, to_image
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.errors import UserError
from patchconvnet.explanation.crops import VIEWS, Crop, View, crops_of, laid
from patchconvnet.explanation.evidence import ForwardMaps, forward_with_maps
from patchconvnet.explanation.explanation import Explanation
from patchconvnet.explanation.forward_pass import ForwardPass
from patchconvnet.explanation.maps import class_index
from patchconvnet.explanation.patch_grid import Grid, patch_grid
from patchconvnet.explanation.refining import refined
from patchconvnet.models.classifier import AttentionClassifier
from patchconvnet.models.loading import as_model
from patchconvnet.models.modes import evaluation_mode
from patchconvnet.models.weights import temperature_of

Model = nn.Module | str | os.PathLike[str]


class ExplainOptions(TypedDict, total=False):
    """The options of `explain`, which its docstring describes."""

    batch_size: int
    preprocessing: Preprocessing | None
    size: int | tuple[int, int] | None
    target: int | str | None
    classes: Sequence[int | str]
    top: int
    refine: int
    view: View | None
    name: str | Iterable[str] | None


@overload
def explain(  # type: ignore[overload-overlap]  # a str is a sequence of str too, and comes first
    model: Model, images: str | os.PathLike[str] | Image.Image | BinaryIO, **options: Unpack[ExplainOptions]
) -> Explanation: ...
@overload
def explain(model: Model, images: Iterator[Source], **options: Unpack[ExplainOptions]) -> Iterator[Explanation]: ...
@overload
def explain(model: Model, images: Sequence[Source], **options: Unpack[ExplainOptions]) -> list[Explanation]: ...
@overload
def explain(model: Model, images: Any, **options: Unpack[ExplainOptions]) -> Any: ...
def explain(
    model: Model,
    images: Any,
    *,
    batch_size: int = 32,
    preprocessing: Preprocessing | None = None,
    size: int | tuple[int, int] | None = None,
    target: int | str | None = None,
    classes: Sequence[int | str] = (),
    top: int = 5,
    refine: int = 0,
    view: View | None = None,
    name: str | Iterable[str] | None = None,
) -> Explanation | list[Explanation] | Iterator[Explanation]:
    """What a network says about images: predictions, attention, and each patch's evidence for the classes.

    Args:
        model: a network with a pooling head of this package, on any device, whose mode is left as it was; or the name
            or folder of one, as for `load`.
        images: one image: a path, an open binary file, a PIL image, or an array or tensor (H, W), (H, W, C) or
            (C, H, W) of uint8, or of floats in 0..1, which are rounded to 8 bit. Or many: a list of these, a batch
            (B, H, W, C) or (B, C, H, W), or an iterator. They may differ in size.
        batch_size: images that are read, and answered, together.
        preprocessing: from image to network input; by default the model's own.
        size: another network input, (height, width) or one number for a square; a larger one gives a finer grid.
        target: the class to ask about, by name or index; by default the predicted one.
        classes: further classes whose evidence is wanted, for heads without exact evidence and with over 100 classes.
        top: how many classes figures and reports list.
        refine: n ≥ 1 gives maps of n × n values a patch, averaged over n × n shifts by parts of a patch and both flips,
            for 2·n² forward passes more; logits stay those of the plain pass.
        view: "whole" takes all of an image into the answer, and is the default: where the model's preprocessing cuts
            its centre out, the answer is the mean of that crop's and, with as much weight, of crops that cover the
            image (docs/explaining.md). "own" is that centre alone: one forward pass, and a map with a value a patch.
            An exported file with evidence for the likeliest classes only has no other.
        name: what to call the image, or one name for each of many; by default its file's name without the ending.

    Returns:
        An `Explanation` for one image, a list of them for many, and a generator for an iterator, which reads no more
        than `batch_size` images ahead.

    Raises:
        UserError: an unreadable image (`images[3]: …` says which of many), an unknown class, a model without maps, or
            an option out of its range.

    Example:
        >>> from PIL import Image
        >>> from patchconvnet import explain, load
        >>> model = load("cifar10")
        >>> explanation = explain(model, Image.new("RGB", (320, 200), "skyblue"))
        >>> explanation.map_for().shape
        (8, 8)
        >>> [one.predicted.name == explanation.predicted.name for one in explain(model, [explanation.image] * 2)]
        [True, True]
    """
    one, sources = _sources(images)
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be 1 or more.")
    model = as_model(model)
    question = Question.of(
        model, preprocessing, size=size, target=target, classes=classes, top=top, refine=refine, view=view
    )
    if one:
        return answer(model, [open_image(sources[0], question, None, name)], question)[0]
    if isinstance(name, str):
        raise UserError(f"given one name, {name!r}, for many images; give a list of names, one for each image.")
    names = None if name is None else list(name) if isinstance(sources, Sequence) else name
    if isinstance(names, list) and len(names) != len(sources):
        raise UserError(f"given {len(names)} names for {len(sources)} images; give one for each image.")
    explained = _explain_many(model, sources, names, question, batch_size)
    return list(explained) if isinstance(sources, Sequence) else explained


@dataclass(frozen=True)
class Question:
    """What is asked of every image; the fields are `explain`'s options, checked."""

    preprocessing: Preprocessing
    class_names: list[str]
    target: int | None
    classes: tuple[int, ...]
    top: int
    refine: int
    view: View

    @classmethod
    def of(
        cls,
        model: nn.Module,
        preprocessing: Preprocessing | None = None,
        *,
        size: int | tuple[int, int] | None = None,
        target: int | str | None = None,
        classes: Sequence[int | str] = (),
        top: int = 5,
        refine: int = 0,
        view: View | None = None,
    ) -> Self:
        """Options as `explain` takes them.

        Raises:
            UserError: one is out of its range, or the model has no such class.
        """
        if top < 1:
            raise UserError(f"top is {top}; it must be 1 or more.")
        if view not in (None, *VIEWS):
            raise UserError(f"unknown view {view!r}; known: {', '.join(VIEWS)}.")
        mergeable = not isinstance(model, AttentionClassifier) or model.knows_all_evidence
        if view == "whole" and not mergeable:
            raise UserError(
                "this exported file cannot see whole images: it gives evidence for each crop's likeliest classes only; "
                "take view 'own', or export with evidence for all classes"
            )
        preprocessing = preprocessing or preprocessing_of(model)
        if size is not None:
            preprocessing = preprocessing.with_size(size)
        class_names = class_names_of(model)
        return cls(
            preprocessing=preprocessing,
            class_names=class_names,
            target=None if target is None else class_index(class_names, target),
            classes=tuple(class_index(class_names, c) for c in classes),
            top=top,
            refine=refine,
            view=view or ("whole" if mergeable else "own"),
        )


@dataclass(frozen=True)
class Opened:
    """One image: what it is called, as it was, and as the network reads it, in one crop or several.

    Attributes:
        tensors: (n, C, H, W) float32, one network input of each crop.
    """

    name: str
    image: Image.Image
    crops: tuple[Crop, ...]
    tensors: Tensor
    source: str | None


def _sources(images: Any) -> tuple[bool, Any]:
    """Whether it is one image, and a list or an iterator of images."""
    if isinstance(images, np.ndarray | Tensor):
        return (True, [images]) if images.ndim < 4 else (False, list(images) if images.ndim == 4 else [images])
    if isinstance(images, str | os.PathLike | Image.Image) or hasattr(images, "read"):
        return True, [images]
    if isinstance(images, bytes | bytearray | Mapping) or not hasattr(images, "__iter__"):
        return True, [images]  # refused where it is read
    return False, images if hasattr(images, "__next__") else list(images)


def open_image(source: Any, question: Question, index: int | None, name: Any) -> Opened:
    """Read an image and make the network's input of it.

    Args:
        source: whatever `explain` takes for one image.
        question: says how it becomes the network's input.
        index: its place among many, for messages; None if it is alone.
        name: what to call it; None for its file's name.

    Raises:
        UserError: it cannot be read.
    """
    try:
        image: ImageLike
        if isinstance(source, str | os.PathLike) or hasattr(source, "read"):
            image = read_image(source)
        elif isinstance(source, Image.Image):
            image = to_image(source)
        elif isinstance(source, np.ndarray | Tensor):
            image = source
        else:
            hint = "; wrap them in io.BytesIO" if isinstance(source, bytes | bytearray) else ""
            raise UserError(
                f"cannot read an image from a value of type {type(source).__name__}{hint}; give a path, an open binary "
                "file, a PIL image, an array or a tensor."
            )
        original = image if isinstance(image, Image.Image) else to_image(image)
        crops = crops_of(question.preprocessing, original.height, original.width, question.view)
        first, *others = crops
        tensors = [first.preprocessing(image), *(crop.preprocessing(crop.of(original)) for crop in others)]
    except UserError as error:
        raise error if index is None else UserError(f"images[{index}]: {error}") from error
    path = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    called = _name(source, index or 0) if name is None else str(name)
    return Opened(called, original, crops, torch.stack(tensors), path)


def _explain_many(
    model: nn.Module, sources: Iterable[Any], names: Iterable[str] | None, question: Question, batch_size: int
) -> Iterator[Explanation]:
    numbered, named = enumerate(sources), None if names is None else iter(names)
    while chunk := list(islice(numbered, batch_size)):
        opened = []
        for index, source in chunk:
            name = None if named is None else next(named, None)
            if named is not None and name is None:
                raise UserError(f"given {index} names and more images; give one for each image.")
            opened.append(open_image(source, question, index, name))
        yield from answer(model, opened, question)


@torch.no_grad()
def answer(model: nn.Module, images: Sequence[Opened], question: Question) -> list[Explanation]:
    """Explanations of images, all of whose crops go through the network together.

    Raises:
        UserError: the model has no maps, or says what is no finite number.
    """
    if not images:
        return []
    size, class_names = question.preprocessing.size, question.class_names
    *_, like = model.parameters()  # the classifier's: a fused trunk's may be bfloat16
    inputs = torch.cat([image.tensors for image in images]).to(like.device, like.dtype)
    wanted = (*question.classes, *(() if question.target is None else (question.target,)))
    counts = torch.tensor([len(image.crops) for image in images])
    shares = torch.tensor([crop.share for image in images for crop in image.crops])
    mean = torch.zeros(len(images), len(shares))  # from the crops' answers to the images'
    mean[torch.arange(len(images)).repeat_interleave(counts), torch.arange(len(shares))] = shares
    mean = mean.to(like)

    def of_whole_images(logits: Tensor) -> Tensor:
        return (mean @ logits).repeat_interleave(counts.to(logits.device), 0)

    several = len(shares) > len(images)
    with evaluation_mode(model):
        plain = forward_with_maps(model, inputs, wanted, question.top, of_whole_images if several else None)
        grid = patch_grid(model, size, (plain.attention.shape[2], plain.attention.shape[3]))
        fine, attention, evidence = grid, _numpy(plain.attention), _numpy(plain.evidence)
        if question.refine:
            fine, attention, evidence = _refined(model, inputs, plain, grid, question.refine)
    network = cast(AttentionClassifier, model)  # forward_with_maps() refuses others
    logits, bias = _numpy(mean @ plain.logits if several else plain.logits), _numpy(plain.bias)
    ends = counts.cumsum(0).tolist()
    explanations = []
    for i, opened in enumerate(images):
        own = slice(ends[i] - len(opened.crops), ends[i])
        explanations.append(
            Explanation(
                name=opened.name,
                image=opened.image,
                class_names=class_names,
                logits=logits[i],
                bias=bias,
                evidence_classes=tuple(plain.classes[own.start].tolist()),
                exact=plain.exact and not question.refine,
                **laid(opened.crops, attention[own], evidence[own], fine),
                target=question.target,
                top=min(question.top, len(class_names)),
                refine=question.refine,
                temperature=temperature_of(model),
                source=opened.source,
                forward_pass=None
                if plain.patches is None
                else ForwardPass(network, plain.patches[own].cpu().clone(), grid, opened.crops),
            )
        )
    return explanations


def _refined(
    model: nn.Module, inputs: Tensor, plain: ForwardMaps, grid: Grid, refine: int
) -> tuple[Grid, np.ndarray, np.ndarray]:
    asked = tuple(sorted(set(plain.classes.flatten().tolist())))

    def ask(shifted: np.ndarray) -> np.ndarray:
        seen = forward_with_maps(model, torch.from_numpy(shifted).to(inputs), asked, top=0)
        classes = plain.classes.repeat(len(shifted) // len(inputs), 1)
        return _numpy(torch.cat([seen.attention, seen.evidence_of(classes)], 1))

    return refined(ask, _numpy(inputs), grid, _numpy(plain.attention), refine)


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """A model's own preprocessing: that of its model folder, or the one its variant is registered with.

    Raises:
        UserError: it has neither.
    """
    if isinstance(model, AttentionClassifier) and model.preprocessing:
        return Preprocessing.from_dict(model.preprocessing)
    if cfg := getattr(model, "pretrained_cfg", None):  # a network of timm's own
        return Preprocessing.from_pretrained_cfg(cfg)
    raise UserError("this model does not say how images become its input; give `preprocessing`")


def class_names_of(model: nn.Module) -> list[str]:
    """A model's class names, or "class 0", "class 1" … where it has none.

    Raises:
        UserError: it has more names than classes, or fewer.
    """
    if isinstance(model, AttentionClassifier):
        return model.class_names
    return [f"class {k}" for k in range(int(getattr(model, "num_classes", 0)))]


def _name(source: Any, index: int) -> str:
    file = source if isinstance(source, str | os.PathLike) else getattr(source, "name", getattr(source, "filename", ""))
    return (isinstance(file, str | os.PathLike) and Path(file).stem) or f"image_{index}"


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()
