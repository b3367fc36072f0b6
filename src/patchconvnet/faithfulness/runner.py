"""An audit at work: predictions, maps, mosaics, repeated maps, examples; each does what is not there yet."""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from patchconvnet.data.geometry import Geometry
from patchconvnet.data.labelled_images import Images
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.data.splits import Split
from patchconvnet.errors import UserError
from patchconvnet.explanation.explainer import class_names_of
from patchconvnet.faithfulness.annotations import Annotations, image_name
from patchconvnet.faithfulness.methods import Attribution, Method, uninformative
from patchconvnet.faithfulness.metrics import Case, Metric
from patchconvnet.faithfulness.metrics.ends import Ends
from patchconvnet.faithfulness.metrics.grid_pointing import mosaic
from patchconvnet.faithfulness.progress import Progress
from patchconvnet.faithfulness.report.gallery import Example
from patchconvnet.faithfulness.results import Record, Results
from patchconvnet.faithfulness.settings import AuditSettings
from patchconvnet.models.weights import temperature_of

CONFIDENT = 0.5  # least probability of an image in a mosaic
POOL = 20  # images to choose from for each mosaic


class Batch(NamedTuple):
    """images: (B, C, H, W), preprocessed; geometries: how each of them is placed on its original."""

    images: Tensor
    geometries: list[Geometry]


