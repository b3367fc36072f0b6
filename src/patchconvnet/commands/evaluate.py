"""`patchconvnet evaluate`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from patchconvnet.commands.command_line import CommandLine
from patchconvnet.commands.sources import Size, load_model, preprocessing_for
from patchconvnet.commands.terminal import printable

MOST_CLASSES_SHOWN = 40


def evaluate(
    model: str,
    data: str,
    *,
    split: Literal["auto", "train", "validation", "test", "all"] = "auto",
    root: str | None = None,
    validation: float | None = None,
    test: float | None = None,
    data_seed: int | None = None,
    weights: Path | None = None,
    strict: bool = False,
    size: Size = None,
    batch_size: int = 256,
    workers: int = 2,
    mirror: bool = False,
    device: str = "auto",
    threads: int | Literal["auto"] = "auto",
    out: Path | None = None,
) -> int:
    """Measure a model on labelled images: loss, top-1, top-5, calibration, per class, confusion.

      patchconvnet evaluate --model runs/quick --data cifar10
      patchconvnet evaluate --model runs/pets --data folder:my_pictures --split validation --out report

    A folder without a test folder of its own, that the model was not trained on, is measured as a whole.

    Args:
        model: a run folder, a model folder, cifar10 (ships with the package), imagenet, a published tag such as
            patchconvnet_s60.fb_in1k, any timm model such as resnet50, or a hub id (owner/name).
        data: cifar10, cifar100, digits or folder:PATH.
        split: the images to measure on; auto is the test split, or all images of a folder that has none of its own and
            that the model has not seen.
        root: where CIFAR is kept or downloaded to.
        validation: share or number of images set aside for validation; by default as in the model's training.
        test: share or number of images set aside for the test; by default as in the model's training; 1 for all.
        data_seed: seed of that choice; by default as in the model's training.
        weights: a checkpoint of the timm model or variant that --model names: .safetensors, or a PyTorch file.
        strict: stop at an image that cannot be read, instead of leaving it out.
        size: another network input, such as 96 or 64x48 (height x width).
        batch_size: images in one forward pass.
        workers: processes that read image files.
        mirror: use the mean logits of each image and its mirror image; say so where you report the result.
        device: cpu, cuda, mps or auto.
        threads: threads on a CPU, or auto: as many as are fastest by a short measurement, unless OMP_NUM_THREADS says.
        out: folder for evaluation.json, tables, predictions and confusion matrix; evaluations/MODEL-DATA-SPLIT if not
            given.
    """
    import numpy as np
    from rich.console import Console
    from rich.progress import Progress

    from patchconvnet.api import check_class_names
    from patchconvnet.data.held_out import chosen_split, load_held_out
    from patchconvnet.data.splits import ImageFiles
    from patchconvnet.files import write_text
    from patchconvnet.hardware import Threads, check_threads
    from patchconvnet.training.evaluation import evaluate as measure
    from patchconvnet.training.evaluation_files import save_evaluation
    from patchconvnet.training.tables import predictions_csv

    check_threads(threads)
    network, chosen_device = load_model(model, weights, device)
    preprocessing = preprocessing_for(network, size)
    provenance = network.metadata.provenance
    splits = load_held_out(
        data, split, provenance, root=root, validation=validation, test=test, seed=data_seed,
        strict=strict, show_progress=True,
    )  # fmt: skip
    name = chosen_split(splits, split, provenance, root=root)
    images = splits.require(name)
    check_class_names(network, images)
    console = Console(highlight=False)
    if name == "all" and split == "auto":
        console.print(
            f"{printable(data)} is new to this model and has no test folder: all {len(images):,} images count",
            soft_wrap=True,
        )
    computing = Threads(threads, chosen_device)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{printable(splits.name)} {name}", total=len(images))
        probabilities = np.zeros((len(images), network.num_classes), np.float32)

        def keep(places: Any, batch: Any) -> None:
            probabilities[places.cpu().numpy()] = batch.cpu().numpy()

        def advance(count: int) -> None:
            bar.advance(task, count)
            computing.step()

        result = measure(
            network, images, preprocessing, batch_size=batch_size, mirror=mirror, device=chosen_device,
            workers=workers, on_batch=advance, on_probabilities=keep,
        )  # fmt: skip
    title = f"{model} on {splits.name}, {name}" + (", mirrored too" if mirror else "")
    _print_evaluation(console, result, printable(title))
    division = {"validation": validation, "test": test, "seed": data_seed}
    folder = out or Path("evaluations") / _folder_name(model, data, name, size, division, mirror)
    origin = {"model": model, "data": splits.name, "split": name, "size": list(preprocessing.size), "mirror": mirror}
    for path in save_evaluation(result, folder, origin):
        print(path)
    table = folder / "predictions.csv"
    paths = (
        [printable(p) for p in images.paths] if isinstance(images, ImageFiles) else [f"{i}" for i in range(len(images))]
    )
    write_text(table, predictions_csv(paths, images.class_names, probabilities, images.labels.tolist()))
    print(table)
    return 0


def run(words: Sequence[str]) -> int:
    """Run the command with the words typed after its name."""
    parser = CommandLine(evaluate)
    parser.add_function_arguments(evaluate, as_group=False)
    return evaluate(**parser.parse(words))


def _folder_name(model: str, data: str, split: str, size: Size, division: dict[str, float | None], mirror: bool) -> str:
    """Another name for another run, data set, division, split or size."""
    path = Path(model)
    parts = [f"{path.parent.name}-best" if path.name == "best" and path.parent.name else path.name]
    parts += [re.sub(r"[/\\:]+", "_", data), split]
    if size is not None:
        parts.append("x".join(map(str, size if isinstance(size, tuple | list) else [size])))
    parts += [f"{name}_{value:g}" for name, value in division.items() if value is not None]
    return "-".join([*parts, *(["mirrored"] if mirror else [])])


def _print_evaluation(console: Any, result: Any, title: str) -> None:
    from rich.markup import escape
    from rich.table import Table

    console.print(escape(title), soft_wrap=True)
    table = Table(box=None)
    table.add_column("class")
    for name in ("images", "recall", "precision", "F1"):
        table.add_column(name, justify="right")
    for row in result.per_class():
        shares = ("–" if row[key] is None else f"{row[key]:.2%}" for key in ("recall", "precision", "f1"))
        table.add_row(escape(printable(row["class"])), f"{row['images']:,}", *shares)
    if len(result.class_names) <= MOST_CLASSES_SHOWN:
        console.print(table)
    console.print(result.summary(), soft_wrap=True)
