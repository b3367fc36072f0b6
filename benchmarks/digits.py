"""Handwritten digits without a network: scikit-learn's classifiers on the recipe's own training and test pictures.

    python benchmarks/digits.py

They see the 8×8 values as they are, 0 to 16; settings are scikit-learn's defaults but for the support vectors' γ, which
is that of its example on these digits. Nothing is chosen here, so the validation pictures play no part.
"""

import argparse

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from patchconvnet.data.datasets import load
from patchconvnet.data.splits import Pictures

CLASSIFIERS = {
    "support vector machine, Gaussian kernel, γ 0.001": SVC(gamma=0.001),
    "5 nearest neighbours": KNeighborsClassifier(),
    "logistic regression": LogisticRegression(max_iter=5000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    digits = load("digits")
    training, test = values(digits.require("train")), values(digits.require("test"))
    print(f"| classifier | test top-1, {len(test[1])} pictures |\n|---|---|")
    for name, classifier in CLASSIFIERS.items():
        print(f"| {name} | {classifier.fit(*training).score(*test):.2%} |")


def values(pictures: Pictures) -> tuple[np.ndarray, np.ndarray]:
    """(N, 64) values from 0 to 16 and (N,) labels."""
    return pictures.images[:, 0].flatten(1).float().mul(16 / 255).numpy(), pictures.labels.numpy()


if __name__ == "__main__":
    main()
