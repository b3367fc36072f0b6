"""What each setting of a recipe is worth: trainings that differ from it in one setting, judged on a validation split.

    python benchmarks/ablations.py --root DATA [--epochs 5] [--only "cutout of 8 pixels" …] [--seeds 1] [--out DIR]

Trains with `patchconvnet train` on the first 40,000 training images; the last epoch's accuracy on the other 10,000
counts; the test set plays no part. An interrupted comparison goes on where it stopped. docs/experiments.md's tables
are written from docs/benchmarks/ablations.json, where lines that are not run keep what they have.
"""

import argparse
import csv
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from accuracy import operations, settings
from run_all import DOCS, RESULTS, replace_between, write_text

from patchconvnet import PatchConvNet
from patchconvnet.training.recipe import read_recipe

UNCHANGED = "the recipe"
CHANGES: dict[str, list[str]] = {
    UNCHANGED: [],
    "images of 32 pixels from the first epoch": ["--progressive.start", "1"],
    "first convolution trained like the others, not whitening": ["--model.whiten", "false"],
    "strided stem of the paper": ["--model.options", '{"stem": "strided"}', "--model.whiten", "false"],
    "the paper's blocks, dense 3×3": ["--model.options", '{"block": "paper"}'],
    "the paper's blocks, depthwise 3×3": ["--model.options", '{"block": "paper", "conv": "depthwise"}'],
    "layer norm": ["--model.options", '{"norm": "layer"}'],
    "a query per class": ["--model.options", '{"pooling": "additive_multi"}'],
    "batch norm in the head": ["--model.options", '{"pooling_norm": "batch"}'],
    "the example's head": ["--model.options", '{"pooling": "keras"}'],
    "AdamW at 0.004": ["--optimization.optimizer", "adamw", "--optimization.learning_rate", "0.004",
                       "--optimization.fallback_learning_rate", "null"],
    "Muon at 0.01": ["--optimization.learning_rate", "0.01"],
    "Muon at 0.04": ["--optimization.learning_rate", "0.04"],
    "momentum 0.3": ["--optimization.momentum", "0.3"],
    "momentum 0.9": ["--optimization.momentum", "0.9"],
    "weight decay 0.02": ["--optimization.weight_decay", "0.02"],
    "weight decay 1.5": ["--optimization.weight_decay", "1.5"],
    "weight decay 2": ["--optimization.weight_decay", "2"],
    "half a cosine": ["--optimization.schedule", "cosine"],
    "warm-up 0.1": ["--optimization.warmup", "0.1"],
    "no label smoothing": ["--optimization.label_smoothing", "0"],
    "average of the weights, 0.99 a step": ["--optimization.ema_decay", "0.99"],
    "stochastic depth 0.1": ["--model.options", '{"drop_path_rate": 0.1}'],
    "cutout of 8 pixels": ["--augmentation.cutout", "8"],
    "cutout of 12 pixels, moves by up to 4": ["--augmentation.cutout", "12", "--augmentation.random_crop_padding", "4"],
    "flips by coin": ["--augmentation.flip", "random"],
    "no flips": ["--augmentation.flip", "none"],
    "moves by up to 4 pixels": ["--augmentation.random_crop_padding", "4"],
    "no moves": ["--augmentation.random_crop_padding", "0"],
    "random boxes of four fifths to all of the area": ["--augmentation.random_resized_crop_scale", "[0.8, 1]",
                                                       "--augmentation.random_crop_padding", "0"],
    "random boxes of half to all of the area": ["--augmentation.random_resized_crop_scale", "[0.5, 1]",
                                                "--augmentation.random_crop_padding", "0"],
    "brightness, contrast, saturation ± 20 %": ["--augmentation.color_jitter", "0.2"],
    "Mixup 0.2": ["--augmentation.mixup", "0.2"],
    "batch 250": ["--batch_size", "250"],
    "weights tied to mirror images": ["--model.mirror", "true"],
    "weights tied to mirror images, 304 wide": ["--model.mirror", "true", "--model.options", '{"embed_dim": 304}'],
    "weights tied to mirror images, 384 wide": ["--model.mirror", "true", "--model.options", '{"embed_dim": 384}'],
}  # fmt: skip
BEGIN, END = "<!-- ablations: made by benchmarks/ablations.py -->", "<!-- end of ablations -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="where CIFAR-10 is or is downloaded to; without it the table is made again")
    parser.add_argument("--recipe", default="small_images")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=CHANGES, default=list(CHANGES), metavar="CHANGE")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    a = parser.parse_args()
    kept = RESULTS / "ablations.json"
    tables = json.loads(kept.read_text()) if kept.is_file() else {}
    lines = tables.setdefault(f"{a.recipe}, {a.epochs} epochs", {})
    for seed in range(a.seeds if a.root else 0):  # seed by seed, so that an interrupted comparison is still a fair one
        for change in a.only:
            run = a.out / f"{a.recipe}-{a.epochs}-{_file_name(change)}-{seed}"
            result = train(a.recipe, CHANGES[change], seed, a.root, a.epochs, run)
            line = lines.get(change, {})
            same = line.get("top1", {}) if line.get("settings") == result["settings"] else {}
            line = lines[change] = {**result, "top1": {**same, str(seed): last_validation(run)}}
            write_text(kept, json.dumps(tables, indent=1, ensure_ascii=False) + "\n")
            print(f"{change}, seed {seed}: {line['top1'][str(seed)]:.2%}", flush=True)
    replace_between(DOCS / "experiments.md", BEGIN, END, made(tables))
    print(made(tables))


