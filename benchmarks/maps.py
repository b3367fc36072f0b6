"""What maps cost: the attention map, and the evidence of every class or of the five likeliest, against logits alone.

    python benchmarks/maps.py

Evidence of the additive head comes with the forward pass; of the other heads it is first order, which takes a backward
pass through the head for each class (`explanation.evidence.forward_with_maps`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from measuring import arguments, race, ratio, report, row, seconds

import patchconvnet  # noqa: F401  (registers the models)
from patchconvnet.explanation.evidence import forward_with_maps

AIM, EVIDENCE_AIM = 1.01, 1.02
NETWORKS = (  # name, size, batch, calls in a turn: few, for a percent is looked for and machines drift
    ("patchconvnet_mini", 32, 128, 2),
    ("patchconvnet_midi", 32, 128, 1),
    ("patchconvnet_keras", 48, 128, 1),
    ("patchconvnet_s60", 224, 1, 2),
)


def main() -> None:
    a = arguments(__doc__, rounds=60).parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    rows, medians = [], {}
    for name, size, batch, calls in NETWORKS:
        model = timm.create_model(name).eval().fuse("auto")
        images = torch.rand(batch, 3, size, size)
        contenders: dict[str, Callable[[], Any]] = {
            "logits": partial(model, images),
            "attention": partial(model, images, return_attention=True),
        }
        if model.has_exact_evidence:
            contenders["evidence"] = partial(model, images, return_evidence=True)
        else:
            contenders["first-order evidence"] = partial(forward_with_maps, model, images)
        with torch.inference_mode():
            times = race(contenders, a.rounds, calls)
        for what, aim in (("attention", AIM), ("evidence", EVIDENCE_AIM), ("first-order evidence", None)):
            if what in times:
                measured = ratio(times, what, "logits")
                rows.append(row(f"{what}, {name} at {size} pixels, batch {batch}", "logits", aim, measured, True))
        medians |= {f"{name}, {key}": value for key, value in seconds(times).items()}
    report(rows, medians, {})


if __name__ == "__main__":
    main()
