"""Accuracy of the pooling heads at equal budget: the same trunk, data and recipe, several seeds each.

    python benchmarks/heads.py --root DATA --out runs/heads [--epochs 3] [--seeds 3] [--heads additive keras]

Trains with `patchconvnet train` on the first 40,000 training images; the epoch of best accuracy on the other 10,000
is tested once. Every run is resumable, so the script is too. Prints mean and spread of the test accuracy.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="where CIFAR-10 is or is downloaded to")
    parser.add_argument("--out", type=Path, default=Path("runs/heads"))
    parser.add_argument("--recipe", default="small_images")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--heads", nargs="+", default=["additive", "keras"])
    a = parser.parse_args()
    results: dict[str, list[float]] = {head: [] for head in a.heads}
    for seed in range(a.seeds):  # seed by seed, so that an interrupted comparison is still a fair one
        for head in a.heads:
            run = a.out / f"{head}-{seed}"
            options = json.dumps({"pooling": head})
            subprocess.run(
                [
                    sys.executable, "-m", "patchconvnet", "train", "--recipe", a.recipe, "--data.name", "cifar10",
                    "--data.root", a.root, "--data.validation", "10000", "--model.options", options,
                    "--epochs", str(a.epochs),
                    "--seed", str(seed), "--monitor.every", "0", "--out", str(run), "--resume", "auto",
                ],
                check=True,
            )  # fmt: skip
            config = json.loads((run / "best" / "config.json").read_text())
            results[head].append(config["metrics"]["test"]["top1"])
            write(results, a)


def write(results: dict[str, list[float]], a: argparse.Namespace) -> None:
    """Print the table as far as it goes, and keep it beside the runs."""
    rows = [f"| head | test top-1, mean | spread (standard deviation) | seeds | (recipe {a.recipe}, {a.epochs} epochs)"]
    for head, values in results.items():
        if values:
            spread = f"{statistics.stdev(values):.2%}" if len(values) > 1 else "–"
            rows.append(f"| {head} | {statistics.mean(values):.2%} | {spread} | {len(values)} |")
    print("\n".join(rows), flush=True)
    (a.out / "heads.json").write_text(json.dumps({"epochs": a.epochs, "recipe": a.recipe, "top1": results}, indent=2))


if __name__ == "__main__":
    main()
