"""The shipped CIFAR-10 model on photographs that show one of its classes, at several input sizes.

python benchmarks/photographs.py FOLDER      # with a manifest.json: a list of {"file": …, "cifar10": class or null}
"""

import argparse
import json
from pathlib import Path

from patchconvnet import PatchConvNet
from patchconvnet.explain import explain

SIZES = (32, 40, 48, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="cifar10")
    a = parser.parse_args()
    entries = json.loads((a.folder / "manifest.json").read_text())
    labelled = [(entry["file"], entry["cifar10"]) for entry in entries if entry.get("cifar10")]
    model = PatchConvNet.from_pretrained(a.model)
    print(f"| input | right, of {len(labelled)} photographs | wrong ones |\n|---|---|---|")
    for size in SIZES:
        said = [(file, label, explain(model, a.folder / file, size=size).predicted.name) for file, label in labelled]
        wrong = [f"{Path(file).stem}: {name}" for file, label, name in said if name != label]
        print(f"| {size}×{size} | {len(said) - len(wrong)} | {', '.join(wrong)} |")


if __name__ == "__main__":
    main()
