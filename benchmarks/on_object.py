"""Is the evidence on the object? Photographs at 224 pixels, EfficientNet-Lite0, beside Grad-CAM and the average's CAM.

    python benchmarks/on_object.py --pets PETS.parquet --tiny TINY.parquet [--runs runs/pretrained] [--limit 100]

Audits the networks that `benchmarks/pretrained.py` trained, wherever it has: recipes `probe` and `finetune`, and the
twin of the latter with average pooling, whose evidence is the CAM of Zhou et al. 2016 (arXiv 1512.04150). Pets: their
test photographs, with outlines. Tiny ImageNet: those of the test images whose box covers at most half of the image.
Maps are those of the true class. Resumable; writes docs/benchmarks/on_object.json and prints its tables. Needs pyarrow
and the extras `imagenet` and `audit`.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pretrained
from measuring import setup

RESULTS = Path(__file__).parents[1] / "docs" / "benchmarks" / "on_object.json"
METHODS = ["evidence", "contrast", "attention", "gradcam", "gradcam++", "layercam", "gradcam_contrast",
           "centre", "random"]  # fmt: skip
PLACE = ["pointing", "energy", "boxes"]
REMOVAL = ["deletion", "insertion"]  # with --removal: they take most of the passes
STEPS = 12  # of deletion and insertion
COLUMNS = {
    "deletion": "deletion ↓",
    "insertion": "insertion ↑",
    "energy": "energy on the object ↑",
    "pointing": "pointing game ↑",
    "max_box_accuracy": "MaxBoxAccV2 ↑",
}
TWINS = {"finetune": "average pooling"}  # trained alike, but for its pooling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pets", type=Path, required=True, help="the Parquet file of pets")
    parser.add_argument("--tiny", type=Path, help="the Parquet file of Tiny ImageNet")
    parser.add_argument("--runs", type=Path, default=Path("runs/pretrained"), help="what pretrained.py wrote")
    parser.add_argument("--out", type=Path, default=Path("runs/on_object"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--limit", type=int, default=100, help="images of each data set")
    parser.add_argument("--removal", action="store_true", help="measure deletion and insertion too")
    parser.add_argument("--only", nargs="+", choices=list(pretrained.DATA), default=list(pretrained.DATA))
    a = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    measures = [*PLACE, *(REMOVAL if a.removal else [])]
    for data in a.only:
        source = a.tiny if data.startswith("tiny") else a.pets
        if source is None:
            print(f"{data}: left out, no file of it was given")
            continue
        if data.startswith("tiny"):
            images, boxes = boxed(source, a.out)
            annotated = ["--boxes", str(boxes)]
        else:
            images = pretrained.unpacked(data, source, a.out)
            annotated = ["--masks", str(flat_masks(source, a.out))]
        found: dict[str, list[dict[str, Any]]] = {}
        for name in ("probe", *TWINS, *TWINS.values()):
            for seed in range(a.seeds):
                run = a.runs / f"{data}-{name}-{seed}"
                if not is_finished(run):
                    print(f"{data}: there is no finished training in {run}")
                    continue
                methods = ["evidence"] if name in TWINS.values() else METHODS
                out = a.out / f"audit-{data}-{name.replace(', ', ' ').replace(' ', '_')}-{seed}"
                report = audit(str(run / "best"), images, annotated, methods, measures, out, a.limit)
                found.setdefault(name, []).append(report)
        results[data] = {**results.get(data, {}), **found}  # what is not there any more keeps its figures
        RESULTS.write_text(json.dumps({**results, "setup": setup()}, indent=1) + "\n")
    for data in pretrained.DATA:
        for name, reports in results.get(data, {}).items():
            if name not in TWINS.values():
                print(f"\n{data}, {name}, {reports[0]['images']} images, {len(reports)} seeds\n")
                print(table(reports, results[data].get(TWINS.get(name), [])))
    print("\n" + gaps(results))


def is_finished(run: Path) -> bool:
    """Whether a training ended with its test."""
    config = run / "best" / "config.json"
    return config.is_file() and "test" in json.loads(config.read_text())["metrics"]


def audit(
    model: str, images: Path, annotated: list[str], methods: list[str], measures: list[str], out: Path, limit: int
) -> dict[str, Any]:
    """By method, mean and standard error of each measure; and for each image its energy."""
    command = ["audit", "--model", model, "--data", f"folder:{images.resolve()}", *annotated, "--target", "label"]
    command += ["--split", "test", "--limit", str(limit), "--methods", json.dumps(methods), "--out", str(out)]
    command += ["--measures", json.dumps(measures), "--steps", str(STEPS), "--examples", "0"]
    subprocess.run([sys.executable, "-m", "patchconvnet", *command], check=True)
    report = json.loads((out / "report.json").read_text())
    energies: dict[str, dict[int, float]] = {}
    for line in (out / "results.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "maps":
            energies.setdefault(record["method"], {})[record["image"]] = record["energy"]
    return {
        "images": report["images"],
        "top1": report["top1"],
        "methods": {
            method["name"]: {
                "title": method["title"],
                "seconds": method["seconds_per_image"],
                "energies": [value for _, value in sorted(energies[method["name"]].items())],
                **{name: method["figures"][name] for name in COLUMNS if name in method["figures"]},
            }
            for method in report["methods"]
        },
    }


def flat_masks(pets: Path, out: Path) -> Path:
    """The masks that `pretrained.unpacked` makes for cats and dogs, in one folder: breeds are other classes."""
    pretrained.unpacked("pets2", pets, out)
    folder = out / "masks"
    folder.mkdir(exist_ok=True)
    for mask in (out / "data" / "masks").rglob("*.png"):
        shutil.copyfile(mask, folder / mask.name)
    return folder


def boxed(source: Path, out: Path) -> tuple[Path, Path]:
    """Tiny ImageNet's test images with small boxes, as test/class/number.jpg, and a table of their boxes."""
    import pyarrow.parquet

    images, boxes = out / "tiny" / "images", out / "tiny" / "boxes.csv"
    if boxes.exists():
        return images, boxes
    rows = pyarrow.parquet.read_table(source).to_pylist()
    found = []
    for split, name, label, content in pretrained.tiny(rows):
        x0, y0, x1, y1 = rows[int(name)]["box"]
        x1, y1 = x1 + 1, y1 + 1  # corners are included
        if split == "test" and (x1 - x0) * (y1 - y0) <= 64 * 64 / 2:
            (images / "test" / label).mkdir(parents=True, exist_ok=True)
            (images / "test" / label / f"{name}.jpg").write_bytes(content)
            found.append((f"{name}.jpg", x0, y0, x1, y1))
    with boxes.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "x0", "y0", "x1", "y1"), *found])
    return images, boxes


