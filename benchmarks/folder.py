"""Photographs a second of `patchconvnet explain FOLDER`, beside what the network alone does.

    python benchmarks/folder.py PHOTOS [--limit 200] [--model imagenet] [--out docs/benchmarks/folder.json]

The network's own rate: the same fused network in the same number format, batches of the same size, prepared inputs,
nothing but logits. The command's: seconds of the whole command for all photographs less those for one, so that loading
is left out. All alternately in one run. --workers 0 draws in the command's own process.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from measuring import race, setup, spread

from patchconvnet import load
from patchconvnet.data.images import read_image
from patchconvnet.explanation.explainer import batch_size_for, preprocessing_of

CASES = {
    "--only json": ["--only", "json"],
    "--only json,overlay": ["--only", "json,overlay"],
    "--only json,overlay --workers 1": ["--only", "json,overlay", "--workers", "1"],
    "--only json,overlay --workers 0": ["--only", "json,overlay", "--workers", "0"],
    "everything, --refine 0": ["--refine", "0"],
    "everything (refined to 14 × 14)": [],
}
FEW_FIGURES = 24  # photographs that are enough to time figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--limit", type=int, default=200, help="photographs; figures are drawn for 24 of them")
    parser.add_argument("--model", default="imagenet")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, help="file for the JSON")
    a = parser.parse_args()
    paths = sorted(a.photos.rglob("*.jpg"))[: a.limit]
    network = load(a.model).fuse()  # type: ignore[operator]
    preprocessing = preprocessing_of(network)
    batch_size = batch_size_for(*preprocessing.size)
    batch = torch.stack([preprocessing(read_image(path)) for path in paths[:batch_size]])
    with tempfile.TemporaryDirectory() as root:
        few, all_of_them = Path(root, "few"), Path(root, "all")
        for folder, chosen in ((few, paths[: min(FEW_FIGURES, len(paths))]), (all_of_them, paths)):
            folder.mkdir()
            for k, path in enumerate(chosen):
                shutil.copy(path, folder / f"{k:04d}.jpg")

        def command(options: list[str], images: Path) -> float:
            words = [sys.executable, "-m", "patchconvnet", "explain", str(images), "--model", a.model, *options]
            out = Path(root, "out")
            started = time.perf_counter()
            subprocess.run([*words, "--out", str(out)], check=True, capture_output=True)
            taken = time.perf_counter() - started
            shutil.rmtree(out)
            return taken

        def rate(options: list[str]) -> float:
            images = all_of_them if "--only" in options else few
            count = len(list(images.iterdir()))
            return (command(options, images) - command(options, images / "0000.jpg")) / (count - 1)

        def alone() -> float:
            started = time.perf_counter()
            with torch.inference_mode():
                for _ in range(4):
                    network(batch)
            return (time.perf_counter() - started) / (4 * batch_size)

        contenders = {
            "the network alone": alone,
            **{name: lambda o=options: rate(o) for name, options in CASES.items()},
        }
        times = race(contenders, a.rounds, warm_up=0)
    own = times["the network alone"]
    rows = {
        name: {
            "images a second": spread([1 / each for each in seconds]),
            "network's seconds / its own": spread([each / mine for each, mine in zip(seconds, own, strict=True)]),
        }
        for name, seconds in times.items()
    }
    result = {"rows": rows, "seconds an image": times, "images": len(paths), "batch": batch_size, "setup": setup()}
    text = json.dumps(result, ensure_ascii=False, indent=1)
    if a.out:
        a.out.write_text(text + "\n")
    print("| what is written | images a second | × the network's time |\n|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row['images a second']['median']:.1f} | {row[next(reversed(row))]['median']:.2f} |")


if __name__ == "__main__":
    main()
