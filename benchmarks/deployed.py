"""Exported files beside PyTorch: seconds, size, accuracy and maps, for four networks, one image and 32 at a time.

    python benchmarks/deployed.py make --folder /tmp/deployed --calibration IMAGES
    python benchmarks/deployed.py time --folder /tmp/deployed
    python benchmarks/deployed.py accuracy --folder /tmp/deployed --images IMAGES --cifar10 ROOT

`make` exports, as long as that takes; `time` measures what was made, in about four minutes, on a machine that is left
alone; `accuracy` says what int8 costs. Each adds to the stored results and writes the tables of docs/exporting.md anew.
S60 and ResNet-18 have random weights, so that only their speed means much.
"""

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import timm
import torch
from measuring import Times, race, ratio, seconds, setup, spread
from PIL import Image
from torch._inductor import aoti_load_package
from torchvision.datasets import CIFAR10

from patchconvnet import load, with_attention_pooling
from patchconvnet.data.image_paths import find_images
from patchconvnet.data.images import read_image
from patchconvnet.deploy.description import KEY
from patchconvnet.deploy.onnx_export import export_onnx
from patchconvnet.deploy.quantization import Labelled, measure
from patchconvnet.deploy.runtime import OnnxModel
from patchconvnet.deploy.torch_export import export_torch
from patchconvnet.explanation.evidence import forward_with_maps
from patchconvnet.files import write_atomic

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "benchmarks" / "deployed.json"
BEGIN, END = "<!-- deployed: made by benchmarks/deployed.py -->", "<!-- end of deployed -->"
NETWORKS = {
    "cifar10": "CIFAR-10 model, 32 px",
    "lite0": "EfficientNet-Lite0, 224 px",
    "resnet18": "ResNet-18, 224 px",
    "s60": "S60, 224 px",
}
PYTORCH = ("eager", "fused", "compiled")
EXPORTED = {"fp32": "fp32", "fp32 without evidence": "plain", "int8": "int8"}  # contenders and their files
WAYS = (*PYTORCH, *EXPORTED)
BATCHES = (1, 32)
LIKELIEST = 5  # classes that get first-order evidence
MOST_EVIDENCE, LEAST_INT8 = 1.05, 1.8  # the aims: seconds with evidence / without, seconds of fp32 / int8
FEWEST_ROUNDS, MOST_ROUNDS = 3, 200


def network(name: str) -> Any:
    torch.manual_seed(0)
    if name in ("cifar10", "lite0"):
        return load({"lite0": "imagenet"}.get(name, name))
    return (timm.create_model("patchconvnet_s60") if name == "s60" else with_attention_pooling("resnet18")).eval()


