"""What the server needs of a model, and the models that have it: an exported file, or a network in PyTorch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from patchconvnet.data.preprocessing import Geometry
from patchconvnet.explanation.explanation import Explanation
from patchconvnet.explanation.patch_grid import Grid

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Signature:
    """What goes into `Classifier.run` and what comes out of it.

    Attributes:
        name: of the input.
        datatype: of the input, in the words of the Open Inference Protocol: FP32 or UINT8.
        input_shape: of one image; −1 where any length will do.
        queries: attention maps of an image.
        evidence_classes: that have evidence in each answer; −1 where it depends on the request.
    """

    name: str
    datatype: str
    input_shape: tuple[int, ...]
    queries: int
    evidence_classes: int


class Classifier(Protocol):
    """A model that answers with its maps.

    Attributes:
        platform: what computes, in the words of the Open Inference Protocol.
        class_names: one for each class.
        size: (height, width) of the network input.
        grid: how the patches are placed on it.
        bias: (K,) float32, the classifier's.
        exact: whether evidence adds up to the logit less its bias.
        temperature: of the probabilities.
        removal: whether evidence and attention tell the answer without some patches, see `describe`.
        signature: of `run`.
    """

    platform: str
    class_names: list[str]
    size: tuple[int, int]
    grid: Grid
    exact: bool
    bias: np.ndarray
    temperature: float
    removal: bool
    signature: Signature

    def prepare(self, image: Image.Image) -> tuple[np.ndarray, Geometry]:
        """An upright RGB image → the network input of one image, and how it is placed on the image."""

    def run(self, batch: np.ndarray, classes: Sequence[int] = (), top: int = 5) -> Outputs:
        """Network inputs (B, …) → logits (B, K), attention (B, Q, h, w), evidence (B, K', h, w), its classes (B, K').

        Args:
            batch: network inputs.
            classes: that must have evidence.
            top: how many of the likeliest must have it too.
        """


def explanation_of(
    classifier: Classifier,
    name: str,
    image: Image.Image,
    geometry: Geometry,
    outputs: Outputs,
    target: int | None,
    top: int,
) -> Explanation:
    """The explanation of one image, from its rows of the outputs of `Classifier.run`, as if it had been alone."""
    classes, evidence = outputs["evidence_classes"].tolist(), outputs["evidence"]
    if len(classes) < len(classifier.class_names):  # those that others in the batch asked for are not this request's
        wanted = [k for k in listed_classes(outputs["logits"], target, top) if k in classes]
        evidence, classes = evidence[[classes.index(k) for k in wanted]], wanted
    return Explanation(
        name=name,
        image=image,
        class_names=classifier.class_names,
        logits=outputs["logits"],
        bias=classifier.bias,
        attention=outputs["attention"],
        evidence=evidence,
        evidence_classes=tuple(classes),
        exact=classifier.exact,
        grid=classifier.grid,
        geometry=geometry,
        target=target,
        top=min(top, len(classifier.class_names)),
        temperature=classifier.temperature,
    )


def model_name(model: str) -> str:
    """What a model is called in addresses: its file's or folder's name, in letters, digits and -._"""
    path = Path(model)
    name = path.stem if path.suffix == ".onnx" else path.name
    return "".join(c if c.isascii() and (c.isalnum() or c in "-._") else "_" for c in name) or "model"


def rows_of(outputs: Outputs, index: int) -> Outputs:
    """One image's rows of a batch's outputs."""
    return {name: values[index] for name, values in outputs.items()}


def listed_classes(logits: np.ndarray, target: int | None, top: int) -> list[int]:
    """Sorted indices of the likeliest classes and of the target: those that one request alone would be given."""
    ranks = logits.astype(np.float64)
    if target is not None:
        ranks[target] = np.inf
    count = min(top + (target is not None), len(ranks))
    return sorted(int(k) for k in np.argsort(-ranks, kind="stable")[:count])


def describe(classifier: Classifier) -> dict[str, Any]:
    """What a client must know of a model, as plain values.

    Where `removal` is true, attention is one softmax over the patches (or one for each class), so that without a set S
    of them it is renormalised over the others: logit_k = bias_k + Σ_{i∉S} evidence_ki / Σ_{i∉S} attention_i.
    """
    grid = classifier.grid
    return {
        "platform": classifier.platform,
        "class_names": classifier.class_names,
        "size": {"height": classifier.size[0], "width": classifier.size[1]},
        "temperature": classifier.temperature,
        "grid": {
            "height": grid.shape[0],
            "width": grid.shape[1],
            "step": {"y": grid.step[0], "x": grid.step[1]},
            "first": {"y": grid.first[0], "x": grid.first[1]},
        },
        "maps": ["attention", "evidence", "contrast"],
        "evidence_is_exact": classifier.exact,
        "removal": classifier.removal,
    }
