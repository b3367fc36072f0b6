"""`patchconvnet explain`."""

import errno
import importlib.util
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from patchconvnet.commands.command_line import CommandLine
from patchconvnet.commands.sources import Size, load_model
from patchconvnet.commands.terminal import printable
from patchconvnet.commands.torch_imports import import_networks
from patchconvnet.errors import OF_ONE_IMAGE, UserError
from patchconvnet.thread_count import ThreadCount, check_threads

if TYPE_CHECKING:
    from PIL import Image

    from patchconvnet.explanation import Explanation
    from patchconvnet.explanation.crops import View
    from patchconvnet.explanation.drawing import Drawers, Drawing
    from patchconvnet.explanation.explanation import Saved
    from patchconvnet.explanation.removal import Removal

EXPORTED = ".onnx"  # files that answer without PyTorch
SHEET_SIDE = 320  # pixels of an image that is kept for the contact sheet
WORTH_FUSING = 32  # forward passes; fusing takes as long as that saves
WORTH_DRAWING = 8  # images; a process takes as long to start as a figure to draw
MOST_WAITING = 32  # explanations that wait to be drawn, besides two for each process
WORTH_MEASURING = 10  # images; for fewer the number of threads is not measured, which takes as long as one of them
LONGEST_STEM = 200  # bytes; file systems take 255 for a name with its ending
MOST_CLASSES_LISTED = 10


