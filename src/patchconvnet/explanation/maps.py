"""`Maps`: a prediction for an image, the attention and the evidence behind it, as arrays and as overlays.

Attention: Touvron et al. 2021, arXiv 2112.13692, section 3.2. Evidence: `patchconvnet.explanation.evidence`.
"""

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self, get_args

import numpy as np
from PIL import Image

from patchconvnet._version import __version__
from patchconvnet.data.geometry import Geometry
from patchconvnet.errors import UserError
from patchconvnet.explanation.colours import (
    attention_colours,
    attention_scale,
    evidence_colours,
    evidence_print,
    evidence_scale,
    lay_over_unseen,
    unseen_colours,
)
from patchconvnet.explanation.crops import Crop
from patchconvnet.explanation.patch_grid import Grid, Smoothing, place, seen_pixels

Kind = Literal["attention", "evidence", "contrast"]
MapChoice = Literal["auto", "attention", "evidence", "contrast"]
KINDS = get_args(Kind)
SIDES = ("left", "top", "right", "bottom")  # of a box
FLAT = 0.9  # of the perplexity that uniform attention has


@dataclass(frozen=True)
class Prediction:
    """One class and how likely the network holds it.

    Attributes:
        index: of the class.
        name: of the class.
        probability: 0..1, its softmax.
    """

    index: int
    name: str
    probability: float


