"""Inference of the paper's S60 at 224 pixels, batch 1 and 8, against the published code's way.

    python benchmarks/s60_inference.py

Ours is `model.fuse("auto")`; the other is `published_style.py`. Both give the same answers, which is checked first.
"""

from functools import partial

import timm
import torch
from measuring import arguments, matrix_product, race, ratio, report, row, seconds
from published_style import PublishedStyle
from timm.layers import LayerScale

import patchconvnet  # noqa: F401  (registers the models)
from patchconvnet.models.cost import multiply_accumulates

AIMS = {1: 1.7, 8: 2.2}


def main() -> None:
    a = arguments(__doc__, rounds=9).parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    model = timm.create_model("patchconvnet_s60").eval()
    with torch.no_grad():
        for module in model.modules():  # at their initial 1e-4 the trunk would add nothing to what is compared
            if isinstance(module, LayerScale):
                module.gamma.fill_(0.3)
    fused = model.fuse("auto")
    networks = {
        "ours": fused,
        "ours, float32": model.fuse(),
        "ours, float32, not fused": model,
        "published way": PublishedStyle(model).eval(),
    }
    product, product_operations = matrix_product(fused.dtype)
    rows, medians, facts = [], {}, {"ours": f"model.fuse('auto'): {fused.dtype}".replace("torch.", "")}
    for batch, aim in AIMS.items():
        images = torch.randn(batch, 3, 224, 224)
        with torch.inference_mode():
            logits = {name: network(images) for name, network in networks.items()}
            torch.testing.assert_close(logits["published way"], model(images), atol=1e-4, rtol=1e-4)
            error = (logits["ours"] - logits["published way"]).norm() / logits["published way"].norm()
            facts[f"relative error of ours' logits, batch {batch}"] = round(error.item(), 5)
            contenders = {name: partial(network, images) for name, network in networks.items()}
            times = race(contenders | {"matrix product": product}, a.rounds, calls=4 if batch == 1 else 1)
        measured = ratio(times, "published way", "ours")
        rows.append(
            row(f"inference of S60 at 224 pixels, batch {batch}", "eager, channels-first, float32", aim, measured)
        )
        medians |= {f"{name}, batch {batch}": value for name, value in seconds(times).items()}
    facts["operations for an image"] = 2 * multiply_accumulates(model, 224, 224).ours
    facts["matrix product, operations a second"] = product_operations / seconds(times)["matrix product"]
    report(rows, medians, facts)


if __name__ == "__main__":
    main()
