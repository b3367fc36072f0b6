"""`patchconvnet audit`."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from patchconvnet.commands.command_line import CommandLine, taken
from patchconvnet.commands.sources import ModelAndData
from patchconvnet.commands.torch_imports import import_networks
from patchconvnet.errors import UserError
from patchconvnet.faithfulness.settings import AuditSettings


def audit(
    subject: ModelAndData,
    settings: AuditSettings,
    *,
    boxes: Path | None = None,
    masks: Path | None = None,
    card: bool = False,
    predictions: Path | None = None,
    out: Path = Path("audit"),
) -> int:
    """How faithful are a model's maps? Measure them beside the usual methods, on a whole data set.

      patchconvnet audit --model cifar10 --data cifar10 --limit 200 --out trust
      patchconvnet audit --model runs/pets --data folder:pets --quick
      patchconvnet audit --model runs/pets --data folder:pets --masks pets_masks --out trust
      patchconvnet audit --model runs/pets --data folder:pets --masks pets_masks --predictions predicted

    Writes report.html (one self-contained page), report.json and report.csv. After an interruption the same command
    continues where it stopped. The methods of others need: pip install 'patchconvnet[audit]'.

    Args:
        subject: which model, on which images.
        settings: what to measure.
        boxes: CSV with the columns image, x0, y0, x1, y1.
        masks: folder with a mask for each image.
        card: put the figures into the model folder too: its config.json, and README.md, the model card.
        predictions: folder that patchconvnet predict wrote with --maps: only whether these maps lie on the objects is
            measured, without asking the network. Takes no settings of what to measure beside it.
        out: folder for the report and the audit's state.
    """
    import_networks()
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


def _run_on_predictions(words: Sequence[str]) -> int:
    def audit(
        *, predictions: Path, boxes: Path | None = None, masks: Path | None = None, out: Path = Path("audit")
    ) -> int:
        """Whether maps that patchconvnet predict wrote lie on the objects."""
        return _audit_predictions(taken(ModelAndData, values), predictions, boxes, masks, out)

    parser = CommandLine(audit)
    parser.add_class_arguments(ModelAndData, as_group=False)
    parser.add_function_arguments(audit, as_group=False)
    values = dict(parser.parse(words))
    return audit(**{name: values[name] for name in ("predictions", "boxes", "masks", "out")})


def _audit_predictions(
    subject: ModelAndData, predictions: Path, boxes: Path | None, masks: Path | None, out: Path
) -> int:
    from patchconvnet.bulk.measured import stored_maps
    from patchconvnet.bulk.parts import check_pyarrow
    from patchconvnet.bulk.predictor import fingerprint_of
    from patchconvnet.faithfulness.annotations import read_annotations
    from patchconvnet.faithfulness.report.report import figures_of
    from patchconvnet.faithfulness.stored_maps import matched, measure_places
    from patchconvnet.files import write_text

    check_pyarrow()
    if boxes is None and masks is None:
        raise UserError("--predictions measures whether maps lie on the objects: give --boxes or --masks with them")
    network, _, preprocessing, images, data_name, split = subject.load()
    kind, rows = stored_maps(predictions, fingerprint_of(network, preprocessing))
    annotations = read_annotations(images, range(len(images)), boxes, masks)
    assert annotations is not None
    found = measure_places(matched(rows, images), kind, network, images, preprocessing, annotations)
    figures = {column: figures_of(each) for column, each in found.items()}
    about = {"model": subject.model, "data": f"{data_name}, {split}", "predictions": str(predictions), "maps": kind}
    write_text(out / "places.json", json.dumps({**about, "figures": figures}, indent=1) + "\n")
    for column, each in found.items():
        error = f" ± {each.error:.4f}" if each.error else ""  # none of those at one threshold
        print(f"{column.replace('_', ' ')}: {each.mean:.4f}{error} of {each.count:,} images")
    print(out / "places.json")
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
    if any(word.partition("=")[0] == "--predictions" for word in words):
        return _run_on_predictions(words)
    parser = CommandLine(audit)
    parser.add_class_arguments(ModelAndData, as_group=False)
    parser.add_function_arguments(audit, skip={"subject", "settings"}, as_group=False)
    parser.add_class_arguments(AuditSettings)
    values = dict(parser.parse(words))
    return audit(taken(ModelAndData, values), taken(AuditSettings, values), **values)
