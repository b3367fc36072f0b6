"""The schedule against its golden file, and which weights the optimizer decays or gives to Muon."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
from small_runs import micro

from patchconvnet import PatchConvNet
from patchconvnet.errors import UserError
from patchconvnet.training.optimization import build_optimizer, warmup_cosine, warmup_linear
from patchconvnet.training.recipe import OptimizationOptions

GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures" / "warmup_cosine.json").read_text())


def golden_rate(step: int) -> float:
    return warmup_cosine(
        step,
        GOLDEN["total_steps"],
        GOLDEN["warmup_steps"],
        GOLDEN["learning_rate_base"],
        GOLDEN["warmup_learning_rate"],
    )


@pytest.mark.parametrize("i", range(len(GOLDEN["step"])), ids=[f"step {step}" for step in GOLDEN["step"]])
def test_schedule_equals_the_golden_values(i: int) -> None:
    rate = golden_rate(GOLDEN["step"][i])
    assert rate == pytest.approx(GOLDEN["lr_float64_exact"][i], rel=1e-12, abs=1e-18)
    assert rate == pytest.approx(GOLDEN["lr_float32_keras"][i], abs=1e-9)


def test_schedule_without_warm_up_begins_at_the_top() -> None:
    assert warmup_cosine(0, 10, 0, 0.5) == 0.5
    assert warmup_cosine(5, 10, 0, 0.5) == pytest.approx(0.25)


def test_schedule_warms_up_from_a_given_rate() -> None:
    assert [warmup_cosine(step, 10, 4, 0.5, 0.1) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_the_linear_schedule_goes_up_and_down_in_straight_lines() -> None:
    rates = [warmup_linear(step, 10, 4, 0.6) for step in range(12)]
    assert rates == pytest.approx([0, 0.15, 0.3, 0.45, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0, 0])
    with pytest.raises(UserError, match="longer than the run"):
        warmup_linear(0, 10, 11, 1.0)


def test_schedule_refuses_a_warm_up_longer_than_the_run() -> None:
    with pytest.raises(UserError, match="warm-up of 11 steps is longer than the run of 10"):
        warmup_cosine(0, 10, 11, 1.0)


def test_schedule_refuses_a_base_below_where_the_warm_up_begins() -> None:
    with pytest.raises(UserError, match=r"learning rate 0\.1 is below the 0\.2"):
        warmup_cosine(0, 10, 5, 0.1, 0.2)


def grouped(model: PatchConvNet, **options: object) -> dict[str, dict[str, object]]:
    """The group of each parameter, by name."""
    optimizer = build_optimizer(model, OptimizationOptions(**options))  # type: ignore[arg-type]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert groups.keys() == set(names.values()), "every parameter belongs to one group"
    return groups


VARIANTS = timm.list_models("patchconvnet*")
POOLINGS = ["class_attention", "class_attention_multi", "keras", "additive", "additive_multi", "average"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_weight_decay_spares_what_it_must(variant: str) -> None:
    # two blocks stand for all of them
    model = timm.create_model(variant, num_classes=7, depth=2, embed_dim=32)
    groups = grouped(model, weight_decay=0.3)
    spared = {name for name, group in groups.items() if group["weight_decay"] == 0}
    decayed = {name for name, group in groups.items() if group["weight_decay"] == 0.3}
    assert spared | decayed == groups.keys()
    to_spare = re.compile(r"bias$|(\b|_)norm(s\.)?\d?\.|layer_scale\d?\.|class_token$|query$")
    assert spared == {name for name in groups if to_spare.search(name)}
    assert all(model.get_parameter(name).ndim >= 2 for name in decayed)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_weight_decay_spares_tokens_and_queries_of_every_head(pooling: str) -> None:
    model = PatchConvNet(num_classes=7, depth=1, embed_dim=32, pooling=pooling)
    groups = grouped(model, weight_decay=0.3)
    tokens = [name for name in groups if name.endswith(("class_token", "query"))]
    assert len(tokens) == (pooling != "average")
    assert all(groups[name]["weight_decay"] == 0 for name in tokens)
    assert groups["head.weight"]["weight_decay"] == 0.3


def test_muon_gets_the_hidden_matrices_and_adamw_the_rest() -> None:
    model = timm.create_model("patchconvnet_mini", depth=2, embed_dim=32)
    groups = grouped(model, optimizer="muon", learning_rate=0.02, fallback_learning_rate=0.004, weight_decay=0.1)
    to_muon = {name for name, group in groups.items() if not group["use_fallback"]}
    assert to_muon == {
        name
        for name, p in model.named_parameters()
        if p.ndim > 1 and name not in ("stem.convs.0.weight", "pooling.query", "head.weight")
    }
    assert {group["initial_lr"] for name, group in groups.items() if name in to_muon} == {0.02}
    assert {group["initial_lr"] for name, group in groups.items() if name not in to_muon} == {0.004}
    assert groups["stem.convs.0.weight"]["weight_decay"] == groups["head.weight"]["weight_decay"] == 0.1
    assert groups["pooling.query"]["weight_decay"] == 0


def test_muon_moves_both_kinds_by_their_own_rates() -> None:
    model = timm.create_model("patchconvnet_micro", depth=1, embed_dim=16)
    optimizer = build_optimizer(
        model, OptimizationOptions(optimizer="muon", learning_rate=0.02, fallback_learning_rate=0.004, weight_decay=0)
    )
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = p.detach().clone().normal_()
    optimizer.step()
    # AdamW's first step moves every number by its rate
    moved = (model.head.weight - before["head.weight"]).abs()
    np.testing.assert_allclose(moved.detach().numpy(), 0.004, rtol=1e-3)
    # Muon's is orthogonal: 0.2·√(larger side) times as long as its rate, in the root mean square of the singular values
    step = (model.get_parameter("trunk.0.se.expand.weight") - before["trunk.0.se.expand.weight"]).detach()
    singular = np.linalg.svd(step.numpy(), compute_uv=False) / (0.02 * 0.2 * 4)
    assert singular.min() > 0.6
    assert singular.max() < 1.4


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lion", "nadamuon"])
def test_other_optimizers_of_timm_build(name: str) -> None:
    model = timm.create_model("patchconvnet_micro")
    assert grouped(model, optimizer=name)


def test_unknown_optimizer_is_refused_with_what_is_close() -> None:
    with pytest.raises(UserError, match=r"unknown optimizer 'adamq'; timm has adam, "):
        build_optimizer(timm.create_model("patchconvnet_micro"), OptimizationOptions(optimizer="adamq"))


def test_betas_are_refused_where_there_are_none() -> None:
    with pytest.raises(UserError, match="betas are for optimizers of Adam's kind; sgd has none"):
        build_optimizer(timm.create_model("patchconvnet_micro"), OptimizationOptions(optimizer="sgd", betas=(0.9, 0.9)))


def test_a_fallback_rate_belongs_to_muon() -> None:
    with pytest.raises(UserError, match="belongs to muon"):
        micro(optimization={"fallback_learning_rate": 0.1})


def test_layers_in_front_learn_more_slowly() -> None:
    model = timm.create_model("patchconvnet_mini", depth=2, num_classes=3)
    options = OptimizationOptions(learning_rate=0.1, layer_decay=0.5)
    rates = {
        id(parameter): group["initial_lr"]
        for group in build_optimizer(model, options).param_groups
        for parameter in group["params"]
    }
    at = lambda name: rates[id(model.get_parameter(name))]  # noqa: E731
    assert at("head.weight") == pytest.approx(0.1)
    assert at("stem.convs.0.weight") < at("trunk.0.conv1.weight") < at("trunk.1.conv1.weight") < at("head.weight")
    assert at("trunk.0.conv1.weight") == pytest.approx(at("trunk.1.conv1.weight") / 2)


def test_without_decay_all_layers_learn_alike() -> None:
    model = timm.create_model("patchconvnet_mini", depth=2, num_classes=3)
    rates = {group["initial_lr"] for group in build_optimizer(model, OptimizationOptions()).param_groups}
    assert rates == {OptimizationOptions().learning_rate}
