"""Test accuracy of shipped recipes over seeds: the accuracy table of docs/benchmarks.md.

    python benchmarks/accuracy.py --root DATA cifar10_10min cifar10_default [--seeds 3] [--out runs/accuracy]

Runs `patchconvnet train` for each recipe and seed; interrupted, the same command goes on where it stopped. The page's
table is written from docs/benchmarks/accuracy.json, where recipes that are not run keep their results. Seconds are
those of the whole command, from its start to the test result (an interrupted run: of its training alone).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from record_network import SixViews
from run_all import DOCS, RESULTS, replace_between, write_text
from torch import nn

from patchconvnet import PatchConvNet
from patchconvnet import load as load_model
from patchconvnet.data.datasets import load
from patchconvnet.explanation.explainer import preprocessing_of
from patchconvnet.models.cost import multiply_accumulates
from patchconvnet.training.evaluation import evaluate
from patchconvnet.training.recipe import Recipe, read_recipe

AIMS = {
    "keras_example": "≥ 87 %",
    "cifar10_10min": "≥ 91.5 % within 600 s, AVX-512",
    "small_images": "≥ 88 %, stretch 91 %",
    "small_images, 4 epochs": "≥ 84.6 % within 360 s",
    "small_images, 10 epochs": "stretch 91 % within 600 s",
    "small_images, 16 epochs": "stretch 91 % within 600 s, AMX",
    "small_images, 18 epochs": "≥ 91.5 % within 600 s, AVX-512",
    "cifar10_default": "≥ 93 %, ≤ 4 MB, stretch 94.5 %",
    "cifar10_best": "≥ 95.5 %, ≤ 3.3 PFLOP",
    "digits": "stated",
}
CIFAR10 = {"name": "cifar10", "validation": 0.0}  # what recipes for anybody's images are measured on
FOR_ANY_IMAGES = ("small_images",)
COLUMNS = [
    "recipe", "aim", "test top-1", "top-5", "mirrored too", "six views", "seeds", "parameters", "weights", "epochs",
    "images", "PFLOP", "seconds", "on",
]  # fmt: skip
BEGIN, END = "<!-- accuracy: made by benchmarks/accuracy.py -->", "<!-- end of accuracy -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="shipped recipes; none: only the table is made again")
    parser.add_argument("--root", help="where CIFAR-10 is or is downloaded to")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0, help="beyond 0: seeds in addition to those of the table")
    parser.add_argument("--epochs", type=int, help="another number than the recipe's, in a separate row")
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    a = parser.parse_args()
    kept = RESULTS / "accuracy.json"
    results: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else {}
    for seed in range(a.first_seed, a.first_seed + a.seeds):
        for name in a.recipes:
            label = f"{name}, {a.epochs} epochs" if a.epochs else name
            result = train(name, seed, a.root, a.epochs, a.out / f"{label.replace(', ', '-').replace(' ', '-')}-{seed}")
            seeds = results.get(label, {"seeds": {}})["seeds"]
            # what was trained by other settings is no seed of the same thing
            same = {key: value for key, value in seeds.items() if value.get("recipe") == result["recipe"]}
            results[label] = {"seeds": {**same, str(seed): result}}
            RESULTS.mkdir(exist_ok=True)
            write_text(kept, json.dumps(results, indent=1) + "\n")
    shipped = results.get("cifar10_default", {"seeds": {}})["seeds"].get("0")
    if a.root and shipped and "top1_six_views" not in shipped:  # the first seed is the model that ships
        model = load_model("cifar10")
        shipped["top1_six_views"] = top1(SixViews(model), model, "cifar10", a.root)
        write_text(kept, json.dumps(results, indent=1) + "\n")
    replace_between(DOCS / "benchmarks.md", BEGIN, END, table(results))
    print(table(results))


def train(name: str, seed: int, root: str | None, epochs: int | None, run: Path) -> dict[str, Any]:
    """Test accuracy and cost of one training, which is run unless it is complete."""
    config, wall = run / "best" / "config.json", run / "wall_seconds"
    begun = run.exists()
    wanted = replace(read_recipe(name), seed=seed, **({"epochs": epochs} if epochs else {}))
    if name in FOR_ANY_IMAGES:
        wanted = replace(wanted, data=replace(wanted.data, **CIFAR10))
    if begun and settings(read_recipe(run / "recipe.yaml")) != settings(wanted):
        sys.exit(f"{run} was trained by other settings than {name}'s; give another --out")
    if not (config.is_file() and "test" in json.loads(config.read_text())["metrics"]):
        command = ["train", "--recipe", name, "--seed", str(seed), "--out", str(run), "--resume", "auto"]
        command += ["--data.root", root] if root else []
        command += ["--epochs", str(epochs)] if epochs else []
        if name in FOR_ANY_IMAGES:
            command += [word for key, value in CIFAR10.items() for word in (f"--data.{key}", str(value))]
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "patchconvnet", *command], check=True)
        if not begun:
            wall.write_text(f"{time.perf_counter() - started:.1f}")
    about = json.loads(config.read_text())
    provenance, test = about["provenance"], about["metrics"]["test"]
    recipe = read_recipe(run / "recipe.yaml")
    model = PatchConvNet.from_pretrained(run / "best")
    return {
        "top1": test["top1"],
        "top5": test["top5"],
        **views(model, recipe, root),
        "seconds": float(wall.read_text()) if wall.is_file() else provenance["seconds"],
        "machine": provenance["devices"],
        "date": provenance["date"],
        "epochs": recipe.epochs,
        "images": provenance["data"]["train"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": (run / "best" / "model.safetensors").stat().st_size,
        "operations": operations(model, recipe, provenance["data"]["train"]),
        "recipe": settings(recipe),
    }


def settings(recipe: Recipe) -> dict[str, Any]:
    """A recipe without what seeds of one thing may differ in."""
    kept = recipe.to_dict()
    del kept["seed"], kept["monitor"]
    for name in ("root", "memory_gb", "workers"):
        del kept["data"][name]
    return kept


def views(model: PatchConvNet, recipe: Recipe, root: str | None) -> dict[str, float | None]:
    """Test top-1 by the mean logits of each image and its mirror image, and of the record's six views."""
    if recipe.augmentation.flip == "none":
        return {"top1_mirrored": None, "top1_six_views": None}
    name = recipe.data.name
    return {
        "top1_mirrored": top1(model, model, name, root, mirror=True),
        "top1_six_views": top1(SixViews(model), model, name, root),
    }


