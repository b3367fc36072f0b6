"""An exported file is served where there is no PyTorch, and answers as the network does."""

import io
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from running import Running, running

import patchconvnet
from patchconvnet.deploy.onnx_export import export_onnx
from patchconvnet.deploy.runtime import OnnxModel
from patchconvnet.deploy.server import app
from patchconvnet.deploy.server.answers import as_record
from patchconvnet.deploy.server.classifier import describe, explanation_of, rows_of
from patchconvnet.deploy.server.onnx_classifier import OnnxClassifier

pytestmark = pytest.mark.slow  # an export takes ten seconds
WITHOUT = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "lightning", "torchmetrics", "scipy", "sklearn"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Without())
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "small.onnx"
    export_onnx(patchconvnet.load("cifar10"), path, name="cifar10")
    return path


@pytest.fixture(scope="module")
def bare(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server in a process that cannot import PyTorch."""
    folder = tmp_path_factory.mktemp("without")
    (folder / "sitecustomize.py").write_text(WITHOUT)
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:  # for this server, and not for others that start while it runs
            patch.setenv("PYTHONPATH", str(folder), prepend=":")
            server = stack.enter_context(running(model=str(file)))
        yield server


def test_it_answers_as_the_network_does(bare: Running, cat: bytes) -> None:
    with bare.client() as client:
        answer = client.post("/v1/explain", params={"top": 3}, files={"image": cat}).json()
        expected = patchconvnet.explain("cifar10", io.BytesIO(cat), top=3).to_dict()
        assert answer["predicted"]["name"] == expected["predicted"]["name"]
        assert {**answer, **dict.fromkeys(("classes", "predicted", "attention", "evidence", "name"))} == {
            **expected, **dict.fromkeys(("classes", "predicted", "attention", "evidence", "name"))
        }  # fmt: skip
        for one, other in zip(answer["evidence"]["maps"], expected["evidence"]["maps"], strict=True):
            assert one["index"] == other["index"]
            np.testing.assert_allclose(one["map"], other["map"], atol=1e-4)
        assert client.post("/v1/explain", params={"format": "overlay"}, files={"image": cat}).status_code == 200
    print(f"a server of an exported file holds {bare.memory / 1e6:.0f} MB")


def test_it_describes_itself_as_the_network_does(bare: Running, client: httpx.Client) -> None:
    with bare.client() as other:
        ours, theirs = other.get("/v1/model").json(), client.get("/v1/model").json()
        different = {"name", "platform"}
        assert {k: v for k, v in ours.items() if k not in different} == {
            k: v for k, v in theirs.items() if k not in different
        }
        metadata = other.get("/v2/models/small").json()
        assert metadata["platform"] == "onnxruntime_onnx"
        assert metadata["outputs"] == client.get("/v2/models/cifar10").json()["outputs"]


def test_a_batch_is_answered_as_its_images_alone(file: Path) -> None:
    classifier = OnnxClassifier(OnnxModel(file))
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (h, 40, 3), dtype=np.uint8)) for h in (30, 50, 70)]
    prepared = [classifier.prepare(image) for image in images]
    together = classifier.run(np.stack([values for values, _ in prepared]))
    for index, (image, (values, geometry)) in enumerate(zip(images, prepared, strict=True)):
        alone = rows_of(classifier.run(values[None]), 0)
        records = [
            as_record(explanation_of(classifier, "x", image, geometry, outputs, 3, 2), ("evidence", "contrast"))
            for outputs in (alone, rows_of(together, index))
        ]
        for kind in ("evidence", "contrast"):
            np.testing.assert_allclose(*(record["maps"][kind]["map"] for record in records), atol=1e-5)
    assert describe(classifier)["removal"]


@pytest.mark.skipif(not (app.PAGE / "index.html").is_file(), reason="the page is not there")
def test_the_page_is_served_and_asks_nobody_else(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert client.get("/style.css").status_code == 200
    modules = [path.name for path in app.PAGE.glob("*.js")]
    assert "app.js" in modules
    for name in modules:
        answer = client.get(f"/{name}")
        assert answer.status_code == 200, name
        assert answer.headers["content-type"].startswith("text/javascript"), (
            name
        )  # browsers run no module of another type