def make(folder: Path, networks: list[str], calibration: list[str]) -> None:
    """Export each network as fp32 and int8, as fp32 without its evidence, and compiled by AOTInductor."""
    paths = find_images(calibration)
    scales = [read_image(path) for path in paths[:: max(len(paths) // 100, 1)]]
    folder.mkdir(parents=True, exist_ok=True)
    for name in networks:
        for precision in ("fp32", "int8"):
            file = folder / f"{name}_{precision}.onnx"
            if not file.exists():
                export_onnx(network(name), file, name=name, precision=precision, calibration=scales)
        without_evidence(folder / f"{name}_fp32.onnx", folder / f"{name}_plain.onnx")
        if not (compiled := folder / f"{name}_compiled.pt2").exists():
            export_torch(network(name), compiled, name=name, compiled=True)


def without_evidence(file: Path, out: Path) -> None:
    """The same graph with no more outputs than logits and attention."""
    proto = onnx.load(file)
    about = OnnxModel(file).description
    kept = [output for output in proto.graph.output if not output.name.startswith("evidence")]
    del proto.graph.output[:]
    proto.graph.output.extend(kept)
    described = replace(about, outputs=[output.name for output in kept], evidence="none", evidence_classes=0)
    onnx.helper.set_model_props(proto, {KEY: described.to_json()})
    onnx.save(proto, out)


def time(folder: Path, names: list[str], threads: int, rounds: int | None, batches: list[int], budget: float) -> None:
    """Seconds of a call that gives logits, attention and evidence; files race files and PyTorch PyTorch, in turns."""
    torch.set_num_threads(threads)
    for name in names:
        model = network(name)
        files = {way: folder / f"{name}_{file}.onnx" for way, file in EXPORTED.items()}
        exported = {way: OnnxModel(file, threads) for way, file in files.items()}
        fused, package = model.fuse(), folder / f"{name}_compiled.pt2"
        compiled = aoti_load_package(str(package)) if package.exists() else None  # S60 takes a quarter of an hour
        for batch in batches:
            images = torch.rand(batch, 3, *model.preprocessing["size"])
            given = images.numpy()
            with torch.no_grad():
                asked = {
                    "eager": partial(forward_with_maps, model, images, top=LIKELIEST),
                    "fused": partial(forward_with_maps, fused, images, top=LIKELIEST),
                    **({"compiled": partial(compiled, images)} if compiled else {}),
                }
                torch_times = race_for(asked, rounds, budget / 2)
                times = race_for({way: partial(each.run, given) for way, each in exported.items()}, rounds, budget)
            result = {
                "seconds": seconds(torch_times) | seconds(times),
                "evidence": ratio(times, "fp32", "fp32 without evidence"),
                "int8 against fp32": ratio(times, "fp32", "int8"),
                "fp32 against eager": spread([seconds(torch_times)["eager"] / each for each in times["fp32"]]),
                "threads": threads,
                "rounds": {"PyTorch": len(torch_times["eager"]), "files": len(times["fp32"])},
            }
            keep(name, f"batch {batch}", result)
        keep(name, "megabytes", {way: file.stat().st_size / 1e6 for way, file in files.items()})


def race_for(contenders: dict[str, Any], rounds: int | None, budget: float) -> Times:
    """A race of so many rounds, or of as many as fit into so many seconds; in each every contender has its turn."""
    started = perf_counter()
    race(contenders, 1, warm_up=1)
    one = (perf_counter() - started) / 2
    fitting = min(max(round(budget / one), FEWEST_ROUNDS), MOST_ROUNDS)
    return race(contenders, rounds or fitting, warm_up=1)


def accuracy(folder: Path, names: list[str], images: list[str], root: Path | None) -> None:
    """What int8 costs: on the CIFAR-10 test set, and by the answers for photographs where there are no labels."""
    paths = find_images(images)[:100]
    for name in names:
        files = {way: OnnxModel(folder / f"{name}_{way}.onnx") for way in ("fp32", "int8")}
        maps = measure(files["fp32"], files["int8"], Labelled(lambda i: read_image(paths[i]), [None] * len(paths)))
        if name == "cifar10" and root:
            test = CIFAR10(root, train=False)
            maps["top1"] = {way: top1(file, test.data, test.targets) for way, file in files.items()}
        keep(name, "agreement", maps)


def top1(file: OnnxModel, data: np.ndarray, labels: list[int]) -> float:
    right = 0
    for begin in range(0, len(data), 250):
        batch = np.stack([file.prepare(Image.fromarray(image))[0] for image in data[begin : begin + 250]])
        right += int((file.run(batch)["logits"].argmax(1) == labels[begin : begin + 250]).sum())
    return right / len(data)


def keep(name: str, what: str, result: Any) -> None:
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    stored.setdefault(name, {})[what] = result
    if what.startswith("batch"):
        stored["machine"] = {**setup(), "onnxruntime": onnxruntime.__version__}
    write_atomic(RESULTS, lambda path: path.write_text(json.dumps(stored, indent=1) + "\n"))
    page = DOCS / "exporting.md"
    text = page.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_atomic(page, lambda path: path.write_text(f"{before}{BEGIN}\n{table(stored)}\n{END}{after}"))


def table(stored: dict[str, Any]) -> str:
    """Milliseconds a call, what int8 costs, and the aims; a dash where nothing was measured."""
    lines = [
        "| network | images | eager | fused | compiled | ONNX fp32 | without evidence | int8 | MB fp32 → int8 "
        "| top-1 fp32 → int8 | same answers | maps' rank correlation |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    aims = [
        f"| network | images | with evidence / without (aim: at most {MOST_EVIDENCE}) | met "
        f"| int8: times as fast as fp32 (aim: at least {LEAST_INT8}) | met | rounds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, title in NETWORKS.items():
        result = stored.get(name, {})
        agreement, sizes = result.get("agreement", {}), result.get("megabytes", {})
        for batch in BATCHES:
            measured = result.get(f"batch {batch}", {})
            times = measured.get("seconds", {})
            cells = [f"{1e3 * times[way]:.1f}" if way in times else "–" for way in WAYS]
            costs = [
                f"{sizes['fp32']:.1f} → {sizes['int8']:.1f}" if sizes else "–",
                " → ".join(f"{agreement['top1'][way]:.2%}" for way in ("fp32", "int8")) if "top1" in agreement else "–",
                f"{agreement['same_answers']:.0%}" if agreement else "–",
                f"{agreement['rank_correlation']:.3f}" if agreement else "–",
            ]
            lines.append("| " + " | ".join([title, str(batch), *cells, *(costs if batch == 1 else [""] * 4)]) + " |")
            evidence, int8 = measured.get("evidence"), measured.get("int8 against fp32")
            met = [evidence and evidence["median"] <= MOST_EVIDENCE, int8 and int8["median"] >= LEAST_INT8]
            words = ["–" if m is None else "yes" if m else "no" for m in met]
            rounds = str(measured["rounds"]["files"]) if measured else "–"
            cells = [_median(evidence), words[0], _median(int8), words[1], rounds]
            aims.append("| " + " | ".join([title, str(batch), *cells]) + " |")
    machine = stored.get("machine", {})
    about = []
    if machine:
        versions = f"onnxruntime {machine['onnxruntime']}, torch {machine['torch']}"
        about = ["", f"{machine['date']}: {machine['machine']}; {machine['threads']} threads; {versions}."]
    return "\n".join([*lines, "", *aims, *about])


def _median(values: dict[str, float] | None) -> str:
    return f"{values['median']:.2f} ({values['low']:.2f}–{values['high']:.2f})" if values else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "time", "accuracy"))
    parser.add_argument("--folder", type=Path, required=True, help="of the exported files")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--calibration", nargs="+", default=[], help="images that int8 finds its scales on")
    parser.add_argument("--images", nargs="+", default=[], help="photographs to compare the maps on")
    parser.add_argument("--cifar10", type=Path, help="where CIFAR-10 is")
    parser.add_argument("--batches", nargs="+", type=int, choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each contender")
    parser.add_argument("--rounds", type=int, help="turns of each contender, instead of as many as fit")
    parser.add_argument("--seconds", type=float, default=14, help="of a race between files; PyTorch's has half of them")
    a = parser.parse_args()
    if a.what == "make":
        make(a.folder, a.networks, a.calibration)
    elif a.what == "time":
        time(a.folder, a.networks, a.threads, a.rounds, a.batches, a.seconds)
    else:
        accuracy(a.folder, a.networks, a.images, a.cifar10)


if __name__ == "__main__":
    main()
