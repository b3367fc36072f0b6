"""Training step of the Keras example's network, batch 128, against Keras 3 + TensorFlow and against matrix products.

    python benchmarks/example_training.py [--keras-python PATH] [--compile]

A step is forward, loss, backward and optimizer on a batch already in memory, as `patchconvnet train` does it.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import keras_process
import timm
import torch
import torch.nn.functional as F
from measuring import arguments, matrix_product, race, ratio, report, row, seconds
from torch import nn

import patchconvnet  # noqa: F401  (registers the models)
from patchconvnet.hardware import fastest_dtype, keep_freed_memory
from patchconvnet.models.cost import multiply_accumulates
from patchconvnet.models.winograd import by_winograd
from patchconvnet.training.convolution_gradients import faster_backward
from patchconvnet.training.optimization import build_optimizer
from patchconvnet.training.recipe import OptimizationOptions

BATCH, SIZE = 128, 48
AIM, AIM_OF_RATE = 2.2, 0.6


def network(act: str = "gelu_tanh") -> Any:
    """As Keras computes it today; in the log that the example prints GELU was exact."""
    model = timm.create_model("patchconvnet_keras", act=act)
    return model.to(memory_format=torch.channels_last).train()


def training_step(model: Any, dtype: torch.dtype, run: nn.Module | None = None) -> Callable[[], None]:
    """One step on random images, in autocast to `dtype`; `run` is the compiled model, if there is one."""
    optimizer = build_optimizer(model, OptimizationOptions())
    images = torch.rand(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,))
    forward = run or model

    def step() -> None:
        # as `patchconvnet train`: not what is compiled
        with (
            torch.autocast("cpu", dtype, enabled=dtype is not torch.float32),
            by_winograd(model) if run is None else nullcontext(),
        ):
            logits = forward(images)
        loss = F.cross_entropy(logits.float(), labels)
        with faster_backward(model) if run is None else nullcontext():
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def operations_of_a_step() -> int:
    """Multiplications and additions of matrix products and convolutions, apart.

    The backward pass has each of them twice, for its input and for its weights, but the image needs no gradient.
    """
    forward = multiply_accumulates(network().eval(), SIZE, SIZE).ours
    first_convolution = (SIZE // 2) ** 2 * 128 * 3 * 9
    return 2 * BATCH * (3 * forward - first_convolution)


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    keras_process.add_option(parser)
    parser.add_argument("--compile", action="store_true", help="torch.compile too; takes a minute and a C++ compiler")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    keep_freed_memory()  # as `patchconvnet train` does
    dtype = fastest_dtype(torch.device("cpu"))

    product, product_operations = matrix_product(dtype)
    contenders: dict[str, Callable[[], Any]] = {
        "ours": training_step(network(), dtype),
        "ours, exact GELU": training_step(network("gelu"), dtype),
        "ours, float32": training_step(network(), torch.float32),
        "matrix product": product,
    }
    facts: dict[str, Any] = {"ours": f"{dtype} autocast, eager".removeprefix("torch.")}
    if a.compile:
        model = network()
        contenders["ours, compiled"] = training_step(model, dtype, torch.compile(model))
        started = time.perf_counter()
        contenders["ours, compiled"]()
        facts["seconds to compile"] = round(time.perf_counter() - started, 1)
    if a.keras_python:
        keras = keras_process.KerasNetwork(a.keras_python, a.threads)
        assert keras.about["parameters"] == sum(p.numel() for p in network().parameters())
        modes = keras.try_modes("step")
        facts |= {"versions": keras.about, "Keras' modes, seconds": modes}
        plain = min(("graph", "xla"), key=modes.__getitem__)
        contenders["Keras, float32"] = partial(keras.seconds, plain, "step")
        contenders["Keras, float32, exact GELU"] = partial(keras.seconds, f"{plain}-exact", "step")
        contenders["Keras, mixed_bfloat16"] = partial(keras.seconds, "mixed", "step")
    times = race(contenders, a.rounds)

    rows = []
    for theirs, ours in (
        ("Keras, float32", "ours"),
        ("Keras, float32, exact GELU", "ours, exact GELU"),
        ("Keras, mixed_bfloat16", "ours"),
    ):
        measured = ratio(times, theirs, ours) if a.keras_python else keras_process.MISSING
        rows.append(row("training step of the example's network, batch 128", theirs, AIM, measured))
    operations = operations_of_a_step()
    # the share is operations / seconds of the step, divided by operations / seconds of the product
    share = ratio(times, "matrix product", "ours", scale=operations / product_operations)
    rows.append(
        row(
            "the same, share of the machine's matrix-product rate",
            f"{dtype}".removeprefix("torch."),
            AIM_OF_RATE,
            share,
        )
    )
    facts["operations of a step"] = operations
    facts["matrix product, operations a second"] = product_operations / seconds(times)["matrix product"]
    report(rows, seconds(times), facts)


if __name__ == "__main__":
    main()
