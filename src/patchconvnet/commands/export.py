"""`patchconvnet export`."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from patchconvnet.commands.command_line import CommandLine
from patchconvnet.commands.sources import Size, load_model
from patchconvnet.commands.terminal import printable
from patchconvnet.errors import UserError

LARGEST_BATCH = 4096  # that many images are run while it exports


def export(
    model: str,
    *,
    out: Path,
    to: Literal["onnx", "web"] = "onnx",
    weights: Path | None = None,
    size: Size = None,
    preprocessing: Literal["outside", "inside"] = "outside",
    batch: int | Literal["dynamic"] = "dynamic",
    evidence: str = "auto",
    images: list[str] | None = None,
    onnxruntime_web: Path | None = None,
    samples: Path | None = None,
) -> int:
    """Write a model with its maps as a file that runs without PyTorch, and check it.

      patchconvnet export --model runs/pets --out pets.onnx
      patchconvnet explain cat.jpg --model pets.onnx

    The file is compared with PyTorch on random inputs and images, and not kept if it differs.

    Args:
        model: a run folder, a model folder, cifar10 (ships with the package), imagenet, a published tag such as
            patchconvnet_s60.fb_in1k, any timm model such as resnet50, or a hub id (owner/name).
        out: the file to write; for web, the folder.
        to: onnx; or web, a folder for any web server, whose page explains images in the browser.
        weights: a checkpoint of the timm model or variant that --model names: .safetensors, or a PyTorch file.
        size: the network input, such as 96 or 64x48 (height x width); by default the model's own.
        preprocessing: outside takes normalised images; inside takes uint8 images of any size, which the file resizes.
        batch: images at a time, or dynamic for any number.
        evidence: auto, all, none, or for how many of the likeliest classes where evidence is of first order.
        images: image files, folders or patterns to check the file on; by default made images.
        onnxruntime_web: for web, the npm package onnxruntime-web as a folder or .tgz; if not given, it is downloaded.
        samples: for web, a folder of images that the page offers to try.
    """
    from PIL import Image
    from rich.console import Console

    from patchconvnet.data.image_paths import find_images
    from patchconvnet.data.images import read_image
    from patchconvnet.deploy.onnx_export import export_onnx
    from patchconvnet.deploy.site import check_site, write_site

    if isinstance(batch, int) and not 1 <= batch <= LARGEST_BATCH:
        raise UserError(f"--batch is {batch}; it must be from 1 to {LARGEST_BATCH:,}, or dynamic")
    if to == "onnx" and out.is_dir():
        raise UserError(f"{out} is a folder; give --out a file name such as {out / 'model.onnx'}")
    if to == "web":
        check_site(out, onnxruntime_web, samples)
    elif given := [name for name, value in (("onnxruntime-web", onnxruntime_web), ("samples", samples)) if value]:
        raise UserError(f"--{given[0]} belongs to --to web")
    chosen: list[Image.Image] = [read_image(path) for path in find_images(images)[:8]] if images else []
    network, _ = load_model(model, weights, "cpu")
    if to == "web":
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            export_onnx(network, file, name=model, size=size, preprocessing="inside", evidence=evidence, images=chosen)
            site = write_site(file, out, name=model, onnxruntime_web=onnxruntime_web, samples=samples)
        print(
            f"{printable(out)}: {site.bytes / 1e6:.1f} MB, with onnxruntime-web {site.onnxruntime_web}; see it with "
            f"python -m http.server --directory {printable(out)}"
        )
        return 0
    about = export_onnx(
        network, out, name=model, size=size, preprocessing=preprocessing, batch=None if batch == "dynamic" else batch,
        evidence=evidence, images=chosen,
    )  # fmt: skip
    console = Console(highlight=False, markup=False, soft_wrap=True)
    check = about.verification
    largest = max(check["largest_differences"].values())
    console.print(
        f"{printable(out)}: {out.stat().st_size / 1e6:.1f} MB, {len(about.class_names):,} classes, evidence "
        f"{about.evidence}; height {about.height}, width {about.width}; answers as PyTorch to {largest:.1g} on "
        f"{check['inputs']} inputs ({check['images']} {check['of']})"
    )
    return 0


def run(words: Sequence[str]) -> int:
    """Run the command with the words typed after its name."""
    parser = CommandLine(export)
    parser.add_function_arguments(export, as_group=False)
    return export(**parser.parse(words))
