"""What pretrained features give on photographs: ours beside the usual ways, all from the same EfficientNet-Lite0.

    python benchmarks/pretrained.py --pets PETS.parquet [--tiny TINY.parquet] [--seeds 3]
        [--only pets2 pets3 tiny tiny128] [--fastai-python PATH] [--epochs N]

Contenders: scikit-learn's logistic regression on averaged features (its strength chosen on the validation split), our
loop with average pooling (timm's head, all weights trained), fastai's `fine_tune` of the same network, recipe `probe`,
recipe `finetune`. Data: cats and dogs,
and the three breeds that are frequent, of a subset of Oxford-IIIT Pet (columns name, breed, species, image, trimap;
divided as in pets.py); Tiny ImageNet's validation images (columns image, label), 7,000 to train on, 1,000 to choose by,
2,000 to test on. The test set is used once for each seed. Needs `pip install 'patchconvnet[imagenet]' pyarrow`.
Resumable; writes docs/benchmarks/pretrained.json and prints its table.
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pets
import safetensors.torch
import timm
import torch
from sklearn.linear_model import LogisticRegression

from patchconvnet import load
from patchconvnet.data import datasets
from patchconvnet.data.batches import batches
from patchconvnet.data.preprocessing import Preprocessing

RESULTS = Path(__file__).parents[1] / "docs" / "benchmarks" / "pretrained.json"
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)  # of scikit-learn's logistic regression, C
DATA = {
    "pets2": "cat or dog",
    "pets3": "three breeds",
    "tiny": "Tiny ImageNet, 200 classes",
    "tiny128": "the same at 128 × 128",  # twice their size; fine-tuning at 224 takes two cores three times as long
}
SIZE = {"tiny128": 128}  # other than the recipes' 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pets", type=Path, help="the Parquet file of pets")
    parser.add_argument("--tiny", type=Path, help="the Parquet file of Tiny ImageNet")
    parser.add_argument("--out", type=Path, default=Path("runs/pretrained"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--epochs", type=int, help="of average pooling and finetune (default: the recipe's)")
    parser.add_argument(
        "--fastai-python",
        default=os.environ.get("FASTAI_PYTHON"),
        help="an interpreter with fastai and timm (default: $FASTAI_PYTHON); without it that contender is left out",
    )
    a = parser.parse_args()
    if a.fastai_python:
        os.environ["FASTAI_PYTHON"] = a.fastai_python
    else:
        a.contenders = [name for name in a.contenders if name != "fastai"]
    if a.epochs:
        for name in TRAINED:
            CONTENDERS[name] = recipe(*TRAINED[name], "--epochs", str(a.epochs))
    for data in a.only:
        source = a.tiny if data.startswith("tiny") else a.pets
        if source is None:
            print(f"{data}: left out, no file of it was given")
            continue
        folder = unpacked("tiny" if data == "tiny128" else data, source, a.out)
        for contender in a.contenders:
            size = SIZE.get(data, 224)
            row = [
                CONTENDERS[contender](folder, a.out / f"{data}-{contender}-{seed}", seed, size)
                for seed in range(a.seeds)
            ]
            results = kept()  # several of these may run beside each other
            results.setdefault(data, {})[contender] = row
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{data} {contender}: {cell(row)}", flush=True)
    print(table(kept()))


def kept() -> dict[str, Any]:
    """The results so far: data → contender → a figure for each seed."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def unpacked(data: str, source: Path, out: Path) -> Path:
    """The images as split/class/name.jpg."""
    import pyarrow.parquet

    folder = out / "data" / data
    if folder.exists():
        return folder
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    if data == "pets2":
        pets.unpack(source, part, out / "data" / "masks")
    else:
        rows = pyarrow.parquet.read_table(source).to_pylist()
        for split, name, label, image in (pets3 if data == "pets3" else tiny)(rows):
            (part / split / label).mkdir(parents=True, exist_ok=True)
            (part / split / label / f"{name}.jpg").write_bytes(image)
    part.rename(folder)
    return folder


def pets3(rows: list[dict[str, Any]]) -> list[tuple[str, str, str, bytes]]:
    frequent = [breed for breed, _ in Counter(row["breed"] for row in rows).most_common(3)]
    return [
        (pets.split_of(row["name"]), row["name"], row["breed"], row["image"])
        for row in rows
        if row["breed"] in frequent
    ]


