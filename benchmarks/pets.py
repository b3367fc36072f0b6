"""Cat or dog on photographs with known outlines: train, then measure how well each kind of map finds the animal.

    python benchmarks/pets.py --photographs PETS.parquet --start runs/accuracy/small_images-0/best [--seeds 3]

Reads a subset of the Oxford-IIIT Pet data (Parkhi et al. 2012) as a Parquet file with the columns name, species, image
and trimap (1: animal, 2: background, 3: border, which is counted as animal); needs `pip install pyarrow`. A network
trained on CIFAR-10, by default the one that ships with the package, is fine-tuned on 55 % of the photographs, the
epoch is chosen on 15 %, and accuracy and maps are measured on the other 30 %, once for each seed. Everything is
resumable. Prints mean ± standard deviation over the seeds.
"""

import argparse
import io
import json
import shutil
import statistics
import subprocess
import sys
import zlib
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

RECIPE = Path(__file__).with_name("pets.yaml")
AUDIT = ["--measures", '["pointing", "energy", "boxes", "pixels"]', "--rise_masks", "200", "--gradient_steps", "20"]
COLUMNS = [
    ("pointing", "pointing game ↑"),
    ("energy", "energy in mask ↑"),
    ("max_box_accuracy", "MaxBoxAccV2 ↑"),
    ("pixel_average_precision", "PxAP ↑"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="the Parquet file")
    parser.add_argument("--start", default=str(resources.files("patchconvnet") / "pretrained" / "cifar10"))
    parser.add_argument("--out", type=Path, default=Path("runs/pets"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=64, help="side of the network's input")
    a = parser.parse_args()
    data = a.out / "data"
    images, masks = data / "images", data / "masks"
    if not data.exists():
        part = a.out / "data.part"
        shutil.rmtree(part, ignore_errors=True)
        unpack(a.photographs, part / "images", part / "masks")
        part.rename(data)
    reports, accuracies = [], []
    for seed in range(a.seeds):
        run, audit = a.out / f"run-{seed}", a.out / f"audit-{seed}"
        patchconvnet(
            "train", "--recipe", str(RECIPE), "--data.name", f"folder:{images}", "--model.name", a.start,
            "--preprocessing.size", str([a.size, a.size]), "--seed", str(seed), "--out", str(run), "--resume", "auto",
        )  # fmt: skip
        patchconvnet(
            "audit", "--model", str(run / "best"), "--data", f"folder:{images}", "--masks", str(masks),
            "--target", "label", *AUDIT, "--out", str(audit),
        )  # fmt: skip
        reports.append(json.loads((audit / "report.json").read_text()))
        accuracies.append(json.loads((run / "best" / "config.json").read_text())["metrics"]["test"]["top1"])
    print(f"\ntest top-1: {_mean_and_spread(accuracies, '.2%')}, {len(accuracies)} seeds\n")
    print(table([report["methods"] for report in reports]))


def patchconvnet(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "patchconvnet", *arguments], check=True)


def unpack(source: Path, images: Path, masks: Path) -> None:
    """Images as split/species/name.jpg, masks as species/name.png; an image's split follows from its name alone."""
    import pyarrow.parquet

    for row in pyarrow.parquet.read_table(source).to_pylist():
        split = split_of(row["name"])
        folder = images / split / row["species"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{row['name']}.jpg").write_bytes(row["image"])
        if split == "test":
            trimap = np.asarray(Image.open(io.BytesIO(row["trimap"])))
            (masks / row["species"]).mkdir(parents=True, exist_ok=True)
            mask = np.where(trimap == 2, 0, 255).astype(np.uint8)
            Image.fromarray(mask).save(masks / row["species"] / f"{row['name']}.png")


def split_of(name: str) -> str:
    """The split of an image, by its name alone."""
    lot = zlib.crc32(name.encode()) % 100
    return "train" if lot < 55 else "val" if lot < 70 else "test"


def table(runs: list[list[dict]]) -> str:
    """A row for each map: mean ± standard deviation over the seeds of each measure's mean."""
    rows = ["| map | " + " | ".join(title for _, title in COLUMNS) + " |", "|" + "---|" * (len(COLUMNS) + 1)]
    for methods in zip(*runs, strict=True):
        cells = []
        for name, _ in COLUMNS:
            values = [method["figures"][name]["mean"] for method in methods if name in method["figures"]]
            cells.append(_mean_and_spread(values, ".3f") if values else "–")
        rows.append("| " + " | ".join([methods[0]["title"], *cells]) + " |")
    return "\n".join(rows)


def _mean_and_spread(values: list[float], form: str) -> str:
    spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{spread}"


if __name__ == "__main__":
    main()
