"""An audit of photographs at 224 pixels: seconds a map, by method and stage, before and now.

    python benchmarks/audit_speed.py --model runs/pretrained/pets2-probe-0/best --images PETS --masks MASKS \
        [--before CHECKOUT] [--limit 4] [--rounds 1]

Twelve methods (RISE with 100 masks, integrated gradients with 10 steps), deletion, insertion and four measures of
place, for the true class. `--before` is a checkout of an earlier version, such as one made by `git worktree add
CHECKOUT 22c2ef5`; both then audit the same images one after the other, and their results are compared. Writes
docs/benchmarks/audit_speed.json and prints its table.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "benchmarks" / "audit_speed.json"
METHODS = ("evidence", "contrast", "attention", "gradcam", "gradcam++", "layercam", "gradcam_contrast",
           "integrated_gradients", "rise", "edges", "centre", "random")  # fmt: skip
PLACE = ("pointing", "energy", "boxes", "pixels")
STAGES = ("map", "deletion", "insertion", "place")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--images", required=True, help="folder of photographs")
    parser.add_argument("--masks", required=True, help="folder of their masks")
    parser.add_argument("--before", type=Path, help="checkout of an earlier version")
    parser.add_argument("--limit", type=int, default=4, help="photographs")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each version, of which the fastest counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.worker:
        print(json.dumps(measured(a)))
        return
    sources = {name: source for name, source in (("before", a.before), ("now", ROOT)) if source}
    found: dict[str, Any] = {}
    for _ in range(a.rounds):  # alternately, so that a busy machine slows both sides
        for name, source in sources.items():
            found[name] = fastest(found.get(name), run(a, source))
            print(f"{name}: {found[name]['whole']:.2f} s a map", file=sys.stderr, flush=True)
    if a.before:
        found["largest difference"] = differences(found["before"].pop("records"), found["now"]["records"])
    found["now"].pop("records")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from measuring import setup

    found["setup"] = {
        **setup(),
        "threads": a.threads,
        "images": a.limit,
        "rounds": a.rounds,
        "model": Path(a.model).parent.name,
    }
    RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(table(found))


def fastest(first: dict[str, Any] | None, second: dict[str, Any]) -> dict[str, Any]:
    """Of two turns the shorter time of each method and stage: what else the machine does can only lengthen it."""
    if first is None:
        return second
    methods = {
        name: {stage: min(first["methods"][name][stage], second["methods"][name][stage]) for stage in STAGES}
        for name in METHODS
    }
    return {"methods": methods, "whole": min(first["whole"], second["whole"]), "records": second["records"]}


def run(a: argparse.Namespace, source: Path) -> dict[str, Any]:
    """The audit in a process of its own, with the package of that checkout."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", folder]
        environment = {**os.environ, "PYTHONPATH": str(source / "src"), "OMP_NUM_THREADS": str(a.threads)}
        done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measured(a: argparse.Namespace) -> dict[str, Any]:
    """Seconds a map of each method in each stage, of everything together, and the results."""
    import torch

    from patchconvnet import load
    from patchconvnet.data import datasets
    from patchconvnet.faithfulness.audit import audit
    from patchconvnet.faithfulness.metrics import METRICS
    from patchconvnet.faithfulness.settings import AuditSettings

    torch.set_num_threads(a.threads)
    spent: dict[str, dict[str, float]] = {name: dict.fromkeys(STAGES, 0.0) for name in METHODS}

    def timed(metric: Any) -> Any:
        def compute(case: Any) -> list[Any]:
            start = time.perf_counter()
            values: list[Any] = metric.compute(case)
            stage = "place" if metric.name in PLACE else metric.name
            spent[case.method.name][stage] += (time.perf_counter() - start) / a.limit
            return values

        return replace(metric, compute=compute)

    METRICS.update({name: timed(METRICS[name]) for name in ("deletion", "insertion", *PLACE)})
    settings = AuditSettings(
        methods=METHODS, measures=("deletion", "insertion", *PLACE), limit=a.limit, target="label",
        rise_masks=100, gradient_steps=10, examples=0,
    )  # fmt: skip
    data = datasets.load(f"folder:{a.images}").require("test")
    model = load(a.model)
    start = time.perf_counter()
    audit(model, data, a.worker, settings, masks=a.masks, show_progress=False)
    whole = time.perf_counter() - start
    lines = (a.worker / "results.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "maps"]
    for record in records:
        spent[record["method"]]["map"] += record["seconds"] / a.limit
    return {"methods": spent, "whole": whole / (a.limit * len(METHODS)), "records": records}


def differences(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> dict[str, float]:
    """How far a measure of any map moved, and the mean over all of them."""
    there = {(record["method"], record["image"]): record for record in before}
    found = {}
    for name in ("deletion", "insertion"):
        moved = [r[name]["score"] - there[r["method"], r["image"]][name]["score"] for r in now]
        found[name] = max(map(abs, moved))
        found[f"{name}, mean"] = abs(sum(moved) / len(moved))
    found["energy"] = max(abs(r["energy"] - there[r["method"], r["image"]]["energy"]) for r in now)
    return found


def table(found: dict[str, Any]) -> str:
    """Seconds a map: before → now."""
    versions = [name for name in ("before", "now") if name in found]
    rows = ["| map | " + " | ".join([*STAGES, "in all"]) + " |", "|" + "---|" * (len(STAGES) + 2)]

    def cell(values: list[float]) -> str:
        return " → ".join(f"{value:.2f}" for value in values)

    for name in METHODS:
        cells = [cell([found[v]["methods"][name][stage] for v in versions]) for stage in STAGES]
        cells.append(cell([sum(found[v]["methods"][name].values()) for v in versions]))
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    means = {v: {s: sum(found[v]["methods"][n][s] for n in METHODS) / len(METHODS) for s in STAGES} for v in versions}
    cells = [cell([means[v][stage] for v in versions]) for stage in STAGES]
    rows.append("| **mean** | " + " | ".join([*cells, cell([sum(means[v].values()) for v in versions])]) + " |")
    without = cell([sum(means[v].values()) - means[v]["insertion"] for v in versions])
    whole = cell([found[v]["whole"] for v in versions])
    return "\n".join([*rows, "", f"without insertion {without}; the command as a whole {whole} seconds a map"])


if __name__ == "__main__":
    main()
