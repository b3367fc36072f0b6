"""`patchconvnet export --to web`: a folder that any web server can hand out, whose page explains images by itself.

It holds the page that `patchconvnet serve` shows too (`patchconvnet/deploy/web`), the exported network and
onnxruntime-web. Images stay in the browser.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from patchconvnet.data.images import read_image
from patchconvnet.deploy.onnxruntime_web import runtime_files
from patchconvnet.deploy.runtime import OnnxModel
from patchconvnet.errors import UserError, first_line

PAGE = Path(__file__).parent / "web"
LIST = "site_files.js"  # its presence tells a site of ours from other folders
MOST_SAMPLES = 24
SAMPLE_SIDE = 800  # pixels
LICENCE = """onnxruntime-web {version}, the files in this folder. Copyright (c) Microsoft Corporation. MIT License:

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


@dataclass(frozen=True)
class Site:
    """A folder that was written.

    Attributes:
        folder: where it is.
        bytes: of all its files.
        onnxruntime_web: the version of onnxruntime-web in it.
    """

    folder: Path
    bytes: int
    onnxruntime_web: str


def check_site(out: Path, onnxruntime_web: Path | None = None, samples: Path | None = None) -> None:
    """Refuse what `write_site` would refuse, before anything is computed.

    Raises:
        UserError: `out` is a file, or a folder with other things than a former site; there is no onnxruntime-web; or
            `samples` is no folder of images.
    """
    runtime_files(onnxruntime_web)
    if samples is not None:
        _sample_files(samples)
    check_out(out)


def check_out(out: Path) -> None:
    """Refuse to write a site over something else.

    Raises:
        UserError: `out` is a file, or a folder with other things than a former site.
    """
    if out.is_file():
        raise UserError(f"{out} is a file; --out of a site is a folder.")
    if out.is_dir() and any(out.iterdir()) and not (out / LIST).is_file():
        raise UserError(f"{out} holds other files than a site of patchconvnet; give an empty or a new folder as --out.")


def write_site(
    model: Path, out: Path, *, name: str, onnxruntime_web: Path | None = None, samples: Path | None = None
) -> Site:
    """Write the static site; a former one in the same place is replaced as a whole.

    Args:
        model: an ONNX file of `patchconvnet export` with its preprocessing inside.
        out: the folder.
        name: what the page calls the model.
        onnxruntime_web: its npm package, a folder or .tgz; None downloads it (see `onnxruntime_web.runtime_files`).
        samples: a folder of images that the page offers to try, instead of its own drawings.

    Raises:
        UserError: the model takes no pixels or says nothing of itself, the folder is not a site's, an image is no
            image, or something cannot be written.
    """
    check_out(out)
    about = describe(model, name)
    version, runtime = runtime_files(onnxruntime_web)
    part = out.with_name(f".{out.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(PAGE, part, ignore=shutil.ignore_patterns("__pycache__"))
        (part / "engine.js").write_text('export { engine } from "./engine_local.js";\n')
        (part / "engine_server.js").unlink()
        (part / "ort").mkdir()
        for file, content in runtime.items():
            (part / "ort" / file).write_bytes(content)
        (part / "ort" / "LICENSE.txt").write_text(LICENCE.format(version=version))
        shutil.copyfile(model, part / "model.onnx")
        digest = hashlib.sha256(model.read_bytes()).hexdigest()[:16]
        about |= {"file": f"model.onnx?v={digest}", "bytes": model.stat().st_size}
        (part / "model.json").write_text(json.dumps(about), encoding="utf-8")
        if samples is not None:
            _write_samples(_sample_files(samples), part / "samples")
        _write_list(part)
        size = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
        if out.exists():
            former = out.with_name(f".{out.name}.former")
            shutil.rmtree(former, ignore_errors=True)
            out.replace(former)
            part.replace(out)
            shutil.rmtree(former, ignore_errors=True)
        else:
            part.replace(out)
    except OSError as error:
        raise UserError(f"cannot write the site to {out}: {first_line(error)}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Site(out, size, version)


def describe(model: Path, name: str) -> dict[str, Any]:
    """What the page must know of an exported network: the description in its file, which browsers do not hand out.

    Raises:
        UserError: it is no ONNX file, not one of ours, or does not resize images itself.
    """
    network = OnnxModel(model)
    about = network.description
    if about.input != "pixels" or about.preprocessing.channels != 3:
        raise UserError(
            f"{model} takes {about.input} of {about.preprocessing.channels} channels, and the page gives colour images "
            "as they are; export it with --preprocessing inside."
        )
    height, width = network.run(np.zeros((1, *about.size, 3), np.uint8))["attention"].shape[2:]
    grid = about.placement.grid(about.size, (height, width))
    return {
        "name": name or about.name,
        "class_names": about.class_names,
        "preprocessing": about.preprocessing.to_dict(),
        "temperature": about.temperature,
        "bias": about.bias,
        "grid": {"first": dict(zip("yx", grid.first, strict=True)), "step": dict(zip("yx", grid.step, strict=True))},
        "exact": about.evidence == "exact",
        "removal": about.removal,
        "precision": about.precision,
        "version": about.version,
    }


def _sample_files(folder: Path) -> list[Path]:
    files = [path for path in sorted(folder.iterdir()) if path.is_file()] if folder.is_dir() else []
    if not 0 < len(files) <= MOST_SAMPLES:
        raise UserError(f"--samples takes a folder of 1 to {MOST_SAMPLES} images; {folder} has {len(files)} files.")
    return files


def _write_samples(files: list[Path], out: Path) -> None:
    shutil.rmtree(out)
    out.mkdir()
    listed = []
    for number, path in enumerate(files, 1):
        image = read_image(path)
        image.thumbnail((SAMPLE_SIDE, SAMPLE_SIDE), Image.Resampling.LANCZOS)
        image.save(out / f"{number}.jpg", quality=90)
        listed.append({"file": f"{number}.jpg", "name": path.stem.replace("_", " ")})
    (out / "samples.json").write_text(json.dumps(listed), encoding="utf-8")


def _write_list(folder: Path) -> None:
    """The files that the page keeps for use without a connection, under a version made of their contents."""
    digest, names = hashlib.sha256(), []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "service_worker.js":
            names.append(path.relative_to(folder).as_posix())
            digest.update(names[-1].encode() + b"\0" + path.read_bytes())
    text = f"self.VERSION = {json.dumps(digest.hexdigest()[:16])};\nself.FILES = {json.dumps(['./', *names])};\n"
    (folder / LIST).write_text(text)
