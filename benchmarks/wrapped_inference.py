"""Inference of EfficientNet-Lite0 with attention pooling at 224 pixels: as loaded, and fused.

    python benchmarks/wrapped_inference.py --batch 32

The real weights where the extra `patchconvnet[imagenet]` is installed, else random ones; answers are compared first.
"""

import torch
from measuring import arguments, race, ratio, report, row, seconds

from patchconvnet import load, with_attention_pooling
from patchconvnet.models import default_model
from patchconvnet.models.imagenet import TIMM_NAME


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--batch", type=int, default=32, help="images in a call")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    model = load("imagenet") if default_model() == "imagenet" else with_attention_pooling(TIMM_NAME).eval()
    networks = {
        "as loaded": model,
        "fused, float32": model.fuse(),
        "fused, bfloat16": model.fuse(torch.bfloat16),
        "fused, auto": model.fuse("auto"),
    }
    images = torch.randn(a.batch, 3, 224, 224)
    with torch.inference_mode():
        logits = {name: network(images) for name, network in networks.items()}
        torch.testing.assert_close(logits["fused, float32"], logits["as loaded"], atol=1e-3, rtol=1e-4)
        error = (logits["fused, bfloat16"] - logits["as loaded"]).norm() / logits["as loaded"].norm()
        times = race({name: lambda n=network: n(images) for name, network in networks.items()}, a.rounds, warm_up=1)
    rows = [
        row(f"Lite0 at 224 pixels, batch {a.batch}, {name}", "as loaded", None, ratio(times, "as loaded", name))
        for name in networks
        if name != "as loaded"
    ]
    facts = {f"images a second, {name}": round(a.batch / each, 1) for name, each in seconds(times).items()}
    report(rows, seconds(times), {**facts, "relative error of logits in bfloat16": round(error.item(), 4)})


if __name__ == "__main__":
    main()
