"""The plan of a training: counted operations and memory against formulas and against what autograd keeps."""

import pytest
import timm
import torch
import torch.nn.functional as F

from patchconvnet.cli import main
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.errors import UserError
from patchconvnet.models.cost import multiply_accumulates
from patchconvnet.training.operations import KINDS
from patchconvnet.training.plan import Machine, count_step, plan
from patchconvnet.training.rates import Rate, Rates, stored_cpus
from patchconvnet.training.recipe import ModelOptions, OptimizationOptions, Recipe

PRODUCTS = [kind for kind in KINDS if "product" in kind or "convolution" in kind]
RATES = Rates({kind: Rate(operation=1e-12) if kind in PRODUCTS else Rate() for kind in KINDS}, 1e9, True, "made up")


def products(counts: dict) -> float:
    return sum(counts[kind].operations for kind in PRODUCTS if kind in counts)


def recipe(**options: object) -> Recipe:
    given = {"preprocessing": Preprocessing(size=(32, 32)), "batch_size": 8, "precision": "32-true"}
    return Recipe(**{**given, **options})  # type: ignore[arg-type]


def network() -> torch.nn.Module:
    return timm.create_model("patchconvnet_micro", num_classes=10, embed_dim=32, depth=2)


def test_a_step_is_three_forward_passes() -> None:
    counted = count_step(network(), recipe(), torch.float32)
    forward = 2 * multiply_accumulates(network().eval(), 32, 32).ours
    done = products(counted.image)
    # the backward pass has each product twice, but for the first layer's, whose image needs no gradient
    assert 2.5 * forward < done <= 3.05 * forward


@pytest.mark.parametrize(
    ("epochs", "hardware", "rests"),
    [(4, "cpu", True), (3, "cpu", False), (4, "2xcpu", False)],
    ids=["alone", "too few epochs", "two processes"],
)
def test_a_whitened_stem_takes_what_it_does_in_the_last_epoch(epochs: int, hardware: str, rests: bool) -> None:
    def convolutions(whiten: bool) -> float:
        asked = recipe(model=ModelOptions(name="patchconvnet_micro", whiten=whiten), epochs=epochs)
        seconds = plan(network(), asked, 50_000, Machine.parse(hardware), rates=RATES).seconds
        return 1e12 * sum(seconds[kind] for kind in PRODUCTS if kind in seconds) / 8 * Machine.parse(hardware).count

    filters = 2 * 32 * 32 * 24 * 3 * 9  # gradient of the first convolution's weights
    following = 2 * 32 * 32 * 24 * network().stem.convs[1].out_channels * 9  # of what the second one is given
    # oneDNN makes the filters' gradient with that of the biases, whether it is asked for or not
    saved = filters + following if rests else 0
    assert convolutions(whiten=False) - convolutions(whiten=True) == pytest.approx(saved, rel=1e-3)


def test_memory_is_that_of_the_tensors() -> None:
    model = network()
    count = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(value.numel() * value.element_size() for value in model.buffers())
    adam = count_step(model, recipe(), torch.float32)
    assert adam.weights == 4 * count + buffers
    assert adam.gradients == 4 * count
    assert adam.optimizer == pytest.approx(8 * count, rel=0.01)
    sgd = count_step(
        network(), recipe(optimization=OptimizationOptions(optimizer="sgd", learning_rate=0.1)), torch.float32
    )
    assert sgd.optimizer == pytest.approx(4 * count, rel=0.01)
    averaged = count_step(network(), recipe(optimization=OptimizationOptions(ema_decay=0.9)), torch.float32)
    assert averaged.weights == 2 * adam.weights


def test_activations_are_what_autograd_keeps() -> None:
    model, kept = network().train(), {}
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        loss = F.cross_entropy(model(torch.rand(16, 3, 32, 32)), torch.zeros(16, dtype=torch.int64))
    expected = sum(storage.nbytes() for storage in kept.values())
    assert loss.requires_grad
    assert count_step(network(), recipe(), torch.float32).activations * 16 == pytest.approx(expected, rel=0.1)


def test_time_follows_from_operations_rates_and_devices() -> None:
    one = plan(network(), recipe(), 800, Machine(1, "cpu"), rates=RATES, price=2.0)
    counted = count_step(network(), recipe(), torch.float32)
    assert one.step == pytest.approx(products(counted.image) * 8 / 1e12, rel=0.02)
    assert one.epoch == pytest.approx(100 * one.step)
    assert one.cost == pytest.approx(2.0 * one.epoch / 3600)
    assert one.bound_by in PRODUCTS
    four = plan(network(), recipe(), 800, Machine(4, "cpu"), rates=RATES)
    exchange = four.seconds["exchange of gradients"]
    assert four.step - exchange == pytest.approx(one.step / 4, rel=0.02)
    assert four.memory["activations"] == pytest.approx(one.memory["activations"] / 4)
    assert four.cost is None
    assert exchange == pytest.approx(2 * 0.75 * counted.gradients / 1.25e9)
    with pytest.raises(UserError, match="cannot be divided over 3 devices"):
        plan(network(), recipe(), 800, Machine(3, "cpu"), rates=RATES)


@pytest.mark.parametrize(("words", "count", "kind"), [("8xH100", 8, "h100"), ("cpu", 1, "cpu"), ("2 × cpu", 2, "cpu")])
def test_hardware_as_people_type_it(words: str, count: int, kind: str) -> None:
    assert Machine.parse(words) == Machine(count, kind)


@pytest.mark.parametrize("words", ["", "8x", "0xcpu", "9999999xcpu", "toaster", "-1xcpu", "8xh100x"])
def test_unknown_hardware_is_refused(words: str) -> None:
    with pytest.raises(UserError):
        Machine.parse(words)


def test_the_command_says_what_is_unchecked(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--model", "patchconvnet_micro", "--images", "50000", "--size", "32", "--classes", "10"]
    assert main([*words, "--hardware", "8xh100", "--price", "3"]) == 0
    said = capsys.readouterr().out
    for part in (
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "50,000 images",
        "cost of an epoch",
        "unchecked",
        "data sheet",
    ):
        assert part in said
    assert main([*words, "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert "measured here on 1 thread\n" in said
    assert "unchecked" not in said
    assert "cost" not in said
    for name, cpu in stored_cpus().items():
        assert main([*words, "--hardware", name]) == 0
        said = capsys.readouterr().out
        assert cpu["machine"] in said
        assert "unchecked" not in said
