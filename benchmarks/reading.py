"""Does reading keep up with training? Images/s of each source by number of readers, beside what a training step takes.

    python benchmarks/reading.py [--images 512] [--note "beside other work"]

The same photographs' worth of noise, 340×256 JPEG, as a folder, as Parquet files with their bytes, as tar files, as
chunks of litdata, and as tar files of a web server on the same machine that are not kept; read in random order, decoded
and brought to 256×256, as for training at 224, by a `DataLoader` with 0, 1 and 2 worker processes, their start
included. Then, in the same run, the training step of Lite0 and of S60 at 224. Results go into
docs/benchmarks/reading.json and the table of docs/data.md.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import setup, spread
from PIL import Image
from plan import elsewhere

from patchconvnet.data.datasets import load
from patchconvnet.data.labelled_images import StoredImages, in_batches
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.data.sources.shards import write_shards

DOCS = Path(__file__).parents[1] / "docs"
RESULTS, PAGE = DOCS / "benchmarks" / "reading.json", DOCS / "data.md"
BEGIN, END = "<!-- reading: made by benchmarks/reading.py -->", "<!-- end of reading -->"
SIZE = (340, 256)  # of a file: width, height
SIDE, CANVAS, BATCH = 224, 256, 32
WORKERS = (0, 1, 2)
NETWORKS = {"lite0": ("EfficientNet-Lite0", 16), "s60": ("PatchConvNet-S60", 4)}  # images of a step, as in plan.py


def write_folder(root: Path, count: int) -> Path:
    """Noise scaled up, so that JPEG compresses it like a photograph; in two classes."""
    random = np.random.default_rng(0)
    for i in range(count):
        path = root / "folder" / "ab"[i % 2] / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = random.integers(0, 256, (SIZE[1] // 8, SIZE[0] // 8, 3), np.uint8)
        Image.fromarray(small).resize(SIZE).save(path, quality=90)
    return root / "folder"


def write_parquet(root: Path, folder: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    files = sorted(folder.rglob("*.jpg"))
    table = {
        "bytes": [file.read_bytes() for file in files],
        "name": [file.name for file in files],
        "label": [file.parent.name for file in files],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), root / "images.parquet", row_group_size=100)
    return root / "images.parquet"


@contextlib.contextmanager
def server_of(folder: Path) -> Iterator[str]:
    """The address of a web server that sends parts of files, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = (
        "import sys, uvicorn; from starlette.staticfiles import StaticFiles; "
        "uvicorn.run(StaticFiles(directory=sys.argv[1]), port=int(sys.argv[2]), log_level='warning')"
    )
    process = subprocess.Popen([sys.executable, "-c", serve, str(folder), str(port)])
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def rate(images: StoredImages, workers: int, seed: int) -> float:
    """Images/s of one pass in random order."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    tensors = images.subset(order).tensors(Preprocessing(size=(CANVAS, CANVAS)).canvas)
    began = time.perf_counter()
    read = sum(len(labels) for _, labels, _ in in_batches(tensors, workers, batch_size=BATCH))
    return read / (time.perf_counter() - began)


def table(stored: dict[str, Any]) -> str:
    """The page's table."""
    lines = [
        f"| images/s, median (quartiles) of {stored['rounds']} | {' | '.join(f'workers: {w}' for w in WORKERS)} |",
        "|---|" + "---|" * len(WORKERS),
    ]
    for name, rates in stored["sources"].items():
        cells = [f"{r['median']:,.0f} ({r['low']:,.0f} to {r['high']:,.0f})" for r in rates.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    needs = [
        f"{step['title']} {step['rate']['median']:,.1f} images/s ({step['batch']} in a step)"
        for step in stored["steps"]
    ]
    s, note = stored["setup"], f", {stored['note']}" if stored["note"] else ""
    return "\n".join([
        *lines, "", f"A training step at {SIDE} on the same CPU alone takes {', '.join(needs)}.", "",
        f"{stored['images']:,} JPEG files of {SIZE[0]}×{SIZE[1]}, {stored['bytes'] / 1000:.0f} kB each. "
        f"litdata {stored['litdata']}. On {s['machine']}, {s['threads']} threads for the step, {s['date']}{note}.",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the training step")
    parser.add_argument("--note", default="", help="what else ran, for the page")
    asked = parser.parse_args()
    with contextlib.ExitStack() as closing:
        place = closing.enter_context(tempfile.TemporaryDirectory())
        root = Path(place)
        import datasets

        datasets.config.HF_DATASETS_CACHE = root / "hf"
        folder = write_folder(root, asked.images)
        write_shards(f"folder:{folder}", root / "shards", images_per_shard=100)
        write_shards(f"folder:{folder}", root / "chunks", images_per_shard=100, format="litdata")
        url = closing.enter_context(server_of(root / "shards"))
        names = {
            "folder": f"folder:{folder}",
            "Parquet with bytes": f"parquet:{write_parquet(root, folder)}",
            "tar shards": f"wds:{root / 'shards'}",
            "litdata": f"litdata:{root / 'chunks'}",
            "tar shards of a server, not kept": f"wds:{url}?keep=no",
        }
        images = {title: load(name, root=root, validation=0, test=0).require("train") for title, name in names.items()}
        found: dict[str, dict[int, list[float]]] = {title: {w: [] for w in WORKERS} for title in names}
        torch.set_num_threads(1)
        for turn in range(asked.rounds):
            for workers in WORKERS:
                for title, each in images.items():
                    assert isinstance(each, StoredImages)
                    found[title][workers].append(rate(each, workers, turn))
        size = statistics.mean(file.stat().st_size for file in folder.rglob("*.jpg"))
    torch.set_num_threads(asked.threads)
    steps = []
    for name, (title, batch) in NETWORKS.items():
        rates = spread([batch / seconds for seconds in elsewhere(name, asked.threads)])
        steps.append({"network": name, "title": title, "batch": batch, "rate": rates})
    stored = {
        "sources": {t: {w: spread(values) for w, values in by.items()} for t, by in found.items()},
        "steps": steps, "images": asked.images, "bytes": size, "rounds": asked.rounds, "note": asked.note,
        "litdata": version("litdata"),
        "setup": setup(),
    }  # fmt: skip
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n")
    page = PAGE.read_text()
    PAGE.write_text(f"{page.split(BEGIN)[0]}{BEGIN}\n\n{table(stored)}\n\n{END}{page.split(END)[1]}")


if __name__ == "__main__":
    main()
