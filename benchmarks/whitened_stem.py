"""What a training step gains once the bias of whitening filters rests, as it does from the fourth epoch on.

    python benchmarks/whitened_stem.py [--networks patchconvnet_mini patchconvnet_midi] [--threads 2] [--rounds 15]

Steps of 500 images of CIFAR-10's size (forward, loss, backward, optimizer), the bias trained and not, in turn in one
process, in the number format that `train` takes on this CPU. docs/benchmarks.md's table is written from
docs/benchmarks/whitened_stem.json, where other machines keep what they have.
"""

import json
from typing import Any

import torch
import torch.nn.functional as F
from measuring import arguments, race, ratio, seconds, setup
from run_all import DOCS, RESULTS, replace_between, write_text

from patchconvnet.hardware import fastest_dtype, keep_freed_memory
from patchconvnet.models.winograd import by_winograd
from patchconvnet.training.convolution_gradients import faster_backward
from patchconvnet.training.optimization import build_optimizer
from patchconvnet.training.recipe import ModelOptions, Recipe, read_recipe
from patchconvnet.training.sources import build_model

KEPT = RESULTS / "whitened_stem.json"
BEGIN, END = "<!-- whitened: made by benchmarks/whitened_stem.py -->", "<!-- end of whitened -->"
NETWORKS = ("patchconvnet_mini", "patchconvnet_midi", "patchconvnet_maxi")
IMAGES, SIDE, CLASSES = 500, 32, 10


def main() -> None:
    parser = arguments(__doc__, 15)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS[:2]), help="none: the table")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    keep_freed_memory()
    kept = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    s = setup()
    for name in a.networks:
        dtype = fastest_dtype(torch.device("cpu"))
        about = {"dtype": str(dtype).removeprefix("torch."), "rounds": a.rounds, **s}
        kept.setdefault(s["machine"], {})[name] = {**measured(name, a.rounds, dtype), **about}
        write_text(KEPT, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    replace_between(DOCS / "benchmarks.md", BEGIN, END, table(kept))
    print(table(kept))


def measured(name: str, rounds: int, dtype: torch.dtype) -> dict[str, Any]:
    """Median seconds of both steps, and the spread of their ratios."""
    torch.manual_seed(0)
    images, labels = torch.randn(IMAGES, 3, SIDE, SIDE), torch.randint(CLASSES, (IMAGES,))
    options = read_recipe("cifar10_default").optimization

    def ready(*, rests: bool) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model: Any = build_model(Recipe(model=ModelOptions(name=name)), CLASSES).to(memory_format=torch.channels_last)
        model.stem.whiten(images)
        if rests:
            model.stem.freeze_whitening()
        return model.train(), build_optimizer(model, options)

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16), by_winograd(model):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=0.15)
        with faster_backward(model):
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    trained, resting = ready(rests=False), ready(rests=True)
    times = race({"trained": lambda: step(*trained), "resting": lambda: step(*resting)}, rounds, warm_up=3)
    return {**seconds(times), "ratio": ratio(times, "trained", "resting")}


def table(kept: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A line for each network and machine."""
    lines = [
        f"| step of {IMAGES} images, {SIDE}×{SIDE} | bias trained | at rest | times as fast | rounds | on |",
        "|---|---|---|---|---|---|",
    ]
    for results in kept.values():
        for name, r in results.items():
            gain = r["ratio"]
            where = ", ".join(f"{key} {r[key]}" for key in ("threads", "torch", "date"))
            times = f"**{gain['median']:.2f}** ({gain['low']:.2f} to {gain['high']:.2f})"
            lines.append(
                f"| `{name}` | {r['trained']:.3f} s | {r['resting']:.3f} s | {times} | {r['rounds']} | {r['machine']}, "
                f"{r['dtype']}, {where} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