def table(reports: list[dict[str, Any]], twins: list[dict[str, Any]]) -> str:
    """A row for each map; ± is the standard error over images with one seed, else the deviation over seeds."""
    columns = [column for column in COLUMNS if column in reports[0]["methods"]["evidence"]]
    head = " | ".join(COLUMNS[column] for column in columns)
    rows = [f"| map | {head} |", "|" + "---|" * (len(columns) + 1)]
    for name in reports[0]["methods"]:
        rows.append(line([report["methods"][name] for report in reports], columns))
    if twins:
        rows.append(line([twin["methods"]["evidence"] for twin in twins], columns, "CAM of the average-pooled twin"))
    return "\n".join(rows)


def line(methods: list[dict[str, Any]], columns: list[str], title: str = "") -> str:
    cells = []
    for column in columns:
        if column not in methods[0]:
            cells.append("–")
            continue
        means = [method[column]["mean"] for method in methods]
        spread = np.std(means, ddof=1) if len(means) > 1 else methods[0][column]["standard_error"]
        cells.append(f"{np.mean(means):.3f} ± {spread:.3f}")
    return "| " + " | ".join([title or methods[0]["title"], *cells]) + " |"


def gaps(results: dict[str, Any]) -> str:
    """Evidence less Grad-CAM of the same network, and less the twin's CAM, in points of energy, image by image."""
    rows = ["| data | network | map | energy | less Grad-CAM | less the twin's CAM | MaxBoxAccV2 less the twin's |"]
    rows.append("|---" * 7 + "|")
    for data, found in results.items():
        for network in (n for n in found if n in ("probe", *TWINS)):
            twins = found.get(TWINS.get(network))
            for name in ("evidence", "contrast"):
                ours = [report["methods"][name] for report in found[network]]
                others = [report["methods"]["gradcam"] for report in found[network]]
                cells = [data, network, ours[0]["title"], f"{_mean(ours):.1%}", _gap(ours, others)]
                if twins:
                    cams = [twin["methods"]["evidence"] for twin in twins]
                    box = np.mean([m["max_box_accuracy"]["mean"] for m in ours])
                    theirs = np.mean([m["max_box_accuracy"]["mean"] for m in cams])
                    cells += [_gap(ours, cams), f"{100 * (box - theirs):+.1f}"]
                rows.append("| " + " | ".join([*cells, *(["–"] * (7 - len(cells)))]) + " |")
    return "\n".join(rows)


def _mean(methods: list[dict[str, Any]]) -> float:
    return float(np.mean([method["energy"]["mean"] for method in methods]))


def _gap(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """In points, ± the standard error over images of the means over seeds."""
    mine, other = (np.mean([method["energies"] for method in methods], 0) for methods in (ours, theirs))
    difference = 100 * (mine - other)
    return f"{difference.mean():+.1f} ± {difference.std(ddof=1) / np.sqrt(len(difference)):.1f}"


if __name__ == "__main__":
    main()
