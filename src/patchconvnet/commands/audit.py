"""`patchconvnet audit`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from patchconvnet.commands.command_line import CommandLine, taken
from patchconvnet.commands.sources import ModelAndData
from patchconvnet.errors import UserError
from patchconvnet.faithfulness.settings import AuditSettings


def audit(
    subject: ModelAndData,
    settings: AuditSettings,
    *,
    boxes: Path | None = None,
    masks: Path | None = None,
    card: bool = False,
    out: Path = Path("audit"),
) -> int:
    """How faithful are a model's maps? Measure them beside the usual methods, on a whole data set.

      patchconvnet audit --model cifar10 --data cifar10 --limit 200 --out trust
      patchconvnet audit --model runs/pets --data folder:pets --quick
      patchconvnet audit --model runs/pets --data folder:pets --masks pets_masks --out trust

    Writes report.html (one self-contained page), report.json and report.csv. After an interruption the same command
    continues where it stopped. The methods of others need: pip install 'patchconvnet[audit]'.

    Args:
        subject: which model, on which images.
        settings: what to measure.
        boxes: CSV with the columns image, x0, y0, x1, y1.
        masks: folder with a mask for each image.
        card: put the figures into the model folder too: its config.json, and README.md, the model card.
        out: folder for the report and the audit's state.
    """
    from patchconvnet.faithfulness.audit import audit as measure
    from patchconvnet.hardware import Threads

    folder = _model_folder(subject.model) if card else None
    network, device, preprocessing, images, data_name, split = subject.load()
    Threads(subject.threads, device)  # once: an audit's steps are of many kinds, and don't compare
    result = measure(
        network, images, out, settings, boxes=boxes, masks=masks, preprocessing=preprocessing, device=device,
        name=subject.model, data_name=f"{data_name}, {split}",
    )  # fmt: skip
    if settings.quick and (errors := result.summary.usual_errors()):
        told = ", ".join(f"{title} {error:.2g}" for title, error in errors.items())
        print(f"usual standard errors with {result.summary.images} images: {told}; four times as many halve them")
    for path in result.files:
        print(path)
    if folder is not None:
        from patchconvnet.faithfulness.report.report import card_figures
        from patchconvnet.models.weights import CARD_FILE, read_config, write_metadata

        metadata = read_config(folder)[1]
        metrics = {**metadata.metrics, "audit": card_figures(result.summary)}
        write_metadata(folder, replace(metadata, metrics=metrics))
        print(folder / CARD_FILE)
    return 0


def _model_folder(name: str) -> Path:
    """The model folder that a model's name stands for.

    Raises:
        UserError: it is none, or one that cannot be written to.
    """
    from patchconvnet.models.weights import CONFIG_FILE, read_config

    for folder in (Path(name).expanduser(), Path(name).expanduser() / "best"):
        if name and "\0" not in name and (folder / CONFIG_FILE).is_file():
            read_config(folder)
            return folder
    raise UserError(f"--card writes into a model folder or a run folder, and {name!r} is none; leave --card out")


def run(words: Sequence[str]) -> int:
    """Run the command with the words typed after its name."""
    parser = CommandLine(audit)
    parser.add_class_arguments(ModelAndData, as_group=False)
    parser.add_function_arguments(audit, skip={"subject", "settings"}, as_group=False)
    parser.add_class_arguments(AuditSettings)
    values = dict(parser.parse(words))
    return audit(taken(ModelAndData, values), taken(AuditSettings, values), **values)
