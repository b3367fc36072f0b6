"""`patchconvnet evaluate`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from patchconvnet.commands.command_line import CommandLine, taken
from patchconvnet.commands.sources import ModelAndData
from patchconvnet.commands.terminal import printable
from patchconvnet.commands.torch_imports import import_networks

MOST_CLASSES_SHOWN = 40


def evaluate(
    subject: ModelAndData,
    *,
    batch_size: int | None = None,
    workers: int = 2,
    mirror: bool = False,
    out: Path | None = None,
    predictions: Path | None = None,
) -> int:
    """Measure a model on labelled images: loss, top-1, top-5, calibration, per class, confusion.

      patchconvnet evaluate --model runs/quick --data cifar10
      patchconvnet evaluate --model runs/pets --data folder:my_pictures --split validation --out report
      patchconvnet evaluate --predictions predicted --out report

    A folder without a test folder that the model was not trained on is measured as a whole.

    Args:
        subject: which model, on which images.
        batch_size: images in one forward pass; 256 if not given, on a CPU fewer large ones.
        workers: processes that read image files.
        mirror: use the mean logits of each image and its mirror image; say so where you report the result.
        out: folder for evaluation.json, tables, predictions and confusion matrix; evaluations/MODEL-DATA-SPLIT if not
            given.
        predictions: folder that patchconvnet predict wrote: what is there is measured, instead of asking the network
            again. Takes no option but --out beside it.
    """
    import_networks()
    import numpy as np
    from rich.console import Console

    from patchconvnet.api import check_class_names
    from patchconvnet.files import write_text
    from patchconvnet.hardware import Threads
    from patchconvnet.progress_bar import progress_bar
    from patchconvnet.training.evaluation import evaluate as measure
    from patchconvnet.training.evaluation_files import save_evaluation
    from patchconvnet.training.tables import predictions_csv

    network, device, preprocessing, images, data_name, split = subject.load()
    check_class_names(network, images)
    console = Console(highlight=False)
    if split == "all" and subject.split == "auto":
        console.print(
            f"{printable(subject.data)} is new to this model and has no test folder: all {len(images):,} images count",
            soft_wrap=True,
        )
    computing = Threads(subject.threads, device)
    with progress_bar(console=console) as bar:
        task = bar.add_task(f"{printable(data_name)} {split}", total=len(images))
        probabilities = np.zeros((len(images), network.num_classes), np.float32)

        def keep(places: Any, batch: Any) -> None:
            probabilities[places.cpu().numpy()] = batch.cpu().numpy()

        def advance(count: int) -> None:
            bar.advance(task, count)
            computing.step()

        result = measure(
            network, images, preprocessing, batch_size=batch_size, mirror=mirror, device=device,
            workers=workers, on_batch=advance, on_probabilities=keep,
        )  # fmt: skip
    title = f"{subject.model} on {data_name}, {split}" + (", mirrored too" if mirror else "")
    _print_evaluation(console, result, printable(title))
    folder = out or Path("evaluations") / _folder_name(subject, split, mirror)
    about = {"model": subject.model, "data": data_name, "split": split, "size": list(preprocessing.size)}
    for path in save_evaluation(result, folder, {**about, "mirror": mirror}):
        print(path)
    table = folder / "predictions.csv"
    paths = [printable(images.place(index)) for index in range(len(images))]
    write_text(table, predictions_csv(paths, images.class_names, probabilities, images.labels.tolist()))
    print(table)
    return 0


def run(words: Sequence[str]) -> int:
    """Run the command with the words typed after its name."""
    if any(word.partition("=")[0] == "--predictions" for word in words):
        return _run_on_predictions(words)
    parser = CommandLine(evaluate)
    parser.add_class_arguments(ModelAndData, as_group=False)
    parser.add_function_arguments(evaluate, skip={"subject"}, as_group=False)
    values = dict(parser.parse(words))
    return evaluate(taken(ModelAndData, values), **values)


def _run_on_predictions(words: Sequence[str]) -> int:
    def evaluate(*, predictions: Path, out: Path | None = None) -> int:
        """Measure what patchconvnet predict wrote."""
        return _evaluate_predictions(predictions, out)

    parser = CommandLine(evaluate)
    parser.add_function_arguments(evaluate, as_group=False)
    return evaluate(**parser.parse(words))


def _evaluate_predictions(predictions: Path, out: Path | None) -> int:
    from rich.console import Console

    from patchconvnet.bulk.measured import evaluate_predictions
    from patchconvnet.training.evaluation_files import save_evaluation

    result, about = evaluate_predictions(predictions)
    model, data = about["model"]["name"], about["data"]["name"]
    _print_evaluation(Console(highlight=False), result, printable(f"{model} on {data}, as predicted in {predictions}"))
    folder = out or Path("evaluations") / re.sub(r"[/\\:]+", "_", str(predictions)).strip("_")
    origin = {"model": model, "data": data, "size": about["settings"]["size"], "predictions": str(predictions)}
    for path in save_evaluation(result, folder, origin):
        print(path)
    return 0


def _folder_name(subject: ModelAndData, split: str, mirror: bool) -> str:
    """Another name for another run, data set, division, split or size."""
    path, size = Path(subject.model), subject.size
    parts = [f"{path.parent.name}-best" if path.name == "best" and path.parent.name else path.name]
    parts += [re.sub(r"[/\\:]+", "_", subject.data), split]
    if size is not None:
        parts.append("x".join(map(str, size if isinstance(size, tuple | list) else [size])))
    parts += [f"{name}_{value:g}" for name, value in subject.division.items() if value is not None]
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
