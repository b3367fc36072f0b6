"""The record's network (airbench94) trained by its own rules, as a control, and its parts changed towards ours.

    python benchmarks/record_control.py --root DATA [--epochs 9.9] [--seeds 3]               # the control, tested
    python benchmarks/record_control.py --root DATA --epochs 4 --change attention [map8 …]   # on a validation split
    python benchmarks/record_control.py --table

Without --change it learns from all 50,000 images and is tested once for each seed; with it from 45,000, judged on the
other 5,000, and `--change none` is what to compare with. Several names are several changes of one network. Interrupted,
the same command goes on from its last checkpoint; docs/benchmarks.md's table is written from
docs/benchmarks/record_control.json. What the network is, and which changes there are: record_network.py.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measuring import setup
from record_network import CHANGES, RecordNetwork, SixViews, forward_operations
from run_all import DOCS, RESULTS, replace_between, write_text
from timm.optim import create_optimizer_v2
from torch import Generator, Tensor

from patchconvnet.data.augmentation import Augmentation, AugmentationConfig
from patchconvnet.data.datasets import load
from patchconvnet.data.labelled_images import Images
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.files import write_atomic
from patchconvnet.hardware import fastest_dtype, keep_freed_memory
from patchconvnet.models.winograd import by_winograd
from patchconvnet.training.convolution_gradients import faster_backward
from patchconvnet.training.evaluation import evaluate
from patchconvnet.training.optimization import set_learning_rate

BATCH = 1024
RATE, MOMENTUM, WEIGHT_DECAY = 11.5, 0.85, 0.0153  # rate and decay for 1,024 images, whatever the momentum
NORM_BIAS_RATE = 64  # times the others'
LABEL_SMOOTHING = 0.2
WHITENING_BIAS_EPOCHS = 3
START, PEAK, END = 0.2, 0.23, 0.07  # share of the rate at first, place of the whole rate in the training, share at last
LOOKAHEAD_EVERY, LOOKAHEAD_DECAY = 5, 0.95**5
MUON = {"lr": 0.02, "momentum": 0.6, "weight_decay": 0.5}  # of cifar10_10min, as this
ADAMW_RATE = 0.01
WHITENED_BY = 5_000  # images
HELD_OUT = 5_000
CHECKPOINT_EVERY = 16  # steps
PREPROCESSING = Preprocessing((32, 32), mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
AUGMENTATION = AugmentationConfig(random_crop_padding=2, flip="alternating")
KEPT = RESULTS / "record_control.json"
BEGIN, END_OF_TABLE = "<!-- record: made by benchmarks/record_control.py -->", "<!-- end of record -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="where CIFAR-10 is or is downloaded to")
    parser.add_argument("--epochs", type=float, default=9.9)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--change", nargs="+", choices=("none", *CHANGES), metavar="NAME", help=", ".join(CHANGES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("runs/record"), help="for checkpoints")
    parser.add_argument("--table", action="store_true", help="only write the table")
    a = parser.parse_args()
    if a.epochs <= 0 or a.seeds < 1 or a.threads < 1:
        parser.error("--epochs must be above 0, --seeds and --threads at least 1")
    if not (a.root or a.table):
        parser.error("give --root DATA to train, or --table to write the table again")
    if not a.table:
        torch.set_num_threads(a.threads)
        keep_freed_memory()
        changes = [name for name in CHANGES if name in (a.change or ())]
        data = load("cifar10", root=a.root, validation=HELD_OUT if a.change else 0)
        judged = data.require("validation" if a.change else "test")
        for seed in range(a.seeds):
            about = {
                "changes": changes, "epochs": a.epochs, "split": "validation" if a.change else "test", "seed": seed,
            }  # fmt: skip
            if any(about.items() <= run.items() for run in stored()):
                continue
            name = "-".join([*(changes or ["control"]), f"{a.epochs:g}", about["split"], str(seed)])
            result = train(changes, a.epochs, seed, data.require("train"), judged, a.out / f"{name}.pt")
            runs = [*stored(), {**about, **result, "setup": setup()}]
            write_text(KEPT, json.dumps(runs, indent=1, ensure_ascii=False) + "\n")
            print(json.dumps({**about, **result}), flush=True)
    replace_between(DOCS / "benchmarks.md", BEGIN, END_OF_TABLE, table(stored()))
    print(table(stored()))


def stored() -> list[dict[str, Any]]:
    return json.loads(KEPT.read_text()) if KEPT.is_file() else []


def train(
    changes: Sequence[str], epochs: float, seed: int, images: Images, judged: Images, checkpoint: Path
) -> dict[str, Any]:
    """One training, or the rest of it; what is judged is the network after the last step."""
    per_epoch = len(images) // BATCH  # the rest is left out, other images in every epoch
    total = math.ceil(per_epoch * epochs)
    torch.manual_seed(seed)
    network = RecordNetwork(changes, len(images.class_names)).to(memory_format=torch.channels_last)
    network.whiten(PREPROCESSING.batch(images.images[:WHITENED_BY]))
    optimizers = build_optimizers(network, changes)
    lookahead, losses, done = Lookahead(network), list[float](), 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        lookahead.slow, losses, done = state["lookahead"], state["losses"], state["step"]
        for optimizer, of_optimizer in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(of_optimizer)
    network.train()
    for step, (inputs, labels) in enumerate(training_batches(images, seed, done, total), done):
        network.whitening.bias.requires_grad_(step < WHITENING_BIAS_EPOCHS * per_epoch)
        for optimizer in optimizers:
            set_learning_rate(optimizer, rate_share(step, total))
            optimizer.zero_grad()
        with autocast(), by_winograd(network):
            logits = network(inputs)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=LABEL_SMOOTHING, reduction="sum")
        with faster_backward(network):
            loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item() / len(labels))
        done = step + 1
        if "no_lookahead" in changes:
            pass
        elif done == total:
            lookahead.update(network, 1.0)
        elif done % LOOKAHEAD_EVERY == 0:
            lookahead.update(network, LOOKAHEAD_DECAY * (done / total) ** 3)
        if done % CHECKPOINT_EVERY == 0 or done == total:
            state = {
                "network": network.state_dict(), "lookahead": lookahead.slow, "losses": losses, "step": done,
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            }  # fmt: skip
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(checkpoint, lambda part, state=state: torch.save(state, part))
            print(f"step {done} of {total}: loss {statistics.mean(losses[-CHECKPOINT_EVERY:]):.3f}", flush=True)
    one, six = (
        evaluate(model, judged, PREPROCESSING, batch_size=500, autocast=autocast)
        for model in (network, SixViews(network))
    )
    return {
        "top1": one.top1,
        "top1_six_views": six.top1,
        "loss_by_epoch": [statistics.mean(losses[at : at + per_epoch]) for at in range(0, total, per_epoch)],
        "parameters": sum(p.numel() for p in network.parameters()),
        "images": len(images),
        "steps": total,
        "operations": 3 * forward_operations(changes) * BATCH * total,  # a step as three forward passes
        "dtype": str(fastest_dtype(torch.device("cpu"))).removeprefix("torch."),
    }


def training_batches(images: Images, seed: int, first: int, total: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs (B, 3, 32, 32) and labels (B,) of the steps from `first` on; each depends on seed and step alone."""
    augmentation = Augmentation(AUGMENTATION, PREPROCESSING, len(images.class_names), seed=seed)
    per_epoch = len(images) // BATCH
    for step in range(first, total):
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(images), generator=_generator(seed, epoch))
        chosen = order[place * BATCH : (place + 1) * BATCH]
        part = images.subset(chosen)
        yield augmentation(
            part.images, part.labels, indices=chosen, epoch=epoch, generator=_generator(seed, 10_000 + step)
        )