def explain(
    images: list[str],
    *,
    model: str | None = None,
    weights: Path | None = None,
    out: Path = Path("explanations"),
    size: Size = None,
    target: str | None = None,
    map: Literal["auto", "attention", "evidence", "contrast"] = "auto",
    only: tuple[str, ...] = ("figure", "overlay", "map", "json"),
    refine: int | None = None,
    view: Literal["own", "whole"] | None = None,
    without: str | None = None,
    top: int = 5,
    strict: bool = False,
    device: str = "auto",
    threads: ThreadCount = "auto",
    workers: int | Literal["auto"] = "auto",
) -> int:
    """See what a model says about images, and which patches made it say so.

      patchconvnet explain cat.jpg
      patchconvnet explain holiday/ 'more/*.png' --model runs/pets --out maps --target dog

    For each image: a figure, the map as .npy and as a transparent overlay, and a JSON; for all of them predictions.csv.

    Args:
        images: image files, folders of them, or patterns in quotes.
        model: a run folder, a model folder, cifar10 (ships with the package), imagenet, a published tag such as
            patchconvnet_s60.fb_in1k, any timm model such as resnet50, a hub id (owner/name), or an .onnx file that
            patchconvnet export wrote; if not given, imagenet where the extra of that name is installed, else cifar10.
        weights: a checkpoint of the timm model or variant that --model names: .safetensors, or a PyTorch file.
        out: folder for the files that are written.
        size: another network input, such as 96 or 64x48 (height x width); a larger one gives a finer map.
        target: class to ask about instead of the predicted one.
        map: the map to show: attention; evidence, for and against the class; contrast, for it and not for the next
            likely class; auto is attention, or evidence where attention is nearly uniform.
        only: files to write for each image, such as json,overlay; figures take the longest.
        refine: average n x n shifts and both flips into a finer map; 0 gives plain maps, whose evidence is exact; if
            not given, where figures are drawn and patches are 16 pixels or more, as many as make a map of 14 x 14.
        view: whole takes all of an image into the answer, which is then the mean of several crops'; own only what the
            model's preprocessing makes of it, which for photographs is the centre, in a third of the time; if not
            given, whole, where the model can.
        without: a part of the image as left,top,right,bottom in its pixels, or several with semicolons between: what
            the model says without it, as a second figure and in the JSON.
        top: classes that figures list.
        strict: stop at an image that cannot be read, instead of leaving it out.
        device: cpu, cuda, mps or auto.
        threads: threads on a CPU, or auto: as many as are fastest by a short measurement, unless OMP_NUM_THREADS says.
        workers: processes that draw and write beside the network; 0 for none; auto, for eight images or more: as many
            as there are cores, or half of these where no figures are drawn.
    """
    import numpy as np
    from rich.console import Console

    from patchconvnet.data.image_paths import find_images
    from patchconvnet.explanation.drawing import check_processes, drawers, usable_cores
    from patchconvnet.progress_bar import progress_bar

    _check_files(only)
    boxes = _boxes(without)
    check_processes(workers)
    check_threads(threads)
    exported = model is not None and model.endswith(EXPORTED)
    _check_drawing(only)
    paths = find_images(images)
    stems = unique_stems(paths)
    _make_folder(out)
    if workers == "auto":
        cores = usable_cores() if "figure" in only else max(usable_cores() // 2, 1)  # the network needs the others
        workers = cores if len(paths) >= WORTH_DRAWING else 0
    request = _Request(
        model, weights, device, threads, paths, [printable(stem) for stem in stems], "figure" in only, bool(boxes),
        refine, {"size": size, "target": target, "top": top, "view": view},
    )  # fmt: skip
    with drawers(workers) as drawing:
        console = Console(highlight=False, markup=False, soft_wrap=True)
        asking = _ask_file(request) if exported else _ask_network(request)
        console.print(f"{printable(asking.model)}: {_knows(asking.class_names)}")
        answers = asking.answers
        options: dict[str, Any] = {"only": only, "map": map}
        saving = (_save(said, boxes, drawing, out, stem, options) for said, stem in zip(answers, stems, strict=True))
        shares, sheet, names, failed = [], [], [], 0
        with progress_bar(console=console, shown=len(paths) > 1) as bar:
            done = _in_order(saving, MOST_WAITING + 2 * workers)
            for path, each in zip(bar.track(paths, description="explaining"), done, strict=True):
                try:
                    saved = each.result()
                except OF_ONE_IMAGE as error:
                    _raise_if_not_of_this_image(error, asking.ask)
                    if strict:
                        raise UserError(_why(path, error)) from error
                    failed += 1
                    console.print(f"skipped: {printable(_why(path, error))}", style="yellow")
                    continue
                explanation = each.explanation
                likely = ", ".join(f"{printable(p.name)} {p.probability:.1%}" for p in explanation.top_classes(3))
                console.print(f"{printable(path)}: {likely} → {printable(next(filter(None, saved)))}")
                if each.removal:
                    console.print(f"  without {without}: {_without(explanation, each.removal)}")
                shares.append(explanation.probabilities)
                names.append(printable(path))
                if "figure" in only:
                    sheet.append(replace(explanation.scaled(SHEET_SIDE), forward_pass=None))
    from patchconvnet.files import write_text
    from patchconvnet.training.tables import predictions_csv

    if not shares:
        raise UserError(f"none of the {len(paths)} images could be explained")
    write_text(out / "predictions.csv", predictions_csv(names, asking.class_names, np.stack(shares)))
    if len(sheet) > 1:
        from patchconvnet.explanation.figures import contact_sheet, save_image, to_image

        for i, page in enumerate(contact_sheet(sheet, map=map)):
            file = out / f"contact_sheet{'' if not i else f'_{i + 1}'}.png"
            save_image(to_image(page), file)
            console.print(f"contact sheet: {printable(file)}")
    if failed:
        console.print(f"{failed} of {len(paths)} images could not be explained and were left out")
    return 0


@dataclass(frozen=True)
class _Request:
    """Who is asked about which files, and what.

    Attributes:
        model, weights, device, threads, refine: as `explain` takes them.
        paths, names: of the images.
        draws, removes: whether figures are drawn, and whether parts of images are taken out.
        options: those that networks and exported files take alike.
    """

    model: str | None
    weights: Path | None
    device: str
    threads: ThreadCount
    paths: Sequence[Path]
    names: Sequence[str]
    draws: bool
    removes: bool
    refine: int | None
    options: dict[str, Any]


@dataclass(frozen=True)
class _Asking:
    """A model by its name, its classes, its answers for the files, in their order, and a way to ask about any image."""

    model: str
    class_names: Sequence[str]
    answers: "Iterator[Explanation | Exception]"
    ask: "Callable[[Image.Image], Any]"


def _ask_network(request: _Request) -> _Asking:
    """Ask a network in PyTorch."""
    import_networks()
    import torch

    from patchconvnet.explanation.explainer import Question, answer, open_image
    from patchconvnet.explanation.image_files import explain_files
    from patchconvnet.explanation.refining import times_finer
    from patchconvnet.hardware import Threads
    from patchconvnet.models import default_model

    model = default_model() if request.model is None else request.model
    count, refine = len(request.paths), request.refine
    network, device = load_model(model, request.weights, request.device)
    computing = Threads(None if request.threads == "auto" and count < WORTH_MEASURING else request.threads, device)
    question = Question.of(network, refine=refine or 0, **request.options)
    if refine is None:
        refine = times_finer(network.patch_size, question.preprocessing, question.view) if request.draws else 0
        question = replace(question, refine=refine)
    if device.type == "cpu":
        # Lite0's nine passes for a refined map take 0.36 s as they come, 0.19 s channels-last, and 0.16 s fused
        if count * (1 + 2 * refine**2) >= WORTH_FUSING:
            network = cast(Any, network).fuse()  # in float32: bfloat16 changes probabilities by up to five points
        else:
            network = network.to(memory_format=torch.channels_last)
    return _Asking(
        model,
        question.class_names,
        explain_files(network, request.paths, request.names, question, threads=computing),
        lambda image: answer(network, [open_image(image, question, None, None)], question),
    )


def _ask_file(request: _Request) -> _Asking:
    """Ask an exported file, without PyTorch."""
    from patchconvnet.deploy.runtime import OnnxModel
    from patchconvnet.explanation.refining import times_finer

    _refuse_for_files(weights=request.weights, device=request.device)
    model, refine = str(request.model), request.refine
    file = OnnxModel(model, None if request.threads == "auto" else request.threads)
    if request.removes:
        file.check_removal()
    if refine is None:
        preprocessing = file.description.preprocessing.with_size(request.options["size"] or file.size)
        seen: View = request.options["view"] or ("whole" if file.can_see_whole else "own")
        wanted = request.draws and file.can_refine
        refine = times_finer(file.description.patch_size, preprocessing, seen) if wanted else 0
    options = {**request.options, "refine": refine}

    def answers() -> "Iterator[Explanation | Exception]":
        for path, name in zip(request.paths, request.names, strict=True):
            try:
                yield file.explain(path, name=name, **options)[0]
            except OF_ONE_IMAGE as error:
                yield error

    return _Asking(model, file.class_names, answers(), lambda image: file.explain(image, **options))


def _refuse_for_files(**options: Any) -> None:
    """Refuse what needs the network itself, of which an exported file has no more than its answer."""
    own = {"device": ("auto", "cpu")}
    for name, value in options.items():
        if value not in own.get(name, (None,)):
            raise UserError(
                f"--{name} {value} needs the network itself; an exported file answers without it, on the CPU"
            )


def _check_drawing(only: Sequence[str]) -> None:
    if "figure" in only and importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            "figures need matplotlib: pip install matplotlib, or leave them out with --only overlay,map,json"
        )


