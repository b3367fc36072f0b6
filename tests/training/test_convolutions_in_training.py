"""Trainings on a CPU compute large convolutions by Winograd's algorithm, whatever else they keep or compute again."""

from pathlib import Path
from typing import Any

import pytest
from small_runs import micro, rows, run

from patchconvnet.models import winograd
from patchconvnet.training import convolution_gradients


@pytest.mark.parametrize("changes", [{}, {"recompute": "pointwise"}, {"recompute": "blocks"}])
def test_a_training_in_float32_computes_them_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    forward, backward = list[int](), list[int]()
    convolve, gradients = winograd.convolve, winograd.gradients
    monkeypatch.setattr(winograd, "convolve", lambda *args: (forward.append(1), convolve(*args))[1])
    monkeypatch.setattr(winograd, "gradients", lambda *args: (backward.append(1), gradients(*args))[1])
    options = {"embed_dim": 96, "stem_divisors": [1, 1]}
    made = micro(model={"options": options}, epochs=2, **changes)
    run(made, tmp_path / "plain")
    assert not forward  # too small
    monkeypatch.setattr(winograd, "LEAST_OPERATIONS", 0)
    monkeypatch.setattr(winograd, "LEAST_PLACES", 0)
    run(made, tmp_path / "run")
    steps, convolutions = 2 * 6, 3  # one of the stem, two of the block
    again = 2 * steps if changes.get("recompute") == "blocks" else 0
    assert len(backward) == steps * convolutions
    assert len(forward) == steps * convolutions + again
    ours, plain = (float(rows(tmp_path / name)[0]["train_loss"]) for name in ("run", "plain"))
    assert ours == pytest.approx(plain, rel=1e-2)  # max pools and batch norms make much of rounding
    assert ours != plain
    # in bfloat16 only gradients, and not where there are units for matrices
    half = micro(model={"options": options}, epochs=1, precision="bf16-mixed", **changes)
    monkeypatch.setattr(convolution_gradients, "cpu_has_bfloat16", lambda: True)
    for units in (True, False):
        forward.clear()
        backward.clear()
        monkeypatch.setattr(convolution_gradients, "cpu_has_matrix_units", lambda units=units: units)
        run(half, tmp_path / f"bfloat16, {units}")
        assert not forward
        assert len(backward) == (0 if units else 6 * convolutions)