def train(recipe: str, change: list[str], seed: int, root: str, epochs: int, run: Path) -> dict[str, Any]:
    """Trains, or goes on with, one line of the table; gives its network's size and cost."""
    command = [
        sys.executable, "-m", "patchconvnet", "train", "--recipe", recipe, "--data.name", "cifar10",
        "--data.root", root, "--data.validation", "10000",
        "--epochs", str(epochs), "--seed", str(seed), "--monitor.every", "0", *change,
        "--out", str(run), "--resume", "auto",
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    model, trained = PatchConvNet.from_pretrained(run / "best"), read_recipe(run / "recipe.yaml")
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        # of a forward pass, mean over the epochs, the first of which may see smaller images
        "operations": operations(model, trained, 1) / (3 * epochs),
        "settings": settings(trained),
    }


def last_validation(run: Path) -> float:
    """Validation top-1 of the last epoch."""
    with (run / "metrics.csv").open() as file:
        return float(list(csv.DictReader(file))[-1]["val_top1"])


def made(tables: dict[str, dict[str, Any]]) -> str:
    """What stands between the page's marks."""
    return "\n\n".join(table(name, lines) for name, lines in tables.items() if lines) or "(not run yet)"


def table(name: str, lines: dict[str, Any]) -> str:
    """The recipe first, then its changes, the best of them first; compared seed by seed."""
    recipe = lines.get(UNCHANGED, {"top1": {}})["top1"]
    gaps = {
        change: [value - recipe[seed] for seed, value in line["top1"].items() if seed in recipe]
        for change, line in lines.items()
    }
    mean = {change: statistics.mean(line["top1"].values()) for change, line in lines.items()}
    gap = {change: statistics.mean(values) if values else None for change, values in gaps.items()}
    rows = [
        f"| {name} | validation top-1 | against it, same seeds | seeds | million operations an image |",
        "|---|---|---|---|---|",
    ]
    for change in sorted(lines, key=lambda change: (change != UNCHANGED, -(gap[change] or 0), -mean[change])):
        line = lines[change]
        against = "" if change == UNCHANGED or gap[change] is None else f"{100 * gap[change]:+.2f}"
        operations = f"{line['operations'] / 1e6:.0f}"
        rows.append(f"| {change} | {mean[change]:.2%} | {against} | {len(line['top1'])} | {operations} |")
    return "\n".join(rows)


def _file_name(change: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", change.lower()).strip("-")


if __name__ == "__main__":
    main()
