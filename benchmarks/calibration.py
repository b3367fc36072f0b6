"""Expected calibration error on images that a model has not learned, at temperature 1 and at its own temperature.

    python benchmarks/calibration.py --data folder:my_pictures runs/mine runs/other

Each model is measured on the split that `patchconvnet evaluate` would take. Top-1 is the same before and after.
"""

import argparse
from dataclasses import replace

from patchconvnet import evaluate, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--root")
    parser.add_argument("--temperatures", type=float, nargs="*", default=[], help="others to try")
    a = parser.parse_args()
    print("| model | images | top-1 | temperature | calibration error before | after |\n|---|---|---|---|---|---|")
    for name in a.models:
        network = load(name)
        for temperature in (network.metadata.temperature, *a.temperatures):
            errors = []
            for each in (1.0, temperature):
                network.metadata = replace(network.metadata, temperature=each)
                measured = evaluate(network, a.data, root=a.root)
                errors.append(measured.calibration_error)
            print(
                f"| {name} | {measured.count:,} | {measured.top1:.2%} | {temperature:.3f} | {errors[0]:.2%} | "
                f"{errors[1]:.2%} |"
            )


if __name__ == "__main__":
    main()
