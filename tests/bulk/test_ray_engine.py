"""The engine of a cluster: two raylets, one of them killed in the middle, and every row is there once."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_work import ids_of, make_images, make_model, rows_of

from patchconvnet.bulk.parts import part_files
from patchconvnet.cli import main

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'patchconvnet[ray]'")
psutil = pytest.importorskip("psutil")

STORE = 80_000_000  # bytes of each raylet's object store, near the least that Ray takes
PARTS = 60
QUICKLY = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 3}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """A cluster of two raylets of one CPU each on this machine, and the second of them."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")  # what else is on the machine is no reason to kill ours
    first = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False, "_system_config": QUICKLY}
    two = Cluster(initialize_head=True, head_node_args=first)
    try:
        second = two.add_node(num_cpus=1, object_store_memory=STORE)
        ray.init(address=two.address, log_to_driver=False)
        yield two, second
    finally:
        ray.shutdown()
        two.shutdown()


def computes(node: Any) -> bool:
    """Whether a worker of a raylet holds one of our actors."""
    (raylet,) = node.all_processes["raylet"]
    for process in psutil.Process(raylet.process.pid).children(recursive=True):
        try:
            if any("MapWorker" in word for word in process.cmdline()):
                return True
        except psutil.NoSuchProcess:
            continue
    return False


@pytest.mark.slow
def test_a_killed_raylet_costs_no_row_and_doubles_none(tmp_path: Path, cluster: tuple[Any, Any]) -> None:
    model, images = make_model(tmp_path / "model"), make_images(tmp_path / "images", 20 * PARTS)
    out, (nodes, second) = tmp_path / "out", cluster
    killed_after: list[int] = []

    def kill_in_the_middle() -> None:
        while time.monotonic() < deadline:
            if len(part_files(out)) >= PARTS // 10 and computes(second):
                nodes.remove_node(second, allow_graceful=False)
                killed_after.append(len(part_files(out)))
                return
            time.sleep(0.02)

    deadline = time.monotonic() + 120
    killer = threading.Thread(target=kill_in_the_middle)
    killer.start()
    words = ["predict", "--model", model, "--data", images, "--out", out, "--part-size", 20, "--maps", "evidence"]
    code = main([*map(str, words), "--engine", "ray", "--actors", "2"])
    deadline = 0.0
    killer.join()
    assert code == 0
    assert killed_after, "no raylet was killed"
    assert killed_after[0] < PARTS, "killed after the work was done"
    table = rows_of(out)
    assert table["id"].to_pylist() == ids_of(images)
    assert table["error"].null_count == len(table)
    assert json.loads((out / "predict.json").read_text())["finished"]
    local = tmp_path / "local"
    assert main([*map(str, words[:6]), str(local), *map(str, words[7:])]) == 0
    assert rows_of(local)["classes"].to_pylist() == table["classes"].to_pylist()
