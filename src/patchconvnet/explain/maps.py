"""`explain(model, image)` → `Explanation`: what the network says of a picture, where it looked, and what spoke for it.

Attention: Touvron et al. 2021, arXiv 2112.13692, section 3.2. Evidence: `patchconvnet.explain.evidence`.
"""

import difflib
import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import patchconvnet
from patchconvnet.data.preprocessing import Geometry, Picture, Preprocessing, as_rgb, pixels, read_picture
from patchconvnet.errors import UserError
from patchconvnet.explain import figures
from patchconvnet.explain.evidence import Look, look
from patchconvnet.explain.placement import Grid, Smoothing, patch_grid, place, resample, seen_pixels
from patchconvnet.files import write_array, write_whole

Kind = Literal["attention", "evidence"]
Source = Picture | str | os.PathLike[str]


@dataclass(frozen=True)
class Prediction:
    """One class and how likely the network holds it."""

    index: int
    name: str
    probability: float


class Saved(NamedTuple):
    """The files that `Explanation.save` wrote."""

    figure: Path
    overlay: Path
    map: Path
    json: Path


@dataclass(frozen=True, eq=False)
class Explanation:
    """A prediction with its maps.

    Args:
        name: what the picture is called in titles and file names.
        picture: RGB, as it was before preprocessing.
        class_names: K names.
        logits: (K,) float32.
        bias: (K,) float32, the classifier's bias.
        attention: (Q, h, w) float32, each query's softmax weights over the patches; Q = 1, or K where each class has
            its own query. They sum to at most 1, see `class_token_share`.
        evidence: (K', h, w) float32, each patch's signed share of a class's logit, for `evidence_classes`.
        evidence_classes: K' class indices.
        exact: whether evidence sums to logit − bias by construction; otherwise it is first order around this picture,
            or an average over shifts and flips where `refine` is not 0. See `remainder`.
        grid: how the patches lie on the network input.
        geometry: how the network input lies on the picture.
        target: the class that was asked about; None for the predicted one.
        top: how many classes figures and reports list.
        refine: how many times finer than the patches the maps are, both ways, by averaging; 0 for plain maps.

    Raises:
        UserError: a map or a logit is not a finite number.
    """

    name: str
    picture: Image.Image
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

    def __post_init__(self) -> None:
        for what in ("logits", "attention", "evidence"):
            if not np.isfinite(getattr(self, what)).all():
                raise UserError(
                    f"the network's {what} for {self.name} hold values that are not finite numbers, so there is "
                    "nothing to show; its training has diverged, or its weights are damaged."
                )

    # What the network says

    @property
    def probabilities(self) -> np.ndarray:
        """(K,) softmax of the logits."""
        shares = np.exp(self.logits - self.logits.max())
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

    # Where it looked, and what for

    @property
    def class_wise(self) -> bool:
        """Whether each class has an attention map of its own."""
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

    def map_for(self, target: int | str | None = None, kind: Kind = "attention") -> np.ndarray:
        """One map, (h, w) float32.

        Args:
            target: class name or index; by default the subject.
            kind: "attention" (the class's own row where each class has one), or "evidence".

        Raises:
            UserError: there is no such class or kind, or no map of that kind for the class.
        """
        if kind == "evidence":
            return self.evidence_for(self.subject.index if target is None else target)
        if kind != "attention":
            raise UserError(f"unknown kind of map {kind!r}; known: attention, evidence.")
        if self.class_wise:
            return self.attention[self.subject.index if target is None else self.class_index(target)]
        if target is not None:
            raise UserError(
                f"this network looks once for all classes, so there is no attention map for {target!r} alone; ask for "
                "its evidence, or leave the class away."
            )
        return self.attention[0]

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
        """A map at the picture's own resolution, (H, W) float32, each value where its pixels are; 0 where unseen.

        Args: as `map_for`; smoothing: "bilinear" between patch centres, or "nearest".
        """
        return place(self.map_for(target, kind), self.grid, self.geometry, smoothing=smoothing)

    # Looking at it

    def overlay(
        self, target: int | str | None = None, kind: Kind = "attention", *, smoothing: Smoothing = "bilinear"
    ) -> Image.Image:
        """A map as a transparent RGBA picture of the picture's own size, to lay over it.

        Attention is inferno, from 0 to its largest value, at opacity 0.6 (as in the Keras example); evidence is blue
        (against) to red (for), the more opaque the stronger. What the network did not see is transparent.

        Args: as `placed`.
        """
        values = self.placed(target, kind, smoothing=smoothing)
        colour = figures.evidence_colours if kind == "evidence" else figures.attention_colours
        rgba = colour(values)
        rgba[~seen_pixels(self.geometry)] = 0
        return Image.fromarray(rgba)

    def attended(self, target: int | str | None = None, *, smoothing: Smoothing = "bilinear") -> Image.Image:
        """The picture with its attention map laid over it, RGB; arguments as `placed`."""
        overlay = self.overlay(target, smoothing=smoothing)
        return Image.alpha_composite(self.picture.convert("RGBA"), overlay).convert("RGB")

    def figure(self, *, evidence: int = 3) -> Figure:
        """Original, attended and likeliest classes, and below them the evidence for as many of these as `evidence`."""
        return figures.explanation_figure(self, evidence=evidence)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.figure().savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()

    def scaled(self, side: int) -> "Explanation":
        """The same with the picture resized to `side` pixels on its longer side; maps and logits are unchanged.

        Pixels stay visible as squares where it grows. Small ones are good to keep where there are thousands.
        """
        factor = side / max(self.picture.size)
        width, height = (max(1, round(length * factor)) for length in self.picture.size)
        picture = self.picture.resize(
            (width, height), Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
        )
        return replace(self, picture=picture, geometry=replace(self.geometry, picture=(height, width)))

    # Keeping it

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pixels, as plain values for JSON; evidence for the listed classes and the target."""
        listed = [p.index for p in self.top_classes()]
        if self.target is not None and self.target not in listed:
            listed.append(self.target)
        remainder = self.remainder
        order = np.argsort(-self.logits, kind="stable").tolist()
        left, top, right, bottom = self.geometry.box
        return {
            "name": self.name,
            "package": {"name": "patchconvnet", "version": patchconvnet.__version__},
            "picture": {"width": self.picture.width, "height": self.picture.height},
            "input": {
                "width": self.geometry.size[1],
                "height": self.geometry.size[0],
                "box": {"left": left, "top": top, "right": right, "bottom": bottom},
            },
            "grid": {
                "height": self.grid.shape[0],
                "width": self.grid.shape[1],
                "refine": self.refine,
                "step": {"y": self.grid.step[0], "x": self.grid.step[1]},
                "first": {"y": self.grid.first[0], "x": self.grid.first[1]},
            },
            "predicted": asdict(self.predicted),
            "target": None if self.target is None else asdict(self.prediction(self.target)),
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

    def save(self, folder: str | os.PathLike[str], stem: str | None = None) -> Saved:
        """Write figure, overlay, map and JSON, each aside first and then renamed.

        Args:
            folder: created where it is missing.
            stem: how the files' names begin; the picture's name by default.

        Returns:
            `stem_figure.png`, `stem_overlay.png` (`overlay`), `stem_map.npy` (`map_for`) and `stem.json` (`to_dict`).
            None is called `stem.png`: that may be the picture itself.

        Raises:
            UserError: the folder cannot be written.
        """
        base = Path(folder)
        stem = self.name if stem is None else stem
        files = Saved(
            base / f"{stem}_figure.png", base / f"{stem}_overlay.png", base / f"{stem}_map.npy", base / f"{stem}.json"
        )
        figure, overlay = self.figure(), self.overlay()
        try:
            base.mkdir(parents=True, exist_ok=True)
            write_whole(files.figure, lambda path: figure.savefig(path, format="png", dpi=150))
            write_whole(files.overlay, lambda path: overlay.save(path, format="PNG"))
            write_array(files.map, self.map_for())
            write_whole(files.json, lambda path: path.write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot write the explanation of {self.name} to {base}: {error}") from error
        return files


def explain(
    model: nn.Module,
    image: Source,
    *,
    preprocessing: Preprocessing | None = None,
    size: int | tuple[int, int] | None = None,
    target: int | str | None = None,
    classes: Sequence[int | str] = (),
    top: int = 5,
    refine: int = 0,
    name: str | None = None,
) -> Explanation:
    """What a network says about a picture, where it looked, and what spoke for it.

    Args:
        model: a network with a pooling head of this package, on any device; its mode is left as it was.
        image: a path, a PIL picture, a uint8 array (H, W[, C]) or a uint8 tensor (C, H, W).
        preprocessing: from picture to network input; by default the model's own.
        size: another network input, (height, width) or one number for a square; a larger one gives a finer grid.
        target: the class to ask about, by name or index; by default the predicted one.
        classes: further classes whose evidence is wanted, for heads without exact evidence and with over 100 classes.
        top: how many classes figures and reports list.
        refine: n ≥ 1 gives maps of n × n values a patch, averaged over n × n shifts by parts of a patch and both flips,
            for 2·n² forward passes more; logits stay those of the plain pass.
        name: what to call the picture; by default its file's name without the ending.

    Raises:
        UserError: an unreadable picture, an unknown class, a model without maps, or an option out of its range.

    Example:
        >>> explanation = explain(PatchConvNet.from_pretrained("runs/pets/best"), "cat.jpg")
        >>> explanation.predicted.name, explanation.map_for().shape
        ('cat', (12, 12))
    """
    return explain_batch(
        model,
        [image],
        preprocessing=preprocessing,
        size=size,
        target=target,
        classes=classes,
        top=top,
        refine=refine,
        names=None if name is None else [name],
    )[0]


@torch.no_grad()
def explain_batch(
    model: nn.Module,
    images: Sequence[Source],
    *,
    preprocessing: Preprocessing | None = None,
    size: int | tuple[int, int] | None = None,
    target: int | str | None = None,
    classes: Sequence[int | str] = (),
    top: int = 5,
    refine: int = 0,
    names: Sequence[str] | None = None,
) -> list[Explanation]:
    """`explain` for several pictures of any shapes, in one forward pass.

    Args: as `explain`; names: one a picture.

    Raises:
        UserError: as `explain`.
    """
    if not images:
        return []
    if top < 1:
        raise UserError(f"top is {top}; it must be 1 or more.")
    if names is not None and len(names) != len(images):
        raise UserError(f"given {len(names)} names for {len(images)} pictures; give one a picture.")
    preprocessing = preprocessing or preprocessing_of(model)
    if size is not None:
        preprocessing = preprocessing.with_size(size)
    class_names = class_names_of(model)
    wanted = tuple(class_index(class_names, c) for c in (*classes, *(() if target is None else (target,))))

    read = [read_picture(image) if isinstance(image, str | os.PathLike) else image for image in images]
    like = next(model.parameters())
    inputs = torch.stack([preprocessing(picture) for picture in read]).to(like.device, like.dtype)
    with _evaluating(model):
        plain = look(model, inputs, wanted, top)
        grid = patch_grid(model, preprocessing.size, (plain.attention.shape[2], plain.attention.shape[3]))
        attention, evidence = _numpy(plain.attention), _numpy(plain.evidence)
        if refine:
            grid, attention, evidence = _refined(model, inputs, plain, grid, refine)
    logits, bias, chosen = _numpy(plain.logits), _numpy(plain.bias), plain.classes.tolist()

    explanations = []
    for i, (image, source) in enumerate(zip(images, read, strict=True)):
        picture = _as_picture(source)
        explanations.append(
            Explanation(
                name=names[i] if names is not None else _name(image, i),
                picture=picture,
                class_names=class_names,
                logits=logits[i],
                bias=bias,
                attention=attention[i],
                evidence=evidence[i],
                evidence_classes=tuple(chosen[i]),
                exact=plain.exact and not refine,
                grid=grid,
                geometry=preprocessing.geometry(picture.height, picture.width),
                target=None if target is None else class_index(class_names, target),
                top=min(top, len(class_names)),
                refine=refine,
            )
        )
    return explanations


def _refined(
    model: nn.Module, inputs: Tensor, plain: Look, grid: Grid, refine: int
) -> tuple[Grid, np.ndarray, np.ndarray]:
    """Maps averaged over shifts by parts of a patch and both flips, on a grid `refine` times as fine both ways."""
    height, width = inputs.shape[2:]
    step = (round(grid.step[0]), round(grid.step[1]))
    if not 1 <= refine <= min(step):
        raise UserError(f"refine is {refine}; it must lie between 1 and {min(step)}, the pixels of a patch.")
    shape = (-(-height * refine // step[0]), -(-width * refine // step[1]))
    fine_step = (step[0] / refine, step[1] / refine)
    fine = Grid(shape, fine_step, (fine_step[0] / 2, fine_step[1] / 2))
    shifts = [[math.floor((i + 0.5) * s / refine - s / 2) for i in range(refine)] for s in step]
    border = (max(map(abs, shifts[1])), max(map(abs, shifts[0])))
    padded = nn.functional.pad(inputs, (border[0], border[0], border[1], border[1]), mode="replicate")

    maps: np.ndarray = np.zeros(())
    asked = tuple(sorted(set(plain.classes.flatten().tolist())))
    for down in shifts[0]:
        for right in shifts[1]:
            shifted = padded[:, :, border[1] + down :, border[0] + right :][:, :, :height, :width]
            for flipped in (False, True):
                seen = look(model, shifted.flip(-1) if flipped else shifted, asked, top=0)
                at = grid.mirrored(width) if flipped else grid
                both = torch.cat([seen.attention, seen.evidence_of(plain.classes)], 1)
                values = _numpy(both.flip(-1) if flipped else both)
                # each patch's share goes to refine² finer ones, and there are 2·refine² passes
                maps = maps + resample(values, at.moved(down, right), fine) / (2 * refine**4)
    attention, evidence = np.split(maps.astype(np.float32), [plain.attention.shape[1]], axis=1)
    # interpolation changes sums a little at the borders; attention keeps the plain pass's, so that it is a share still
    attention *= _numpy(plain.attention).sum((2, 3), keepdims=True) / attention.sum((2, 3), keepdims=True)
    return fine, attention, evidence


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """A model's own preprocessing: that of its model folder, or the one its variant is registered with.

    Raises:
        UserError: it has neither.
    """
    stored = getattr(getattr(model, "metadata", None), "preprocessing", None)
    if stored:
        return Preprocessing.from_dict(stored)
    registered = getattr(model, "pretrained_cfg", None)
    if registered:
        return Preprocessing.from_pretrained_cfg(registered)
    raise UserError("this model does not say how pictures become its input; give `preprocessing`.")


def class_names_of(model: nn.Module) -> list[str]:
    """A model's class names, or "class 0", "class 1" … where it has none.

    Raises:
        UserError: it has more names than classes, or fewer.
    """
    stored = getattr(getattr(model, "metadata", None), "class_names", None)
    count = int(getattr(model, "num_classes", 0))
    if stored and len(stored) != count:
        raise UserError(
            f"this model has {count} classes and {len(stored)} class names; mend `model.metadata.class_names`."
        )
    return list(stored) if stored else [f"class {k}" for k in range(count)]


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


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _as_picture(source: Picture) -> Image.Image:
    if isinstance(source, Image.Image):
        return as_rgb(source)
    return Image.fromarray(pixels(source, 3).movedim(0, -1).cpu().numpy())


def _name(image: Source, index: int) -> str:
    return Path(image).stem if isinstance(image, str | os.PathLike) else f"picture_{index}"


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()


def _plain(values: Any) -> Any:
    """float32 → the shortest decimal numbers that read back as the same float32."""
    if isinstance(values, np.ndarray):
        return [_plain(value) for value in values]
    return float(str(values))
