"""A trunk in lower precision leaves a float head behind it: evidence sums to the logits as before."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from PIL import Image

from patchconvnet import UserError, explain, load
from patchconvnet.deploy.onnx_export import export_onnx
from patchconvnet.deploy.quantization import Labelled, measure
from patchconvnet.deploy.runtime import OnnxModel

pytestmark = pytest.mark.slow


def images(count: int) -> list[Image.Image]:
    """Coarse colours, which are nearer to photographs than noise is."""
    rng = np.random.default_rng(0)
    coarse = (Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)) for _ in range(count))
    return [image.resize((40, 32), Image.Resampling.BICUBIC) for image in coarse]


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    path = tmp_path_factory.mktemp("fp32") / "m.onnx"
    export_onnx(load("cifar10"), path)
    return OnnxModel(path)


@pytest.fixture(scope="module", params=["int8", "fp16"])
def lower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    path = tmp_path_factory.mktemp(request.param) / "m.onnx"
    data = Labelled(lambda i: images(6)[i], [0] * 6, lambda i, geometry: np.eye(32, dtype=bool))
    export_onnx(load("cifar10"), path, precision=request.param, calibration=images(32), data=data)
    return OnnxModel(path)


def test_the_file_is_smaller_and_its_answers_near(lower: OnnxModel, fp32: OnnxModel) -> None:
    precision = lower.description.precision
    assert lower.path.stat().st_size < fp32.path.stat().st_size * {"int8": 0.4, "fp16": 0.6}[precision]
    measured = measure(fp32, lower, Labelled(lambda i: images(40)[i], [None] * 40))
    assert measured["same_answers"] >= {"int8": 0.85, "fp16": 1.0}[precision]
    assert measured["rank_correlation"] > {"int8": 0.9, "fp16": 0.999}[precision]
    assert measured["rank_correlation"] < 1 - 1e-9, "it is the same file"
    assert "top1" not in measured


def test_evidence_sums_to_the_logits(lower: OnnxModel) -> None:
    for explained in lower.explain(images(8)):
        assert explained.exact
        assert max(map(abs, explained.remainder.values())) < 1e-4


def test_pooling_classifier_and_evidence_stay_float(lower: OnnxModel) -> None:
    graph = onnx.load(lower.path).graph
    makers = {output: node for node in graph.node for output in node.output}
    softmax = next(node for node in graph.node if node.op_type == "Softmax")
    head = {makers[name].name for name in ("logits", "evidence")} | {softmax.name}
    for node in graph.node:
        if node.name in head:
            for name in node.input:
                assert name not in makers or makers[name].op_type not in ("DequantizeLinear", "Cast"), node.name
    kinds = {node.op_type for node in graph.node}
    assert ("QuantizeLinear" in kinds) == (lower.description.precision == "int8")


def test_what_it_costs_is_in_the_file(lower: OnnxModel) -> None:
    check = lower.description.verification
    assert check["size"]["this"] == pytest.approx(lower.path.stat().st_size, rel=0.01)
    assert set(check["measured"]) == {"images", "top1", "same_answers", "rank_correlation", "energy_in_mask"}
    assert check["largest_differences"]["logits"] < 1e-4, "the float32 file is compared first"
    assert check["with_this_precision"]["largest_differences"]["sum of evidence"] < 1e-4


def test_too_few_calibration_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 16 calibration images"):
        export_onnx(load("cifar10"), tmp_path / "m.onnx", precision="int8", calibration=images(3))
    with pytest.raises(UserError, match="--calibration FOLDER"):
        export_onnx(load("cifar10"), tmp_path / "m.onnx", precision="int8")
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_an_int8_file_resizes_images_itself(resize: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("patchconvnet_mini", embed_dim=16, depth=1, num_classes=3).eval()
    network.metadata.preprocessing = {"size": [32, 48], "resize": resize}
    rng = np.random.default_rng(0)
    some = [Image.fromarray(rng.integers(0, 256, (70, 60, 3), dtype=np.uint8)) for _ in range(16)]
    export_onnx(network, tmp_path / "m.onnx", preprocessing="inside", precision="int8", calibration=some)
    (found,) = OnnxModel(tmp_path / "m.onnx").explain(some[0])
    wanted = explain(network, some[0], view="own")  # the file cuts the centre out itself
    assert (found.grid, found.geometry) == (wanted.grid, wanted.geometry)
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=0, atol=0.1 * np.abs(wanted.logits).max())