def _generator(seed: int, of: int) -> Generator:
    return Generator().manual_seed(1_000_000 * (seed + 1) + of)


def build_optimizers(network: RecordNetwork, changes: Sequence[str]) -> list[torch.optim.Optimizer]:
    """SGD with Nesterov's momentum, in which rate and decay do not depend on the momentum; with "muon" Muon
    for the convolutions, with "adamw" AdamW instead of SGD.
    """
    scale = 1024 * (1 + 1 / (1 - MOMENTUM))
    rate, decay = RATE / scale, WEIGHT_DECAY * BATCH / scale
    learned = {name: p for name, p in network.named_parameters() if p.requires_grad}
    by_muon = [name for name, p in learned.items() if "muon" in changes and p.ndim == 4]
    others = [name for name in learned if name not in by_muon]
    optimizers: list[torch.optim.Optimizer] = []
    if "adamw" in changes:
        groups = [
            {"params": [learned[name] for name in names], "initial_lr": ADAMW_RATE, "weight_decay": decayed}
            for names, decayed in (
                ([name for name in others if learned[name].ndim > 1], MUON["weight_decay"]),
                ([name for name in others if learned[name].ndim == 1], 0.0),
            )
        ]
        optimizers.append(torch.optim.AdamW(groups, lr=ADAMW_RATE, betas=(0.9, 0.95)))
    else:
        norms = [n for n in others if n.startswith("groups.") and ".norm" in n and "norm_scale" not in changes]
        groups = [
            {"params": [learned[name] for name in names], "initial_lr": its, "lr": its, "weight_decay": decay / its}
            for names, its in ((norms, NORM_BIAS_RATE * rate), ([n for n in others if n not in norms], rate))
            if names
        ]
        optimizers.append(torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True))
    if by_muon:
        group = {"params": [learned[name] for name in by_muon], "initial_lr": MUON["lr"]}
        optimizers.append(create_optimizer_v2([group], opt="muon", **MUON))
    return optimizers


