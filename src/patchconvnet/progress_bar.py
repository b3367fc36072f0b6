"""A progress bar on terminals, and nothing anywhere else."""

from rich.console import Console
from rich.progress import Progress, ProgressColumn


def progress_bar(*columns: ProgressColumn | str, console: Console | None = None, shown: bool = True) -> Progress:
    """A bar of rich's that appears where output is a terminal, and leaves nothing behind.

    Args:
        columns: what it shows; rich's own choice by default.
        console: where to write; standard output by default.
        shown: False for no bar on terminals either.
    """
    console = console or Console(highlight=False)
    return Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))
