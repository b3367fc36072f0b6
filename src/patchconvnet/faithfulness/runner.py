"""An audit at work: predictions, maps, mosaics, a closer look, examples; each does what is not there yet."""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import Progress, TaskID
from torch import Tensor, nn

from patchconvnet.data.preprocessing import Geometry, Preprocessing
from patchconvnet.data.splits import Images, Split
from patchconvnet.errors import UserError
from patchconvnet.explanation.explainer import class_names_of
from patchconvnet.faithfulness.annotations import Objects, image_name
from patchconvnet.faithfulness.methods import Method, uninformative
from patchconvnet.faithfulness.metrics import deletion, localisation, road, robustness
from patchconvnet.faithfulness.report.report import Example
from patchconvnet.faithfulness.results import Ledger, Record
from patchconvnet.faithfulness.settings import CLOSE, FAITHFULNESS, LOCALISATION, MOSAICS, AuditSettings

CONFIDENT = 0.5  # least probability of an image in a mosaic
POOL = 20  # images to choose from for each mosaic


class Batch(NamedTuple):
    images: Tensor
    geometries: list[Geometry]


@dataclass
class AuditRun:
    """One audit at work. Each of its parts does what is not in the ledger yet."""

    model: nn.Module
    data: Split
    labels: list[int]
    preprocessing: Preprocessing
    device: torch.device
    settings: AuditSettings
    methods: list[Method]
    measures: tuple[str, ...]
    objects: Objects | None
    ledger: Ledger
    progress: Progress

    def predict(self, chosen: Sequence[int], order: Sequence[int]) -> None:
        """What the network says of every image; and whether the objects' boxes and masks fit their images."""
        wanted = len(chosen)
        if set(self.measures) & set(MOSAICS):
            wanted = max(wanted, POOL * self.settings.mosaics)
        needed = set(chosen)
        work = list(_chunks(order[:wanted], self.settings.forward_batch))
        task = self._task("predictions", sum(len(part) for part in work))
        for part in work:
            if not self.ledger.has(("prediction", None, None, index) for index in part):
                batch = self._load(part)
                for index, geometry in zip(part, batch.geometries, strict=True):
                    if self.objects and index in needed:
                        self.objects.on_input(index, geometry)
                with torch.no_grad():
                    logits = self.model(batch.images).float()
                if not logits.isfinite().all():
                    raise UserError(
                        "the network's answers are not finite numbers; its training has diverged, or its weights are "
                        "damaged."
                    )
                best = logits.softmax(1).max(1)
                self.ledger.add(
                    [
                        {
                            "kind": "prediction",
                            "image": index,
                            "name": image_name(self.data, index),
                            "label": self.labels[index],
                            "predicted": predicted,
                            "probability": probability,
                        }
                        for index, predicted, probability in zip(
                            part, best.indices.tolist(), best.values.tolist(), strict=True
                        )
                    ]
                )
            self.progress.advance(task, len(part))

    def explain(self, chosen: Sequence[int]) -> None:
        """Maps of every image by every method, and what is measured on them."""
        s = self.settings
        on_maps = [name for name in (*FAITHFULNESS, *LOCALISATION) if name in self.measures]
        asks = (
            (s.steps + 1) * len({"deletion", "insertion"} & set(on_maps))
            + 2 * len(road.FRACTIONS) * ("road" in on_maps)
        )  # fmt: skip
        costs = {method.name: method.passes(s.options) + asks for method in self.methods}
        task = self._task("maps", len(chosen) * sum(costs.values()))
        for part in _chunks(chosen, s.batch_size):
            if to_do := self._to_do("map", None, part, task, costs):
                batch, classes = self._load(part), self._classes(part)
            for method in to_do:
                self.progress.update(task, description=f"maps: {method.title}")
                self.ledger.add(self._measured(method, part, batch, classes))
                self.progress.advance(task, len(part) * costs[method.name])

    def _measured(self, method: Method, part: Sequence[int], batch: Batch, classes: Tensor) -> list[Record]:
        s, images = self.settings, batch.images
        start = self._now()
        attribution = method(self.model, images, classes[:, None], s.options)
        seconds = (self._now() - start) / len(part)
        maps = attribution.pixels((images.shape[-2], images.shape[-1]))[:, 0].float()
        columns: dict[str, list[Any]] = {"uninformative": uninformative(maps).tolist()}
        for name, measure in (("deletion", deletion.deletion), ("insertion", deletion.insertion)):
            if name in self.measures:
                curves = measure(self.model, images, maps, classes, steps=s.steps, forward_batch=s.forward_batch)
                columns[name] = curves.score.tolist()
                columns[f"{name}_curve"] = curves.probabilities.tolist()
        if "road" in self.measures:
            columns["road"] = road.road(
                self.model, images, maps, classes, seed=s.seed, forward_batch=s.forward_batch
            ).score.tolist()
        if "completeness" in self.measures and (error := attribution.completeness_error()) is not None:
            columns["completeness"] = error[:, 0].tolist()
        if self.objects:
            columns |= self._located(maps, part, batch.geometries)
        return [
            {"kind": "map", "method": method.name, "image": index, "seconds": seconds}
            | {name: values[i] for name, values in columns.items()}
            for i, index in enumerate(part)
        ]

    def _located(self, maps: Tensor, part: Sequence[int], geometries: Sequence[Geometry]) -> dict[str, list[Any]]:
        assert self.objects
        located = [self.objects.on_input(index, geometry) for index, geometry in zip(part, geometries, strict=True)]
        masks = torch.from_numpy(np.stack([place.mask for place in located])).to(maps.device)
        columns: dict[str, list[Any]] = {}
        for name, measure in (("pointing", localisation.pointing), ("energy", localisation.energy)):
            if name in self.measures:
                columns[name] = measure(maps, masks).tolist()
        if "boxes" in self.measures:
            arrays = maps.cpu().numpy()
            columns["boxes"] = [
                # whole percents, rounded down: thirty of them are an overlap of at least 0.3
                np.floor(localisation.box_overlaps(values, place.boxes) * 100 + 1e-9).astype(int).tolist()
                for values, place in zip(arrays, located, strict=True)
            ]
        if "pixels" in self.measures:
            columns["pixels"] = localisation.pixel_histograms(maps, masks).tolist()
        return columns

    def mosaics(self, n: int) -> str | None:
        """Grid pointing on n × n mosaics; returns why not, where there is none to be made."""
        s = self.settings
        tiles = choose_mosaics(self.ledger.of_kind("prediction"), n, s.mosaics, s.seed)
        if not tiles:
            return (
                f"no {n} × {n} mosaic could be made: that takes {n * n} different classes with an image each that is "
                f"rightly classified with a probability of {CONFIDENT} or more"
            )
        # the gradient methods need a pass for each class of a mosaic
        costs = {m.name: m.passes(s.options) * n * n * (1 if m.name == "rise" else n * n) for m in self.methods}
        task = self._task(f"{n} × {n} mosaics", len(tiles) * sum(costs.values()))
        size = max(1, s.batch_size // (n * n))
        for part in _chunks(list(range(len(tiles))), size):
            if to_do := self._to_do("mosaic", n, part, task, costs):
                members = [index for number in part for index in tiles[number]]
                images = localisation.mosaic(self._load(members).images.unflatten(0, (len(part), n * n)))
                classes = self._classes(members).unflatten(0, (len(part), n * n))
            for method in to_do:
                self.progress.update(task, description=f"{n} × {n} mosaics: {method.title}")
                maps = method(self.model, images, classes, s.options).pixels((images.shape[-2], images.shape[-1]))
                shares = localisation.grid_pointing(maps.float()).tolist()
                self.ledger.add(
                    [
                        {"kind": "mosaic", "method": method.name, "n": n, "image": number, "shares": row}
                        for number, row in zip(part, shares, strict=True)
                    ]
                )
                self.progress.advance(task, len(part) * costs[method.name])
        return None

    def look_closely(self, chosen: Sequence[int]) -> None:
        """Sanity and stability, on the first few images."""
        if not set(CLOSE) & set(self.measures):
            return
        s, few = self.settings, chosen[: self.settings.close]
        costs = {method.name: method.passes(s.options) * 15 for method in self.methods}
        task = self._task("sanity and stability", len(few) * sum(costs.values()))
        for part in _chunks(few, s.batch_size):
            if to_do := self._to_do("close", None, part, task, costs):
                images, classes = self._load(part).images, self._classes(part)
            for method in to_do:
                self.progress.update(task, description=f"sanity and stability: {method.title}")
                self.ledger.add(self._close(method, part, images, classes))
                self.progress.advance(task, len(part) * costs[method.name])

    def _close(self, method: Method, part: Sequence[int], images: Tensor, classes: Tensor) -> list[Record]:
        s = self.settings
        columns: dict[str, list[Any]] = {}
        if "sanity" in self.measures:
            cascade = robustness.cascade(method, self.model, images, classes, s.options, s.seed)
            columns["levels"] = [cascade.levels] * len(part)
            columns["rank_correlation"] = cascade.rank_correlation.tolist()
            columns["similarity"] = cascade.similarity.tolist()
        if "stability" in self.measures:
            stable = robustness.stability(method, self.model, images, classes, s.options, s.seed)
            columns["stability_shift"] = stable.shift.tolist()
            columns["stability_noise"] = stable.noise.tolist()
        return [
            {"kind": "close", "method": method.name, "image": index}
            | {name: values[i] for name, values in columns.items()}
            for i, index in enumerate(part)
        ]

    def examples(self, chosen: Sequence[int]) -> list[Example]:
        """The first images with their maps, and the first mosaic with those of its first class."""
        s = self.settings
        names = class_names_of(self.model)
        shown = []
        few = chosen[: s.examples]
        if few:
            batch = self._load(few)
            maps = self._maps(batch.images, self._classes(few)[:, None])
            for i, index in enumerate(few):
                prediction = self.ledger.records["prediction", None, None, index]
                mask = self.objects.on_input(index, batch.geometries[i]).mask if self.objects else None
                shown.append(
                    Example(
                        image=self._pixels(batch.images[i]),
                        maps={name: values[i, 0].numpy() for name, values in maps.items()},
                        name=prediction["name"],
                        label=names[prediction["label"]],
                        predicted=names[prediction["predicted"]],
                        probability=prediction["probability"],
                        mask=mask,
                    )
                )
        for n in (MOSAICS[name] for name in self.measures if name in MOSAICS):
            for tile in choose_mosaics(self.ledger.of_kind("prediction"), n, s.mosaics, s.seed)[: 1 if few else 0]:
                image = localisation.mosaic(self._load(tile).images[None])
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
            method.name: method(self.model, images, classes, self.settings.options).pixels(size).float().cpu()
            for method in self.methods
        }

    def _pixels(self, image: Tensor) -> np.ndarray:
        """A network input as it looks: (H, W, 3) uint8."""
        mean, std = (
            image.new_tensor(values).view(-1, 1, 1) for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        values = ((image * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return values if values.shape[2] == 3 else np.repeat(values.mean(2, keepdims=True), 3, 2).astype(np.uint8)

    def _classes(self, part: Sequence[int]) -> Tensor:
        """(B,) the classes that maps are asked for."""
        if self.settings.target == "label":
            asked = [self.labels[index] for index in part]
        else:
            asked = [self.ledger.records["prediction", None, None, index]["predicted"] for index in part]
        return torch.tensor(asked, device=self.device)

    def _load(self, part: Sequence[int]) -> Batch:
        return load_images(self.data, part, self.preprocessing, self.device)

    def _to_do(
        self, kind: str, n: int | None, part: Sequence[int], task: TaskID, costs: dict[str, float]
    ) -> list[Method]:
        """The methods whose results for these images or mosaics are not there yet; the bar moves by the others."""
        to_do = [
            method for method in self.methods if not self.ledger.has((kind, method.name, n, index) for index in part)
        ]
        done = set(costs) - {method.name for method in to_do}
        self.progress.advance(task, len(part) * sum(costs[name] for name in done))
        return to_do

    def _task(self, description: str, total: float) -> TaskID:
        for task in self.progress.task_ids:
            self.progress.remove_task(task)
        return self.progress.add_task(description, total=total)

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
    if isinstance(data, Images):
        geometry = preprocessing.geometry(data.images.shape[-2], data.images.shape[-1])
        return Batch(preprocessing.batch(data.images[list(part)].to(device)), [geometry] * len(part))
    originals = [data.image(index) for index in part]
    images = torch.stack([preprocessing(image) for image in originals]).to(device)
    return Batch(images, [preprocessing.geometry(image.height, image.width) for image in originals])


def _chunks(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
