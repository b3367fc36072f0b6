"""`export_torch`: a network with its maps as PyTorch's own exported program, compared with it before it is kept."""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.export import ExportedProgram

from patchconvnet.deploy.description import KEY, Description, Side
from patchconvnet.deploy.exportable import Answers, check_exportable, evidence_count
from patchconvnet.deploy.following import check_writable, describe, followed, network_input, quiet
from patchconvnet.deploy.verification import Run, compare, made_images
from patchconvnet.errors import UserError, first_line
from patchconvnet.files import write_atomic
from patchconvnet.models.classifier import AttentionClassifier


def export_torch(
    model: AttentionClassifier,
    out: Path,
    *,
    name: str = "",
    size: int | tuple[int, int] | None = None,
    batch: int | None = None,
    evidence: str | int = "auto",
    images: Sequence[Image.Image] = (),
    compiled: bool = False,
) -> Description:
    """Write a network as a `.pt2` file that PyTorch runs without this package.

    `torch.export.load` reads it, or `torch._inductor.aoti_load_package` one that is compiled; called with normalised
    images (B, C, H, W), it returns logits (B, K), attention (B, Q, h, w) and, where there is some, evidence. The JSON
    of the description travels as the extra file `patchconvnet`, or in the metadata of one that is compiled.

    Args:
        model: in evaluation mode, on the CPU; stays as it is.
        out: the file, whose name ends with .pt2.
        name: what the model is called.
        size: the network input, (height, width) or one number for a square; by default the model's own.
        batch: images at a time; None for any number.
        evidence: for how many classes: see `patchconvnet.deploy.exportable.evidence_count`.
        images: to compare the file with the network on; by default made ones.
        compiled: by AOTInductor into a library for this kind of CPU; takes a C++ compiler and half a minute or more.

    Returns:
        What the file says about itself.

    Raises:
        UserError: the network cannot be exported or compiled, the size is not one of its, the file cannot be written,
            or differs from the network.
    """
    check_exportable(model)
    if out.suffix != ".pt2":
        raise UserError(f"{out}: PyTorch reads such a file only if its name ends with .pt2")
    count = evidence_count(model, evidence)
    settings = network_input(model, size)
    check_writable(out)
    answers = Answers(model, count)
    program, (height, width) = followed(answers, settings.size, batch, any_size=True)
    sides = (_guarded(height, model.patch_size), _guarded(width, model.patch_size))
    about = describe(model, name, settings, answers, sides, batch)
    chosen = list(images) or made_images(settings.channels, np.random.default_rng(0))
    put = _compile if compiled else _save
    described = [about]

    def write(part: Path) -> None:
        with quiet():
            run = put(program, part, about, answers.outputs)
        found = compare(run, answers, about, chosen)
        flat = found.pop("attention_is_flat") and about.evidence != "none"
        verified = {**found, "of": "given images" if images else "made images", "torch": str(torch.__version__)}
        described[0] = replace(about, verification=verified, shown="evidence" if flat else "attention")
        with quiet():  # again, for its description says what was found
            put(program, part, described[0], answers.outputs)

    try:
        write_atomic(out, write)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    return described[0]


def _guarded(side: Side, patch: int) -> Side:
    """Exported programs refuse images that are one patch high or wide."""
    return side if side.is_fixed else replace(side, least=2 * patch)


def _save(program: ExportedProgram, path: Path, about: Description, outputs: list[str]) -> Run:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={KEY: about.to_json()})
    path.write_bytes(buffer.getvalue())
    buffer.seek(0)
    return _run(torch.export.load(buffer).module(), outputs)


def _compile(program: ExportedProgram, path: Path, about: Description, outputs: list[str]) -> Run:
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    named = path.with_name(f"{path.name}.pt2")  # the ending that it asks for
    try:
        options = {"aot_inductor.metadata": {KEY: about.to_json()}}
        with torch.no_grad():
            aoti_compile_and_package(program, package_path=str(named), inductor_configs=options)
        loaded = aoti_load_package(str(named))
        named.replace(path)
    except OSError:
        raise
    except Exception as error:  # of many types; most often there is no compiler
        raise UserError(f"AOTInductor cannot compile this network: {first_line(error)}") from error
    finally:
        named.unlink(missing_ok=True)
    return _run(loaded, outputs)


def _run(module: Callable[..., Any], outputs: list[str]) -> Run:
    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            return dict(zip(outputs, (values.numpy() for values in module(torch.from_numpy(batch))), strict=True))

    return run
