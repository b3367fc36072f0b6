"""Training a head on a frozen backbone: its patches of every image are computed once, pooling and classifier then fit.

The recipe's `method: probe`. Minutes become seconds: the backbone runs forward once for each view of each image.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from patchconvnet.data.augmentation import Augmentation
from patchconvnet.data.batches import batches
from patchconvnet.data.labelled_images import reading_order
from patchconvnet.data.splits import DataSplits, Split
from patchconvnet.errors import UserError, first_line
from patchconvnet.files import write_atomic
from patchconvnet.hardware import device_name, fastest_dtype, give_back_freed_memory
from patchconvnet.models import AttentionClassifier
from patchconvnet.models.weights import shipped_models
from patchconvnet.progress_bar import progress_bar
from patchconvnet.training.calibration import calibrate
from patchconvnet.training.evaluation import evaluate
from patchconvnet.training.kept_model import KeptModel, metadata
from patchconvnet.training.monitor import explained_example
from patchconvnet.training.probe_fit import ProbeHead, fit_probe
from patchconvnet.training.recipe import Recipe
from patchconvnet.training.run_folder import RunFolder
from patchconvnet.training.sources import batch_source, build_model, load_data

FEATURES_FILE = "features.safetensors"
HELD_OUT = 0.2  # of the training images choose the penalty where the data has no validation split


def probe(recipe: Recipe, folder: RunFolder, device: torch.device) -> Path:
    """Fit pooling and classifier of a recipe's network, its backbone frozen.

    Args:
        recipe: with `method: probe`.
        folder: the run folder, opened. It keeps the backbone's features, so that a probe that was interrupted, or is
            asked for again, does not run the backbone again.
        device: where the backbone runs.

    Returns:
        The model folder.

    Raises:
        UserError: a mistake in the recipe or the data; features that do not fit into the recipe's `data.memory_gb`.
    """
    started = time.perf_counter()
    console = Console(highlight=False)
    data = load_data(recipe, show_progress=True)
    train = data.require("train")
    recipe = with_pooling(recipe)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe, len(data.class_names))
    adopt_pooling(model, recipe)
    model.to(device).eval().requires_grad_(False)
    console.print(
        f"{recipe.model.name} ({sum(p.numel() for p in model.parameters()):,} parameters, frozen but for its head) on "
        f"{data.name}: {len(train):,} images, {len(data.class_names)} classes, "
        f"{'×'.join(map(str, recipe.preprocessing.size))} pixels → {folder.path}",
        soft_wrap=True,
    )
    with progress_bar(console=console) as bar:
        features = _kept_features(model, recipe, data, folder, device, bar)
        computed = time.perf_counter()
        fitting = bar.add_task("fitting the head", total=1.0)
        model.cpu()
        head = _fit(model, features, recipe, lambda share: bar.update(fitting, completed=share))
    fitted = time.perf_counter()
    install(model, head)
    model.to(device)
    console.print(
        f"features {computed - started:.1f} s, head {fitted - computed:.1f} s: penalty {head.penalty:g}, validation "
        f"loss {head.loss:.4f} with attention"
        + (f", {head.loss_of_average:.4f} without" if head.queries.any() else " uniform"),
        soft_wrap=True,
    )
    _keep(model, recipe, data, folder, device, head, console, started)
    return folder.best


def with_pooling(recipe: Recipe) -> Recipe:
    """The recipe with the pooling that is fitted; a trained model brings one, which `adopt_pooling` replaces."""
    if Path(recipe.model.name).is_dir() or recipe.model.name in shipped_models():
        return recipe
    options = {**recipe.model.options, **recipe.probe.pooling}
    return replace(recipe, model=replace(recipe.model, options=options))


def adopt_pooling(model: AttentionClassifier, recipe: Recipe) -> None:
    """Give a network that came with another pooling, a model folder or one that ships, the one that is fitted.

    Raises:
        UserError: its channels cannot be divided among the recipe's queries.
    """
    wanted = recipe.probe.pooling
    if all(getattr(model.config, name) == value for name, value in wanted.items()):
        return
    if model.config.pooling == wanted["pooling"]:
        model.reset_classifier(model.num_classes, "average")  # or it would keep its queries
    model.config = replace(model.config, **{name: value for name, value in wanted.items() if name != "pooling"})
    model.reset_classifier(model.num_classes, wanted["pooling"])


def fit_head(model: AttentionClassifier, recipe: Recipe, data: DataSplits, device: torch.device) -> None:
    """Fit a network's pooling and classifier to its frozen patches, as the start of training all of it.

    Raises:
        UserError: as `probe`.
    """
    grads = [parameter.requires_grad for parameter in model.parameters()]
    model.to(device).eval().requires_grad_(False)
    with progress_bar() as bar:
        features = _features(model, recipe, data, device, bar)
        install(model.cpu(), _fit(model, features, recipe, lambda share: None))
    del features
    give_back_freed_memory()
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        parameter.requires_grad_(grad)
    model.train()


def install(model: AttentionClassifier, head: ProbeHead) -> None:
    """Put a fitted head into the network that gave the features."""
    with torch.no_grad():
        model.get_parameter("head.weight").copy_(head.weight)
        model.get_parameter("head.bias").copy_(head.bias)
        # scores are t·q/√C in both
        model.get_parameter("pooling.query").copy_(head.queries)


def _fit(
    model: AttentionClassifier, features: dict[str, Tensor], recipe: Recipe, on_step: Callable[[float], None]
) -> ProbeHead:
    num_classes = model.num_classes
    train, labels = features["train"], features["train_labels"]
    if "validation" in features:
        validation, validation_labels = features["validation"], features["validation_labels"]
    else:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(recipe.seed))
        held = max(1, round(HELD_OUT * len(labels)))
        validation, validation_labels = train[0, order[:held]], labels[order[:held]]
        train, labels = train[:, order[held:]], labels[order[held:]]
    weights = class_weights(labels, num_classes) if recipe.probe.balanced else None
    return fit_probe(
        train, labels, validation, validation_labels, num_classes, recipe.probe.queries, neck=model.neck,
        class_weights=weights, seed=recipe.seed, on_step=on_step,
    )  # fmt: skip


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """(K,) weights of a loss in which all classes count alike."""
    counts = labels.bincount(minlength=num_classes)
    return counts.sum() / (num_classes * counts.clamp_min(1))


def _kept_features(
    model: AttentionClassifier, recipe: Recipe, data: DataSplits, folder: RunFolder, device: torch.device, bar: Progress
) -> dict[str, Tensor]:
    file, images = folder.checkpoint, json.dumps(data.fingerprint(), sort_keys=True)
    if file.is_file():
        try:
            with safe_open(file, "pt") as kept:
                its_images = (kept.metadata() or {}).get("images")
            if _tells_of(its_images or "", images):
                return load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} is damaged ({first_line(error)}); begin a new run in another --out") from error
        raise UserError(
            f"the images of {data.name} are not those that the run in {folder.path} was begun with; begin a new run in "
            "another --out"
        )
    features = _features(model, recipe, data, device, bar)
    with folder.writing():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, lambda part: save_file(features, part, {"images": images}))
    return features


def _tells_of(before: str, now: str) -> bool:
    """Whether a kept fingerprint is that of today's images; an older version's may say less of them."""
    try:
        parts, current = json.loads(before), json.loads(now)
    except ValueError:
        return False
    return bool(parts) and {part: current.get(part) for part in parts} == parts


def _features(
    model: AttentionClassifier, recipe: Recipe, data: DataSplits, device: torch.device, bar: Progress
) -> dict[str, Tensor]:
    """By split, patches (V, N, P, C) or (N, P, C) in bfloat16 on the CPU, and labels (N,)."""
    train, validation = data.require("train"), data.validation
    views = recipe.probe.views
    with torch.inference_mode():
        patches = _patches(model, next(_plain(train, recipe, device))[0][:1], device)
        bytes_needed = 2 * patches[0].numel() * (views * len(train) + len(validation or ()))
        if bytes_needed > recipe.data.memory_gb * 2**30:
            raise UserError(
                f"the features of {views} views of {len(train):,} images need {bytes_needed / 2**30:.1f} GB, and "
                f"data.memory_gb is {recipe.data.memory_gb:g}; raise it, lower probe.views, or use the recipe finetune"
            )
        task = bar.add_task("features", total=views * len(train) + len(validation or ()))
        features: dict[str, Tensor] = {}

        def collect(source: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
            parts, labels = [], []
            for images, its_labels in source:
                parts.append(_patches(model, images, device))
                labels.append(its_labels.cpu())
                bar.advance(task, len(images))
            return torch.cat(parts), torch.cat(labels)

        plain, features["train_labels"] = collect(_plain(train, recipe, device))
        changed = [collect(_augmented(train, recipe, device, view))[0] for view in range(1, views)]
        features["train"] = torch.stack([plain, *changed])
        if validation is not None:
            features["validation"], features["validation_labels"] = collect(_plain(validation, recipe, device))
    return features


def _patches(model: AttentionClassifier, images: Tensor, device: torch.device) -> Tensor:
    """(B, P, C) bfloat16 patches on the CPU."""
    images = images.to(memory_format=torch.channels_last)
    with _autocast(device):
        features = model.forward_features(images)  # (B, C, h, w)
        tokens = model.pooling.norm(features.permute(0, 2, 3, 1))  # type: ignore[operator]  # (B, h, w, C)
    return tokens.flatten(1, 2).to("cpu", torch.bfloat16)


def _autocast(device: torch.device) -> AbstractContextManager[Any]:
    half = fastest_dtype(device) is torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16) if half else nullcontext()


def _plain(split: Split, recipe: Recipe, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    order = reading_order(split, recipe.batch_size, recipe.data.workers)
    for images, labels, _ in batches(
        split, recipe.preprocessing, recipe.batch_size, device=device, indices=order, workers=recipe.data.workers
    ):
        yield images, labels


def _augmented(split: Split, recipe: Recipe, device: torch.device, view: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All images in the order of `_plain`, each as the recipe's augmentation changes it in its `view`."""
    augmentation = Augmentation(recipe.augmentation, recipe.preprocessing, len(split.class_names), seed=recipe.seed)
    places = list(reading_order(split, recipe.batch_size, recipe.data.workers).split(recipe.batch_size))
    generator = torch.Generator().manual_seed(recipe.seed * 1000 + view)
    source = batch_source(split, recipe, device, show_progress=False)
    for where, (images, labels) in zip(places, source(places), strict=True):
        changed, _ = augmentation(images, labels, indices=where, epoch=view, generator=generator)
        yield changed, labels