@dataclass(frozen=True, eq=False, repr=False)
class Maps:
    """A prediction with its maps; `Explanation` adds its figure and files.

    Attributes:
        name: what the image is called in titles and file names.
        image: RGB, as it was before preprocessing.
        class_names: K names.
        logits: (K,) float32.
        bias: (K,) float32, the classifier's bias.
        attention: (Q, h, w) float32, each query's softmax weights over the patches; Q = 1, or K where each class has
            its own query. They sum to at most 1, see `class_token_share`.
        evidence: (K', h, w) float32, each patch's signed share of a class's logit, for `evidence_classes`.
        evidence_classes: K' class indices.
        exact: whether evidence sums to logit − bias by construction; otherwise it is first order around this image,
            or an average over shifts and flips where `refine` is not 0. See `remainder`.
        grid: how the patches lie on the network input.
        geometry: how the network input is placed on the image.
        target: the class that was asked about; None for the predicted one.
        top: how many classes figures and reports list.
        temperature: what training found logits must be divided by for probabilities that come true; logits and evidence
            are undivided.
        source: the path of the image's file, if it came from one.
        refine: how many times finer than the patches the maps are, both ways, by averaging; 0 for plain maps.
        crops: those of the image that the answer is the weighted mean of, if they are several. The grid is then one
            over the whole image, and the network input of `geometry` the image resized, which no pass sees at once.
        uniform: (h, w), what attention would be if it made no choice; None where that is the same everywhere.

    Raises:
        UserError: a map or a logit is not a finite number.
    """

    name: str
    image: Image.Image
    class_names: Sequence[str]
    logits: np.ndarray
    bias: np.ndarray
    attention: np.ndarray
    evidence: np.ndarray
    evidence_classes: tuple[int, ...]
    exact: bool
    grid: Grid
    geometry: Geometry
    target: int | None = None
    top: int = 5
    refine: int = 0
    source: str | None = None
    temperature: float = 1.0
    crops: tuple[Crop, ...] = ()
    uniform: np.ndarray | None = None

    def __post_init__(self) -> None:
        for what in ("logits", "attention", "evidence"):
            if not np.isfinite(getattr(self, what)).all():
                raise UserError(
                    f"the network's {what} for {self.name} hold values that are not finite numbers, so there is "
                    "nothing to show; its training has diverged, or its weights are damaged."
                )

    def __repr__(self) -> str:
        said, (height, width) = self.subject, self.grid.shape
        grid = f"{height}×{width} cells of {len(self.crops)} crops" if self.crops else f"{height}×{width} patches"
        return (
            f"<{type(self).__name__} of {self.name!r}: {said.name} {said.probability:.1%}, {grid}, "
            f"image {self.image.width}×{self.image.height}>"
        )

    # What the network says

    @property
    def probabilities(self) -> np.ndarray:
        """(K,) softmax of the logits over the temperature."""
        return self.probabilities_of(self.logits)

    def probabilities_of(self, logits: np.ndarray) -> np.ndarray:
        """(K,) softmax of other logits (K,) over the same temperature."""
        shares = np.exp((logits - logits.max()) / self.temperature)
        return shares / shares.sum()

    @property
    def predicted(self) -> Prediction:
        """The likeliest class."""
        return self.prediction(int(self.logits.argmax()))

    @property
    def subject(self) -> Prediction:
        """The class that the maps speak of: the target, or the predicted class."""
        return self.predicted if self.target is None else self.prediction(self.target)

    def prediction(self, target: int | str) -> Prediction:
        """One class, by name or index."""
        index = self.class_index(target)
        return Prediction(index, self.class_names[index], float(self.probabilities[index]))

    def top_classes(self, count: int | None = None) -> list[Prediction]:
        """The likeliest classes, best first; `top` of them by default."""
        order = np.argsort(-self.logits, kind="stable")[: self.top if count is None else count]
        return [self.prediction(int(index)) for index in order]

    def class_index(self, target: int | str) -> int:
        """The index of a class given by name or index.

        Raises:
            UserError: there is no such class; the closest names are offered.
        """
        return class_index(self.class_names, target)

    # Its maps

    @property
    def class_wise(self) -> bool:
        """Whether each class has its own attention map."""
        return len(self.attention) == len(self.class_names) and len(self.attention) > 1

    @property
    def class_token_share(self) -> float:
        """The share of attention that the class token keeps to itself, for the map that is shown; 0 in most heads."""
        return max(0.0, 1 - float(self.map_for().sum()))

    @property
    def remainder(self) -> dict[int, float]:
        """By class with evidence, logit − bias − Σ evidence: rounding if `exact`, else what the evidence lacks."""
        sums = self.evidence.sum((1, 2), dtype=np.float64)
        return {
            k: float(self.logits[k] - self.bias[k] - total)
            for k, total in zip(self.evidence_classes, sums, strict=True)
        }

    @property
    def runner_up(self) -> Prediction | None:
        """The likeliest class with evidence other than the subject, or None: what contrast is against."""
        others = [k for k in self.evidence_classes if k != self.subject.index]
        return self.prediction(max(others, key=lambda k: self.logits[k])) if others else None

    @property
    def attention_is_flat(self) -> bool:
        """Whether attention says little: nearly uniform, or of several queries that share one decision.

        Nearly uniform is a `flatness` of over `FLAT`.
        """
        if not self.class_wise and len(self.attention) > 1:
            return True
        return flatness(self.map_for(), self.uniform) > FLAT

    def shown(self, map: MapChoice = "auto", target: int | str | None = None) -> Kind:
        """Which kind of map "auto" is here: attention, or evidence where attention is flat or not of the class.

        Args:
            map: "auto", or a kind, which is returned as it is.
            target: a class, where its map is wanted and not the subject's.

        Raises:
            UserError: there is no such kind.
        """
        if map != "auto":
            if map not in KINDS:
                raise UserError(f"unknown map {map!r}; known: auto, {', '.join(KINDS)}.")
            return map
        index = self.subject.index if target is None else self.class_index(target)
        shared = target is not None and not self.class_wise
        return "evidence" if index in self.evidence_classes and (shared or self.attention_is_flat) else "attention"

    def map_for(self, target: int | str | None = None, kind: Kind = "attention") -> np.ndarray:
        """One map, (h, w) float32.

        Args:
            target: class name or index; by default the subject.
            kind: "attention" (the class's own row where each class has one, else the mean of all queries), "evidence",
                or "contrast": the evidence for the class less that for the likeliest other one.

        Raises:
            UserError: there is no such class or kind, or no map of that kind for the class.
        """
        if kind == "evidence":
            return self.evidence_for(self.subject.index if target is None else target)
        if kind == "contrast":
            about = self if target is None else replace(self, target=self.class_index(target))
            if about.runner_up is None:
                raise UserError("a contrast needs evidence for a second class; name one in `classes` of explain().")
            return about.evidence_for(about.subject.index) - about.evidence_for(about.runner_up.index)
        if kind != "attention":
            raise UserError(f"unknown kind of map {kind!r}; known: {', '.join(KINDS)}.")
        if self.class_wise:
            return self.attention[self.subject.index if target is None else self.class_index(target)]
        if target is not None:
            raise UserError(
                f"this network's attention is the same for all classes, so there is no separate attention map for "
                f"{target!r}; ask for its evidence, or name no class."
            )
        return self.attention[0] if len(self.attention) == 1 else self.attention.mean(0)

    def evidence_for(self, target: int | str) -> np.ndarray:
        """(h, w) signed: what each patch adds to a class's logit.

        Raises:
            UserError: there is no such class, or its evidence was not computed.
        """
        index = self.class_index(target)
        if index not in self.evidence_classes:
            raise UserError(
                f"the evidence for {self.class_names[index]!r} was not computed: this head's evidence is first order "
                "and costs a backward pass a class; name the class in `target` or `classes` of explain()."
            )
        return self.evidence[self.evidence_classes.index(index)]

    def placed(
        self, target: int | str | None = None, kind: Kind = "attention", *, smoothing: Smoothing = "bilinear"
    ) -> np.ndarray:
        """A map at the image's own resolution, (H, W) float32, each value where its pixels are; 0 where unseen.

        Args:
            target: class name or index, as for `map_for`.
            kind: "attention" or "evidence".
            smoothing: "bilinear" between patch centres, or "nearest".
        """
        return place(self.map_for(target, kind), self.grid, self.geometry, smoothing=smoothing)

    def overlay(
        self, target: int | str | None = None, map: MapChoice = "auto", *, smoothing: Smoothing = "bilinear"
    ) -> Image.Image:
        """A map as a transparent RGBA image of the image's own size, to lay over it.

        Attention is inferno, from 0 to its largest value or three times uniform attention, at opacity 0.6; evidence and
        contrast are blue (against) to red (for), the more opaque the stronger. What the network did not see is grey and
        hatched.

        Args:
            target: class name or index; by default the subject.
            map: a kind as in `map_for`, or "auto": see `shown`.
            smoothing: "bilinear" between patch centres, or "nearest".

        Raises:
            UserError: as `map_for`.
        """
        kind = self.shown(map, target)
        values, placed = self.map_for(target, kind), self.placed(target, kind, smoothing=smoothing)
        if kind == "attention":
            rgba = attention_colours(placed, attention_scale(values))
        else:
            rgba = evidence_colours(placed, evidence_scale(values))
        lay_over_unseen(rgba, seen_pixels(self.geometry))
        return Image.fromarray(rgba)

    def attended(
        self, target: int | str | None = None, map: MapChoice = "auto", *, smoothing: Smoothing = "bilinear"
    ) -> Image.Image:
        """The image with a map on it, RGB: attention over the image, evidence as colours of a pale grey print of it.

        The arguments are those of `overlay`.
        """
        kind = self.shown(map, target)
        if kind == "attention":
            base, overlay = self.image, self.overlay(target, kind, smoothing=smoothing)
        else:
            placed = self.placed(target, kind, smoothing=smoothing)
            printed = evidence_print(np.asarray(self.image), placed, evidence_scale(self.map_for(target, kind)))
            base, overlay = Image.fromarray(printed), Image.fromarray(unseen_colours(seen_pixels(self.geometry)))
        return Image.alpha_composite(base.convert("RGBA"), overlay).convert("RGB")

    def scaled(self, side: int) -> Self:
        """The same with the image resized to `side` pixels on its longer side; maps and logits are unchanged.

        Pixels stay visible as squares where it grows. Small ones are good to keep where there are thousands.
        """
        factor = side / max(self.image.size)
        width, height = (max(1, round(length * factor)) for length in self.image.size)
        image = self.image.resize((width, height), Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)
        return replace(self, image=image, geometry=self.geometry.on((height, width)))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pixels, as plain values for JSON; evidence for the listed classes and the target."""
        listed = [p.index for p in self.top_classes()]
        if self.target is not None and self.target not in listed:
            listed.append(self.target)
        remainder = self.remainder
        order = np.argsort(-self.logits, kind="stable").tolist()
        on_image = [(crop.geometry.on(self.geometry.image).box, crop.share) for crop in self.crops]
        crops = [{"box": dict(zip(SIDES, box, strict=True)), "share": share} for box, share in on_image]
        return {
            "name": self.name,
            "source": self.source,
            "package": {"name": "patchconvnet", "version": __version__},
            "image": {"width": self.image.width, "height": self.image.height},
            "input": {
                "width": self.geometry.size[1],
                "height": self.geometry.size[0],
                "box": dict(zip(SIDES, self.geometry.box, strict=True)),
                **({"crops": crops} if crops else {}),
            },
            "grid": {
                "height": self.grid.shape[0],
                "width": self.grid.shape[1],
                "refine": self.refine,
                "step": {"y": self.grid.step[0], "x": self.grid.step[1]},
                "first": {"y": self.grid.first[0], "x": self.grid.first[1]},
            },
            "predicted": asdict(self.predicted),
            "shown": self.shown(),
            "target": None if self.target is None else asdict(self.prediction(self.target)),
            "temperature": self.temperature,
            "classes": [
                {"index": k, "name": self.class_names[k], "probability": float(p), "logit": _plain(self.logits[k])}
                for k, p in zip(order, self.probabilities[order], strict=True)
            ],
            "attention": {
                "class_wise": self.class_wise,
                "class_token_share": self.class_token_share,
                "maps": _plain(self.attention if not self.class_wise else self.attention[listed]),
                "of": listed if self.class_wise else None,
            },
            "evidence": {
                "exact": self.exact,
                "maps": [
                    {
                        "index": k,
                        "name": self.class_names[k],
                        "bias": _plain(self.bias[k]),
                        "remainder": remainder[k],
                        "map": _plain(self.evidence_for(k)),
                    }
                    for k in listed
                    if k in self.evidence_classes
                ],
            },
        }


def flatness(attention: np.ndarray, uniform: np.ndarray | None = None) -> float:
    """How near attention (..., h, w) is to uniform, the mean of all maps: exp(−Σ aᵢ·log(aᵢ/uᵢ)), at most 1.

    Where uniform attention u is the same everywhere, that is a's perplexity, exp(−Σ aᵢ·log aᵢ), over the patches.

    Args:
        attention: (..., h, w).
        uniform: (h, w), where it is not the same everywhere.
    """
    shares = attention / attention.sum((-2, -1), keepdims=True)
    expected = 1 / (shares.shape[-2] * shares.shape[-1]) if uniform is None else uniform / uniform.sum()
    divergence = (shares * np.log(np.maximum(shares, 1e-30) / np.maximum(expected, 1e-30))).sum((-2, -1))
    return float(np.mean(np.exp(-divergence)))


def class_index(class_names: Sequence[str], target: int | str) -> int:
    """The index of a class given by name (whatever its case) or index (a number, or one written as a word).

    Raises:
        UserError: there is no such class; the closest names are offered.
    """
    if isinstance(target, str) and target in class_names:
        return class_names.index(target)
    if not isinstance(target, str) or target.isdecimal():
        index = int(target)
        if not 0 <= index < len(class_names):
            raise UserError(f"there is no class {index}; the network has {len(class_names)}, from 0 on.")
        return index
    lower = [name.lower() for name in class_names]
    if lower.count(target.lower()) == 1:
        return lower.index(target.lower())
    close = difflib.get_close_matches(target.lower(), lower, n=3)
    offered = ", ".join(repr(class_names[lower.index(name)]) for name in close)
    shown = ", ".join(class_names[:10]) + (", …" if len(class_names) > 10 else "")
    raise UserError(f"unknown class {target!r}; " + (f"did you mean {offered}?" if close else f"known: {shown}."))


def _plain(values: Any) -> Any:
    """float32 → the shortest decimal numbers that read back as the same float32."""
    if isinstance(values, np.ndarray):
        return [_plain(value) for value in values]
    return float(str(values))