@dataclass(frozen=True)
class _Asked:
    """An image's explanation on its way to its files, or what stood in the way of it."""

    explanation: Any
    removal: "Removal | None" = None
    drawing: "Drawing | None" = None

    def result(self) -> "Saved":
        """The files, when they are there; raises what stood in the way."""
        if self.drawing is None:
            raise self.explanation
        return self.drawing.result()


def _save(said: "Explanation | Exception", boxes: Any, drawing: "Drawers", *where: Any) -> _Asked:
    if isinstance(said, Exception):
        return _Asked(said)
    out, stem, options = where
    try:
        removal = said.without(boxes) if boxes else None
    except OF_ONE_IMAGE as error:
        return _Asked(error)
    return _Asked(said, removal, drawing.save(said, out, stem, without=removal, **options))


def _in_order(begun: Iterator[_Asked], most: int) -> Iterator[_Asked]:
    """As they were begun, each as soon as it is done; while more than `most` are waiting, none is begun."""
    waiting: deque[_Asked] = deque()
    for each in begun:
        waiting.append(each)
        while waiting and (len(waiting) > most or waiting[0].drawing is None or waiting[0].drawing.done):
            yield waiting.popleft()
    yield from waiting


def run(words: Sequence[str]) -> int:
    """Run the command with the words typed after its name."""
    parser = CommandLine(explain, usage="patchconvnet explain IMAGES ... [options]")
    parser.add_argument("images", nargs="+", help="image files, folders of them, or patterns in quotes")
    parser.add_function_arguments(explain, skip={"images"}, as_group=False)
    return explain(**parser.parse(words))