def _keep(
    model: AttentionClassifier,
    recipe: Recipe,
    data: DataSplits,
    folder: RunFolder,
    device: torch.device,
    head: ProbeHead,
    console: Console,
    started: float,
) -> None:
    """Measure the network and write its model folder."""

    def measured(split: Split) -> Any:
        return evaluate(
            model, split, recipe.preprocessing, batch_size=recipe.batch_size, device=device, workers=recipe.data.workers
        )

    metrics: dict[str, Any] = {"epoch": 1, "probe": {"penalty": head.penalty, "attends": bool(head.queries.any())}}
    model.metadata = metadata(
        recipe,
        data,
        data.fingerprint(),
        metrics=metrics,
        devices=device_name(device),
        seconds=time.perf_counter() - started,
    )
    if (validation := data.validation) is None:
        calibrate(model, None, "not fitted: there are no validation images")
    else:
        images = batches(
            validation,
            recipe.preprocessing,
            recipe.batch_size,
            device=device,
            indices=reading_order(validation, recipe.batch_size, recipe.data.workers),
            workers=recipe.data.workers,
        )
        calibrate(model, lambda: images, "fitted to the validation images")
    if data.validation is not None:
        metrics["validation"] = measured(data.validation).to_dict()
    if data.test is not None:
        result = measured(data.test)
        metrics["test"] = result.to_dict()
        console.print(f"test set: loss {result.loss:.4f}  top-1 {result.top1:.2%}  ({result.count:,} images)")
    model.cpu()
    if recipe.monitor.every:
        example = explained_example(model, data.validation or data.require("train"), recipe.seed)
        model.metadata = replace(model.metadata, example=example)
    with folder.writing():
        KeptModel(folder.best, recipe.half_weights).write(model, model.metadata)
    console.print(f"model folder: {folder.best}", soft_wrap=True)
