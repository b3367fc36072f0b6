"""`patchconvnet export`."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from patchconvnet.commands.command_line import CommandLine
from patchconvnet.commands.sources import Size, load_model
from patchconvnet.commands.terminal import printable
from patchconvnet.errors import UserError

if TYPE_CHECKING:
    from patchconvnet.deploy.quantization import Labelled
    from patchconvnet.models import AttentionClassifier

CALIBRATED_ON = 200  # images at most
LARGEST_BATCH = 4096  # that many images are run while it exports


def export(
    model: str,
    *,
    out: Path,
    to: Literal["onnx", "torch", "web"] = "onnx",
    weights: Path | None = None,
    size: Size = None,
    preprocessing: Literal["outside", "inside"] = "outside",
    batch: int | Literal["dynamic"] = "dynamic",
    evidence: str = "auto",
    images: list[str] | None = None,
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    calibration: list[str] | None = None,
    data: str | None = None,
    masks: Path | None = None,
    limit: int = 500,
    onnxruntime_web: Path | None = None,
    samples: Path | None = None,
    compiled: bool = False,
) -> int:
    """Write a model with its maps as a file that runs without this package, and check it.

      patchconvnet export --model runs/pets --out pets.onnx
      patchconvnet explain cat.jpg --model pets.onnx

    The file is compared with PyTorch on random inputs and images, and not kept if it differs.

    Args:
        model: a run folder, a model folder, cifar10 (ships with the package), imagenet, a published tag such as
            patchconvnet_s60.fb_in1k, any timm model such as resnet50, or a hub id (owner/name).
        out: the file to write; for web, the folder.
        to: onnx; torch, a .pt2 file for torch.export.load; or web, a folder for any web server, whose page explains
            images in the browser.
        weights: a checkpoint of the timm model or variant that --model names: .safetensors, or a PyTorch file.
        size: the network input, such as 96 or 64x48 (height x width); by default the model's own.
        preprocessing: outside takes normalised images; inside takes uint8 images of any size, which the file resizes;
            for web it is inside.
        batch: images at a time, or dynamic for any number.
        evidence: auto, all, none, or for how many of the likeliest classes where evidence is of first order.
        images: image files, folders or patterns to check the file on; by default made images.
        precision: fp32; fp16 or int8 for all but pooling, softmax, classifier and evidence, which stay fp32.
        calibration: images, folders or patterns that int8 finds its scales on; 200 of them are taken.
        data: labelled images to measure what int8 or fp16 costs on: cifar10, cifar100, digits, folder:PATH,
            csv:FILE, parquet:FILE, hf:NAME, wds:PATTERN or litdata:FOLDER.
        masks: folder of masks for these, to measure how much of the evidence is in the object.
        limit: images of the data that are measured at most.
        onnxruntime_web: for web, the npm package onnxruntime-web as a folder or .tgz; if not given, it is downloaded.
        samples: for web, a folder of images that the page offers to try; if not given, drawings that come with it.
        compiled: for torch, compiled by AOTInductor for this kind of CPU; takes a C++ compiler.
    """
    from PIL import Image
    from rich.console import Console

    from patchconvnet.data.image_paths import find_images
    from patchconvnet.data.images import read_image
    from patchconvnet.deploy.onnx_export import export_onnx
    from patchconvnet.deploy.site import check_site, write_site
    from patchconvnet.deploy.torch_export import export_torch

    if isinstance(batch, int) and not 1 <= batch <= LARGEST_BATCH:
        raise UserError(f"--batch is {batch}; it must be from 1 to {LARGEST_BATCH:,}, or dynamic")
    if data is not None and precision == "fp32":
        raise UserError("--data measures what int8 or fp16 costs; add --precision int8, or use patchconvnet evaluate")
    if compiled and to != "torch":
        raise UserError("--compiled belongs to --to torch")
    if to == "torch" and (precision != "fp32" or preprocessing != "outside"):
        raise UserError("--to torch writes fp32 and takes prepared images; --precision and --preprocessing are of onnx")
    if to == "web":
        if batch != "dynamic":
            raise UserError("--batch belongs to --to onnx: the page gives one image at a time")
        check_site(out, onnxruntime_web, samples)
    elif given := [name for name, value in (("onnxruntime-web", onnxruntime_web), ("samples", samples)) if value]:
        raise UserError(f"--{given[0]} belongs to --to web")
    chosen: list[Image.Image] = [read_image(path) for path in find_images(images)[:8]] if images else []
    scales = [read_image(path) for path in _spread(find_images(calibration), CALIBRATED_ON)] if calibration else []
    network, _ = load_model(model, weights, "cpu")
    labelled = _labelled(network, data, masks, limit) if data is not None else None
    if to == "web":
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            export_onnx(
                network, file, name=model, size=size, preprocessing="inside", evidence=evidence, images=chosen,
                precision=precision, calibration=scales, data=labelled,
            )  # fmt: skip
            site = write_site(file, out, name=model, onnxruntime_web=onnxruntime_web, samples=samples)
        print(
            f"{printable(out)}: {site.bytes / 1e6:.1f} MB, with onnxruntime-web {site.onnxruntime_web}; see it with "
            f"python -m http.server --directory {printable(out)}"
        )
        return 0
    count = None if batch == "dynamic" else batch
    if to == "torch":
        about = export_torch(
            network, out, name=model, size=size, batch=count, evidence=evidence, images=chosen, compiled=compiled
        )
    else:
        about = export_onnx(
            network, out, name=model, size=size, preprocessing=preprocessing, batch=count, evidence=evidence,
            images=chosen, precision=precision, calibration=scales, data=labelled,
        )  # fmt: skip
    console = Console(highlight=False, markup=False, soft_wrap=True)
    check = about.verification
    largest = max(check["largest_differences"].values())
    console.print(
        f"{printable(out)}: {out.stat().st_size / 1e6:.1f} MB, {len(about.class_names):,} classes, evidence "
        f"{about.evidence}; height {about.height}, width {about.width}; answers as PyTorch to {largest:.1g} on "
        f"{check['inputs']} inputs ({check['images']} {check['of']})"
    )
    if precision != "fp32":
        sizes, differs = check["size"], check["with_this_precision"]["largest_differences"]
        console.print(
            f"{precision}: {sizes['this'] / 1e6:.1f} MB ({sizes['fp32'] / 1e6:.1f} MB as fp32), logits within "
            f"{differs['logits']:.2g} of the largest"
        )
    if measured := check.get("measured"):
        console.print(
            f"on {measured['images']} images: top-1 {measured['top1']['this']:.2%} ({measured['top1']['fp32']:.2%} as "
            f"fp32), the same answer for {measured['same_answers']:.2%}; rank correlation of the evidence "
            f"{measured['rank_correlation']:.3f}"
        )
        if energy := measured.get("energy_in_mask"):
            console.print(f"evidence in the mask: {energy['this']:.1%} ({energy['fp32']:.1%} as fp32)")
    return 0


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many, evenly from all."""
    return [items[i * len(items) // most] for i in range(most)] if len(items) > most else list(items)


def _labelled(network: "AttentionClassifier", data: str, masks: Path | None, limit: int) -> "Labelled":
    """Labelled images that the model has not learned, as far as it says."""
    from PIL import Image

    from patchconvnet.api import check_class_names
    from patchconvnet.data.held_out import load_held_out
    from patchconvnet.deploy.quantization import Labelled
    from patchconvnet.faithfulness.annotations import read_annotations

    provenance = network.metadata.provenance
    splits, name = load_held_out(data, "auto", provenance)
    split = splits.require(name)
    check_class_names(network, split)
    indices = _spread(range(len(split)), limit)

    def image(place: int) -> Image.Image:
        return split.image(indices[place])

    located = read_annotations(split, indices, None, masks) if masks else None
    return Labelled(
        image,
        split.labels[indices].tolist(),
        None if located is None else lambda place, geometry: located.on_input(indices[place], geometry).mask,
    )


def run(words: Sequence[str]) -> int:
    """Run the command with the words typed after its name."""
    parser = CommandLine(export)
    parser.add_function_arguments(export, as_group=False)
    return export(**parser.parse(words))
