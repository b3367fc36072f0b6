"""`patchconvnet predict`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from patchconvnet.commands.command_line import CommandLine
from patchconvnet.commands.sources import Size
from patchconvnet.commands.terminal import printable
from patchconvnet.commands.torch_imports import import_networks
from patchconvnet.errors import UserError

if TYPE_CHECKING:
    from patchconvnet.bulk.work import Work

LARGEST_PART = 10_000_000  # images
MOST_READERS, MOST_ACTORS = 1024, 100_000
SECONDS_BETWEEN_LINES = 60.0  # where there is no terminal for a bar


def predict(
    *,
    model: str,
    data: str,
    out: Path,
    split: Literal["auto", "train", "validation", "test", "all"] = "auto",
    root: str | None = None,
    max_bad: str | None = None,
    weights: Path | None = None,
    size: Size = None,
    top: int = 5,
    maps: Literal["none", "attention", "evidence"] = "none",
    embeddings: bool = False,
    embedding_dtype: Literal["float16", "float32"] = "float16",
    engine: Literal["local", "ray"] = "local",
    part_size: int = 4096,
    device: str = "auto",
    threads: int | Literal["auto"] = "auto",
    readers: int | Literal["auto"] = "auto",
    actors: int | Literal["auto"] = "auto",
) -> int:
    """Classify many images into Parquet files; after an interruption the same command goes on where it stopped.

      patchconvnet predict --model runs/pets --data my_photographs --out predicted
      patchconvnet predict --model imagenet --data folder:archive --out predicted --maps attention --embeddings
      RAY_ADDRESS=auto patchconvnet predict --model imagenet --data /shared/archive --out /shared/predicted --engine ray

    Each image has one row: id, likeliest classes with probabilities, its label where it is known, and what else is
    asked for. One that cannot be read has the reason in the column error. Needs: pip install 'patchconvnet[bulk]'.

    Args:
        model: a run folder, a model folder, cifar10 (ships with the package), imagenet, a published tag such as
            patchconvnet_s60.fb_in1k, any timm model such as resnet50, a hub id (owner/name), or an .onnx file.
        data: a folder of images, or a data set: cifar10, cifar100, digits, folder:PATH, csv:FILE, parquet:FILE,
            hf:NAME, wds:PATTERN or litdata:FOLDER; images of a folder or a source need no labels.
        out: folder for the Parquet files and predict.json.
        split: which images; auto is all of a folder or a source, and the test split of others.
        root: where CIFAR is kept or downloaded to.
        max_bad: stop when more images than this, such as 0.1% or 20, could not be read or answered; by default any
            number may have an error in their rows. Only with the engine local.
        weights: a checkpoint of the timm model or variant that --model names: .safetensors, or a PyTorch file.
        size: another network input, such as 96 or 64x48 (height x width).
        top: how many of the likeliest classes are written.
        maps: the predicted class's map, as float16: attention, or evidence for it; or none.
        embeddings: write what the classifier reads.
        embedding_dtype: float16 or float32.
        engine: local, all cores of this machine; or ray, the cluster that RAY_ADDRESS names, whose nodes all reach
            model, data and out by the same paths.
        part_size: images in a file; an interrupted run repeats at most as many, on Ray as many for each actor.
        device: cpu, cuda, mps or auto.
        threads: threads on a CPU, each with passes of its own; auto is one for each core, unless OMP_NUM_THREADS says.
        readers: threads that decode images; auto is one for each core.
        actors: for ray, how many models answer at the same time; auto is one for each GPU, or for each CPU where there
            is none.
    """
    from rich.console import Console

    import_networks()
    import torch

    from patchconvnet.bulk.local import predict_locally
    from patchconvnet.bulk.parts import PartsFolder, check_pyarrow
    from patchconvnet.bulk.predictor import ModelChoice, Predictor, Settings
    from patchconvnet.bulk.ray_engine import predict_on_ray
    from patchconvnet.bulk.work import describe
    from patchconvnet.data.readable import allowed
    from patchconvnet.explanation.drawing import usable_cores
    from patchconvnet.files import locked_folder
    from patchconvnet.hardware import keep_freed_memory
    from patchconvnet.thread_count import check_threads

    check_pyarrow()
    check_threads(threads)
    _check_count("part-size", part_size, LARGEST_PART)
    _check_count("readers", readers, MOST_READERS)
    _check_count("actors", actors, MOST_ACTORS)
    if max_bad is not None:
        allowed(max_bad, 1)
        if engine == "ray":
            raise UserError("--max-bad is for --engine local: on a cluster parts are written before they are counted")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if isinstance(threads, int):
        torch.set_num_threads(threads)
    keep_freed_memory()
    choice = ModelChoice(_place_of(model), None if weights is None else weights.absolute(), device)
    settings = Settings(top, maps, embeddings, embedding_dtype, size)
    predictor = Predictor(choice, settings)
    work = _work(data, split, root, predictor)
    about = predictor.describe(model)
    about["data"] = describe(work)
    about["settings"]["part_size"] = part_size
    most_failed = None if max_bad is None else allowed(max_bad, work.count)
    with locked_folder(out.absolute(), "prediction"):
        folder = PartsFolder(out.absolute(), about)
        before, _ = folder.progress()
        if before:
            console.print(f"{printable(out)}: {before:,} of {work.count:,} images are there already")
        began = time.perf_counter()
        with _Progress(console, work.count, before) as progress:
            if engine == "ray":
                count = None if actors == "auto" else actors
                predict_on_ray(choice, settings, work, folder, part_size, actors=count, on_images=progress.advance)
            else:
                predict_locally(
                    predictor, work, folder, part_size, readers=usable_cores() if readers == "auto" else readers,
                    on_images=progress.advance, most_failed=most_failed,
                )  # fmt: skip
        seconds = time.perf_counter() - began
        failed = folder.finish(work.count, seconds)
    done = work.count - before
    rate = f", {done / seconds:,.1f} images/s" if done else ""
    console.print(f"{printable(out)}: {work.count:,} images in {-(-work.count // part_size):,} files{rate}")
    if failed:
        console.print(
            f"{failed:,} of them could not be predicted; the column error says why, predict.json has the first"
        )
    if failed == work.count:
        raise UserError(f"none of the {failed:,} images could be predicted")
    return 0


def run(words: Sequence[str]) -> int:
    """Run the command with the words typed after its name."""
    parser = CommandLine(predict)
    parser.add_function_arguments(predict, as_group=False)
    return predict(**parser.parse(words))


def _check_count(name: str, value: int | Literal["auto"], most: int) -> None:
    if isinstance(value, int) and not 1 <= value <= most:
        raise UserError(f"--{name} is {value}; it must be from 1 to {most:,}")


def _place_of(model: str) -> str:
    """The model's name, or its full path: other processes may have another working folder."""
    return str(Path(model).absolute()) if model and "\0" not in model and Path(model).exists() else model