def rate_share(step: int, total: int) -> float:
    """The rate of a step, counted from 0, as a share of the highest."""
    return float(np.interp(step, [0, int(PEAK * total), total], [START, 1, END]))


class Lookahead:
    """A slow copy of the network, batch norms' statistics included, that it is set to at every update.

    Source: Zhang et al. 2019, arXiv 1907.08610, with a decay that grows.
    """

    def __init__(self, network: torch.nn.Module):
        self.slow = {name: value.clone() for name, value in _numbers(network)}

    @torch.no_grad()
    def update(self, network: torch.nn.Module, decay: float) -> None:
        """slow ← decay · slow + (1 − decay) · network, and the network becomes that."""
        for name, value in _numbers(network):
            value.copy_(self.slow[name].lerp_(value, 1 - decay))


def _numbers(network: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in network.state_dict().items() if value.is_floating_point())


def autocast() -> AbstractContextManager[Any]:
    dtype = fastest_dtype(torch.device("cpu"))
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16)


def table(runs: list[dict[str, Any]]) -> str:
    """One line for each network and length: the control first."""
    lines = [
        "| network | judged on | epochs | top-1 | six views | seeds | parameters | PFLOP |",
        "|---|---|---|---|---|---|---|---|",
    ]
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        alike.setdefault((run["split"], run["epochs"], tuple(run["changes"])), []).append(run)
    for (split, epochs, changes), some in sorted(alike.items(), key=lambda item: (item[0][0], -item[0][1], item[0][2])):
        name = "; ".join(CHANGES[change] for change in changes) or "the record's"
        judged_on = "test set" if split == "test" else f"{HELD_OUT:,} training images"
        one, six = (_spread([run[key] for run in some]) for key in ("top1", "top1_six_views"))
        lines.append(
            f"| {name} | {judged_on} | {epochs:g} | **{one}** | {six} | {len(some)} | {some[0]['parameters']:,} | "
            f"{some[0]['operations'] / 1e15:.2g} |"
        )
    where = dict.fromkeys(f"{run['dtype']}, " + ", ".join(f"{k} {v}" for k, v in run["setup"].items()) for run in runs)
    return "\n".join(lines) + "\n\n" + "\n".join(f"- {line}" for line in where) if runs else "(not run yet)"


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{100 * values[0]:.2f} %"
    return f"{100 * statistics.mean(values):.2f} ± {100 * statistics.stdev(values):.2f} %"


if __name__ == "__main__":
    main()
