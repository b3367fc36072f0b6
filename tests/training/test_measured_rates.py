"""The rates of a CPU: what they are measured on, and the constants that come of it."""

import pytest
import torch

from patchconvnet.training.measured_rates import OPERATORS, fitted, measured_rates
from patchconvnet.training.operations import ACTIVATION, ELEMENTWISE, KINDS, MATRIX, STARTING, Amount, Counter
from patchconvnet.training.rates import (
    GPUS,
    SHARE_OF_PEAK,
    Rate,
    gpu_rates,
    read_rates,
    stored_cpus,
    stored_rates,
    written_rates,
)


@pytest.mark.parametrize("kind", OPERATORS)
def test_an_operator_is_of_its_kind_and_no_other(kind: str) -> None:
    with torch.no_grad():
        operators = list(OPERATORS[kind](torch.float32))
        assert len(operators) >= 4
        with Counter() as counter:
            operators[0]()
    assert counter.counts.keys() == {kind, STARTING}
    assert counter.counts[STARTING].calls == 1


def test_every_kind_is_measured() -> None:
    assert {*OPERATORS, STARTING} == set(KINDS)


def test_the_constants_are_found_again() -> None:
    true = Rate(start=5e-6, operation=1e-12, byte=2e-11)
    amounts = [Amount(1, 10**a, 10**b) for a, b in ((6, 4), (8, 7), (9, 5), (10, 8), (7, 7))]
    found = fitted([(amount, true.seconds(amount)) for amount in amounts])
    assert found.start == pytest.approx(true.start, rel=1e-3)
    assert found.operation == pytest.approx(true.operation, rel=1e-3)
    assert found.byte == pytest.approx(true.byte, rel=1e-3)
    assert found.fit == pytest.approx(0, abs=1e-3)


def test_half_is_as_far_off_as_double() -> None:
    found = fitted([(Amount(1, 0, 0), 1.0), (Amount(1, 0, 0), 4.0)])
    assert found.start == pytest.approx(2, rel=0.01)
    assert found.fit == pytest.approx(0.693, rel=0.01)  # ln 2


def test_this_cpu_is_measured_for_what_is_needed() -> None:
    rates = measured_rates(torch.float32, (ACTIVATION, STARTING), seconds=0)
    assert rates.kinds.keys() == {ACTIVATION, STARTING}
    assert rates.checked
    assert 1e-12 < rates.kinds[ACTIVATION].operation + rates.kinds[ACTIVATION].byte < 1e-7
    assert 0 <= rates.kinds[STARTING].start < 1e-2


def test_rates_that_are_stored() -> None:
    assert "epyc" in stored_cpus()  # as the command's help says
    for name, cpu in stored_cpus().items():
        for dtype in cpu["rates"]:
            rates = stored_rates(name, getattr(torch, dtype))
            assert set(rates.kinds) == set(KINDS)
            assert cpu["date"] in rates.source
            assert read_rates(written_rates(rates), cpu) == rates


def test_a_gpu_is_its_makers_figures() -> None:
    rates = gpu_rates("h100", torch.bfloat16)
    assert rates.kinds.keys() == set(KINDS)
    assert 1 / rates.kinds[MATRIX].operation == pytest.approx(SHARE_OF_PEAK * 989e12)
    assert 1 / rates.kinds[ELEMENTWISE].byte == pytest.approx(0.7 * 3350e9)
    assert rates.kinds[ELEMENTWISE].operation == rates.kinds[STARTING].start == 0
    assert not rates.checked
    for kind in GPUS:
        assert (
            gpu_rates(kind, torch.float32).kinds[MATRIX].operation
            > gpu_rates(kind, torch.bfloat16).kinds[MATRIX].operation * 1.5
        )
