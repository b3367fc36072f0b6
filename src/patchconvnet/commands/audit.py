"""`patchconvnet audit`."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Literal

from patchconvnet.commands.command_line import CommandLine
from patchconvnet.commands.sources import Size, load_model, preprocessing_for
from patchconvnet.faithfulness.settings import AuditSettings


def audit(
    model: str,
    data: str,
    settings: AuditSettings,
    *,
    split: Literal["auto", "train", "validation", "test", "all"] = "auto",
    root: str | None = None,
    validation: float | None = None,
    test: float | None = None,
    data_seed: int | None = None,
    weights: Path | None = None,
    strict: bool = False,
    size: Size = None,
    boxes: Path | None = None,
    masks: Path | None = None,
    device: str = "auto",
    threads: int | Literal["auto"] = "auto",
    out: Path = Path("audit"),
) -> int:
    """How faithful are a model's maps? Measure them beside the usual methods, on a whole data set.

      patchconvnet audit --model cifar10 --data cifar10 --limit 200 --out trust
      patchconvnet audit --model runs/pets --data folder:pets --quick
      patchconvnet audit --model runs/pets --data folder:pets --masks pets_masks --out trust

    Writes report.html (one page that stands alone), report.json and report.csv. After an interruption the same command
    continues where it stopped. The methods of others need: pip install 'patchconvnet[audit]'.

    Args:
        model: a run folder, a model folder, cifar10 (ships with the package), imagenet, a published tag such as
            patchconvnet_s60.fb_in1k, any timm model such as resnet50, or a hub id (owner/name).
        data: cifar10, cifar100, digits or folder:PATH.
        settings: what to measure.
        split: the images to measure on; auto is the test split, or all images of a folder that has none of its own and
            that the model has not seen.
        root: where CIFAR is kept or downloaded to.
        validation: share or number of images set aside for validation; by default as in the model's training.
        test: share or number of images set aside for the test; by default as in the model's training; 1 for all.
        data_seed: seed of that choice; by default as in the model's training.
        weights: a checkpoint of the timm model or variant that --model names: .safetensors, or a PyTorch file.
        strict: stop at an image that cannot be read, instead of leaving it out.
        size: another network input, such as 96 or 64x48 (height x width).
        boxes: CSV with the columns image, x0, y0, x1, y1.
        masks: folder with a mask for each image.
        device: cpu, cuda, mps or auto.
        threads: threads on a CPU, or auto: as many as are fastest by a short measurement, unless OMP_NUM_THREADS says.
        out: folder for the report and the audit's state.
    """
    from patchconvnet.data.held_out import chosen_split, load_held_out
    from patchconvnet.faithfulness.audit import audit as measure
    from patchconvnet.hardware import Threads, check_threads

    check_threads(threads)
    network, chosen_device = load_model(model, weights, device)
    provenance = network.metadata.provenance
    splits = load_held_out(
        data, split, provenance, root=root, validation=validation, test=test, seed=data_seed,
        strict=strict, show_progress=True,
    )  # fmt: skip
    name = chosen_split(splits, split, provenance, root=root)
    Threads(threads, chosen_device)  # once: an audit's steps are of many kinds, and don't compare
    result = measure(
        network, splits.require(name), out, settings, boxes=boxes, masks=masks,
        preprocessing=preprocessing_for(network, size), device=chosen_device, name=model,
        data_name=f"{splits.name}, {name}",
    )  # fmt: skip
    for path in result.files:
        print(path)
    return 0


def run(words: Sequence[str]) -> int:
    """Run the command with the words typed after its name."""
    parser = CommandLine(audit)
    parser.add_function_arguments(audit, skip={"settings"}, as_group=False)
    parser.add_class_arguments(AuditSettings)
    values = dict(parser.parse(words))
    settings = {f.name: values.pop(f.name) for f in fields(AuditSettings)}
    return audit(settings=AuditSettings(**settings), **values)
