"""docs/benchmarks.md says what the stored results of the benchmarks say, and every script explains itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text())
sys.path.insert(0, str(BENCHMARKS))

import ablations  # noqa: E402
import accuracy  # noqa: E402
import run_all  # noqa: E402


def between(begin: str, end: str) -> str:
    return (run_all.DOCS / "benchmarks.md").read_text().split(begin)[1].split(end)[0].strip()


@pytest.mark.parametrize("beside", [None, *sorted(path.name for path in run_all.RESULTS.iterdir() if path.is_dir())])
def test_the_speed_tables_are_the_stored_results(beside: str | None) -> None:
    stored = {
        name: json.loads(path.read_text())
        for name in run_all.SCRIPTS
        if (path := run_all.RESULTS / (beside or "") / f"{name}.json").is_file()
    }
    assert stored
    assert between(*run_all.marks(beside)) == run_all.tables(stored)


def test_the_accuracy_table_is_the_stored_results() -> None:
    stored = json.loads((run_all.RESULTS / "accuracy.json").read_text())
    assert between(accuracy.BEGIN, accuracy.END) == accuracy.table(stored)


def test_the_ablation_tables_are_the_stored_results() -> None:
    path = run_all.RESULTS / "ablations.json"
    stored = json.loads(path.read_text()) if path.is_file() else {}
    assert between(ablations.BEGIN, ablations.END) == ablations.made(stored)


def test_an_ablation_table_starts_with_the_recipe() -> None:
    line = {"parameters": 10, "operations": 4_000_000}
    lines = {"worse": {"top1": {"0": 0.75}, **line}, ablations.UNCHANGED: {"top1": {"0": 0.8, "1": 0.9}, **line}}
    rows = ablations.table("digits, 2 epochs", lines).splitlines()
    assert rows[2] == "| the recipe | 85.00% |  | 2 | 4 |"
    assert rows[3] == "| worse | 75.00% | -5.00 | 1 | 4 |"  # than the recipe with the same seed


def test_a_row_says_whether_its_aim_is_met() -> None:
    from measuring import row, spread

    fast, slow = spread([2.0, 2.1, 2.2]), spread([1.0, 1.0, 1.1, 1.2, 1.2])
    assert spread([1.0, 2.0]) == {"median": 1.5, "low": 1.25, "high": 1.75}
    assert row("a", "b", 2.0, fast)["met"]
    assert not row("a", "b", 2.0, slow)["met"]
    assert row("a", "b", 1.5, slow, at_most=True)["met"]
    assert row("a", "b", None, slow)["met"] is None
    assert "| ≤ 1.5 | **1.1** (1 to 1.2) | yes |" in run_all.table([row("a", "b", 1.5, slow, at_most=True)])


@pytest.mark.slow
@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "keras_network.py"])
def test_every_script_explains_itself(script: str) -> None:
    done = subprocess.run([sys.executable, str(BENCHMARKS / script), "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout
