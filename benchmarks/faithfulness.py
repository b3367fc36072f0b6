"""The tables of docs/trust.md: an audit of the shipped model, run by `patchconvnet audit`, as Markdown.

    python benchmarks/faithfulness.py --root DATA [--out runs/trust] [--measures road …]

Resumable; prints the tables. Named measures are measured alone, in a separate folder.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from patchconvnet.faithfulness.baselines import METHODS

SETTINGS = ["--limit", "100", "--mosaics", "30", "--robustness", "12", "--rise_masks", "300", "--gradient_steps", "20"]
COLUMNS = [
    ("deletion", "deletion ↓"),
    ("insertion", "insertion ↑"),
    ("insertion_minus_deletion", "insertion − deletion ↑"),
    ("road", "ROAD ↑"),
    ("grid_pointing_2", "grid 2×2 ↑"),
    ("grid_pointing_3", "grid 3×3 ↑"),
]
ROBUSTNESS = [
    ("sanity_rank_correlation", "rank correlation with the map of a randomised network, 0 is best"),
    ("stability_shift", "stable under a shift ↑"),
    ("stability_noise", "stable under noise ↑"),
    ("completeness", "completeness error ↓"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="where CIFAR-10 is or is downloaded to")
    parser.add_argument("--out", type=Path, default=Path("runs/trust"))
    parser.add_argument("--measures", nargs="+", help="only these (default: all that the data allows)")
    a = parser.parse_args()
    only = ["--measures", json.dumps(a.measures)] if a.measures else []
    command = ["audit", "--model", "cifar10", "--data", "cifar10", "--root", a.root, *SETTINGS, *only]
    command += [
        "--robustness_methods",
        json.dumps([*METHODS]),
        "--out",
        str(a.out),
    ]  # RISE too, which is not the default
    subprocess.run([sys.executable, "-m", "patchconvnet", *command], check=True)
    report = json.loads((a.out / "report.json").read_text())
    measured = {name for method in report["methods"] for name in method["figures"]}
    for columns, time in ((COLUMNS, True), (ROBUSTNESS, False)):
        if there := [column for column in columns if column[0] in measured]:
            print("\n" + table(report["methods"], there, time))


def table(methods: list[dict[str, Any]], columns: list[tuple[str, str]], time: bool) -> str:
    """Mean ± standard error of the mean for each method and measure, and the time an image takes."""
    head = ["map", *(title for _, title in columns), *(["ms an image"] if time else [])]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method in methods:
        cells = [_cell(method["figures"].get(name)) for name, _ in columns]
        if set(cells) != {"–"}:
            seconds = [f"{1000 * method['seconds_per_image']:.1f}"] if time else []
            rows.append("| " + " | ".join([method["title"], *cells, *seconds]) + " |")
    return "\n".join(rows)


def _cell(figure: dict[str, float] | None) -> str:
    if figure is None:
        return "–"
    digits = 3 if figure["mean"] > 1e-4 or figure["mean"] <= 0 else None
    if digits is None:
        return f"{figure['mean']:.0e}"
    return f"{figure['mean']:.3f} ± {figure['standard_error']:.3f}"


if __name__ == "__main__":
    main()
