"""What is exported, for which inputs, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from torch import nn

from patchconvnet import UserError, explain, load, with_attention_pooling
from patchconvnet.deploy import onnx_export
from patchconvnet.deploy.exportable import Answers, placement_of
from patchconvnet.deploy.onnx_export import export_onnx
from patchconvnet.deploy.runtime import OnnxModel
from patchconvnet.explanation.patch_grid import patch_grid

pytestmark = pytest.mark.slow


def network(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    if name.startswith("patchconvnet"):
        return timm.create_model(name, **options).eval()
    return with_attention_pooling(name, **options).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "takes_any"),
    [
        ("resnet18", {"num_classes": 7}, True),
        ("tf_efficientnet_lite0", {}, True),
        ("convnext_atto", {"num_classes": 7}, True),
        ("vit_tiny_patch16_224", {"num_classes": 7}, True),
        ("patchconvnet_micro", {"pooling": "keras", "stem_padding": "same"}, True),
        ("resnet18", {"num_classes": 5, "pooling": "additive_multi"}, True),
        ("resnet18", {"num_classes": 5, "pooling": "additive_sliced"}, True),
        ("resnet18", {"num_classes": 5, "pooling": "average"}, True),
    ],
)
def test_each_kind_of_network_is_explained_from_its_file(
    name: str, options: dict[str, Any], takes_any: bool, tmp_path: Path
) -> None:
    model = network(name, **options)
    about = export_onnx(model, tmp_path / "m.onnx")  # which compares it on random sizes, batches and images
    assert about.height.is_fixed != takes_any
    assert max(about.verification["largest_differences"].values()) < 1e-4
    assert about.verification["inputs"] >= 30
    size = (about.size[0] + 2 * about.patch_size, about.size[1])
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    ours, theirs = OnnxModel(tmp_path / "m.onnx").explain(image, size=size)[0], explain(model, image, size=size)
    assert ours.grid == theirs.grid
    np.testing.assert_allclose(ours.evidence, theirs.evidence, rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours.attention, theirs.attention, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_mobilenetv3_small_100"])
def test_turned_networks_answer_as_before(name: str) -> None:
    model = network(name, pooling="average", num_classes=9)
    answers = Answers(model, 0)
    assert answers.flipped
    assert answers.follows_any_size
    image = torch.rand(2, 3, 95, 130)
    with torch.no_grad():
        torch.testing.assert_close(answers(image)[0], model(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [("patchconvnet_micro", {"stem_padding": "same"}), ("patchconvnet_micro", {}), ("resnet18", {}), ("vgg11", {})],
)
def test_the_files_placement_of_patches_is_the_networks(name: str, options: dict[str, Any]) -> None:
    model = network(name, num_classes=3, **options)
    placement = placement_of(model, (64, 64))
    for size in [(64, 64), (65, 80), (83, 97)]:
        shape = (-(-size[0] // model.patch_size), -(-size[1] // model.patch_size))
        assert placement.grid(size, shape) == patch_grid(model, size, shape)


def test_a_file_with_one_batch_size_takes_any_number(tmp_path: Path) -> None:
    model = load("cifar10")
    about = export_onnx(model, tmp_path / "m.onnx", batch=4)
    assert about.batch == 4
    images = [np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8) for i in range(5)]
    ours, theirs = OnnxModel(tmp_path / "m.onnx").explain(images), explain(model, images)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.logits, b.logits, rtol=0, atol=1e-4)


def test_a_file_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = onnx_export._as_onnx

    def damaged(*given: Any) -> Any:
        proto, trunk = real(*given)
        bias = next(i for i in proto.graph.initializer if list(i.dims) == [10])
        values = onnx.numpy_helper.to_array(bias) + np.float32(0.01)
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return proto, trunk

    monkeypatch.setattr(onnx_export, "_as_onnx", damaged)
    (tmp_path / "m.onnx").write_text("what was there")
    with pytest.raises(UserError, match=r"differs from the network by .* in logits .* nothing was kept"):
        export_onnx(load("cifar10"), tmp_path / "m.onnx")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["what was there"]


def test_what_cannot_be_exported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = load("cifar10"), tmp_path / "m.onnx"
    with pytest.raises(UserError, match="fused network can't be exported"):
        export_onnx(model.fuse(), out)
    with pytest.raises(UserError, match="no attention pooling"):
        export_onnx(timm.create_model("resnet18"), out)
    with pytest.raises(UserError, match="0 classes"):
        export_onnx(network("patchconvnet_micro", num_classes=0), out)
    with pytest.raises(UserError, match="a patch of this network has 4 × 4 pixels"):
        export_onnx(model, out, size=(2, 32))
    with pytest.raises(UserError, match="unknown precision 'int4'; known: fp32, fp16, int8"):
        export_onnx(model, out, precision="int4")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is a folder"):
        export_onnx(model, tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'patchconvnet\[export\]'"):
        export_onnx(model, out)
    assert not list(tmp_path.iterdir())