def top1(classifier: nn.Module, model: PatchConvNet, data: str, root: str | None, *, mirror: bool = False) -> float:
    """Share of the test images that are named right, by a classifier around `model`."""
    return evaluate(classifier, load(data, root=root).require("test"), preprocessing_of(model), mirror=mirror).top1


def operations(model: PatchConvNet, recipe: Recipe, images: int) -> int:
    """Multiplications and additions of the whole training: a step is three forward passes."""
    sizes = [
        recipe.progressive.size(recipe.preprocessing.size, model.patch_size, epoch, recipe.epochs)
        for epoch in range(recipe.epochs)
    ]
    return sum(6 * multiply_accumulates(model, *size).ours * images for size in sizes)


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"| {' | '.join(COLUMNS)} |",
        "|" + "---|" * len(COLUMNS),
    ]
    for label, result in results.items():
        runs = list(result["seeds"].values())
        one = runs[0]
        cells = [
            f"`{label.split(',')[0]}`" + label.removeprefix(label.split(",")[0]),
            AIMS.get(label, "–"),
            f"**{_spread([r['top1'] for r in runs])}**",
            _spread([r["top5"] for r in runs]),
            *(_spread([r[key] for r in runs if r.get(key) is not None]) for key in ("top1_mirrored", "top1_six_views")),
            len(runs),
            f"{one['parameters']:,}",
            f"{one['bytes'] / 1e6:.1f} MB",
            one["epochs"],
            f"{one['images']:,}",
            f"{one['operations'] / 1e15:.2g}",
            " ".join(f"{r['seconds']:,.0f}" for r in runs),
            ", ".join(dict.fromkeys(r["machine"] for r in runs)),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _spread(shares: list[float]) -> str:
    """Mean ± standard deviation, in percent; a dash for none."""
    if not shares:
        return "–"
    spread = f" ± {100 * statistics.stdev(shares):.2f}" if len(shares) > 1 else ""
    return f"{100 * statistics.mean(shares):.2f}{spread} %"


if __name__ == "__main__":
    main()
