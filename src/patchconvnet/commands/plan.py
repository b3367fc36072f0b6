"""`patchconvnet plan`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from patchconvnet.commands.command_line import CommandLine
from patchconvnet.commands.sources import Size
from patchconvnet.commands.terminal import printable
from patchconvnet.commands.torch_imports import import_networks
from patchconvnet.errors import UserError

if TYPE_CHECKING:
    from patchconvnet.training.recipe import Recipe

MOST_IMAGES = 10**12
LARGEST_PRICE = 1e6
KINDS_SHOWN = 5


def plan(
    *,
    model: str | None = None,
    data: str | None = None,
    hardware: str = "cpu",
    recipe: str | None = None,
    images: int | None = None,
    classes: int = 1000,
    batch_size: int | None = None,
    size: Size = None,
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] | None = None,
    price: float | None = None,
    threads: int | Literal["auto"] = "auto",
) -> int:
    """What a training will take: memory by part, time and cost of an epoch, and what bounds it, by calculation.

      patchconvnet plan --model patchconvnet_s60 --data folder:archive --hardware cpu --batch-size 32
      patchconvnet plan --model patchconvnet_s60 --images 1281167 --size 224 --hardware 8xh100 --price 3.5
      patchconvnet plan --recipe finetune --data folder:my_pictures

    Two small steps are run here and every operation in them is counted, with the bytes that it moves. CPU rates are
    measured in some seconds, on operators alone; those of GPUs are stated shares of the makers' peaks, and such plans
    are marked as unchecked.

    Args:
        model: a variant, a timm model, or whatever else train takes as --model; if not given, the recipe's.
        data: cifar10, cifar100, digits or folder:PATH, for the number of images and classes; or give --images.
        hardware: such as cpu, 2xcpu (machines like this one), or 8xh100; known: cpu, epyc (two cores, measured before),
            h100, h200, a100, v100, l4, t4.
        recipe: a YAML file, or the name of a recipe that ships with the package.
        images: training images of an epoch, instead of --data.
        classes: of the network, where no --data says how many.
        batch_size: images of a step, all devices together; by default the recipe's.
        size: the network input, such as 96 or 64x48 (height x width); by default the recipe's.
        precision: number format of the forward pass; by default the recipe's.
        price: of one device for an hour, in any currency, for the cost of an epoch.
        threads: threads on a CPU, or auto: as many as are fastest by a short measurement, unless OMP_NUM_THREADS says.
    """
    import_networks()
    import torch
    from rich.console import Console
    from rich.table import Table

    from patchconvnet.hardware import Threads
    from patchconvnet.thread_count import check_threads
    from patchconvnet.training import plan as planning
    from patchconvnet.training.recipe import Recipe, read_recipe
    from patchconvnet.training.sources import build_model, load_data

    check_threads(threads)
    chosen = planning.Machine.parse(hardware)
    for name, value, most in (
        ("images", images, MOST_IMAGES),
        ("classes", classes, 10**6),
        ("price", price, LARGEST_PRICE),
    ):
        if value is not None and not 0 < value <= most:
            raise UserError(f"--{name} is {value}; it must be above 0 and at most {most:,.0f}")
    if model is None and recipe is None:
        raise UserError("plan needs --model or --recipe")
    if (data is None) == (images is None) and (data is not None or recipe is None):
        raise UserError("plan needs either --data or --images, the number of images of an epoch")
    asked = _changed(read_recipe(recipe) if recipe else Recipe(), model, data, batch_size, size, precision)
    if images is None:
        splits = load_data(asked)
        if splits.train is None:
            raise UserError(f"{asked.data.name} has no training images")
        images, classes = len(splits.train), len(splits.class_names)
    Threads(threads, chosen.kind if chosen.kind == "cpu" else "cuda")
    torch.manual_seed(0)
    result = planning.plan(build_model(asked, classes), asked, images, chosen, price=price)
    console = Console(highlight=False, soft_wrap=True)
    height, width = asked.preprocessing.size
    console.print(
        f"{printable(asked.model.name)}, {height}×{width}, {asked.batch_size:,} images a step on "
        f"{chosen.count} × {chosen.kind}",
        markup=False,
    )
    table = Table(box=None)
    for column in ("memory of a device", "MB"):
        table.add_column(column, justify="right" if column == "MB" else "left")
    for part, amount in result.memory.items():
        table.add_row(part, f"{amount / 1e6:,.0f}")
    table.add_row("in all", f"{sum(result.memory.values()) / 1e6:,.0f}")
    console.print(table)
    if not result.fits:
        console.print(
            f"That is more than a device has ({result.rates.memory / 1e9:,.0f} GB): take a smaller batch, "
            "optimization.accumulate, or more devices"
        )
    largest = sorted(result.seconds.items(), key=lambda part: -part[1])[:KINDS_SHOWN]
    rest = 1 - sum(seconds for _, seconds in largest) / result.step
    shares = [f"{kind} {seconds / result.step:.0%}" for kind, seconds in largest]
    console.print(f"a step {result.step:,.3g} s: {', '.join(shares)}, others {rest:.0%}")
    console.print(f"an epoch of {images:,} images: {_duration(result.epoch)}, bound by {result.bound_by}")
    if result.cost is not None:
        console.print(
            f"cost of an epoch: {result.cost:,.2f}, of {asked.epochs:,} epochs: {result.cost * asked.epochs:,.2f}"
        )
    console.print(f"rates: {result.rates.source}", markup=False)
    if not result.rates.checked or chosen.count > 1:
        console.print("unchecked: no such hardware was at hand when these formulas were tried; reading is not counted")
    return 0


def run(words: Sequence[str]) -> int:
    """Run the command with the words typed after its name."""
    parser = CommandLine(plan)
    parser.add_function_arguments(plan, as_group=False)
    return plan(**parser.parse(words))


def _changed(
    recipe: "Recipe", model: str | None, data: str | None, batch_size: int | None, size: Size, precision: str | None
) -> "Recipe":
    changes: dict[str, object] = {"method": "train"}
    if model is not None:
        options = recipe.model.options if model == recipe.model.name else {}
        changes["model"] = replace(recipe.model, name=model, options=options)
    if data is not None:
        changes["data"] = replace(recipe.data, name=data)
    if batch_size is not None:
        changes["batch_size"] = batch_size
    if size is not None:
        changes["preprocessing"] = recipe.preprocessing.with_size(size)
    if precision is not None:
        changes["precision"] = precision
    return replace(recipe, **changes)  # type: ignore[arg-type]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.0f} minutes" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"
