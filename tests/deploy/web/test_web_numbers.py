"""The page's numbers are PyTorch's and the server's, and its geometry, colours and removal are Python's."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from pages import Opened, png, serving_files
from PIL import Image

from patchconvnet import Explanation, cli, explain
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.deploy.runtime import OnnxModel
from patchconvnet.explanation.colours import attention_colours, evidence_colours
from patchconvnet.explanation.patch_grid import Grid
from patchconvnet.explanation.removal import covered_patches
from patchconvnet.models import AttentionClassifier

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
Opening = Callable[..., Opened]


def files(cat: Image.Image) -> dict[str, bytes]:
    """Images of several sizes and kinds, as files without loss."""
    glass = cat.convert("RGBA")
    glass.putalpha(Image.linear_gradient("L").resize(glass.size))
    turned, buffer = cat.crop((0, 0, 200, 120)), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    turned.save(buffer, "PNG", exif=exif)
    return {
        "as it is": png(cat),
        "one to one": png(cat.resize((32, 32))),
        "smaller": png(cat.resize((17, 23))),
        "long": png(cat.resize((400, 40))),
        "one pixel": png(cat.resize((1, 1))),
        "grey": png(cat.convert("L")),
        "palette": png(cat.convert("P")),
        "see-through": png(glass),
        "turned": buffer.getvalue(),
        "large": png(cat.resize((2100, 1400))),
    }


def agree(saved: dict, explanation: Explanation) -> None:
    """A saved answer and an explanation are of the same numbers."""
    written = explanation.to_dict()
    for key in ("image", "input"):
        assert saved[key] == written[key]
    logits = {one["index"]: one["logit"] for one in saved["classes"]}
    np.testing.assert_allclose([logits[k] for k in range(10)], explanation.logits, atol=1e-4)
    shares = {one["index"]: one["probability"] for one in saved["classes"]}
    np.testing.assert_allclose([shares[k] for k in range(10)], explanation.probabilities, atol=1e-4)
    np.testing.assert_allclose(saved["attention"]["maps"], explanation.attention, atol=1e-4)
    assert len(saved["evidence"]["maps"]) == 5
    for one in saved["evidence"]["maps"]:
        np.testing.assert_allclose(one["map"], explanation.evidence_for(one["index"]), atol=1e-4)
        total = one["bias"] + np.sum(one["map"])
        np.testing.assert_allclose(total, logits[one["index"]], atol=1e-4)  # evidence adds up, in the browser too


@pytest.mark.slow
@pytest.mark.parametrize("place", ["static", "server"])
def test_the_pages_numbers_are_pytorchs(
    opening: Opening, request: pytest.FixtureRequest, model: AttentionClassifier, cat: Image.Image, place: str
) -> None:
    tab = opening(request.getfixturevalue(f"{place}_url"))
    for name, content in files(cat).items():
        tab.answer(content, f"{name}.png")
        saved = json.loads(tab.saved("#save-data"))
        assert saved["name"] == name
        agree(saved, explain(model, io.BytesIO(content)))
        tab.page.click("#home")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_site_of_lower_precision_answers_as_its_file(
    opening: Opening, runtime: Path, cat: Image.Image, tmp_path: Path, precision: str
) -> None:
    scales = tmp_path / "scales"
    scales.mkdir()
    for i in range(16):
        cat.crop((20 * i, 10 * i, 20 * i + 250, 10 * i + 250)).save(scales / f"{i}.png")
    words = ["export", "--model", "cifar10", "--to", "web", "--out", str(tmp_path / "site"), "--precision", precision]
    words += ["--onnxruntime-web", str(runtime), *(["--calibration", str(scales)] if precision == "int8" else [])]
    assert cli.main(words) == 0
    assert (tmp_path / "site" / "model.onnx").stat().st_size < (4e6 if precision == "fp16" else 2e6)  # 6.6 MB as fp32
    with serving_files(tmp_path / "site") as url:
        tab = opening(url)
        tab.answer(png(cat))
        saved = json.loads(tab.saved("#save-data"))
        (wanted,) = OnnxModel(tmp_path / "site" / "model.onnx").explain(cat)
        assert saved["predicted"]["name"] == wanted.predicted.name
        largest = np.abs(wanted.logits).max()
        logits = {one["index"]: one["logit"] for one in saved["classes"]}
        np.testing.assert_allclose([logits[k] for k in range(10)], wanted.logits, atol=0.02 * largest)
        for one in saved["evidence"]["maps"]:
            np.testing.assert_allclose(one["bias"] + np.sum(one["map"]), logits[one["index"]], atol=1e-4 * largest)
        tab.page.context.close()


def test_the_static_pages_numbers_are_the_servers(
    opening: Opening, static_url: str, server_url: str, cat: Image.Image
) -> None:
    tab = opening(static_url)
    tab.answer(png(cat))
    saved = json.loads(tab.saved("#save-data"))
    theirs = httpx.post(f"{server_url}/v1/explain", files={"image": png(cat)}, timeout=60).json()
    for ours, other in zip(saved["classes"], theirs["classes"], strict=True):
        assert ours["name"] == other["name"]
        assert ours["logit"] == pytest.approx(other["logit"], abs=1e-4)
    np.testing.assert_allclose(saved["attention"]["maps"], theirs["attention"]["maps"], atol=1e-4)


def test_a_very_large_image_is_made_smaller_and_this_is_said(
    opening: Opening, static_url: str, model: AttentionClassifier, cat: Image.Image
) -> None:
    tab = opening(static_url)
    large = cat.resize((3000, 2000), Image.Resampling.BICUBIC)
    tab.answer(png(large))
    assert "The image is large and was made 2449 × 1633 pixels" in tab.page.inner_text("#note")
    saved, explanation = json.loads(tab.saved("#save-data")), explain(model, large)
    assert saved["image"] == {"width": 3000, "height": 2000}
    assert saved["predicted"]["name"] == explanation.predicted.name
    shares = {one["index"]: one["probability"] for one in saved["classes"]}
    assert shares[explanation.predicted.index] == pytest.approx(explanation.predicted.probability, abs=0.02)


def test_threads_give_the_same_where_the_host_allows_them(
    opening: Opening, site, cat: Image.Image, model: AttentionClassifier
) -> None:
    isolated = {"Cross_Origin_Opener_Policy": "same-origin", "Cross_Origin_Embedder_Policy": "require-corp"}
    with serving_files(site, **isolated) as url:
        tab = opening(url)
        cores = tab.page.evaluate("navigator.hardwareConcurrency")
        assert f"with {min(4, cores)} thread" in tab.page.inner_text("#threads")
        tab.answer(png(cat))
        agree(json.loads(tab.saved("#save-data")), explain(model, cat))
        tab.page.context.close()


def test_without_the_headers_there_is_one_thread(opening: Opening, static_url: str) -> None:
    assert opening(static_url).page.inner_text("#threads") == "Computing with 1 thread."


def test_colours_are_pythons(opening: Opening, server_url: str) -> None:
    tab = opening(server_url)
    middles = (np.arange(256) + 0.5)[None] / 256
    expected = {"ATTENTION": attention_colours(middles, 1.0), "EVIDENCE": evidence_colours(2 * middles - 1, 1.0)}
    for name, colours in expected.items():
        shown = tab.page.evaluate("async (name) => [...(await import('./colours.js'))[name]]", name)
        np.testing.assert_array_equal(np.reshape(shown, (256, 3)), colours[0, :, :3])


def test_what_is_covered_of_an_image_is_pythons(opening: Opening, server_url: str) -> None:
    tab, rng = opening(server_url), np.random.default_rng(0)
    settings = [
        Preprocessing((224, 224), "crop", 0.875),
        Preprocessing((97, 64), "crop", 0.9),
        Preprocessing((64, 96), "letterbox"),
        Preprocessing((33, 33), "letterbox"),
        Preprocessing((32, 32)),
    ]
    sizes = [*rng.integers(1, 3000, (100, 2)).tolist(), [33, 34], [1, 1], [224, 225], [223, 224]]
    cases = [(one, height, width) for one in settings for height, width in sizes]
    boxes = tab.page.evaluate(
        """async (cases) => {
            const { coveredBox } = await import("./geometry.js");
            return cases.map(([preprocessing, height, width]) => coveredBox(preprocessing, height, width));
        }""",
        [(one.to_dict(), height, width) for one, height, width in cases],
    )
    for (one, height, width), box in zip(cases, boxes, strict=True):
        expected = one.geometry(height, width).box
        np.testing.assert_allclose([box[k] for k in ("left", "top", "right", "bottom")], expected, rtol=1e-12)


def test_what_is_painted_over_takes_out_the_same_patches(opening: Opening, server_url: str) -> None:
    tab, rng = opening(server_url), np.random.default_rng(1)
    geometry = Preprocessing((224, 224), "crop", 0.875).geometry(300, 451)
    grid = Grid((7, 7), (32, 32), (15.5, 15.5))
    left, top, right, bottom = geometry.box
    for _ in range(20):
        pixels = np.zeros((300, 451), bool)
        for _ in range(rng.integers(1, 5)):
            y, x = rng.integers(20, 200), rng.integers(100, 280)
            pixels[y : y + rng.integers(60, 160), x : x + rng.integers(60, 160)] = True
        removed = tab.page.evaluate(
            """async ([answer, painted]) => {
                const { centres } = await import("./geometry.js");
                const { coveredPatches } = await import("./removal.js");
                const alpha = new Uint8ClampedArray(4 * answer.height * answer.width);
                [...atob(painted)].forEach((one, i) => (alpha[4 * i + 3] = 255 * one.charCodeAt(0)));
                const squares = { y: centres(answer, "y"), x: centres(answer, "x") };
                return [...coveredPatches(squares, alpha, answer.height, answer.width)];
            }""",
            [
                {
                    "height": 300,
                    "width": 451,
                    "input": {"height": 224, "width": 224},
                    "box": {"left": left, "top": top, "right": right, "bottom": bottom},
                    "grid": {"height": 7, "width": 7, "step": {"y": 32, "x": 32}, "first": {"y": 15.5, "x": 15.5}},
                },
                base64.b64encode(pixels.astype(np.uint8).tobytes()).decode(),
            ],
        )
        np.testing.assert_array_equal(np.reshape(removed, (7, 7)), covered_patches(pixels, grid, geometry))
