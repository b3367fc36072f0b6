"""The tables of docs/benchmarks.md and docs/experiments.md are the stored results; every script explains itself."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from patchconvnet.data.labelled_images import Images
from patchconvnet.files import write_atomic

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text())
sys.path.insert(0, str(BENCHMARKS))

import ablations  # noqa: E402
import accuracy  # noqa: E402
import bulk  # noqa: E402
import checkpoint_writing  # noqa: E402
import convolutions  # noqa: E402
import deployed  # noqa: E402
import plan  # noqa: E402
import record_control  # noqa: E402
import run_all  # noqa: E402
from record_network import CHANGES, RecordNetwork, SixViews, forward_operations  # noqa: E402

NEEDED = {"coarse": ["map8"], "whitening3": ["map8"], "layer_norm": ["attention"]}  # changes of what another brings


def between(page: str, begin: str, end: str) -> str:
    return (run_all.DOCS / page).read_text().split(begin)[1].split(end)[0].strip()


def test_the_speed_table_is_the_stored_results() -> None:
    machines = run_all.stored()
    assert len(machines) >= 2
    assert set(machines[0]) == set(run_all.SCRIPTS)
    assert between("benchmarks.md", run_all.BEGIN, run_all.END) == run_all.table(*machines)


def test_the_accuracy_table_is_the_stored_results() -> None:
    stored = json.loads((run_all.RESULTS / "accuracy.json").read_text())
    assert between("benchmarks.md", accuracy.BEGIN, accuracy.END) == accuracy.table(stored)


def test_the_tables_of_gradients_are_the_stored_results() -> None:
    stored = json.loads(convolutions.KEPT.read_text())
    page = between("plan.md", convolutions.BEGIN, convolutions.END)
    assert page == convolutions.tables(stored)


def test_the_ablation_tables_are_the_stored_results() -> None:
    stored = json.loads((run_all.RESULTS / "ablations.json").read_text())
    assert between("experiments.md", ablations.BEGIN, ablations.END) == ablations.made(stored)


def test_the_table_of_exported_files_is_the_stored_results() -> None:
    stored = json.loads(deployed.RESULTS.read_text())
    assert between("exporting.md", deployed.BEGIN, deployed.END) == deployed.table(stored)


def test_the_tables_of_bulk_predictions_are_the_stored_results() -> None:
    stored = json.loads(bulk.RESULTS.read_text())
    assert between("bulk.md", bulk.BEGIN, bulk.END) == bulk.tables(stored)


def test_the_table_of_checkpoint_writing_is_the_stored_results() -> None:
    stored = json.loads(checkpoint_writing.RESULTS.read_text())
    page, begin, end = checkpoint_writing.PAGE.name, checkpoint_writing.BEGIN, checkpoint_writing.END
    assert between(page, begin, end) == checkpoint_writing.table(stored)


def test_the_table_of_plans_is_the_stored_results() -> None:
    stored = json.loads(plan.RESULTS.read_text())
    assert between("plan.md", plan.BEGIN, plan.END) == plan.table(stored)
    kept = json.loads(plan.STORED.read_text())[stored["hardware"]]  # what `plan --hardware` takes
    assert stored["rates"] in kept["rates"].values()
    for row in stored["rows"]:
        seconds = sum(plan.calculated(row["counts"], stored["rates"]).values())
        assert row["calculated"] == pytest.approx(seconds)
        assert row["off"]["median"] == pytest.approx(seconds / row["measured"]["median"] - 1)


def test_the_table_of_the_record_is_the_stored_results() -> None:
    made = record_control.table(record_control.stored())
    assert between("benchmarks.md", record_control.BEGIN, record_control.END_OF_TABLE) == made


@pytest.mark.parametrize(
    "changes",
    [[], *([*NEEDED.get(change, []), change] for change in CHANGES), list(CHANGES)],
    ids="+".join,
)
def test_the_records_network_learns_with_every_change_at_the_same_cost(changes: list[str]) -> None:
    assert forward_operations(changes) == pytest.approx(forward_operations([]), rel=0.04)
    torch.manual_seed(0)
    network, images, labels = RecordNetwork(changes), torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    network.whiten(images)
    optimizers = record_control.build_optimizers(network, changes)
    learned = {p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    assert learned == {p for p in network.parameters() if p.requires_grad}
    sizes = [network.groups[: i + 1](torch.zeros(1, 24, 31, 31)).shape[-1] for i in range(3)]
    assert sizes == ([16, 8, 8] if "map8" in changes else [15, 7, 3])
    losses = []
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(network(images), labels, reduction="sum")
        losses.append(loss.item())
        for optimizer in optimizers:
            record_control.set_learning_rate(optimizer, 0.2)
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    assert losses[-1] < losses[0]


def test_a_coarse_part_is_one_of_the_larger_map() -> None:
    with pytest.raises(ValueError, match="give both"):
        RecordNetwork(["coarse"])


def test_the_records_first_convolution_whitens() -> None:
    network, images = RecordNetwork(), torch.randn(8, 3, 32, 32) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1) + 1
    network.whiten(images)
    answers = network.whitening(images).movedim(1, -1).flatten(0, 2)[:, :12]
    torch.testing.assert_close(answers.T @ answers / len(answers), torch.eye(12), atol=1e-2, rtol=0)
    assert not network.whitening.weight.requires_grad


def test_six_views_are_the_image_and_two_moved_by_a_pixel_each_mirrored() -> None:
    seen: list[torch.Tensor] = []

    class Corner(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return images[:, 0, 1, :1]

    image = torch.arange(32 * 32.0).view(1, 1, 32, 32)  # at row y, column x: 32·y + x
    centre, right = 32 + 0, 32 + 31
    up_left, up_right = 0 + 1, 0 + 30  # row 0; beyond the edge the image is reflected
    down_left, down_right = 64 + 1, 64 + 30
    expected = (centre + right) / 4 + (up_left + up_right + down_left + down_right) / 8
    assert SixViews(Corner())(image).item() == expected
    assert len(seen) == 6


def test_the_records_rate_rises_and_falls_in_straight_lines() -> None:
    shares = [record_control.rate_share(step, 100) for step in (0, 23, 100)]
    assert shares == pytest.approx([0.2, 1, 0.07])
    assert record_control.rate_share(62, 100) == pytest.approx(1 - 0.93 * 39 / 77)


def test_lookahead_moves_both_copies_to_their_mean() -> None:
    network = torch.nn.BatchNorm1d(1)
    lookahead = record_control.Lookahead(network)
    network.bias.data.fill_(4.0)
    network.running_mean.fill_(8.0)
    lookahead.update(network, 0.75)
    assert (network.bias.item(), network.running_mean.item()) == (1.0, 2.0)
    network.bias.data.fill_(5.0)
    lookahead.update(network, 1.0)
    assert network.bias.item() == 1.0


def test_an_interrupted_training_of_the_record_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_control, "BATCH", 8)
    monkeypatch.setattr(record_control, "CHECKPOINT_EVERY", 2)
    pixels = torch.randint(256, (32, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = Images(pixels, torch.arange(32) % 4, ["a", "b", "c", "d"])

    def write_and_stop(*args: Any) -> None:
        write_atomic(*args)
        raise KeyboardInterrupt

    whole = record_control.train([], 1.5, 0, images, images, tmp_path / "whole.pt")
    with monkeypatch.context() as interrupted:
        interrupted.setattr(record_control, "write_atomic", write_and_stop)
        with pytest.raises(KeyboardInterrupt):
            record_control.train([], 1.5, 0, images, images, tmp_path / "parts.pt")
    assert torch.load(tmp_path / "parts.pt")["step"] == 2
    assert record_control.train([], 1.5, 0, images, images, tmp_path / "parts.pt") == whole
    networks = [torch.load(tmp_path / name)["network"] for name in ("whole.pt", "parts.pt")]
    torch.testing.assert_close(*networks, rtol=0, atol=0)


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


def test_a_machine_has_a_column_and_a_script_it_did_not_run_has_a_dash() -> None:
    from measuring import row, spread

    slow = spread([1.0, 1.0, 1.1, 1.2, 1.2])
    setup = {"machine": "first", "threads": 1}
    first = {"x": {"rows": [row("a", "b", 1.5, slow, at_most=True)], "setup": setup},
             "y": {"rows": [row("c", "d", None, slow)], "setup": setup}}  # fmt: skip
    second = {"x": {"rows": [row("a", "b", 1.5, spread([2.0]), at_most=True)], "setup": {"machine": "second"}}}
    assert run_all.table(first, second).splitlines() == [
        "| what | against | aim | first | second |",
        "|---|---|---|---|---|",
        "| a | b | ≤ 1.5 | **1.1** (1 to 1.2) ✓ | **2** (2 to 2) ✗ |",
        "| c | d | stated | **1.1** (1 to 1.2) | – |",
        "",
        "- `x`, `y`: machine first, threads 1",
        "- `x`: machine second",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "keras_network.py"])
def test_every_script_explains_itself(script: str) -> None:
    done = subprocess.run([sys.executable, str(BENCHMARKS / script), "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout
