"""`patchconvnet explain`."""

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from patchconvnet.commands.command_line import CommandLine
from patchconvnet.commands.sources import Size, load_model, preprocessing_for
from patchconvnet.commands.terminal import printable
from patchconvnet.errors import UserError

if TYPE_CHECKING:
    from patchconvnet.explanation import Explanation
    from patchconvnet.explanation.removal import Removal
    from patchconvnet.models import AttentionClassifier

SHEET_SIDE = 320  # pixels of an image that is kept for the contact sheet
WORTH_MEASURING = 10  # images; for fewer the number of threads is not measured, which takes as long as one of them
LONGEST_STEM = 200  # bytes; file systems take 255 for a name with its ending
MOST_CLASSES_LISTED = 10
FINE, LARGE_PATCH = 14, 16  # patches a side of a map that needs no refining; pixels of patches that are worth it


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
    view: Literal["own", "whole"] = "own",
    without: str | None = None,
    top: int = 5,
    strict: bool = False,
    device: str = "auto",
    threads: int | Literal["auto"] = "auto",
) -> int:
    """See what a model says about images, and which patches made it say so.

      patchconvnet explain cat.jpg
      patchconvnet explain holiday/ 'more/*.png' --model runs/pets --out maps --target dog

    For each image: a figure, the map as .npy and as a transparent overlay, and a JSON; for all of them predictions.csv.

    Args:
        images: image files, folders of them, or patterns in quotes.
        model: a run folder, a model folder, cifar10 (ships with the package), imagenet, a published tag such as
            patchconvnet_s60.fb_in1k, any timm model such as resnet50, or a hub id (owner/name); if not given, imagenet
            where the extra of that name is installed, else cifar10.
        weights: a checkpoint of the timm model or variant that --model names: .safetensors, or a PyTorch file.
        out: folder for the files that are written.
        size: another network input, such as 96 or 64x48 (height x width); a larger one gives a finer map.
        target: class to ask about instead of the predicted one.
        map: the map to show: attention; evidence, for and against the class; contrast, for it and not for the next
            likely class; auto is attention, or evidence where attention is nearly uniform.
        only: files to write for each image, such as json,overlay; figures take the longest.
        refine: average n x n shifts and both flips into a finer map; 0 gives plain maps, whose evidence is exact; if
            not given, where figures are drawn and patches are 16 pixels or more, as many as make a map of 14 x 14.
        view: own gives the network what it was trained on, which for photographs is often the centre; whole all of the
            image, at the price of some answers.
        without: a part of the image as left,top,right,bottom in its pixels, or several with semicolons between: what
            the model says without it, as a second figure and in the JSON.
        top: classes that figures list.
        strict: stop at an image that cannot be read, instead of leaving it out.
        device: cpu, cuda, mps or auto.
        threads: threads on a CPU, or auto: as many as are fastest by a short measurement, unless OMP_NUM_THREADS says.
    """
    import numpy as np
    from rich.console import Console
    from rich.progress import Progress

    from patchconvnet.data.folders import find_images
    from patchconvnet.explanation import explain as explain_image
    from patchconvnet.explanation.figures import contact_sheet, save_image, to_image
    from patchconvnet.hardware import Threads, check_threads
    from patchconvnet.models import default_model
    from patchconvnet.training.evaluation_files import predictions_csv
    from patchconvnet.training.run_folder import write_text

    _check_files(only)
    boxes = _boxes(without)
    check_threads(threads)
    paths = find_images(images)
    model = default_model() if model is None else model
    _make_folder(out)
    network, chosen_device = load_model(model, weights, device)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"{printable(model)}: {_knows(network)}")
    computing = Threads(None if threads == "auto" and len(paths) < WORTH_MEASURING else threads, chosen_device)
    if refine is None:
        refine = finer(network, size) if "figure" in only else 0
    options: dict[str, Any] = {"size": size, "target": target, "refine": refine, "top": top, "view": view}
    explained, failed = [], 0
    with Progress(console=console, transient=True, disable=not console.is_terminal or len(paths) < 2) as bar:
        for path, stem in zip(bar.track(paths, description="explaining"), unique_stems(paths), strict=True):
            try:
                explanation = explain_image(network, path, name=printable(stem), **options)
                removal = explanation.without(boxes) if boxes else None
                saved = explanation.save(out, stem, only=cast(Any, only), map=map, without=removal)
            except (UserError, ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, ValueError) as error:
                _raise_if_not_of_this_image(error, network, options)
                if strict:
                    raise UserError(_why(path, error)) from error
                failed += 1
                console.print(f"skipped: {printable(_why(path, error))}", style="yellow")
                continue
            likely = ", ".join(f"{printable(p.name)} {p.probability:.1%}" for p in explanation.top_classes(3))
            console.print(f"{printable(path)}: {likely} → {printable(next(filter(None, saved)))}")
            if removal:
                console.print(f"  without {without}: {_without(explanation, removal)}")
            explained.append((path, replace(explanation.scaled(SHEET_SIDE), forward_pass=None)))
            computing.step()
    if not explained:
        raise UserError(f"none of the {len(paths)} images could be explained")
    shares = np.stack([explanation.probabilities for _, explanation in explained])
    names = [printable(path) for path, _ in explained]
    write_text(out / "predictions.csv", predictions_csv(names, explained[0][1].class_names, shares))
    if len(explained) > 1 and "figure" in only:
        for i, sheet in enumerate(contact_sheet([explanation for _, explanation in explained], map=map)):
            file = out / f"contact_sheet{'' if not i else f'_{i + 1}'}.png"
            save_image(to_image(sheet), file)
            console.print(f"contact sheet: {printable(file)}")
    if failed:
        console.print(f"{failed} of {len(paths)} images could not be explained and were left out")
    return 0


def finer(network: "AttentionClassifier", size: Size) -> int:
    """How many times finer than its large patches a map must be to have `FINE` values a side; 0 if it has them."""
    if network.patch_size < LARGE_PATCH:
        return 0
    patches = min(preprocessing_for(network, size).size) // network.patch_size
    return 0 if patches >= FINE else -(-FINE // max(patches, 1))


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


def _knows(network: "AttentionClassifier") -> str:
    names = network.metadata.class_names or [f"class {k}" for k in range(network.num_classes)]
    listed = ", ".join(map(printable, names[:MOST_CLASSES_LISTED]))
    if len(names) <= MOST_CLASSES_LISTED:
        return f"knows {listed}"
    return f"knows {len(names):,} classes, such as {listed}"


def _raise_if_not_of_this_image(error: Exception, network: Any, options: dict[str, Any]) -> None:
    """Raise what would stop any other image too: a full disk, or an option that the model does not take."""
    from PIL import Image

    from patchconvnet.explanation import explain as explain_image

    cause = error.__cause__ or error
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        raise error
    explain_image(network, Image.new("RGB", (64, 64)), **options)


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
