"""Exported files beside PyTorch: seconds, size, accuracy and maps, for four networks, one image and 32 at a time.

    python benchmarks/deployed.py make --folder /tmp/deployed --calibration IMAGES
    python benchmarks/deployed.py time --folder /tmp/deployed --networks lite0
    python benchmarks/deployed.py accuracy --folder /tmp/deployed --images IMAGES --cifar10 ROOT

`make` exports, `time` measures some of the networks, `accuracy` what int8 costs; each adds to the stored results and
writes the table of docs/exporting.md anew. S60 and ResNet-18 have random weights, so that only their speed means much.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import timm
import torch
from measuring import race, ratio, seconds, setup
from PIL import Image
from torchvision.datasets import CIFAR10

from patchconvnet import load, with_attention_pooling
from patchconvnet.data.image_paths import find_images
from patchconvnet.data.images import read_image
from patchconvnet.deploy.onnx_export import export_onnx
from patchconvnet.deploy.quantization import Labelled, measure
from patchconvnet.deploy.runtime import OnnxModel
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
WAYS = ("eager", "fused", "compiled", "fp32", "fp32 without evidence", "int8")
BATCHES = (1, 32)


def network(name: str) -> Any:
    torch.manual_seed(0)
    if name in ("cifar10", "lite0"):
        return load({"lite0": "imagenet"}.get(name, name))
    return (timm.create_model("patchconvnet_s60") if name == "s60" else with_attention_pooling("resnet18")).eval()


def make(folder: Path, networks: list[str], calibration: list[str]) -> None:
    """Export each network as fp32 and int8, and the first without its evidence."""
    scales = [read_image(path) for path in find_images(calibration)[:100]]
    folder.mkdir(parents=True, exist_ok=True)
    for name in networks:
        for precision in ("fp32", "int8"):
            file = folder / f"{name}_{precision}.onnx"
            if not file.exists():
                export_onnx(network(name), file, name=name, precision=precision, calibration=scales)
        proto = onnx.load(folder / f"{name}_fp32.onnx")
        kept = [output for output in proto.graph.output if not output.name.startswith("evidence")]
        del proto.graph.output[:]
        proto.graph.output.extend(kept)
        onnx.save(proto, folder / f"{name}_plain.onnx")


def session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def time(folder: Path, names: list[str], threads: int, rounds: int, batches: list[int], compiles: bool) -> None:
    """Seconds of a call, with attention and exact evidence where a contender gives them."""
    torch.set_num_threads(threads)
    for name in names:
        model = network(name)
        wanted = {"return_attention": True, "return_evidence": model.has_exact_evidence}
        fused, compiled = model.fuse(), torch.compile(model)
        files = {"fp32": "fp32", "fp32 without evidence": "plain", "int8": "int8"}
        sessions = {way: session(folder / f"{name}_{file}.onnx", threads) for way, file in files.items()}
        for batch in batches:
            images = torch.rand(batch, 3, *model.preprocessing["size"])
            networks = {"eager": model, "fused": fused, **({"compiled": compiled} if compiles else {})}
            contenders = {way: partial(each, images, **wanted) for way, each in networks.items()}
            given = {"image": images.numpy()}
            contenders |= {way: partial(each.run, None, given) for way, each in sessions.items()}
            with torch.inference_mode():
                times = race(contenders, rounds, warm_up=2)
            result = {
                "seconds": seconds(times),
                "evidence": ratio(times, "fp32", "fp32 without evidence"),
                "int8 against fp32": ratio(times, "fp32", "int8"),
                "fp32 against eager": ratio(times, "eager", "fp32"),
                "threads": threads,
                "rounds": rounds,
            }
            keep(name, f"batch {batch}", result)
        keep(name, "megabytes", {
            way: (folder / f"{name}_{file}.onnx").stat().st_size / 1e6 for way, file in files.items()
        })  # fmt: skip


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
    stored["machine"] = {**setup(), "onnxruntime": onnxruntime.__version__}
    write_atomic(RESULTS, lambda path: path.write_text(json.dumps(stored, indent=1) + "\n"))
    page = DOCS / "exporting.md"
    text = page.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_atomic(page, lambda path: path.write_text(f"{before}{BEGIN}\n{table(stored)}\n{END}{after}"))


def table(stored: dict[str, Any]) -> str:
    """Milliseconds a call, and what int8 costs; a dash where nothing was measured."""
    lines = [
        "| network | images | eager | fused | compiled | ONNX fp32 | without evidence | int8 | MB fp32 → int8 "
        "| top-1 fp32 → int8 | same answers | maps' rank correlation |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, title in NETWORKS.items():
        result = stored.get(name, {})
        agreement, sizes = result.get("agreement", {}), result.get("megabytes", {})
        for batch in BATCHES:
            times = result.get(f"batch {batch}", {}).get("seconds", {})
            cells = [f"{1e3 * times[way]:.1f}" if way in times else "–" for way in WAYS]
            costs = [
                f"{sizes['fp32']:.1f} → {sizes['int8']:.1f}" if sizes else "–",
                " → ".join(f"{agreement['top1'][way]:.2%}" for way in ("fp32", "int8")) if "top1" in agreement else "–",
                f"{agreement['same_answers']:.0%}" if agreement else "–",
                f"{agreement['rank_correlation']:.3f}" if agreement else "–",
            ]
            lines.append("| " + " | ".join([title, str(batch), *cells, *(costs if batch == 1 else [""] * 4)]) + " |")
    return "\n".join(lines)


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
    parser.add_argument("--rounds", type=int, default=7, help="how often each contender's turn comes")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    a = parser.parse_args()
    if a.what == "make":
        make(a.folder, a.networks, a.calibration)
    elif a.what == "time":
        time(a.folder, a.networks, a.threads, a.rounds, a.batches, not a.no_compile)
    else:
        accuracy(a.folder, a.networks, a.images, a.cifar10)


if __name__ == "__main__":
    main()
