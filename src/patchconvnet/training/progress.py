"""What a person sees while it trains: a bar on a terminal, a line an epoch everywhere."""

from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from patchconvnet.progress_bar import progress_bar
from patchconvnet.training.evaluation import FEWEST_FOR_TOP5


class TrainingProgress:
    """A progress bar with loss, accuracy, images a second and time left; silent on all processes but the first.

    Args:
        epochs, steps: of the run, and of an epoch.
        classes: of the data; top-5 is shown where there are more than five.
        first_epoch: where a resumed run continues.
        enabled: whether this process may write.
    """

    def __init__(self, epochs: int, steps: int, first_epoch: int, enabled: bool, classes: int = FEWEST_FOR_TOP5):
        self.has_top5 = classes >= FEWEST_FOR_TOP5
        self.epochs, self.steps, self.enabled = epochs, steps, enabled
        self.console = Console(quiet=not enabled, highlight=False)
        self.bar = progress_bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            shown=enabled,
        )
        self.task = self.bar.add_task("", total=epochs * steps, completed=first_epoch * steps, figures="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def step(self, epoch: int, done: int, loss: float, top1: float, images_per_second: float) -> None:
        """Show progress after `done` steps of an epoch; loss and accuracy are means of the epoch so far."""
        self.bar.update(
            self.task,
            completed=epoch * self.steps + done,
            description=f"epoch {epoch + 1}/{self.epochs}",
            figures=f"loss {loss:.3f} · top-1 {top1:.1%} · {images_per_second:,.0f} images/s ·",
        )

    def epoch(self, row: dict[str, Any], is_best: bool) -> None:
        """One line that stays, when an epoch is over."""
        number = f"{row['epoch']:>{len(str(self.epochs))}}"
        text = f"epoch {number}/{self.epochs}  loss {row['train_loss']:.4f}  top-1 {row['train_top1']:6.2%}"
        if row["val_top1"] is not None:
            text += f"   validation: loss {row['val_loss']:.4f}  top-1 {row['val_top1']:6.2%}"
            text += f"  top-5 {row['val_top5']:6.2%}" if self.has_top5 else ""
        text += f"   {row['images_per_second']:,.0f} images/s"
        self.console.print(text + ("  best" if is_best else ""), soft_wrap=True)

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, soft_wrap=True)
