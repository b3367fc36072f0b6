"""Temperature scaling against its definition, and where a run gets its temperature from."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_runs import micro, run
from torch import Tensor

from patchconvnet import load
from patchconvnet.explanation import explain
from patchconvnet.training.calibration import LIMITS, fit_temperature
from patchconvnet.training.evaluation import evaluate
from patchconvnet.training.sources import load_data


def drawn(count: int, factor: float) -> tuple[Tensor, Tensor]:
    """Labels drawn from the softmax of some logits, and those logits times a factor."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return factor * logits, labels


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_it_finds_what_logits_were_multiplied_by(factor: float) -> None:
    assert fit_temperature(*drawn(20_000, factor)) == pytest.approx(factor, rel=0.03)


def test_no_other_temperature_has_a_lower_cost() -> None:
    logits, labels = drawn(300, 2.0)
    best = fit_temperature(logits, labels)

    def cost(temperature: float) -> float:
        loss = F.cross_entropy(logits.double() / temperature, labels, reduction="sum").item()
        return loss + 0.5 * (torch.tensor(temperature).log() / torch.tensor(2.0).log()).item() ** 2

    assert all(cost(best) <= cost(best * factor) for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0))


def test_a_few_right_answers_do_not_make_it_certain() -> None:
    logits = 4 * torch.eye(5)
    assert 0.3 < fit_temperature(logits, torch.arange(5)) < 1
    assert fit_temperature(logits.repeat(10**5, 1), torch.arange(5).repeat(10**5)) > LIMITS[0]


def test_a_run_ends_with_the_temperature_of_its_validation_images(tmp_path: Path) -> None:
    recipe = micro(optimization={"label_smoothing": 0.3}, epochs=8)
    model = load(run(recipe, tmp_path / "run") / "best")
    data = load_data(recipe)
    inputs = recipe.preprocessing.batch(data.require("validation").images)
    with torch.no_grad():
        expected = fit_temperature(model(inputs), data.require("validation").labels)
    temperature = model.metadata.temperature
    assert temperature == pytest.approx(expected, abs=1e-3)
    assert temperature < 0.9  # label smoothing makes too little of probabilities
    assert model.metadata.provenance["calibration"] == "fitted to the validation images"

    tested = evaluate(model, data.require("test"), recipe.preprocessing)
    assert model.metadata.metrics["test"] == pytest.approx(tested.to_dict(), rel=1e-4)
    model.metadata.temperature = 1.0
    undivided = evaluate(model, data.require("test"), recipe.preprocessing)
    assert (undivided.top1, undivided.top5) == (tested.top1, tested.top5)
    assert tested.calibration_error < undivided.calibration_error
    assert tested.loss < undivided.loss


def test_probabilities_are_divided_and_evidence_is_not(tmp_path: Path) -> None:
    recipe = micro(epochs=1)
    model = load(run(recipe, tmp_path / "run") / "best")
    image = load_data(recipe).require("test").image(0)
    model.metadata.temperature = 1.0
    plain = explain(model, image)
    model.metadata.temperature = 0.5
    sharp = explain(model, image)
    assert (sharp.logits == plain.logits).all()
    assert (sharp.evidence == plain.evidence).all()
    assert sharp.probabilities == pytest.approx(torch.tensor(plain.logits / 0.5).softmax(0).numpy(), rel=1e-5)
    assert sharp.to_dict()["temperature"] == 0.5
    assert max(abs(rest) for rest in sharp.remainder.values()) < 1e-4  # evidence sums to the undivided logit


@pytest.mark.parametrize(
    ("smoothing", "source"),
    [(0.2, "fitted to augmented training images"), (0.0, "not fitted: there are no validation")],
)
def test_without_validation_images(smoothing: float, source: str, tmp_path: Path) -> None:
    recipe = micro(data={"validation": 0}, optimization={"label_smoothing": smoothing}, augmentation={"mixup": 0.5})
    metadata = load(run(recipe, tmp_path) / "best").metadata
    assert metadata.provenance["calibration"].startswith(source)
    assert (metadata.temperature == 1.0) is (smoothing == 0.0)
