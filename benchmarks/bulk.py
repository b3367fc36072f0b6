"""`patchconvnet predict` on many images: does memory stay, what is lost to the model's own rate, what a billion take.

    python benchmarks/bulk.py memory [--images 100000]    # peak memory with so many images and with 1,000
    python benchmarks/bulk.py rate                        # images/s beside the model's own, in turn, on this machine
    python benchmarks/bulk.py page                        # writes the tables of docs/bulk.md

Results go into docs/benchmarks/bulk.json. The model's own rates are those of the fused network on images that lie
prepared in memory: in batches, each on all threads, and a few images at a time side by side on one thread each, as
predict asks it. The share is of the faster one. predict decodes files and writes Parquet besides; where the network
computes on the same cores, what reading and preparing takes alone leaves at most the share that is stated. The
images are noise, scaled up so that JPEG compresses it like a photograph. Memory is that of the command's process with a
tiny network, so that 100,000 images take a minute or two; what a larger network needs is the same whatever the number.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from measuring import setup, spread
from PIL import Image

from patchconvnet.bulk.local import predict_locally
from patchconvnet.bulk.parts import PartsFolder, part_files
from patchconvnet.bulk.predictor import ModelChoice, Predictor, Settings
from patchconvnet.bulk.work import FolderWork, parts_of
from patchconvnet.explanation.drawing import usable_cores
from patchconvnet.explanation.refining import batch_size_for
from patchconvnet.hardware import keep_freed_memory
from patchconvnet.models import Metadata, load
from patchconvnet.models.passes import for_each

DOCS = Path(__file__).parents[1] / "docs"
RESULTS, PAGE = DOCS / "benchmarks" / "bulk.json", DOCS / "bulk.md"
BEGIN, END = "<!-- bulk: made by benchmarks/bulk.py -->", "<!-- end of bulk -->"
AIM_MEMORY, AIM_RATE = 1.5, 0.9
FEW = 1000
DIFFERENT = 1000
ROUNDS = 5
# model, images of a round, (width, height) of the files, ending
RATES = (
    ("cifar10", 4096, (32, 32), "png"),
    ("imagenet", 768, (340, 256), "jpg"),
    ("patchconvnet_s60", 96, (340, 256), "jpg"),  # with random weights
)
WRITTEN = (
    ("probabilities of 5 classes", "none", False),
    ("and attention", "attention", False),
    ("and embeddings", "attention", True),
)
BILLION = 10**9
DAY = 24.0


def tiny_model(folder: Path) -> Path:
    model = timm.create_model("patchconvnet_micro", num_classes=2, embed_dim=16, depth=1)
    model.metadata = Metadata(class_names=["a", "b"], preprocessing={"size": [16, 16]})
    return model.save_pretrained(folder)


def write_images(folder: Path, count: int, size: tuple[int, int], ending: str) -> Path:
    """So many files, of which `DIFFERENT` differ and the others are links to them."""
    random = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i // DIFFERENT:04d}" / f"{i:08d}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i >= DIFFERENT:
            os.link(folder / "0000" / f"{i % DIFFERENT:08d}.{ending}", path)
            continue
        small = random.integers(0, 256, (max(size[1] // 8, 8), max(size[0] // 8, 8), 3), np.uint8)
        Image.fromarray(small).resize(size).save(path)
    return folder


def peak_memory(model: Path, images: Path, out: Path) -> tuple[float, float]:
    """Megabytes of a whole `predict`, and its seconds."""
    words = [sys.executable, "-m", "patchconvnet", "predict", "--model", str(model), "--data", str(images)]
    began = time.perf_counter()
    process = subprocess.Popen(
        [*words, "--out", str(out), "--maps", "evidence", "--embeddings", "--threads", "1"], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"predict ended with {status}")
    return usage.ru_maxrss / 1024, time.perf_counter() - began


def measure_memory(counts: tuple[int, ...]) -> dict[str, Any]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = tiny_model(root / "model")
        for count in counts:
            images = write_images(root / f"images{count}", count, (16, 16), "png")
            peak, seconds = peak_memory(model, images, root / f"out{count}")
            rows.append({"images": count, "peak_megabytes": round(peak, 1), "seconds": round(seconds, 1)})
    ratio = rows[-1]["peak_megabytes"] / rows[0]["peak_megabytes"]
    return {"rows": rows, "ratio": ratio, "aim": AIM_MEMORY, "met": ratio <= AIM_MEMORY, "setup": setup()}


def measure_rate(model: str, count: int, size: tuple[int, int], ending: str, rounds: int) -> dict[str, Any]:
    batched_rates, own_rates, rates = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images = write_images(root / "images", count, size, ending)
        name = model
        if model in timm.list_models("patchconvnet_*"):
            network = timm.create_model(model)
            network.metadata = Metadata(preprocessing={"size": [224, 224], "resize": "crop", "crop_ratio": 0.875})
            name = str(network.save_pretrained(root / "model"))
        predictor = Predictor(ModelChoice(name, device="cpu"), Settings())
        work = FolderWork(images, predictor.class_names)
        items = [item for part in parts_of(work, count) for item in part.items]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        prepared, reading_rates = torch.empty(0), []
        for _ in range(rounds):
            began = time.perf_counter()
            prepared = torch.stack([predictor.preprocessing(work.read(item)) for item in items])
            reading_rates.append(count / (time.perf_counter() - began))
        torch.set_num_threads(threads)
        network, batch_size = load(name).eval().fuse(), batch_size_for(*predictor.preprocessing.size)
        for turn in range(-1, rounds):
            began = time.perf_counter()
            with torch.no_grad():
                for batch in prepared.split(batch_size):
                    network(batch)
            batched = time.perf_counter() - began
            began = time.perf_counter()
            for_each(predictor.answer, prepared.split(predictor.batch_size), prepared.device)
            own = time.perf_counter() - began
            parts = PartsFolder(root / f"out{turn}", {"model": {}, "data": {}, "settings": {}})
            began = time.perf_counter()
            predict_locally(predictor, work, parts, 4096, readers=usable_cores())
            ours = time.perf_counter() - began
            if turn >= 0:
                batched_rates.append(count / batched)
                own_rates.append(count / own)
                rates.append(count / ours)
        bytes_of = {}
        few = FolderWork(write_images(root / "few", 256, size, ending), predictor.class_names)
        for what, maps, embeddings in WRITTEN:
            told = Predictor(ModelChoice(name, device="cpu"), Settings(maps=maps, embeddings=embeddings))  # type: ignore[arg-type]
            parts = PartsFolder(root / f"written{maps}{embeddings}", {"model": {}, "data": {}, "settings": {}})
            predict_locally(told, few, parts, 4096, readers=usable_cores())
            bytes_of[what] = sum(path.stat().st_size for path in part_files(parts.folder)) / 256
    columns = (rates, batched_rates, own_rates)
    shares = [ours / max(batched, own) for ours, batched, own in zip(*columns, strict=True)]
    fastest = max(spread(batched_rates)["median"], spread(own_rates)["median"])
    reading = spread(reading_rates)
    most = 1 / (1 + fastest / (threads * reading["median"]))  # a core that reads does not compute
    return {
        "model": model, "input": list(predictor.preprocessing.size), "files": f"{size[0]}×{size[1]} {ending}",
        "images": count, "batch_size": batch_size, "batched_rate": spread(batched_rates), "own_rate": spread(own_rates),
        "rate": spread(rates), "share": spread(shares), "reading_rate": reading, "most": most,
        "aim": AIM_RATE, "met": spread(shares)["median"] >= AIM_RATE, "bytes_per_image": bytes_of,
    }  # fmt: skip


def tables(stored: dict[str, Any]) -> str:
    """The page's tables, from the stored results."""
    lines = []
    if memory := stored.get("memory"):
        lines += ["| images | peak memory | seconds |", "|---|---|---|"]
        lines += [f"| {r['images']:,} | {r['peak_megabytes']:,.0f} MB | {r['seconds']:,.0f} |" for r in memory["rows"]]
        mark = "✓" if memory["met"] else "✗"
        lines += ["", f"{memory['ratio']:.2f} times the memory (aim ≤ {memory['aim']}, {mark}), a tiny network.", ""]
    if rates := stored.get("rates"):
        lines += [
            "| model | files | the network alone in batches, images/s | side by side | reading alone, one core "
            "| `predict` | its share of the network's faster rate (quartiles) | at most | aim |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for r in rates["rows"]:
            share, mark = r["share"], "✓" if r["met"] else "✗"
            columns = (r[key]["median"] for key in ("own_rate", "reading_rate", "rate"))
            lines.append(
                f"| `{r['model']}` at {r['input'][0]}×{r['input'][1]} | {r['files']} | "
                f"{r['batched_rate']['median']:,.0f} (of {r['batch_size']}) | "
                + " | ".join(f"{rate:,.0f}" for rate in columns)
                + f" | **{share['median']:.1%}** ({share['low']:.1%} to {share['high']:.1%}) | {r['most']:.0%} | "
                f"≥ {r['aim']:.0%} {mark} |"
            )
        s = rates["setup"]
        lines += [
            "",
            f"On {s['machine']}, {s['threads']} threads, {s['date']}.",
            "",
            "**A billion images**, by these rates:",
            "",
        ]
        lines += ["| model | hours of one such machine | machines for a day | rows | with attention | and embeddings |"]
        lines += ["|---|---|---|---|---|---|"]
        for r in rates["rows"]:
            hours = BILLION / r["rate"]["median"] / 3600
            sizes = " | ".join(f"{b * BILLION / 1e12:,.2f} TB" for b in r["bytes_per_image"].values())
            lines.append(f"| `{r['model']}` | {hours:,.0f} | {int(-(-hours // DAY)):,} | {sizes} |")
    return "\n".join(lines)


def write_page(stored: dict[str, Any]) -> None:
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables(stored)}\n\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "rate", "page"))
    parser.add_argument("--images", type=int, default=100_000, help="of memory")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of rate")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of rate")
    asked = parser.parse_args()
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if asked.what == "memory":
        stored["memory"] = measure_memory((FEW, asked.images))
    elif asked.what == "rate":
        torch.set_num_threads(asked.threads)
        keep_freed_memory()
        stored["rates"] = {"rows": [measure_rate(*each, asked.rounds) for each in RATES], "setup": setup()}
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n")
    write_page(stored)


if __name__ == "__main__":
    main()
