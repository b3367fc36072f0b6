"""Mirror symmetry: a mirrored image gets the same logits and mirrored maps, whatever the network has learnt."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from patchconvnet.errors import UserError
from patchconvnet.models.checkpoints import read_checkpoint
from patchconvnet.models.mirror import MirrorSymmetry
from patchconvnet.models.patchconvnet import PatchConvNet


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def build(name: str = "patchconvnet_micro", *, whiten: bool = True, **options: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(name, **options)
    nn.init.normal_(model.pooling.query)  # whose start at zero is symmetric in any case
    if whiten:
        model.stem.whiten(draw(64, 3, 16, 16), mirrored=True)
    return model


def assert_symmetric(model: Any, images: Tensor) -> None:
    model.eval()
    with torch.no_grad():
        outputs, mirrored = (
            model(some, return_attention=True, return_evidence=True) for some in (images, images.flip(3))
        )
    assert outputs.logits.std() > 0.01
    torch.testing.assert_close(mirrored.logits, outputs.logits, rtol=1e-4, atol=1e-5)
    for which in ("attention", "evidence"):
        maps, of_mirrored = (getattr(some, which) for some in (outputs, mirrored))
        torch.testing.assert_close(of_mirrored.flip(3), maps, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(of_mirrored, maps, rtol=1e-2, atol=1e-6)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"whiten": False},
    {"stem_repeats": 1, "layer_scale": 0.1},
    {"block": "paper", "conv": "depthwise", "norm": "layer"},
    {"block": "paper", "conv": "dense", "pooling_norm": "batch"},
    {"pooling": "additive_multi"},
    {"stem_filters": 60},  # more than there are whitening filters
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_holds_from_the_first_step_on(options: dict[str, Any]) -> None:
    model, images = build(**options), draw(8, 3, 32, 24)
    spread = {
        name: value.std().item()
        for name, value in model.named_parameters()
        if value.ndim == 4 and "convs.0" not in name
    }
    symmetry = MirrorSymmetry(model)
    assert not symmetry.is_kept()
    symmetry.begin()
    assert symmetry.is_kept()
    assert_symmetric(model, images)
    for name, value in model.named_parameters():
        if name in spread:  # initialisation's spread is what it was
            assert value.std().item() == pytest.approx(spread[name], rel=0.15)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        model.train()
        loss = nn.functional.cross_entropy(model(images), torch.arange(8))
        optimizer.zero_grad()
        loss.backward()
        symmetry.tie_gradients()
        optimizer.step()
        symmetry.keep()
    assert_symmetric(model, images)


def test_steps_of_tied_gradients_keep_it_by_themselves() -> None:
    model, images = build(), draw(8, 3, 16, 16)
    symmetry = MirrorSymmetry(model)
    symmetry.begin()
    model.eval()  # batch norms' statistics, which a batch and its mirror image would differ in, stay as they are
    before = model.stem.convs[1].weight.detach().clone()
    nn.functional.cross_entropy(model(images), torch.arange(8)).backward()
    symmetry.tie_gradients()
    torch.optim.AdamW(model.parameters(), lr=0.01).step()
    assert not torch.allclose(model.stem.convs[1].weight, before)
    assert_symmetric(model, images)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: timm.create_model("patchconvnet_keras"), "pooled stem of stride 1"),
        (lambda: timm.create_model("patchconvnet_micro", pooling="keras"), "additive pooling"),
        (lambda: timm.create_model("patchconvnet_micro", stem_stride=2), "stride 1"),
        (lambda: timm.create_model("patchconvnet_micro", embed_dim=46), "even number of channels, not 23"),
    ],
)
def test_what_cannot_have_it_is_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        MirrorSymmetry(make())


# The model folder


def symmetric() -> Any:
    model = build(stem_repeats=1, num_classes=10)
    MirrorSymmetry(model).begin()
    return model.eval()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_of_symmetric_convolutions_half_is_written(dtype: str, tmp_path: Path) -> None:
    model = symmetric()
    folder = model.save_pretrained(tmp_path / "tied", dtype=dtype)
    assert json.loads((folder / "config.json").read_text())["format"] == 2
    stored = load_file(folder / "model.safetensors")
    for name in ("stem.repeat_convs.0.weight", "trunk.0.conv1.weight", "trunk.1.conv2.weight"):
        whole = model.state_dict()[name]
        assert stored[name].shape == (len(whole) // 2, *whole.shape[1:]), name
    loaded = PatchConvNet.from_pretrained(folder)
    for name, value in model.state_dict().items():
        expected = value.half().float() if dtype == "float16" and value.ndim > 1 else value
        assert torch.equal(loaded.state_dict()[name], expected), name
    assert torch.equal(read_checkpoint(folder / "model.safetensors")["trunk.0.conv1.weight"].float(),
                       loaded.state_dict()["trunk.0.conv1.weight"])  # fmt: skip


def test_a_convolution_off_by_a_rounding_is_written_whole(tmp_path: Path) -> None:
    model = symmetric()
    weight = model.trunk[0].conv1.weight
    with torch.no_grad():
        weight[-1, -1, -1, -1] = torch.nextafter(weight[-1, -1, -1, -1], torch.tensor(torch.inf))
    folder = model.save_pretrained(tmp_path / "nearly")
    stored = load_file(folder / "model.safetensors")
    assert stored["trunk.0.conv1.weight"].shape == weight.shape
    assert len(stored["trunk.1.conv1.weight"]) == len(weight) // 2
    assert torch.equal(PatchConvNet.from_pretrained(folder).trunk[0].conv1.weight, weight)


def test_others_are_written_as_safetensors_does(tmp_path: Path) -> None:
    model = build()
    with torch.no_grad():
        model.trunk[0].conv1.weight.zero_()  # symmetric, too, but says nothing of a mirror
    folder = model.save_pretrained(tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["format"] == 1
    save_file(model.state_dict(), tmp_path / "plain.safetensors")
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()


def test_a_header_that_lies_is_refused(tmp_path: Path) -> None:
    model = symmetric()
    folder = model.save_pretrained(tmp_path / "model")
    whole = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(whole, folder / "model.safetensors", {"mirrored": "trunk.0.conv1.weight\nnothing\nhead.bias"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "weights_sha256": None}))
    with pytest.raises(UserError, match=r"trunk\.0\.conv1\.weight"):
        PatchConvNet.from_pretrained(folder)