@dataclass
class Runner:
    """One audit at work. Each of its parts does what is not in the results yet.

    `fused` is the model made fast for whatever needs no gradients through it.
    """

    model: nn.Module
    fused: nn.Module
    data: Split
    labels: list[int]
    preprocessing: Preprocessing
    device: torch.device
    settings: AuditSettings
    methods: list[Method]
    metrics: list[Metric]
    annotations: Annotations | None
    results: Results
    progress: Progress

    def run(self, chosen: Sequence[int], order: Sequence[int]) -> dict[str, str]:
        """Everything; returns the measures that could not be made, with the reason."""
        self.predict(chosen, order)
        self.explain(chosen)
        left_out: dict[str, str] = {}
        for n in sorted({metric.cells for metric in self._metrics("mosaics")}):
            if reason := self.mosaics(n):
                left_out |= {metric.name: reason for metric in self._metrics("mosaics") if metric.cells == n}
        self.repeat(chosen)
        return left_out

    def predict(self, chosen: Sequence[int], order: Sequence[int]) -> None:
        """What the network says of every image; and whether boxes and masks fit their images."""
        needed = set(chosen)
        for part in _chunks(order[: self.predicted(len(chosen))], self.settings.forward_batch):
            self.progress.at("predictions")
            if self.results.has(("prediction", None, None, index) for index in part):
                self.progress.skip(self.progress.cost.prediction * len(part))
                continue
            batch = self._load(part)
            for index, geometry in zip(part, batch.geometries, strict=True):
                if self.annotations and index in needed:
                    self.annotations.on_input(index, geometry)
            with torch.no_grad():
                logits = self.fused(batch.images).float()
            if not logits.isfinite().all():
                raise UserError(
                    "the network's answers are not finite numbers; its training has diverged, or its weights are "
                    "damaged."
                )
            best = (logits / temperature_of(self.model)).softmax(1).max(1)
            rows = zip(part, best.indices.tolist(), best.values.tolist(), strict=True)
            self.results.add(
                [
                    {
                        "kind": "prediction",
                        "image": index,
                        "name": image_name(self.data, index),
                        "label": self.labels[index],
                        "predicted": predicted,
                        "probability": probability,
                    }
                    for index, predicted, probability in rows
                ]
            )
            self.progress.advance(self.progress.cost.prediction * len(part))

    def predicted(self, chosen: int) -> int:
        """How many images need a prediction: those that are explained, and enough to choose mosaics from."""
        return max(chosen, POOL * self.settings.mosaics if self._metrics("mosaics") else 0)

    def explain(self, chosen: Sequence[int]) -> None:
        """Maps of every image by every method, and what is measured on them."""
        for part in _chunks(chosen, self.settings.batch_size):
            if to_do := self._to_do("maps", 0, part, self.methods):
                batch, classes = self._load(part), self._classes(part)[:, None]
                ends = Ends(self.fused, batch.images, self.settings.forward_batch)
            for method in to_do:
                self.progress.at(f"maps: {method.title}")
                self.results.add(self._explained(method, part, batch, classes, ends))
                self.progress.advance(self.progress.cost.maps[method.name] * len(part))

    def _explained(
        self, method: Method, part: Sequence[int], batch: Batch, classes: Tensor, ends: Ends
    ) -> list[Record]:
        images, options = batch.images, self.settings.options
        start = self._now()
        attribution = self._attribution(method, images, classes)
        seconds = (self._now() - start) / len(part)
        maps = attribution.pixels((images.shape[-2], images.shape[-1])).float()
        located = []
        if self.annotations:
            pairs = zip(part, batch.geometries, strict=True)
            located = [self.annotations.on_input(index, geometry) for index, geometry in pairs]
        case = Case(
            self.model,
            method,
            images,
            classes,
            options,
            self.settings.steps,
            attribution,
            maps,
            located,
            self.fused,
            ends,
        )
        values = {metric.name: metric.compute(case) for metric in self._metrics("maps")}
        nothing = uninformative(maps[:, 0]).tolist()
        return [
            {"kind": "maps", "method": method.name, "image": index, "seconds": seconds, "uninformative": nothing[i]}
            | {name: rows[i] for name, rows in values.items()}
            for i, index in enumerate(part)
        ]

    def mosaics(self, n: int) -> str | None:
        """What is measured on n × n mosaics; returns why not, where there is none to be made."""
        s = self.settings
        metrics = [metric for metric in self._metrics("mosaics") if metric.cells == n]
        tiles = choose_mosaics(self.results.of_kind("prediction"), n, s.mosaics, s.seed)
        costs = self.progress.cost.mosaics.get(n, {})
        self.progress.skip((s.mosaics - len(tiles)) * sum(costs.values()))
        if not tiles:
            return (
                f"no {n} × {n} mosaic could be made: that takes {n * n} different classes with an image each that is "
                f"rightly classified with a probability of {CONFIDENT} or more"
            )
        size = max(1, s.batch_size // (n * n))
        for part in _chunks(list(range(len(tiles))), size):
            if to_do := self._to_do("mosaics", n, part, self.methods):
                members = [index for number in part for index in tiles[number]]
                images = mosaic(self._load(members).images.unflatten(0, (len(part), n * n)))
                classes = self._classes(members).unflatten(0, (len(part), n * n))
            for method in to_do:
                self.progress.at(f"{n} × {n} mosaics: {method.title}")
                attribution = self._attribution(method, images, classes)
                maps = attribution.pixels((images.shape[-2], images.shape[-1])).float()
                case = Case(self.model, method, images, classes, s.options, s.steps, attribution, maps, [])
                values = {metric.name: metric.compute(case) for metric in metrics}
                self.results.add(
                    [
                        {"kind": "mosaics", "method": method.name, "n": n, "image": number}
                        | {name: rows[i] for name, rows in values.items()}
                        for i, number in enumerate(part)
                    ]
                )
                self.progress.advance(costs[method.name] * len(part))
        return None

    def repeat(self, chosen: Sequence[int]) -> None:
        """Measures that make many maps of each of the first few images."""
        if not (metrics := self._metrics("repeated")):
            return
        s = self.settings
        methods = [method for method in self.methods if s.robust(method.name)]
        for part in _chunks(chosen[: s.robustness], s.batch_size):
            if to_do := self._to_do("repeated", 0, part, methods):
                images, classes = self._load(part).images, self._classes(part)[:, None]
            for method in to_do:
                self.progress.at(f"sanity and stability: {method.title}")
                nothing = images.new_zeros(0)
                case = Case(self.model, method, images, classes, s.options, s.steps, None, nothing, [], self.fused)
                values = {metric.name: metric.compute(case) for metric in metrics}
                self.results.add(
                    [
                        {"kind": "repeated", "method": method.name, "image": index}
                        | {name: rows[i] for name, rows in values.items()}
                        for i, index in enumerate(part)
                    ]
                )
                self.progress.advance(self.progress.cost.repeated[method.name] * len(part))

    def examples(self, chosen: Sequence[int]) -> list[Example]:
        """The first images with their maps, and the first mosaic with those of its first class."""
        s = self.settings
        names = class_names_of(self.model)
        few = chosen[: s.examples]
        if not few:
            return []
        shown = []
        batch = self._load(few)
        maps = self._maps(batch.images, self._classes(few)[:, None])
        for i, index in enumerate(few):
            prediction = self.results.records["prediction", None, None, index]
            located = self.annotations.on_input(index, batch.geometries[i]) if self.annotations else None
            shown.append(
                Example(
                    image=self._pixels(batch.images[i]),
                    maps={name: values[i, 0].numpy() for name, values in maps.items()},
                    name=prediction["name"],
                    label=names[prediction["label"]],
                    predicted=names[prediction["predicted"]],
                    probability=prediction["probability"],
                    mask=located.mask if located else None,
                )
            )
        for n in sorted({metric.cells for metric in self._metrics("mosaics")}):
            for tile in choose_mosaics(self.results.of_kind("prediction"), n, s.mosaics, s.seed)[:1]:
                image = mosaic(self._load(tile).images[None])
                classes = self._classes(tile)
                maps = self._maps(image, classes[None, :1])
                first = names[int(classes[0])]
                shown.append(
                    Example(
                        image=self._pixels(image[0]),
                        maps={name: values[0, 0].numpy() for name, values in maps.items()},
                        name=f"{n} × {n} mosaic",
                        label=first,
                        predicted=first,
                        probability=None,
                        mask=None,
                        cells=n,
                    )
                )
        return shown

    def _maps(self, images: Tensor, classes: Tensor) -> dict[str, Tensor]:
        size = (images.shape[-2], images.shape[-1])
        return {
            method.name: self._attribution(method, images, classes).pixels(size).float().cpu()
            for method in self.methods
        }

    def _attribution(self, method: Method, images: Tensor, classes: Tensor) -> Attribution:
        return method(self.model if method.differentiates else self.fused, images, classes, self.settings.options)

    def _pixels(self, image: Tensor) -> np.ndarray:
        """A network input as an image: (H, W, 3) uint8."""
        mean, std = (
            image.new_tensor(values).view(-1, 1, 1) for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        values = ((image * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return values if values.shape[2] == 3 else np.repeat(values.mean(2, keepdims=True), 3, 2).astype(np.uint8)

    def _metrics(self, stage: str) -> list[Metric]:
        return [metric for metric in self.metrics if metric.stage == stage]

    def _classes(self, part: Sequence[int]) -> Tensor:
        """(B,) the classes that maps are asked for."""
        if self.settings.target == "label":
            asked = [self.labels[index] for index in part]
        else:
            asked = [self.results.records["prediction", None, None, index]["predicted"] for index in part]
        return torch.tensor(asked, device=self.device)

    def _load(self, part: Sequence[int]) -> Batch:
        return load_images(self.data, part, self.preprocessing, self.device)

    def _to_do(self, kind: str, n: int, part: Sequence[int], methods: Sequence[Method]) -> list[Method]:
        """The methods whose results for these images or mosaics are not there yet."""
        cells = n or None
        done = [method for method in methods if self.results.has((kind, method.name, cells, index) for index in part)]
        cost = self.progress.cost
        costs = {"maps": cost.maps, "repeated": cost.repeated, "mosaics": cost.mosaics.get(n, {})}[kind]
        self.progress.skip(len(part) * sum(costs[method.name] for method in done))
        return [method for method in methods if method not in done]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def choose_mosaics(predictions: Sequence[Record], n: int, count: int, seed: int) -> list[list[int]]:
    """The images of `count` mosaics, n² each, all of different classes, no image twice.

    As Böhle et al. 2021 do (arXiv 2104.00032, section 5): the classes of a mosaic are drawn at random, and each gives
    its most confident image that is left, of those that are rightly classified with a probability of at least
    `CONFIDENT`. There are fewer mosaics where images run out.
    """
    ranked: dict[int, list[int]] = {}
    for record in sorted(predictions, key=lambda record: (record["probability"], -record["image"])):
        if record["predicted"] == record["label"] and record["probability"] >= CONFIDENT:
            ranked.setdefault(record["label"], []).append(record["image"])  # the most confident last
    draw = random.Random(seed)
    tiles: list[list[int]] = []
    while len(tiles) < count and len(left := sorted(k for k, images in ranked.items() if images)) >= n * n:
        tiles.append([ranked[k].pop() for k in draw.sample(left, n * n)])
    return tiles


def load_images(data: Split, part: Sequence[int], preprocessing: Preprocessing, device: torch.device) -> Batch:
    """Images of a split as a batch of network inputs on a device."""
    if isinstance(data, Images):
        geometry = preprocessing.geometry(data.images.shape[-2], data.images.shape[-1])
        return Batch(preprocessing.batch(data.images[list(part)].to(device)), [geometry] * len(part))
    originals = [data.image(index) for index in part]
    images = torch.stack([preprocessing(image) for image in originals]).to(device)
    return Batch(images, [preprocessing.geometry(image.height, image.width) for image in originals])


def _chunks(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
