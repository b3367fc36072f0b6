"""`Predictor`: a model, and what it says about the images of a part, as one table. Both engines run it.

Images are decoded ahead in threads while the network answers for others, on a CPU a few at a time in one thread
for each core. What cannot be read or answered has its error in the row of its own, and nobody else's.
"""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchconvnet.bulk.parts import lists
from patchconvnet.bulk.work import Item, Part, Work
from patchconvnet.data.images import pixels
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.errors import OF_ONE_IMAGE, NotOfOneImageError, UserError
from patchconvnet.explanation.explainer import class_names_of, preprocessing_of
from patchconvnet.explanation.image_files import readers_on_one_core
from patchconvnet.explanation.refining import batch_size_for
from patchconvnet.hardware import find_device
from patchconvnet.models import AttentionClassifier, load
from patchconvnet.models.passes import images_at_once, in_order
from patchconvnet.models.weights import temperature_of

if TYPE_CHECKING:
    import pyarrow

Maps = Literal["none", "attention", "evidence"]
EmbeddingType = Literal["float16", "float32"]
LARGEST_TOP = 1000
MOST_AT_ONCE = 16  # images in a pass on a CPU: beyond, small ones are not answered faster
SMALL = 64**2  # pixels of an image below which preparing takes as long whatever its size
PASSES_AHEAD = 2  # for each that is computed, those whose images are read meanwhile


