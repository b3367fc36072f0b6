"""`OnnxModel`: an exported file answers and explains with onnxruntime, NumPy and Pillow alone.

Nothing here imports PyTorch, directly or through others: a test runs it where there is none.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from patchconvnet.data.geometry import Geometry
from patchconvnet.data.images import read_image, to_image
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.deploy.description import KEY, Description
from patchconvnet.errors import UserError, first_line
from patchconvnet.explanation.crops import VIEWS, Crop, View, crops_of, laid
from patchconvnet.explanation.explanation import Explanation
from patchconvnet.explanation.maps import class_index
from patchconvnet.explanation.patch_grid import Grid
from patchconvnet.explanation.refining import refined
from patchconvnet.explanation.removal import Region, Removal, logits_of_kept, removal

ImageSource = Image.Image | np.ndarray | str | os.PathLike[str] | BinaryIO


class OnnxModel:
    """A network in an `.onnx` file that `patchconvnet export` wrote. Threads may share it.

    Args:
        path: the file.
        threads: that one call computes with; by default as many as there are cores.

    Attributes:
        path: the file.
        description: what it says about itself.
        class_names: K names.
        size: (height, width) of the network input.

    Raises:
        UserError: onnxruntime is not installed; there is no such file, it is not an ONNX file, not one of this
            package, or damaged.

    Example:
        model = OnnxModel("cifar10.onnx")
        for explanation in model.explain(["cat.jpg", "dog.jpg"]):
            print(explanation.predicted, explanation.to_dict()["evidence"]["exact"])
            explanation.overlay().save(f"{explanation.name}_overlay.png")
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None):
        self.path = Path(path)
        self._session = _session(self.path, threads)
        written = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        if written is None:
            raise UserError(
                f"{path} is an ONNX file of another program: it has no description of its classes, preprocessing and "
                "maps; write one with patchconvnet export"
            )
        self.description = Description.from_json(written, str(path))
        names = [node.name for node in self._session.get_inputs()], [node.name for node in self._session.get_outputs()]
        if names != ([self.description.input], self.description.outputs):
            raise UserError(
                f"{path} does not do what its description says: it has inputs {', '.join(names[0])} and outputs "
                f"{', '.join(names[1])}; export it again"
            )

    def __repr__(self) -> str:
        return f"OnnxModel({str(self.path)!r})"

    @property
    def class_names(self) -> list[str]:
        """K names, one for each logit."""
        return self.description.class_names

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the network input."""
        return self.description.size

    def prepare(
        self, image: Image.Image | np.ndarray, size: int | tuple[int, int] | None = None
    ) -> tuple[np.ndarray, Geometry]:
        """An image as `run` takes it, and where the network input is on it.

        Args:
            image: a PIL image of any mode, or an array of one image as `patchconvnet.data.images.pixels` reads it.
            size: another network input, where the file takes it.

        Returns:
            (C, H, W) float32, normalised; of a file that preprocesses inside, the image's (H, W, C) uint8 as they are.

        Raises:
            UserError: it is not an image, or the file does not take that size.
        """
        return self._prepare(image, self._preprocessing(size))

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """The network's answer for prepared images.

        Args:
            batch: (B, C, H, W) float32, normalised; or (B, H, W, C) uint8 of a file that preprocesses inside.

        Returns:
            `logits` (B, K), `attention` (B, Q, h, w) and, where the file has them, `evidence` (B, K', h, w) and
            `evidence_classes` (B, K') int64; all float32 but for the last.

        Raises:
            UserError: the batch is of another type or shape than the file takes.
        """
        about = self.description
        inside = about.input == "pixels"
        channels = about.preprocessing.channels
        wanted = np.dtype(np.uint8 if inside else np.float32)
        if batch.dtype != wanted or batch.ndim != 4 or batch.shape[3 if inside else 1] != channels or not len(batch):
            axes = f"(batch, height, width, {channels})" if inside else f"(batch, {channels}, height, width)"
            raise UserError(f"given {batch.dtype} of shape {batch.shape}; this file takes {wanted} of shape {axes}.")
        if not inside:
            about.check_size((batch.shape[2], batch.shape[3]))
        if about.batch is None or len(batch) == about.batch:
            return self._run(batch)
        parts = []
        for begin in range(0, len(batch), about.batch):  # the last one is filled up with its last image
            part = batch[begin : begin + about.batch]
            missing = about.batch - len(part)
            answers = self._run(np.concatenate([part, part[-1:].repeat(missing, 0)]) if missing else part)
            parts.append({name: values[: len(part)] for name, values in answers.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def explain(
        self,
        images: ImageSource | Iterable[ImageSource],
        top: int = 5,
        target: int | str | None = None,
        *,
        size: int | tuple[int, int] | None = None,
        refine: int = 0,
        view: View | None = None,
        batch_size: int = 32,
        name: str | Sequence[str] | None = None,
    ) -> list[Explanation]:
        """What the network says about images, as `patchconvnet.explain` does.

        Args:
            images: paths, open binary files, PIL images or arrays of one image each; or one of these.
            top: how many classes figures and reports list.
            target: the class to ask about, by name or index; by default the predicted one.
            size: another network input, where the file takes it.
            refine: n ≥ 1 gives maps of n × n values a patch, averaged over n × n shifts and both flips, for 2·n² runs
                more; see `can_refine`.
            view: "whole" takes all of an image into the answer, as in `patchconvnet.explain`; "own" what the file's
                preprocessing says, which for photographs is often the centre. By default "whole" where the file can
                (`can_see_whole`), else "own".
            batch_size: images that are read, and answered, together.
            name: what to call the image, or one name for each of many; by default its file's name without the ending.

        Returns:
            An explanation for each image.

        Raises:
            UserError: an unreadable image (`images[3]: …` says which), an unknown class, or an option out of its range
                or not to be had from this file.
        """
        options: dict[str, Any] = {"size": size, "refine": refine, "view": view, "batch_size": batch_size}
        return list(self.explained(images, top, target, **options, name=name))

    def explained(
        self,
        images: ImageSource | Iterable[ImageSource],
        top: int = 5,
        target: int | str | None = None,
        *,
        size: int | tuple[int, int] | None = None,
        refine: int = 0,
        view: View | None = None,
        batch_size: int = 32,
        name: str | Sequence[str] | None = None,
    ) -> Iterator[Explanation]:
        """As `explain`, one after the other; reads no more than `batch_size` images ahead."""
        for what, value in (("batch_size", batch_size), ("top", top)):
            if value < 1:
                raise UserError(f"{what} is {value}; it must be 1 or more.")
        if view not in (None, *VIEWS):
            raise UserError(f"unknown view {view!r}; known: {', '.join(VIEWS)}.")
        if refine and not self.can_refine:
            raise UserError(self._no_refining())
        if view == "whole" and not self.can_see_whole:
            raise UserError(self._no_whole())
        seen: View = view or ("whole" if self.can_see_whole else "own")
        index = None if target is None else class_index(self.class_names, target)
        preprocessing = self._preprocessing(size)
        one = isinstance(images, str | os.PathLike | Image.Image | np.ndarray) or hasattr(images, "read")
        if isinstance(images, np.ndarray) and images.ndim == 4:
            one, images = False, list(images)
        numbered = enumerate([images] if one else images)  # type: ignore[arg-type]
        names = [name] if isinstance(name, str) else name
        while chunk := list(islice(numbered, batch_size)):
            opened = []
            for i, source in chunk:
                if names is not None and i >= len(names):
                    raise UserError(f"given {len(names)} names and more images; give one for each image.")
                called = _name(source, i) if names is None else names[i]
                try:
                    image = _read(source)
                    crops = crops_of(preprocessing, image.height, image.width, seen)
                    prepared = [self._prepare(crop.of(image), crop.preprocessing)[0] for crop in crops]
                    path = os.fspath(source) if isinstance(source, str | os.PathLike) else None
                    opened.append(_Opened(called, path, image, crops, np.stack(prepared)))
                except UserError as error:
                    raise error if one else UserError(f"images[{i}]: {error}") from error
            yield from self._answer(opened, top, index, refine)

    def explanation(
        self,
        answer: Mapping[str, np.ndarray],
        image: Image.Image,
        geometry: Geometry,
        *,
        name: str = "image",
        top: int = 5,
        target: int | None = None,
        source: str | None = None,
    ) -> Explanation:
        """The record of one image, from its rows of what `run` answered.

        Args:
            answer: `logits` (K,), `attention` (Q, h, w), and what evidence the file gives.
            image: RGB, as it was before preprocessing.
            geometry: how the network input is on it, as `prepare` returned it.
            name, source: what the image is called, and its file's path.
            top, target: as for `explain`, the target by its index.
        """
        about, logits, attention = self.description, answer["logits"], answer["attention"]
        shape = (attention.shape[1], attention.shape[2])
        classes = answer.get("evidence_classes", range(about.evidence_classes))
        return Explanation(
            name=name,
            image=image,
            class_names=about.class_names,
            logits=logits,
            bias=np.array(about.bias, np.float32),
            attention=attention,
            evidence=answer.get("evidence", np.zeros((0, *shape), np.float32)),
            evidence_classes=tuple(int(k) for k in classes),
            exact=about.evidence == "exact",
            grid=about.placement.grid(geometry.size, shape),
            geometry=geometry,
            target=target,
            top=min(top, len(about.class_names)),
            temperature=about.temperature,
            source=source,
        )

    @property
    def can_refine(self) -> bool:
        """Whether maps can be refined: the file takes prepared images, and has evidence for all classes, or none."""
        return self.description.input == "image" and "evidence_classes" not in self.description.outputs

    def check_removal(self) -> None:
        """Refuse a file whose maps do not tell what it would answer without some patches.

        Raises:
            UserError: its evidence is not exact, or several softmaxes share one decision.
        """
        if not self.description.removal:
            raise UserError(
                f"{self.path} does not tell what it would answer without a part of the image: that follows from exact "
                "evidence and one softmax of attention, and this network has others; ask the network that it was "
                "exported from"
            )

    def _no_refining(self) -> str:
        why = (
            "it gives evidence for each image's likeliest classes only, which differ between shifted images; export it "
            "with --evidence all or none"
            if self.description.input == "image"
            else "it preprocesses images itself, and what is shifted is the prepared image; export it without "
            "--preprocessing inside"
        )
        return f"{self.path} cannot refine maps: {why}"

    @property
    def can_see_whole(self) -> bool:
        """Whether images can be seen whole: nothing is cut from them, or the file takes prepared crops of them.

        Its evidence must then be for all classes, or none: each crop has other likeliest ones.
        """
        return self.description.preprocessing.resize != "crop" or self.can_refine

    def _no_whole(self) -> str:
        why = (
            "it gives evidence for each crop's likeliest classes only; export it with --evidence all or none"
            if self.description.input == "image"
            else "it cuts the centre out of images itself; export it without --preprocessing inside"
        )
        return f"{self.path} cannot see whole images: {why}, or ask the network that it was exported from"

    def _answer(self, opened: list["_Opened"], top: int, target: int | None, refine: int) -> list[Explanation]:
        """Explanations of images; arrays of one shape go through the network together."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, one in enumerate(opened):
            by_shape.setdefault(one.arrays.shape[1:], []).append(i)
        explained: dict[int, Explanation] = {}
        for places in by_shape.values():
            answers, begin = self.run(np.concatenate([opened[i].arrays for i in places])), 0
            for i in places:
                rows = slice(begin, begin := begin + len(opened[i].crops))
                answer = {output: values[rows] for output, values in answers.items()}
                explained[i] = self._explanation_of(opened[i], answer, top, target, refine)
        return [explained[i] for i in range(len(opened))]

    def _explanation_of(
        self, opened: "_Opened", answers: dict[str, np.ndarray], top: int, target: int | None, refine: int
    ) -> Explanation:
        """One image's explanation from what the network said of its crops."""
        crops, first = opened.crops, {output: values[0] for output, values in answers.items()}
        plain = self.explanation(
            first, opened.image, crops[0].geometry, name=opened.name, top=top, target=target, source=opened.source
        )
        plain = replace(plain, forward_pass=ExportedPass(self, answers, plain.grid, crops))
        if len(crops) == 1 and not refine:
            return plain
        shape, shares = plain.grid.shape, np.array([crop.share for crop in crops])
        logits = np.average(answers["logits"], axis=0, weights=shares).astype(np.float32)
        attention = answers["attention"]
        evidence = answers.get("evidence", np.zeros((len(crops), 0, *shape), np.float32))
        grid, exact = plain.grid, plain.exact and not refine
        if refine:

            def ask(shifted: np.ndarray) -> np.ndarray:
                said = self.run(shifted)
                return np.concatenate([said[name] for name in ("attention", "evidence") if name in said], 1)

            grid, attention, evidence = refined(ask, opened.arrays, grid, attention, refine)
        return replace(plain, logits=logits, exact=exact, refine=refine, **laid(crops, attention, evidence, grid))

    def _preprocessing(self, size: int | tuple[int, int] | None) -> Preprocessing:
        preprocessing = self.description.preprocessing
        if size is None:
            return preprocessing
        sized = preprocessing.with_size(size)
        if self.description.input == "pixels" and sized.size != preprocessing.size:
            raise UserError(
                f"this file resizes images itself, to {preprocessing.size[0]} × {preprocessing.size[1]} pixels; export "
                f"it again with --size {sized.size[0]}x{sized.size[1]}"
            )
        self.description.check_size(sized.size)
        return sized

    def _prepare(self, image: Image.Image | np.ndarray, preprocessing: Preprocessing) -> tuple[np.ndarray, Geometry]:
        if self.description.input == "pixels":
            rgb = to_image(image)
            if preprocessing.channels == 1:
                rgb = rgb.convert("L")
            array = np.array(rgb).reshape(rgb.height, rgb.width, preprocessing.channels)
            return array, preprocessing.checked_geometry(rgb.height, rgb.width)
        if isinstance(image, np.ndarray):
            image = to_image(image)
        return preprocessing.array(image), preprocessing.geometry(image.height, image.width)

    def _run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        outputs = self._session.run(self.description.outputs, {self.description.input: batch})
        return dict(zip(self.description.outputs, outputs, strict=True))


@dataclass(frozen=True, eq=False)
class _Opened:
    """One image: its name, its file's path, as it was, and its crops as the file takes them, (n, ...)."""

    name: str
    source: str | None
    image: Image.Image
    crops: tuple[Crop, ...]
    arrays: np.ndarray


@dataclass(frozen=True, eq=False)
class ExportedPass:
    """What a file answered for one image, which can be asked for the answer without a part of it.

    Args:
        model: the file.
        answers: as `OnnxModel.run` gave them, for each of the image's crops.
        grid: how the patches are placed on the network input.
        crops: n.
    """

    model: OnnxModel
    answers: Mapping[str, np.ndarray]
    grid: Grid
    crops: tuple[Crop, ...]

    def without(self, image: Image.Image, region: Region) -> Removal:
        """See `Explanation.without`.

        Raises:
            UserError: it does not follow from the file's maps (`OnnxModel.check_removal`), or the region is none.
        """
        self.model.check_removal()
        bias = np.array(self.model.description.bias, np.float64)

        def of_kept(crop: int, kept: np.ndarray) -> np.ndarray:
            return logits_of_kept(self.answers["attention"][crop], self.answers["evidence"][crop], bias, kept)

        def of_images(images: Sequence[Image.Image]) -> np.ndarray:
            prepared = [
                self.model._prepare(one, crop.preprocessing)[0] for crop, one in zip(self.crops, images, strict=True)
            ]
            return self.model.run(np.stack(prepared))["logits"]

        return removal(image, region, self.crops, self.grid, of_kept, of_images)


def _session(path: Path, threads: int | None) -> Any:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}; it must be 1 or more.")
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"{path} needs onnxruntime to answer: pip install 'patchconvnet[runtime]' (or onnxruntime)"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # threads that spin while they wait take the core that another process, or another request, needs
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own types, of which it shows none
        raise UserError(
            f"{path} is not an ONNX file that onnxruntime can read, or is damaged: {first_line(error)}"
        ) from error


def _read(source: Any) -> Image.Image:
    if isinstance(source, str | os.PathLike) or hasattr(source, "read"):
        return read_image(source)
    if isinstance(source, Image.Image | np.ndarray):
        return to_image(source)
    hint = "; wrap them in io.BytesIO" if isinstance(source, bytes | bytearray) else ""
    raise UserError(
        f"cannot read an image from a value of type {type(source).__name__}{hint}; give a path, an open binary file, a "
        "PIL image or an array."
    )


def _name(source: Any, index: int) -> str:
    file = source if isinstance(source, str | os.PathLike) else getattr(source, "name", getattr(source, "filename", ""))
    return (isinstance(file, str | os.PathLike) and Path(file).stem) or f"image_{index}"
