"""`patchconvnet review`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from patchconvnet.commands.command_line import CommandLine
from patchconvnet.commands.terminal import printable
from patchconvnet.errors import UserError

SHOWN = 10  # of each list in the terminal
MOST = 100_000


def review(*, predictions: Path, out: Path = Path("review"), count: int = 100) -> int:
    """Which images are worth a look: where the model disagrees with the label, and where it is unsure.

      patchconvnet predict --model runs/pets --data folder:pets --out predicted
      patchconvnet review --predictions predicted --out review

    Reads what predict wrote, without the network. Writes disagreed.csv (the given class is not the likeliest, the least
    expected first: a wrong label, or a mistake of the model), unsure.csv (the two likeliest classes nearly as likely)
    and confused.csv (which class is taken for which, how often).

    Args:
        predictions: folder that patchconvnet predict wrote, with --top 2 or more.
        out: folder for the tables.
        count: at most so many rows in each.
    """
    from rich.console import Console

    from patchconvnet.bulk.parts import check_pyarrow
    from patchconvnet.bulk.review import Confusion, Reviewed
    from patchconvnet.bulk.review import review as look
    from patchconvnet.files import write_text
    from patchconvnet.training.tables import as_csv

    check_pyarrow()
    if not 1 <= count <= MOST:
        raise UserError(f"count is {count}; it must be from 1 to {MOST:,}")
    found = look(predictions, count)
    written: dict[str, list[list[Any]]] = {
        "disagreed.csv": [list(Reviewed._fields), *map(list, found.disagreed)],
        "unsure.csv": [list(Reviewed._fields), *map(list, found.unsure)],
        "confused.csv": [list(Confusion._fields), *map(list, found.confusions)],
    }
    for name, rows in written.items():
        write_text(out / name, as_csv(rows))
    console = Console(highlight=False, markup=False, soft_wrap=True)
    labelled = f", {found.labelled:,} of them with a label" if found.labelled < found.images else ""
    console.print(
        f"{printable(predictions)}: {found.images:,} images{labelled}, {found.failed:,} could not be predicted"
    )
    for title, images in (("against the label", found.disagreed), ("unsure", found.unsure)):
        if images:
            console.print(f"\n{title}:")
        for each in images[:SHOWN]:
            label = f", labelled {each.label}" if each.label is not None else ""
            console.print(
                printable(
                    f"  {each.id}: {each.first} {each.first_probability:.0%}, "
                    f"{each.second} {each.second_probability:.0%}{label}"
                )
            )
    if found.confusions:
        console.print("\nmost confused:")
    for pair in found.confusions[:SHOWN]:
        console.print(
            printable(f"  {pair.label} taken for {pair.predicted}: {pair.images:,}, {pair.share:.1%} of its images")
        )
    console.print()
    for name in written:
        print(out / name)
    return 0


def run(words: Sequence[str]) -> int:
    """Run the command with the words typed after its name."""
    parser = CommandLine(review)
    parser.add_function_arguments(review, as_group=False)
    return review(**parser.parse(words))
