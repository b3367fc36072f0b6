"""Photographs a second of `patchconvnet explain FOLDER`, beside what the network alone does.

    python benchmarks/folder.py PHOTOS [--limit 200] [--model imagenet] [--view own] [--threads 2] [--out FILE.json]

The network's own rate: the same fused network in the same number format, on as many threads, batches of the same size
of prepared inputs, nothing but logits, and as many inputs as photographs have crops; measured before and after each
command. The command's: from the first image that
it says is done to its end, the images of one batch not counted, since they were in work before; so loading is left out.
Beside that, the processor milliseconds of each step in one process on one thread, the least of five batches, which what
else the machine does changes less.
"""

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measuring import setup

from patchconvnet import load
from patchconvnet.data.images import read_image
from patchconvnet.explanation.crops import VIEWS, View, crops_of
from patchconvnet.explanation.explainer import Question, answer, open_image, preprocessing_of
from patchconvnet.explanation.refining import batch_size_for

CASES = {
    "--only json": ["--only", "json"],
    "--only json,overlay": ["--only", "json,overlay"],
    "--only json,overlay --workers 0": ["--only", "json,overlay", "--workers", "0"],
    "everything, --refine 0": ["--refine", "0"],
    "everything": [],
}
FEW = 40  # photographs that are enough to time figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--limit", type=int, default=200, help=f"photographs; figures are drawn for {FEW} of them")
    parser.add_argument("--model", default="imagenet")
    parser.add_argument("--view", choices=VIEWS, default="own", help="the centre of each photograph, or all of it")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the network in both")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES)
    parser.add_argument("--out", type=Path, help="file for the JSON")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    paths = sorted(a.photos.rglob("*.jpg"))[: a.limit]
    network: Any = load(a.model)
    network = network.fuse()
    preprocessing = preprocessing_of(network)
    batch = torch.stack([preprocessing(read_image(path)) for path in paths[: batch_size_for(*preprocessing.size)]])

    sizes = [(image.height, image.width) for image in map(read_image, paths)]
    crops = statistics.mean(len(crops_of(preprocessing, *size, a.view)) for size in sizes)

    def alone() -> float:
        with torch.inference_mode():
            network(batch)
            started = time.perf_counter()
            for _ in range(4):
                network(batch)
        return crops * (time.perf_counter() - started) / (4 * len(batch))

    def command(options: list[str], images: list[Path]) -> float:
        words = [sys.executable, "-m", "patchconvnet", "explain", *map(str, images), "--model", a.model, *options]
        words += ["--view", a.view]
        with tempfile.TemporaryDirectory() as out:
            words += ["--threads", str(a.threads), "--out", out]
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            running = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
            assert running.stdout is not None
            begun = next(time.perf_counter() for line in running.stdout if "→" in line)
            running.communicate()
            taken = time.perf_counter() - begun
        assert not running.returncode
        return taken / (len(images) - len(batch))

    steps = processor_milliseconds(network, paths[: len(batch)], batch, a.view)
    print("| step | processor ms an image |\n|---|---|")
    for name, each in steps.items():
        print(f"| {name} | {each:.1f} |")
    torch.set_num_threads(a.threads)
    rows: dict[str, Any] = {}
    print("| what is written | images a second | the network alone | ratio |\n|---|---|---|---|")
    for name in a.cases:
        chosen = paths if "--only" in CASES[name] else paths[:FEW]
        seconds, own = [], [alone()]
        for _ in range(a.rounds):
            seconds.append(command(CASES[name], chosen))
            own.append(alone())
        mine, theirs = statistics.median(own), statistics.median(seconds)
        rows[name] = {"seconds an image": seconds, "seconds of the network alone": own, "images": len(chosen)}
        print(f"| {name} | {1 / theirs:.1f} | {1 / mine:.1f} | {theirs / mine:.2f} |", flush=True)
    if a.out:
        facts = {"batch": len(batch), "threads": a.threads, "model": a.model, "view": a.view, "crops": crops}
        result = {"rows": rows, "processor milliseconds": steps, **facts, "setup": setup()}
        a.out.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n")


def processor_milliseconds(network: Any, paths: list[Path], batch: torch.Tensor, view: View) -> dict[str, float]:
    """Of each step, an image."""
    torch.set_num_threads(1)
    question = Question.of(network, view=view)
    opened = [open_image(path, question, None, None) for path in paths]
    said = [replace(one, forward_pass=None) for one in answer(network, opened, question)]
    with tempfile.TemporaryDirectory() as out:
        steps: dict[str, Callable[[], Any]] = {
            "decoding and preprocessing": lambda: [open_image(path, question, None, None) for path in paths],
            "network alone": lambda: network(batch),
            "network with maps": lambda: answer(network, opened, question),
            "to another process": lambda: [pickle.loads(pickle.dumps(one)) for one in said],
            "JSON": lambda: [one.save(out, only=("json",)) for one in said],
            "overlay": lambda: [one.save(out, only=("overlay",)) for one in said],
            "figure": lambda: [one.save(out, only=("figure",)) for one in said[:4]],
        }
        with torch.inference_mode():
            spent = {name: min(_spent(step) for _ in range(5)) for name, step in steps.items()}
    return {name: 1000 * each / (4 if name == "figure" else len(paths)) for name, each in spent.items()}


def _spent(step: Callable[[], Any]) -> float:
    started = time.process_time()
    step()
    return time.process_time() - started


if __name__ == "__main__":
    main()
