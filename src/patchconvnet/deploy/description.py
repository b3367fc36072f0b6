"""What an exported file says about itself, so that it suffices to classify and to explain: JSON among its metadata."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self, get_args

from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.errors import UserError, first_line, shortened
from patchconvnet.explanation.patch_grid import Grid

KEY = "patchconvnet"  # of the entry among an ONNX file's metadata, and the name of a .pt2 file's extra file
FORMAT = 1

InputKind = Literal["image", "pixels"]
EvidenceKind = Literal["exact", "first order", "none"]


@dataclass(frozen=True)
class Side:
    """Which lengths of the network input's side a file takes, in pixels.

    Args:
        least, most: the shortest and the longest; alike where there is one only. None: no limit.
        step: what a length must be a multiple of.
    """

    least: int
    most: int | None = None
    step: int = 1

    @property
    def is_fixed(self) -> bool:
        """Whether there is one length only."""
        return self.least == self.most

    def takes(self, length: int) -> bool:
        """Whether a length is one of them."""
        return self.least <= length and (self.most is None or length <= self.most) and length % self.step == 0

    def __str__(self) -> str:
        if self.is_fixed:
            return f"{self.least} pixels"
        multiples = f", in multiples of {self.step}" if self.step > 1 else ""
        return f"{self.least} pixels or more{multiples}" if self.most is None else f"{self.least} to {self.most} pixels"


@dataclass(frozen=True)
class Placement:
    """Where the patches are on the network input.

    Args:
        first: for height and for width, centres of the first patch in pixels (the first pixel's centre is at 0.5),
            by the length of the side modulo their number; empty where patches divide every side evenly.
        step: distance (y, x) of neighbouring patches in pixels; None where they divide every side evenly.
    """

    first: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    step: tuple[float, float] | None = None

    def grid(self, size: tuple[int, int], shape: tuple[int, int]) -> Grid:
        """The grid of (h, w) patches on an input of `size` (height, width)."""
        if self.step is None:
            step = (size[0] / shape[0], size[1] / shape[1])
            return Grid(shape, step, (step[0] / 2, step[1] / 2))
        first = tuple(centres[length % len(centres)] for centres, length in zip(self.first, size, strict=True))
        return Grid(shape, self.step, (first[0], first[1]))


@dataclass(frozen=True)
class Description:
    """An exported file's description of itself.

    Attributes:
        name: what the model was called when it was exported.
        architecture: `kind` and configuration of the network.
        class_names: K names, one for each logit.
        preprocessing: from an image to the network input.
        temperature: what logits are divided by before a softmax; the file's logits are undivided.
        bias: (K,) the classifier's, for logit − bias = Σ evidence.
        evidence: "exact" where evidence sums to logit − bias, "first order" around each image, or "none".
        evidence_classes: how many classes have evidence: all K, or fewer, the likeliest of each image, which the output
            `evidence_classes` names.
        queries: Q of the attention maps; K where each class has its own.
        placement: where the patches are on the network input.
        patch_size: pixels of a patch.
        input: "image": `image` (B, C, H, W) float32, normalised; "pixels": `pixels` (B, H, W, C) uint8 of any size,
            which the file itself resizes and normalises.
        height, width: of the network input.
        batch: images at a time; None for any number.
        outputs: names in order.
        shown: the map that says most: "attention", or "evidence" where attention is nearly uniform on all images that
            the file was checked on.
        precision: "fp32", "fp16" or "int8".
        provenance, metrics: of the network's training.
        verification: how the file was compared with the network, and how they differ.
        version: of this package, when it was written.
        format: of this description.
    """

    name: str
    architecture: dict[str, Any]
    class_names: list[str]
    preprocessing: Preprocessing
    temperature: float
    bias: list[float]
    evidence: EvidenceKind
    evidence_classes: int
    queries: int
    placement: Placement
    patch_size: int
    input: InputKind
    height: Side
    width: Side
    batch: int | None
    outputs: list[str]
    shown: Literal["attention", "evidence"] = "attention"
    precision: str = "fp32"
    provenance: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    verification: dict[str, Any] = field(default_factory=dict)
    version: str = ""
    format: int = FORMAT

    def to_json(self) -> str:
        """As JSON; `from_json` reads it back."""
        return json.dumps({**asdict(self), "preprocessing": self.preprocessing.to_dict()})

    @classmethod
    def from_json(cls, text: str, file: str) -> Self:
        """The inverse of `to_json`.

        Args:
            file: what the file is called in a message.

        Raises:
            UserError: it is not a description, or one of a newer version.
        """
        try:
            values = json.loads(text)
            if not isinstance(values, Mapping):
                raise TypeError("it is not a table")
            if int(values["format"]) > FORMAT:
                raise UserError(
                    f"{file} was exported by a newer patchconvnet ({values.get('version') or values['format']}); "
                    "update the package"
                )
            known = {f.name for f in fields(cls)}
            described = cls(
                **{
                    **{name: value for name, value in values.items() if name in known},
                    "preprocessing": Preprocessing.from_dict(values["preprocessing"]),
                    "placement": _placement(values["placement"]),
                    "height": Side(**values["height"]),
                    "width": Side(**values["width"]),
                }
            )
            described._check()
        except UserError as error:
            if str(error).startswith(file):
                raise
            raise UserError(f"{file} has a damaged description of its model: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{file} has a damaged description of its model ({type(error).__name__}: {first_line(error)}); "
                "export it again"
            ) from error
        return described

    def _check(self) -> None:
        classes = len(self.class_names)
        wrong = {
            "class_names": not classes or not all(isinstance(name, str) for name in self.class_names),
            "bias": len(self.bias) != classes or not all(isinstance(b, int | float) for b in self.bias),
            "temperature": not isinstance(self.temperature, int | float) or not self.temperature > 0,
            "input": self.input not in get_args(InputKind),
            "evidence": self.evidence not in get_args(EvidenceKind),
            "evidence_classes": not isinstance(self.evidence_classes, int) or not 0 <= self.evidence_classes <= classes,
            "batch": self.batch is not None and (not isinstance(self.batch, int) or self.batch < 1),
            "outputs": not {"logits", "attention"} <= set(self.outputs),
        }
        if bad := [name for name, is_wrong in wrong.items() if is_wrong]:
            raise TypeError(f"{bad[0]} is {shortened(getattr(self, bad[0]))}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the network input that its preprocessing makes."""
        return self.preprocessing.size

    @property
    def removal(self) -> bool:
        """Whether the answer without some patches follows from attention and evidence: see web/removal.js.

        Several queries that share one decision have a sum each, of which their mean says too little.
        """
        pooling = self.architecture.get("pooling")
        return self.evidence == "exact" and pooling in ("additive", "additive_multi", "average")

    def check_size(self, size: tuple[int, int]) -> None:
        """Refuse a network input that the file does not take.

        Raises:
            UserError: saying which sizes it takes.
        """
        for what, side, length in zip(("high", "wide"), (self.height, self.width), size, strict=True):
            if not side.takes(length):
                raise UserError(
                    f"this file's network input cannot be {length} pixels {what}: it takes {side}; export it again "
                    f"with --size {size[0]}x{size[1]}"
                )


def _placement(values: Mapping[str, Any]) -> Placement:
    first = tuple(tuple(float(centre) for centre in centres) for centres in values["first"])
    step = values["step"]
    if len(first) != 2 or (step is not None and (len(step) != 2 or not first[0] or not first[1])):
        raise TypeError("placement is incomplete")
    return Placement((first[0], first[1]), None if step is None else (float(step[0]), float(step[1])))