def _work(data: str, split: Any, root: str | None, predictor: Any) -> "Work":
    import os

    from patchconvnet.bulk.work import FolderWork, ListedWork, SplitWork
    from patchconvnet.data.datasets import open_listing
    from patchconvnet.data.held_out import load_held_out
    from patchconvnet.data.sources.names import is_source

    if not data or "\0" in data:
        raise UserError(f"there is no data {data!r}")
    path = data.removeprefix("folder:")
    is_folder = data.startswith("folder:") or Path(os.path.expanduser(data)).is_dir()
    if is_folder and not path:
        raise UserError("folder: names no folder; give folder:PATH")
    if is_folder and split in ("auto", "all"):
        return FolderWork(Path(root or "", os.path.expanduser(path)), predictor.class_names)
    if is_source(data):
        listing = open_listing(data, root)
        if split in ("auto", "all") or listing.splits is not None:
            return ListedWork(listing, data, predictor.class_names, "all" if split == "auto" else split)
    name = f"folder:{path}" if is_folder else data
    chosen = load_held_out(name, split, predictor.provenance, root=root, show_progress=True)
    return SplitWork(*chosen, predictor.class_names)


@dataclass
class _Progress:
    """A bar with the rate and the time left; where there is no terminal, a line each minute."""

    console: Any
    total: int
    before: int
    _bar: Any = field(init=False, default=None)

    def __enter__(self) -> "_Progress":
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        from patchconvnet.progress_bar import progress_bar

        self._began = self._told = time.perf_counter()
        self._done = 0
        self._bar = progress_bar(
            TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(), console=self.console,
        )  # fmt: skip
        self._bar.__enter__()
        self._task = self._bar.add_task("", total=self.total, completed=self.before, rate="")
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def advance(self, count: int) -> None:
        self._done += count
        now = time.perf_counter()
        rate = self._done / max(now - self._began, 1e-9)
        self._bar.update(self._task, advance=count, rate=f"{rate:,.1f} images/s")
        if not self.console.is_terminal and now - self._told > SECONDS_BETWEEN_LINES:
            self._told = now
            done = self.before + self._done
            left = (self.total - done) / rate / 60
            self.console.print(f"{done:,} of {self.total:,} images, {rate:,.1f} images/s, {left:,.0f} minutes left")