def unique_stems(paths: Sequence[Path]) -> list[str]:
    """Beginnings of file names: the images' own; where two are equal, the folder's name and then a number differ."""
    stems: dict[str, None] = {}
    for path in paths:
        stem = _short(path.stem)
        if stem in stems:
            stem = _short(f"{path.parent.name}_{path.stem}")
        number, base = 2, stem
        while stem in stems:
            stem, number = f"{base}_{number}", number + 1
        stems[stem] = None
    return list(stems)


def _short(stem: str) -> str:
    """Cut so that file systems take it with an ending."""
    return stem if len(os.fsencode(stem)) <= LONGEST_STEM else os.fsdecode(os.fsencode(stem)[:LONGEST_STEM])


def _knows(names: Sequence[str]) -> str:
    listed = ", ".join(map(printable, names[:MOST_CLASSES_LISTED]))
    if len(names) <= MOST_CLASSES_LISTED:
        return f"knows {listed}"
    return f"knows {len(names):,} classes, such as {listed}"


def _raise_if_not_of_this_image(error: Exception, ask: "Callable[[Image.Image], Any]") -> None:
    """Raise what would stop any other image too: a full disk, or an option that the model does not take."""
    from PIL import Image

    cause = error.__cause__ or error
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        raise error
    ask(Image.new("RGB", (64, 64)))


def _check_files(only: Sequence[str]) -> None:
    from patchconvnet.explanation.explanation import FILES

    if unknown := [name for name in only if name not in FILES]:
        raise UserError(f"--only takes {', '.join(FILES)}, with commas between them, not {unknown[0]!r}")
    if not only:
        raise UserError(f"--only names no file; known: {', '.join(FILES)}")


def _boxes(without: str | None) -> list[tuple[float, ...]]:
    """The boxes of "left,top,right,bottom;left,…"."""
    boxes = []
    for box in (without or "").split(";") if without is not None else ():
        try:
            boxes.append(tuple(float(number) for number in box.split(",")))
        except ValueError:
            boxes.append(())
        if len(boxes[-1]) != 4:
            raise UserError(
                f"--without takes left,top,right,bottom in pixels of the image, such as 10,20,110,120, or several with "
                f"semicolons between, not {without!r}"
            )
    return boxes


def _without(explanation: "Explanation", removal: "Removal") -> str:
    answers = (("patches taken out", removal.logits), ("pixels made grey", removal.greyed_logits))
    words = []
    for what, logits in answers:
        shares, best = explanation.probabilities_of(logits), int(logits.argmax())
        subject = explanation.subject.index
        said = [best, subject] if best != subject else [best]
        named = ", ".join(f"{printable(explanation.class_names[k])} {shares[k]:.1%}" for k in said)
        words.append(f"{named} ({what})")
    return "; ".join(words)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise UserError(f"cannot write to {out}: {getattr(error, 'strerror', None) or error}") from error
    if not os.access(out, os.W_OK):
        raise UserError(f"cannot write to {out}: the folder is not writable")


def _why(path: Path, error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error) if path.name in str(error) else f"{path}: {error}"
    what = str(error).partition("\n")[0] or type(error).__name__
    return f"{path} cannot be explained: {what}"
