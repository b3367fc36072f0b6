"""The shipped CIFAR-10 model on photographs that show one of its classes, at several input sizes.

python benchmarks/photographs.py FOLDER [--root DATA]

FOLDER holds a manifest.json, a list of {"file": …, "cifar10": class or null}. With DATA, CIFAR-10's test set, enlarged
to the same sizes, is judged too.
"""

import argparse
import json
from pathlib import Path

from patchconvnet import PatchConvNet
from patchconvnet.data.datasets import load
from patchconvnet.explanation import explain
from patchconvnet.explanation.explainer import preprocessing_of
from patchconvnet.training.evaluation import evaluate

SIZES = (32, 40, 48, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="cifar10")
    parser.add_argument("--root", help="where CIFAR-10 is or is downloaded to")
    a = parser.parse_args()
    entries = json.loads((a.folder / "manifest.json").read_text())
    labelled = [(entry["file"], entry["cifar10"]) for entry in entries if entry.get("cifar10")]
    model = PatchConvNet.from_pretrained(a.model)
    test = load("cifar10", root=a.root).require("test") if a.root else None
    print(f"| input | right, of {len(labelled)} photographs | wrong ones | test set |\n|---|---|---|---|")
    for size in SIZES:
        said = [(file, label, explain(model, a.folder / file, size=size).predicted.name) for file, label in labelled]
        wrong = [f"{Path(file).stem}: {name}" for file, label, name in said if name != label]
        whole = f"{evaluate(model, test, preprocessing_of(model).with_size(size)).top1:.2%}" if test else "–"
        print(f"| {size}×{size} | {len(said) - len(wrong)} | {', '.join(wrong)} | {whole} |", flush=True)


if __name__ == "__main__":
    main()
