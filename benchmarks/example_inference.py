"""Inference of the Keras example's network, batch 128 and batch 1, against Keras 3 + TensorFlow.

    python benchmarks/example_inference.py [--keras-python PATH]

Ours is `model.fuse("auto")` under `torch.inference_mode()`; float32 and the unfused network are timed too.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import keras_process
import timm
import torch
from measuring import arguments, matrix_product, race, ratio, report, row, seconds

import patchconvnet  # noqa: F401  (registers the models)
from patchconvnet.models.cost import multiply_accumulates

AIMS = {"batch": 2.5, "one": 1.5}


def turn(contender: Callable[[], Any], count: int) -> Callable[[], float]:
    """Mean seconds of `count` calls in a row; a contender that has timed its own is taken at its word."""

    def timed() -> float:
        started = time.perf_counter()
        own = contender()
        if isinstance(own, float):
            return own
        for _ in range(count - 1):
            contender()
        return (time.perf_counter() - started) / count

    return timed


def main() -> None:
    parser = arguments(__doc__, rounds=9)
    keras_process.add_option(parser)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)

    model = timm.create_model("patchconvnet_keras").eval()
    fused = model.fuse("auto")
    networks = {"ours": fused, "ours, float32": model.fuse(), "ours, float32, not fused": model}
    keras, modes = None, {}
    if a.keras_python:
        keras = keras_process.KerasNetwork(a.keras_python, a.threads)
    rows, medians = [], {}
    facts: dict[str, Any] = {"ours": f"model.fuse('auto'): {fused.dtype}".replace("torch.", "")}
    for call, count, batch, what in (("batch", 1, 128, "batch 128"), ("one", 30, 1, "batch 1")):
        images = torch.rand(batch, 3, 48, 48)
        contenders: dict[str, Callable[[], Any]] = {n: partial(net, images) for n, net in networks.items()}
        contenders["matrix product"] = matrix_product(fused.dtype)[0]
        if keras is not None:
            modes = keras.try_modes(call)
            facts[f"Keras' modes, {what}, seconds"] = modes
            plain = min(("graph", "xla"), key=modes.__getitem__)
            # a turn is one line to the other process, which makes its calls in a row as ours are
            contenders["Keras, float32"] = partial(keras.seconds, plain, call, count)
            contenders["Keras, mixed_bfloat16"] = partial(keras.seconds, "mixed", call, count)
        with torch.inference_mode():
            times = race({name: turn(contender, count) for name, contender in contenders.items()}, a.rounds)
        for theirs in ("Keras, float32", "Keras, mixed_bfloat16"):
            measured = ratio(times, theirs, "ours") if keras else keras_process.MISSING
            rows.append(row(f"inference of the example's network, {what}", theirs, AIMS[call], measured))
        medians |= {f"{name}, {what}": value for name, value in seconds(times).items()}
    facts["operations for an image"] = 2 * multiply_accumulates(model, 48, 48).ours
    if keras is not None:
        facts["versions"] = keras.about
    report(rows, medians, facts)


if __name__ == "__main__":
    main()
