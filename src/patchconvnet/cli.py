"""The command line: one command for each thing people do. It parses, calls and prints; the work is elsewhere."""

import argparse
import difflib
import logging
import re
import shlex
import sys
import warnings
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from patchconvnet._version import __version__
from patchconvnet.errors import UserError

DESCRIPTION = "Image classifiers that show where they look: train them, measure them, and see why they decided so."


class HelpFormatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """jsonargparse's help, with the examples of a description on lines of their own."""


# what it calls types and options, and what people type
_JSONARGPARSE_SAYS = [
    (r'Parser key "(.+?)":\s+Expected an? ', r"--\1: expected "),
    (
        r'Parser key "(.+?)":\s+Does not validate[^[]+\[(.+)\]\n(?s:.)*Given value: (.*)',
        r"--\1: expected one of \2, not \3",
    ),
    (r"\bNoneType\b", "null"),
    (r"<class '(.+?)'>", r"\1"),
    (r"typing\.Literal\[(.+?)\]", r"one of \1"),
    (r"\. Got value: (.*)", r", not \1"),
    (r"unrecognized arguments: (?=-)", r"unknown option "),
    (r"Subcommand '.+?' does not accept option '(.+?)'", r"unknown option --\1"),
]


class CommandLine(ArgumentParser):
    """jsonargparse's parser, whose answer to a mistake is a sentence and not a list of all options before it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        parser = getattr(ex, "subcommand_parser", None) or self
        program = parser.prog.replace(" [options]", "")
        known = [option for action in parser._actions for option in action.option_strings]
        if missing := re.match(r"the following arguments are required: (\w+)\.", message):  # explain.images
            message, program = message.replace(f"{missing[1]}.", ""), f"{program} {missing[1]}"
        for theirs, ours in _JSONARGPARSE_SAYS:
            message = re.sub(theirs, ours, message)
        typed = re.search(r"unknown option (\S+)|COMMAND: invalid choice: '(.+?)'", message)
        close = difflib.get_close_matches(typed[1] or typed[2], [*known, *COMMANDS], n=1) if typed else []
        meant = f" Did you mean {close[0]}?" if close else ""
        raise UserError(f"{message.rstrip('.')}.{meant} What there is: {program} --help") from ex


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    _quieten()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["train"]:
        arguments = ["train", *_recipe_first(arguments[1:])]
    parser = CommandLine(
        prog="patchconvnet", formatter_class=HelpFormatter, description=DESCRIPTION, version=__version__
    )
    subcommands = parser.add_subcommands(required=False, metavar="COMMAND")
    # one command's options need half of the package; the others' need not be imported for it
    named = [argument for argument in arguments[:1] if argument in COMMANDS]
    parsers = {name: COMMANDS[name].parser() for name in named or COMMANDS}
    for name, subparser in parsers.items():
        subcommands.add_subcommand(name, subparser, help=COMMANDS[name].summary)
    try:
        values = parser.parse_args(arguments)
        if values.subcommand is None:
            parser.print_help()
            return 0
        return COMMANDS[values.subcommand].run(parsers[values.subcommand], values[values.subcommand])
    except UserError as error:
        print(f"patchconvnet: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\npatchconvnet: interrupted", file=sys.stderr)
        return 130


class Command(NamedTuple):
    """One of the things people do.

    summary: for the list of commands.
    parser: makes its command line.
    run: does it, given that parser and what it parsed; returns the exit code.
    """

    summary: str
    parser: Callable[[], ArgumentParser]
    run: Callable[[ArgumentParser, Namespace], int]


def _quieten() -> None:
    # what a user can do nothing about: Fabric's notes on precision and tips, torch's notes on a missing GPU
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="torch")
    warnings.formatwarning = lambda message, *_, **__: f"patchconvnet: {message}\n"  # a sentence, without lines of code
    # importing lightning sets the level of "lightning.fabric" itself, and makes its pytorch part say some of it
    for name in ("fabric.utilities.rank_zero", "pytorch.utilities.rank_zero", "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)


# train


def _train_parser() -> ArgumentParser:
    from patchconvnet.training.recipe import recipe_parser

    parser = recipe_parser(
        CommandLine,
        formatter_class=HelpFormatter,
        description="Train a network. Start from a recipe and change any field of it:\n\n"
        "  patchconvnet train --recipe digits\n"
        "  patchconvnet train --recipe cifar10_default --epochs 5 --out runs/quick\n"
        "  patchconvnet train --recipe pictures --data.name folder:my_pictures\n"
        "  patchconvnet train --resume --out runs/quick",
    )
    parser.add_argument("--out", type=Path | None, default=None, help="run folder; runs/RECIPE-DATE when left out")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="yes",
        default="no",
        choices=["no", "yes", "auto"],
        help="go on with the run in --out after its last whole epoch; 'auto': begin if there is none yet",
    )
    parser.add_argument("--accelerator", default="auto", help="cpu, cuda, mps or auto")
    parser.add_argument("--devices", type=int | None, default=None, help="on each machine; 1, or what torchrun says")
    parser.add_argument("--nodes", type=int | None, default=None, help="machines; run the same on each under torchrun")
    parser.add_argument("--strategy", default="auto", help="auto, ddp (whole networks) or fsdp (weights divided)")
    return parser


def _recipe_first(arguments: list[str]) -> list[str]:
    """`--recipe` sets what the other options change, wherever it stands; a resumed run has its own."""
    from patchconvnet.training.run_folder import RECIPE_FILE

    probe = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    probe.add_argument("--recipe", action="append", default=[])
    try:
        recipes, others = probe.parse_known_args(arguments)
        probe.add_argument("--out")
        probe.add_argument("--resume", nargs="?", const="yes", default="no")
        known, _ = probe.parse_known_args(arguments)
    except argparse.ArgumentError:
        return arguments  # the real parser has the words for it
    chosen = recipes.recipe
    if not chosen and known.resume != "no" and known.out and (Path(known.out) / RECIPE_FILE).is_file():
        chosen = [str(Path(known.out) / RECIPE_FILE)]
    return [word for recipe in chosen for word in ("--recipe", recipe)] + others


def _train(parser: ArgumentParser, values: Namespace) -> int:
    from patchconvnet.training.launch import Hardware
    from patchconvnet.training.loop import train
    from patchconvnet.training.recipe import recipe_from

    out = values.out
    if out is None:
        if values.resume != "no":
            raise UserError("--resume needs --out, the run folder to go on with")
        name = Path(str(values.recipe[0])).stem if values.recipe else "run"
        out = Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    hardware = Hardware(values.accelerator, values.devices, values.nodes, values.strategy)
    try:
        train(recipe_from(parser, values), out, resume=values.resume, hardware=hardware)
    except KeyboardInterrupt:
        if _is_first_process():
            again = f"patchconvnet train --resume auto --out {shlex.quote(str(out))}"
            print(f"\npatchconvnet: interrupted; go on with: {again}", file=sys.stderr)
        return 130
    return 0


def _is_first_process() -> bool:
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    return rank_zero_only.rank == 0


# evaluate


def _evaluate_parser() -> ArgumentParser:
    parser = CommandLine(
        formatter_class=HelpFormatter,
        description="Measure a model on labelled images: loss, top-1, top-5, calibration, per class, confusion.\n\n"
        "  patchconvnet evaluate --model runs/quick/best --data cifar10\n"
        "  patchconvnet evaluate --model runs/pets/best --data folder:my_pictures --split validation --out report",
    )
    _add_model_options(parser)
    _add_data_options(parser)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2, help="processes that read image files")
    parser.add_argument(
        "--mirror",
        action="store_true",
        help="mean logits of each image and its mirror image; say so where you report it",
    )
    parser.add_argument(
        "--out",
        type=Path | None,
        default=None,
        help="folder for evaluation.json, tables and confusion matrix; evaluations/MODEL-DATA-SPLIT when left out",
    )
    return parser


def _evaluate(parser: ArgumentParser, values: Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from patchconvnet.training.evaluation import evaluate
    from patchconvnet.training.evaluation_files import save_evaluation

    model, device = _load_model(values)
    preprocessing = _preprocessing(model, values)
    data = _load_data(values, model)
    split = data.require(values.split)
    _check_class_names(model.metadata.class_names, data.class_names)
    console = Console(highlight=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{data.name} {values.split}", total=len(split))
        result = evaluate(
            model, split, preprocessing, batch_size=values.batch_size, mirror=values.mirror, device=device,
            workers=values.workers, on_batch=lambda count: bar.advance(task, count),
        )  # fmt: skip
    title = f"{values.model} on {data.name}, {values.split}" + (", mirrored too" if values.mirror else "")
    _print_evaluation(console, result, title)
    out = values.out or Path("evaluations") / _evaluation_name(values)
    origin = {
        "model": str(values.model), "data": data.name, "split": values.split, "size": list(preprocessing.size),
        "mirror": values.mirror,
    }  # fmt: skip
    for path in save_evaluation(result, out, origin):
        print(path)
    return 0


def _evaluation_name(values: Namespace) -> str:
    """Another name for another run, data set, division, split or size."""
    model = Path(values.model)
    parts = [f"{model.parent.name}-best" if model.name == "best" and model.parent.name else model.name]
    parts += [re.sub(r"[/\\:]+", "_", values.data), values.split]
    if values.size is not None:
        parts.append("x".join(map(str, values.size if isinstance(values.size, tuple | list) else [values.size])))
    division = {"validation": values.validation, "test": values.test, "seed": values.data_seed}
    parts += [f"{name}_{value:g}" for name, value in division.items() if value is not None]
    return "-".join([*parts, *(["mirrored"] if values.mirror else [])])


def _check_class_names(ours: list[str], theirs: list[str]) -> None:
    if ours and list(ours) != list(theirs):
        raise UserError(
            f"the model's classes ({_listed(ours)}) are not the data's ({_listed(theirs)}); "
            f"evaluate needs the same classes in the same order"
        )


def _listed(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f", … {len(names)} in all" if len(names) > most else "")


def _print_evaluation(console: Any, result: Any, title: str) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None)
    table.add_column("class")
    for name in ("images", "recall", "precision"):
        table.add_column(name, justify="right")
    for row in result.per_class():
        shares = ("–" if row[key] is None else f"{row[key]:.2%}" for key in ("recall", "precision"))
        table.add_row(row["class"], f"{row['images']:,}", *shares)
    if len(result.class_names) <= 40:
        console.print(table)
    console.print(
        f"{result.count:,} images: loss {result.loss:.4f}, top-1 {result.top1:.2%}, top-5 {result.top5:.2%}, "
        f"calibration error {result.calibration_error:.2%}"
    )


# explain


def _explain_parser() -> ArgumentParser:
    parser = CommandLine(
        formatter_class=HelpFormatter,
        description="See what a model says about images and which patches made it say so.\n\n"
        "  patchconvnet explain cat.jpg\n"
        "  patchconvnet explain holiday/ 'more/*.png' --model runs/pets/best --out maps --target dog\n\n"
        "For each image: a figure, the map as .npy and as a transparent overlay, and a JSON. Without --model,\n"
        "a small CIFAR-10 model that ships with the package is used, which knows airplane, automobile, bird, cat,\n"
        "deer, dog, frog, horse, ship and truck.",
    )
    parser.add_argument("images", nargs="+", help="image files, folders of them, or patterns in quotes")
    _add_model_options(parser, default=SHIPPED)
    parser.add_argument("--out", type=Path, default=Path("explanations"), help="folder for what is made")
    parser.add_argument(
        "--size",
        type=_size_type(),
        default=None,
        help="another network input, SIDE or [HEIGHT, WIDTH]; larger: a finer grid",
    )
    parser.add_argument(
        "--target", type=str | None, default=None, help="class to ask about instead of the predicted one"
    )
    parser.add_argument("--refine", type=int, default=0, help="average n × n shifts and both flips into a finer map")
    parser.add_argument("--top", type=int, default=5, help="classes that figures list")
    parser.add_argument("--strict", action="store_true", help="stop at an image that cannot be read")
    return parser


def _explain(parser: ArgumentParser, values: Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from patchconvnet.data.folders import find_images
    from patchconvnet.data.images import read_image
    from patchconvnet.explanation import explain
    from patchconvnet.explanation.figures import contact_sheet, save_image, to_image

    paths = find_images(values.images)
    model, _ = _load_model(values)
    console = Console(highlight=False)
    explained, unreadable = [], []
    with Progress(console=console, transient=True, disable=not console.is_terminal or len(paths) < 2) as bar:
        for path, stem in zip(bar.track(paths, description="explaining"), _unique_stems(paths), strict=True):
            try:
                image = read_image(path)
            except UserError as error:
                if values.strict:
                    raise
                unreadable.append(path)
                console.print(f"skipped: {error}", style="yellow", soft_wrap=True)
                continue
            explanation = explain(
                model, image, size=values.size, target=values.target, refine=values.refine, top=values.top, name=stem
            )
            saved = explanation.save(values.out, stem)
            likely = ", ".join(f"{p.name} {p.probability:.1%}" for p in explanation.top_classes(3))
            console.print(f"{path}: {likely} → {saved.figure}", soft_wrap=True)
            explained.append(explanation.scaled(320))
    if not explained:
        raise UserError(f"none of the {len(paths)} images could be read")
    if len(explained) > 1:
        for i, sheet in enumerate(contact_sheet(explained)):
            target = values.out / f"contact_sheet{'' if not i else f'_{i + 1}'}.png"
            save_image(to_image(sheet), target)
            console.print(f"contact sheet: {target}", soft_wrap=True)
    if unreadable:
        console.print(f"{len(unreadable)} of {len(paths)} images could not be read and were left out")
    return 0


def _unique_stems(paths: list[Path]) -> list[str]:
    """File names without ending; where two are equal, the folder's name and then a number tell them apart."""
    stems: list[str] = []
    for path in paths:
        stem = path.stem
        if stem in stems:
            stem = f"{path.parent.name}_{path.stem}"
        number = 2
        base = stem
        while stem in stems:
            stem, number = f"{base}_{number}", number + 1
        stems.append(stem)
    return stems


