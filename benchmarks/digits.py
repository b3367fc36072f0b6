"""The digits recipe beside scikit-learn's classifiers, on the same divisions of the images.

    python benchmarks/digits.py [--divisions 5] [--out runs/digits]

A division sets 270 of the 1,797 images aside for testing and 270 for validation, by which the recipe keeps its best
epoch. The classifiers see the 8×8 values as they are, 0 to 16; their settings are scikit-learn's defaults but for the
support vectors' γ, that of its example on these digits. Nothing is chosen for them, so they do not use the
validation images. Interrupted, the same command goes on where it stopped.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from patchconvnet.data.datasets import load
from patchconvnet.data.labelled_images import Images

CLASSIFIERS = {
    "support vector hardware, Gaussian kernel, γ 0.001": SVC(gamma=0.001),
    "5 nearest neighbours": KNeighborsClassifier(),
    "logistic regression": LogisticRegression(max_iter=5000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--divisions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    a = parser.parse_args()
    top1: dict[str, list[float]] = {"the recipe": [], **{name: [] for name in CLASSIFIERS}}
    for division in range(a.divisions):
        top1["the recipe"].append(trained(division, a.out / str(division)))
        images = load("digits", seed=division)
        training, test = values(images.require("train")), values(images.require("test"))
        for name, classifier in CLASSIFIERS.items():
            top1[name].append(classifier.fit(*training).score(*test))
    print(f"| classifier | test top-1, mean ± spread | of {a.divisions} divisions |\n|---|---|---|")
    for name, each in top1.items():
        spread = f" ± {100 * statistics.stdev(each):.1f}" if len(each) > 1 else ""
        print(f"| {name} | {100 * statistics.mean(each):.1f}{spread} % | {', '.join(f'{100 * x:.1f}' for x in each)} |")


def trained(division: int, run: Path) -> float:
    """Test top-1 of the recipe on a division, trained unless it is there already."""
    config = run / "best" / "config.json"
    if not (config.is_file() and "test" in json.loads(config.read_text())["metrics"]):
        command = ["train", "--recipe", "digits", "--data.seed", str(division), "--out", str(run), "--resume", "auto"]
        done = subprocess.run(
            [sys.executable, "-m", "patchconvnet", *command], stdout=sys.stderr, stderr=subprocess.PIPE, text=True
        )
        if done.returncode:
            sys.exit(done.stderr)
    return float(json.loads(config.read_text())["metrics"]["test"]["top1"])


def values(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """(N, 64) values from 0 to 16 and (N,) labels."""
    return images.images[:, 0].flatten(1).float().mul(16 / 255).numpy(), images.labels.numpy()


if __name__ == "__main__":
    main()