@dataclass(frozen=True)
class Settings:
    """What is written for each image.

    Args:
        top: how many of the likeliest classes.
        maps: the map of the predicted class: attention (of all queries their mean, unless each class has its own), or
            evidence.
        embeddings: whether to write what the classifier reads.
        embedding_dtype: in which format; None where there are none.
        size: another network input, (height, width).
    """

    top: int = 5
    maps: Maps = "none"
    embeddings: bool = False
    embedding_dtype: EmbeddingType = "float16"
    size: int | tuple[int, int] | None = None


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and where it computes; what another process makes the same `Predictor` from.

    Args:
        name: as for `patchconvnet.load`.
        weights: a checkpoint for the model of that name.
        device: cpu, cuda, mps or auto.
    """

    name: str
    weights: Path | None = None
    device: str = "auto"


class Answers(NamedTuple):
    """A batch: logits (B, K), and where they are asked for maps (B, h, w) and embeddings (B, C)."""

    logits: Tensor
    maps: Tensor | None
    embeddings: Tensor | None


class Predictor:
    """A model that fills tables.

    Args:
        choice: which.
        settings: what is written.

    Attributes:
        class_names: K names.
        temperature: what logits are divided by.
        provenance: how the model came to be.
        preprocessing: from image to network input.
        fingerprint: of all that decides its answers.
        batch_size: images of one forward pass.
        map_shape: (h, w), or None.
        embedding_length: C, or None.

    Raises:
        UserError: there is no such model or device, or it cannot give what is asked for.
    """

    def __init__(self, choice: ModelChoice, settings: Settings):
        if not choice.name or "\0" in choice.name:
            raise UserError(f"there is no model {choice.name!r}")
        self._settings = settings
        self._device = find_device(choice.device)
        network = load(choice.name, weights=choice.weights).to(self._device).eval().requires_grad_(False)
        self.class_names = class_names_of(network)
        self.temperature = temperature_of(network)
        self.provenance: dict[str, Any] = network.metadata.provenance
        preprocessing = preprocessing_of(network)
        self.preprocessing: Preprocessing = (
            preprocessing if settings.size is None else preprocessing.with_size(settings.size)
        )
        self.fingerprint = fingerprint_of(network, self.preprocessing)
        self._network: AttentionClassifier = cast(Any, network).fuse() if self._device.type == "cpu" else network
        if not 1 <= settings.top <= LARGEST_TOP:
            raise UserError(f"--top is {settings.top}; it must be from 1 to {LARGEST_TOP:,}")
        self.top = min(settings.top, len(self.class_names))
        one = torch.zeros(1, self.preprocessing.channels, *self.preprocessing.size, device=self._device)
        self.batch_size = batch_size_for(*self.preprocessing.size)
        self._passes = 1
        if self._device.type == "cpu" and network.config.pooling != "exported":  # a file has threads of its own
            self.batch_size, self._passes = images_at_once(one, MOST_AT_ONCE), torch.get_num_threads()
        tried = self.answer(one)
        self.map_shape = None if tried.maps is None else (tried.maps.shape[1], tried.maps.shape[2])
        self.embedding_length = None if tried.embeddings is None else tried.embeddings.shape[1]

    def describe(self, name: str) -> dict[str, Any]:
        """The model and the settings, as `predict.json` has them."""
        settings = asdict(self._settings)
        settings["size"] = list(self.preprocessing.size)
        if not self._settings.embeddings:
            del settings["embedding_dtype"]
        return {
            "model": {"name": name, "sha256": self.fingerprint},
            "settings": settings,
            "class_names": self.class_names,
            "temperature": self.temperature,
            "map_shape": self.map_shape,
            "embedding_length": self.embedding_length,
        }

    def answer(self, images: Tensor) -> Answers:
        """What the network says in one forward pass.

        Args:
            images: (B, C, H, W) float32, preprocessed.

        Raises:
            UserError: the model has no such maps or embeddings.
        """
        images = images.to(self._device)
        network, wanted = self._network, self._settings
        if not (wanted.maps != "none" or wanted.embeddings):
            return Answers(network(images).float(), None, None)
        whole = network.whole_answer(images)
        if whole is not None:
            if wanted.embeddings:
                raise UserError("an exported file gives no embeddings; ask the network it was made from")
            predicted = whole.logits.argmax(1)
            if wanted.maps == "attention":
                return Answers(whole.logits, _attention_of(whole.attention, predicted, network.class_wise), None)
            found = whole.classes == predicted[:, None]
            if not found.any(1).all():
                raise UserError("this exported file has no evidence for the predicted class; export it with --evidence")
            return Answers(whole.logits, whole.evidence[found], None)
        if network.config.pooling == "none":
            raise UserError("this network has no attention pooling, so it has no maps and no embeddings to write")
        patches = network.forward_features(images).permute(0, 2, 3, 1)  # (B, h, w, C)
        pooled = network.pooling(patches)
        logits = network.classify(pooled.vector)
        predicted = logits.argmax(1)
        maps = embeddings = None
        if wanted.maps == "attention":
            maps = _attention_of(pooled.attention, predicted, network.class_wise)
        elif wanted.maps == "evidence":
            if network.has_exact_evidence:
                maps = network.evidence_of(pooled)[torch.arange(len(predicted)), predicted]
            else:
                pooling = cast(Any, network.pooling)
                maps = pooling.first_order_evidence(patches, network.classify, predicted[:, None])[:, 0]
        if wanted.embeddings:
            embeddings = network.neck(pooled.vector)
            if embeddings.ndim == 3:  # a vector for each class: their mean, as in `forward_head`
                embeddings = embeddings.mean(1)
        return Answers(logits.float(), maps, embeddings)

    def tables(
        self, work: Work, parts: Iterable[Part], *, readers: int = 1
    ) -> "Iterator[tuple[int, int, pyarrow.Table | None]]":
        """What the network says about the images of parts; holds one part's rows and some passes of images at a time.

        Args:
            work: reads the images.
            parts: in this order.
            readers: threads that decode.

        Yields:
            (number of the part, images done since the last time, the part's table when it is complete).

        Raises:
            NotOfOneImageError: a server does not send its images.
        """
        most = max((1 + PASSES_AHEAD) * self._passes, -(-2 * readers // self.batch_size))
        together = max(1, most * self.batch_size // (2 * readers))  # images of a task: one for each takes as long
        with readers_on_one_core(readers) as ahead:

            def passes() -> Iterator[_Pass]:
                for number, items, is_last in _batches(parts, self.batch_size):
                    groups = [items[begin : begin + together] for begin in range(0, len(items), together)]
                    yield _Pass(number, is_last, items, [ahead.submit(self._read, work, group) for group in groups])

            def answered(one: _Pass) -> tuple[_Pass, _Rows]:
                return one, self._rows(one.items, [each for task in one.reading for each in task.result()])

            rows: list[_Rows] = []
            for one, its_rows in in_order(answered, passes(), self._device, self._passes, most):
                rows.append(its_rows)
                yield one.part, len(one.items), self._table(rows) if one.is_last else None
                if one.is_last:
                    rows = []

    def _read(self, work: Work, items: list[Item]) -> "list[Tensor | Exception]":
        """Network inputs, or why there is none; of small images together those of one size."""
        read: dict[int, Tensor | Exception] = {}
        together: dict[tuple[int, int], dict[int, Tensor]] = {}
        for place, item in enumerate(items):
            try:
                image = work.read(item)
                if image.width * image.height > SMALL:
                    read[place] = self.preprocessing(image)
                else:
                    together.setdefault(image.size, {})[place] = pixels(image, self.preprocessing.channels)
            except NotOfOneImageError:
                raise
            except OF_ONE_IMAGE as error:
                read[place] = error
        for of_one_size in together.values():
            try:
                read.update(
                    zip(of_one_size, self.preprocessing.batch(torch.stack([*of_one_size.values()])), strict=True)
                )
            except OF_ONE_IMAGE as error:
                read.update(dict.fromkeys(of_one_size, error))
        return [read[place] for place in range(len(items))]

    def _rows(self, items: list[Item], read: "list[Tensor | Exception]") -> "_Rows":
        answers, failures = self._answers([each for each in read if isinstance(each, Tensor)])
        failed = iter(failures)
        errors = [next(failed) if isinstance(each, Tensor) else each for each in read]
        good = np.array([error is None for error in errors])
        logits = torch.cat([each.logits for each in answers]) if answers else torch.zeros(0, len(self.class_names))
        scaled = logits.cpu() / self.temperature
        probabilities, classes = scaled.softmax(1).topk(self.top)
        labels = np.array([item.label for item in items], np.int32)
        known = torch.from_numpy(labels[good].astype(np.int64))
        losses = F.cross_entropy(scaled, known, ignore_index=-1, reduction="none")

        def joined(name: str, dtype: Any) -> np.ndarray | None:
            present = [values.flatten(1) for each in answers if (values := getattr(each, name)) is not None]
            return torch.cat(present).float().cpu().numpy().astype(dtype) if present else None

        return _Rows(
            ids=[item.id for item in items],
            labels=labels,
            good=good,
            errors=[None if error is None else _why(error) for error in errors],
            classes=classes.numpy(),
            probabilities=probabilities.numpy(),
            losses=losses.numpy(),
            maps=joined("maps", np.float16),
            embeddings=joined("embeddings", self._settings.embedding_dtype),
        )

    def _answers(self, tensors: list[Tensor]) -> tuple[list[Answers], list[Exception | None]]:
        """Of those that are answered; and of each what stood in the way, if anything.

        Where a pass fails each image is asked alone, so that only the faulty ones are errors.
        """
        if not tensors:
            return [], []
        try:
            found = self.answer(torch.stack(tensors))
        except OF_ONE_IMAGE as error:
            if len(tensors) == 1:
                return [], [error]
            alone = [self._answers([tensor]) for tensor in tensors]
            return [each for answers, _ in alone for each in answers], [each for _, errors in alone for each in errors]
        finite = found.logits.isfinite().all(1)
        if finite.all():
            return [found], [None] * len(tensors)
        logits, maps, embeddings = (None if values is None else values[finite] for values in found)
        no_number = UserError("the network's answer is no finite number")
        errors: list[Exception | None] = [None if fine else no_number for fine in finite.tolist()]
        return [Answers(cast(Tensor, logits), maps, embeddings)], errors

    def _table(self, rows: "list[_Rows]") -> "pyarrow.Table":
        import pyarrow as pa

        good = np.concatenate([each.good for each in rows])
        labels = np.concatenate([each.labels for each in rows])
        classes = np.concatenate([each.classes for each in rows]).astype(np.int32)
        losses = np.full(len(good), np.nan, np.float32)
        losses[good] = np.concatenate([each.losses for each in rows])
        unlabelled = labels < 0
        names = pa.array(self.class_names, pa.string())
        named = names.take(pa.array(classes.reshape(-1))).to_numpy(zero_copy_only=False).reshape(classes.shape)
        label_names = names.take(pa.array(labels, mask=unlabelled))
        columns: dict[str, Any] = {
            "id": pa.array([name for each in rows for name in each.ids], pa.string()),
            "classes": lists(named, good, pa.string()),
            "class_indices": lists(classes, good, pa.int32()),
            "probabilities": lists(np.concatenate([each.probabilities for each in rows]), good, pa.float32()),
            "label": label_names,
            "label_index": pa.array(labels, pa.int32(), mask=unlabelled),
            "label_loss": pa.array(losses, pa.float32(), mask=unlabelled | ~good),
            "error": pa.array([error for each in rows for error in each.errors], pa.string()),
        }
        for name, shape, stored, kind in (
            (self._settings.maps, self.map_shape, [each.maps for each in rows], np.float16),
            ("embedding", self.embedding_length, [each.embeddings for each in rows], self._settings.embedding_dtype),
        ):
            if shape is not None:
                present = [each for each in stored if each is not None]
                length = int(np.prod(shape))
                values = np.concatenate(present) if present else np.zeros((0, length), kind)
                columns[name] = lists(values, good, pa.from_numpy_dtype(np.dtype(kind)))
        return pa.table(columns)


class _Pass(NamedTuple):
    """Images that are answered together: of which part, whether its last ones, and what reads them."""

    part: int
    is_last: bool
    items: list[Item]
    reading: "list[Future[list[Tensor | Exception]]]"


class _Rows(NamedTuple):
    ids: list[str]
    labels: np.ndarray
    good: np.ndarray
    errors: list[str | None]
    classes: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray
    maps: np.ndarray | None
    embeddings: np.ndarray | None


def _attention_of(attention: Tensor, predicted: Tensor, class_wise: bool) -> Tensor:
    """As `Explanation.map_for`: the predicted class's own row where each class has one, else the mean of all."""
    return attention[torch.arange(len(predicted)), predicted] if class_wise else attention.mean(1)


def _batches(parts: Iterable[Part], size: int) -> Iterator[tuple[int, list[Item], bool]]:
    for number, items in parts:
        for begin in range(0, len(items), size):
            yield number, items[begin : begin + size], begin + size >= len(items)


def _why(error: Exception) -> str:
    return str(error).partition("\n")[0].encode("utf-8", "backslashreplace").decode() or type(error).__name__


def fingerprint_of(network: AttentionClassifier, preprocessing: Preprocessing) -> str:
    """Of all that decides a model's answers: its weights, or its file, and what happens to images before it."""
    digest = hashlib.sha256(repr(sorted(preprocessing.to_dict().items())).encode())
    digest.update(repr((network.config, class_names_of(network), temperature_of(network))).encode())
    file = getattr(network, "name", None)
    if isinstance(file, str) and Path(file).is_file():
        digest.update(Path(file).read_bytes())
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