# audit


def _audit_parser() -> ArgumentParser:
    from patchconvnet.faithfulness.settings import AuditSettings

    parser = CommandLine(
        formatter_class=HelpFormatter,
        description="How faithful are a model's maps? Measure them beside the usual methods, on a whole data set.\n\n"
        "  patchconvnet audit --model cifar10 --data cifar10 --limit 200 --out trust\n"
        "  patchconvnet audit --model runs/pets/best --data folder:pets --masks pets_masks --out trust\n\n"
        "Writes report.html (one page that stands alone), report.json and report.csv; interrupted, the same command\n"
        "goes on where it stopped. The methods of others need: pip install 'patchconvnet[audit]'.",
    )
    _add_model_options(parser)
    _add_data_options(parser)
    parser.add_argument("--boxes", type=Path | None, default=None, help="CSV with the columns image, x0, y0, x1, y1")
    parser.add_argument("--masks", type=Path | None, default=None, help="folder with a mask for each image")
    parser.add_class_arguments(AuditSettings)
    parser.add_argument("--out", type=Path, default=Path("audit"), help="folder for the report and the audit's state")
    return parser


def _audit(parser: ArgumentParser, values: Namespace) -> int:
    from patchconvnet.faithfulness.audit import audit
    from patchconvnet.faithfulness.settings import AuditSettings

    settings = AuditSettings(**{f.name: values[f.name] for f in fields(AuditSettings)})
    model, device = _load_model(values)
    data = _load_data(values, model)
    result = audit(
        model, data.require(values.split), values.out, settings, boxes=values.boxes, masks=values.masks,
        preprocessing=_preprocessing(model, values), device=device, name=str(values.model),
        data_name=f"{data.name}, {values.split}", show_progress=sys.stdout.isatty(),
    )  # fmt: skip
    for path in result.files:
        print(path)
    return 0


