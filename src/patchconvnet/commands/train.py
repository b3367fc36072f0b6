"""`patchconvnet train`."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Literal

from patchconvnet.commands.command_line import CommandLine
from patchconvnet.commands.torch_imports import uncollected
from patchconvnet.errors import UserError
from patchconvnet.thread_count import ThreadCount
from patchconvnet.training.recipe import Recipe, recipe_from, recipe_parser
from patchconvnet.training.run_folder import RECIPE_FILE

ALIASES = {
    "data": "data.name",
    "max-bad": "data.max_bad",
    "model": "model.name",
    "accelerator": "device",
    "devices": "device_count",
}


def train(
    recipe: Recipe,
    *,
    out: Path,
    resume: Literal["no", "yes", "auto"] = "no",
    device: str = "auto",
    device_count: int | None = None,
    nodes: int | None = None,
    strategy: Literal["auto", "ddp", "fsdp"] = "auto",
    threads: ThreadCount = "auto",
) -> int:
    """Train a network on a folder of images, one folder a class; a recipe is chosen to fit them.

      patchconvnet train my_images
      patchconvnet train my_images --preprocessing.resize letterbox

    Or start from a recipe and change any field of it:

      patchconvnet train --recipe digits
      patchconvnet train --recipe cifar10_default --epochs 5 --out runs/quick
      patchconvnet train --recipe pictures --data folder:my_pictures
      patchconvnet train --resume --out runs/quick

    Args:
        recipe: everything that decides the training.
        out: run folder; runs/RECIPE-DATE if not given.
        resume: continue the run in --out from its last checkpoint; auto starts one if there is none yet.
        device: cpu, cuda, mps or auto.
        device_count: devices to use on each machine; 1, or as many as torchrun starts processes.
        nodes: machines; run the same command on each under torchrun.
        strategy: ddp gives each device the whole network, fsdp a part of it.
        threads: threads on a CPU, or auto: as many as are fastest by a short measurement, unless OMP_NUM_THREADS says.
    """
    with uncollected():
        from lightning.fabric.utilities.rank_zero import rank_zero_only

        from patchconvnet.training.launch import Hardware
        from patchconvnet.training.loop import train as run_training
        from patchconvnet.training.termination import EXIT_CODE, Terminated

    def say(what: str) -> None:
        if rank_zero_only.rank == 0:
            again = f"patchconvnet train --resume auto --out {shlex.quote(str(out))}"
            print(f"\npatchconvnet: {what}; continue with: {again}", file=sys.stderr)

    try:
        run_training(recipe, out, resume=resume, hardware=Hardware(device, device_count, nodes, strategy, threads))
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except Terminated:
        say("ended by SIGTERM")
        return EXIT_CODE
    return 0


def run(words: Sequence[str]) -> int:
    """Run the command with the words typed after its name."""
    parser = recipe_parser(CommandLine, function=train)
    parser.add_argument(
        "--resume", nargs="?", const="yes", default="no", choices=["no", "yes", "auto"],
        help="continue the run in --out from its last checkpoint; auto: start one if there is none yet",
    )  # fmt: skip
    parser.add_argument("--out", type=Path | None, default=None, help="run folder; runs/RECIPE-DATE if not given")
    parser.add_function_arguments(train, skip={"recipe", "out", "resume"}, as_group=False)
    parser.hide({f.name for f in fields(Recipe)})
    parser.aliases = ALIASES
    chosen: list[str] = []
    if words and not words[0].startswith("-"):
        folder, *words = words
        chosen = _for_folder(folder)
    words = [*chosen, *parser.normalised(words)]
    if _says(words, "preprocessing.resize", "stretch", "letterbox") and not _says(words, "preprocessing.crop_ratio"):
        words.append("--preprocessing.crop_ratio=1.0")  # the recipe's own has no meaning then
    own = [word for word in words if word.startswith("--recipe=")]
    values = parser.parse_args([*(own or _recipe_of_run(words)), *(word for word in words if word not in own)])
    if values.out is None and values.resume != "no":
        raise UserError("--resume needs --out, the run folder to continue")
    recipe = recipe_from(parser, values)
    name = Path(str(values.recipe[0])).stem if values.recipe else "run"
    return train(
        recipe,
        out=values.out or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}",
        **{name: values[name] for name in ("resume", "device", "device_count", "nodes", "strategy", "threads")},
    )


def _says(words: Sequence[str], name: str, *values: str) -> bool:
    """Whether an option is among the words, with one of some values."""
    given = [word.partition("=")[2] for word in words if word.startswith(f"--{name}=")]
    return bool(given) and (not values or given[-1] in values)


def _for_folder(folder: str) -> list[str]:
    """The options that stand for a folder: a recipe that fits it, and what of that to change. Says what was found."""
    from patchconvnet.training.choice import choose_recipe, look_over

    overview = look_over(folder)
    choice = choose_recipe(overview)
    told = ", ".join(f"{name} {value}" for name, value in choice.changes.items() if name != "data.name")
    print(f"{overview}\nrecipe {choice.recipe}{f' with {told}' if told else ''}: {choice.reason}", file=sys.stderr)
    return [f"--recipe={choice.recipe}", *(f"--{name}={value}" for name, value in choice.changes.items())]


def _recipe_of_run(words: Sequence[str]) -> list[str]:
    """A resumed run has a recipe of its own; `--recipe` and other options change it where that is allowed."""
    out = next((word.removeprefix("--out=") for word in words if word.startswith("--out=")), "")
    is_resumed = any(word.startswith("--resume") and word != "--resume=no" for word in words)
    kept = Path(out, RECIPE_FILE)
    return [f"--recipe={kept}"] if out and is_resumed and kept.is_file() else []
