"""Mirror symmetry: a mirrored image gets the same logits and mirrored maps, whatever the network has learnt."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from patchconvnet.errors import UserError
from patchconvnet.models.mirror import MirrorSymmetry


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
