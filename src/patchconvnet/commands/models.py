"""`patchconvnet models`."""

from collections.abc import Sequence

from patchconvnet.commands.command_line import CommandLine
from patchconvnet.commands.torch_imports import import_networks

CAPTION = """
GMAC: multiply-accumulates for one image of the input size, in billions, as published; here: as this package computes
the same numbers. `--model` takes the names of published weights as they stand."""


def models() -> int:
    """List the variants: parameters, operations, input size, published weights."""
    from rich.console import Console
    from rich.table import Table

    import_networks()
    from patchconvnet.models.cost import family

    variants = family()
    table = Table(box=None)
    table.add_column("model", no_wrap=True)
    for name in ("parameters", "GMAC", "GMAC here", "input"):
        table.add_column(name, justify="right", no_wrap=True)
    for variant in variants:
        table.add_row(
            variant.name,
            f"{variant.parameters:,}",
            _giga(variant.published),
            _giga(variant.ours),
            "×".join(map(str, variant.input_size)),
        )
    Console(highlight=False).print(table)
    print("\npublished weights:")  # on lines of their own: they are typed as they stand
    for variant in variants:
        for tag in variant.tags:
            print(f" {tag}")
    print(CAPTION)
    return 0


def run(words: Sequence[str]) -> int:
    """Run the command with the words typed after its name."""
    CommandLine(models).parse(words)
    return models()


def _giga(count: float) -> str:
    return f"{count / 1e9:.2f}" if count >= 1e8 else f"{count / 1e9:.4f}"