def tiny(rows: list[dict[str, Any]]) -> list[tuple[str, str, str, bytes]]:
    order = np.random.default_rng(0).permutation(len(rows))
    seen: Counter[int] = Counter()
    found = []
    for i in order:
        label = rows[i]["label"]
        split = "train" if seen[label] < 35 else "val" if seen[label] < 40 else "test"
        seen[label] += 1
        found.append((split, f"{i:05}", f"{label:03}", rows[i]["image"]["bytes"]))
    return found


# The contenders: each returns its test top-1 and its seconds


def logistic_regression(folder: Path, run: Path, seed: int, size: int) -> dict[str, float]:
    started = time.perf_counter()
    model = load("imagenet")
    preprocessing = Preprocessing.from_dict(model.metadata.preprocessing or model.preprocessing)
    preprocessing = dataclasses.replace(preprocessing, size=(size, size))
    data = datasets.load(f"folder:{folder}")
    averages, labels = {}, {}
    for name in ("train", "validation", "test"):
        parts, known = [], []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            for images, its_labels, _ in batches(data.require(name), preprocessing, 32, workers=2):
                features = model.forward_features(images.to(memory_format=torch.channels_last))
                parts.append(features.float().mean((2, 3)))
                known.append(its_labels)
        averages[name], labels[name] = torch.cat(parts).numpy(), torch.cat(known).numpy()
    fits = [LogisticRegression(C=c, max_iter=1000).fit(averages["train"], labels["train"]) for c in STRENGTHS]
    best = max(fits, key=lambda fit: fit.score(averages["validation"], labels["validation"]))
    return {
        "top1": float(best.score(averages["test"], labels["test"])), "seconds": time.perf_counter() - started
    }  # fmt: skip


def recipe(*words: str) -> Callable[[Path, Path, int, int], dict[str, float]]:
    def train(folder: Path, run: Path, seed: int, size: int) -> dict[str, float]:
        command = [sys.executable, "-m", "patchconvnet", "train", *words, "--data.name", f"folder:{folder.resolve()}"]
        command += ["--preprocessing.size", str(size)]
        subprocess.run([*command, "--seed", str(seed), "--out", str(run), "--resume", "auto"], check=True)
        config = json.loads((run / "best" / "config.json").read_text())
        return {"top1": config["metrics"]["test"]["top1"], "seconds": config["provenance"]["seconds"]}

    return train


def fastai(folder: Path, run: Path, seed: int, size: int) -> dict[str, float]:
    weights = run.parent / "lite0.safetensors"
    if not weights.exists():
        backbone = load("imagenet").backbone.state_dict()
        state = timm.create_model("tf_efficientnet_lite0").state_dict()  # its classifier is not used
        safetensors.torch.save_file(state | {name: backbone[name] for name in state if name in backbone}, weights)
    script = Path(__file__).with_name("fastai_finetune.py")
    command = [
        os.environ["FASTAI_PYTHON"],
        str(script),
        str(folder),
        str(weights),
        "--seed",
        str(seed),
        "--size",
        str(size),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


TRAINED = {
    "average pooling": ("--recipe", "finetune", "--model.options.pooling", "average", "--method", "train"),
    "finetune": ("--recipe", "finetune"),
}
CONTENDERS: dict[str, Callable[[Path, Path, int, int], dict[str, float]]] = {
    "logistic regression": logistic_regression,
    "average pooling": recipe(*TRAINED["average pooling"]),
    "fastai": fastai,
    "probe": recipe("--recipe", "probe"),
    "finetune": recipe(*TRAINED["finetune"]),
}


def cell(row: list[dict[str, float]]) -> str:
    top1, seconds = [r["top1"] for r in row], statistics.mean(r["seconds"] for r in row)
    spread = f" ± {statistics.stdev(top1):.2%}" if len(top1) > 1 else ""
    return f"{statistics.mean(top1):.2%}{spread}, {seconds:,.0f} s"


def table(results: dict[str, Any]) -> str:
    known = [data for data in DATA if data in results]
    rows = ["| | " + " | ".join(DATA[data] for data in known) + " |", "|" + "---|" * (len(known) + 1)]
    for contender in CONTENDERS:
        cells = [cell(results[data][contender]) if contender in results[data] else "–" for data in known]
        rows.append(f"| {contender} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