# models


def _models_parser() -> ArgumentParser:
    return CommandLine(description="List the variants: parameters, operations, input size, published weights.")


def _models(parser: ArgumentParser, values: Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from patchconvnet.models.cost import family

    table = Table(box=None, caption=_MODELS_CAPTION, caption_justify="left")
    table.add_column("model", no_wrap=True)
    for name in ("parameters", "GMAC", "GMAC here", "input"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("published weights")
    for variant in family():
        table.add_row(
            variant.name,
            f"{variant.parameters:,}",
            _giga(variant.published),
            _giga(variant.ours),
            "×".join(map(str, variant.input_size)),
            ", ".join(tag.partition(".")[2] for tag in variant.tags) or "–",
        )
    Console(highlight=False).print(table)
    return 0


def _giga(count: float) -> str:
    return f"{count / 1e9:.2f}" if count >= 1e8 else f"{count / 1e9:.4f}"


_MODELS_CAPTION = (
    "\nGMAC: multiply-accumulates of one image of the input size, in 10⁹, as published; here: what this package "
    "computes for the same numbers.\nWeights are had as MODEL.WEIGHTS, such as patchconvnet_s60.fb_in1k."
)


# shared by the commands that use a trained model


def _add_data_options(parser: ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="cifar10, cifar100, digits or folder:PATH")
    parser.add_argument("--root", default=None, help="where CIFAR lies or is downloaded to")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    for split in ("validation", "test"):
        parser.add_argument(
            f"--{split}",
            type=float | None,
            default=None,
            help="share or number set aside for it; as the model was trained with, if it was on this data",
        )
    parser.add_argument("--data_seed", type=int | None, default=None, help="of that choice (data.seed); likewise")
    parser.add_argument("--strict", action="store_true", help="stop at an image that cannot be read")
    parser.add_argument(
        "--size", type=_size_type(), default=None, help="another network input, SIDE or [HEIGHT, WIDTH]"
    )


def _load_data(values: Namespace, model: Any) -> Any:
    from patchconvnet.data.held_out import load_held_out

    return load_held_out(
        values.data, values.split, model.metadata.provenance, root=values.root, validation=values.validation,
        test=values.test, seed=values.data_seed, strict=values.strict, show_progress=True,
    )  # fmt: skip


def _preprocessing(model: Any, values: Namespace) -> Any:
    from patchconvnet.explanation.explainer import preprocessing_of

    preprocessing = preprocessing_of(model)
    return preprocessing if values.size is None else preprocessing.with_size(values.size)


def _add_model_options(parser: ArgumentParser, default: str | None = None) -> None:
    parser.add_argument(
        "--model",
        default=default,
        required=default is None,
        help="a model folder, a published tag such as patchconvnet_s60.fb_in1k, a hub id (owner/name), or cifar10, the "
        "model that ships with the package",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps or auto")


def _load_model(values: Namespace) -> tuple[Any, Any]:
    import torch

    from patchconvnet.models import load

    name = values.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        model = load(values.model).to(device)
    except (RuntimeError, AssertionError) as error:  # torch's words for a device that is not there
        raise UserError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return model, device


def _size_type() -> Any:
    return int | tuple[int, int] | None


SHIPPED = "cifar10"

COMMANDS = {
    "train": Command("train a network on your images", _train_parser, _train),
    "evaluate": Command("measure a model on labelled images", _evaluate_parser, _evaluate),
    "explain": Command("see what a model says about an image, and which patches made it", _explain_parser, _explain),
    "audit": Command("measure how faithful a model's maps are, beside the usual methods", _audit_parser, _audit),
    "models": Command("list the variants and their published weights", _models_parser, _models),
}
