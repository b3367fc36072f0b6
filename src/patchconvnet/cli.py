"""The command line: `patchconvnet train | evaluate | explain | models`. It parses, calls and prints; the work is elsewhere."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from patchconvnet import __version__
from patchconvnet.errors import UserError

DESCRIPTION = "Image classifiers that show where they look: train them, measure them, and see why they decided so."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    _quieten()
    parser = _parser()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        values = parser.parse_args(arguments)
        if values.subcommand is None:
            parser.print_help()
            return 0
        chosen = values[values.subcommand]
        return COMMANDS[values.subcommand][1](_subparser(parser, values.subcommand), chosen)
    except UserError as error:
        print(f"patchconvnet: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\npatchconvnet: interrupted", file=sys.stderr)
        return 130


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="patchconvnet", description=DESCRIPTION, version=__version__)
    subcommands = parser.add_subcommands(required=False, metavar="COMMAND")
    for name, (build, _) in COMMANDS.items():
        subcommands.add_subcommand(name, build())
    return parser


def _subparser(parser: ArgumentParser, name: str) -> ArgumentParser:
    return parser._subcommands_action._name_parser_map[name]


def _quieten() -> None:
    # what a user can do nothing about: Fabric's notes on precision and tips, torch's notes on a missing GPU
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="torch")
    for name in ("lightning.fabric", "lightning.fabric.utilities", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


# train


def _train_parser() -> ArgumentParser:
    from patchconvnet.training.recipe import recipe_parser

    parser = recipe_parser(
        description="Train a network. Start from a recipe and change any field of it:\n\n"
        "  patchconvnet train --recipe digits\n"
        "  patchconvnet train --recipe cifar10_default --epochs 5 --out runs/quick\n"
        "  patchconvnet train --recipe cifar10_default --data.name folder:my_pictures\n"
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
    parser.add_argument("--devices", type=int, default=1, help="devices on each machine")
    parser.add_argument("--nodes", type=int, default=1, help="machines; start the same command on each under torchrun")
    parser.add_argument("--strategy", default="auto", help="auto, ddp or fsdp")
    return parser


def _train(parser: ArgumentParser, values: Namespace) -> int:
    from patchconvnet.training import train
    from patchconvnet.training.loop import RECIPE_FILE, Machine
    from patchconvnet.training.recipe import read_recipe, recipe_from

    out = values.out
    if out is None:
        if values.resume != "no":
            raise UserError("--resume needs --out, the run folder to go on with")
        name = Path(str(values.recipe[0])).stem if values.recipe else "run"
        out = Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    saved = out / RECIPE_FILE
    if values.resume != "no" and not values.recipe and saved.is_file():
        recipe = read_recipe(saved)
    else:
        recipe = recipe_from(parser, values)
    machine = Machine(values.accelerator, values.devices, values.nodes, values.strategy)
    try:
        best = train(recipe, out, resume=values.resume, machine=machine)
    except KeyboardInterrupt:
        print(f"\npatchconvnet: interrupted; go on with: patchconvnet train --resume --out {out}", file=sys.stderr)
        return 130
    if _is_first_process():
        print(f"model folder: {best}\nattention pictures: {out / 'attention'}")
    return 0


def _is_first_process() -> bool:
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


COMMANDS: dict[str, tuple[Any, Any]] = {
    "train": (_train_parser, _train),
}
