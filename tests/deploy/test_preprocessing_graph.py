"""The preprocessing inside of a file makes the network's input as the package does."""

import itertools

import numpy as np
import pytest
from PIL import Image

from patchconvnet.data.preprocessing import Preprocessing

onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

SIZES = [(480, 640), (333, 500), (500, 333), (31, 77), (64, 48), (48, 64), (100, 1000), (1, 9), (201, 203)]
WAYS = [
    way
    for way in itertools.product(("stretch", "crop", "letterbox"), ("bilinear", "bicubic", "nearest"), (True, False))
    if not (way[1] == "nearest" and way[2])
]


def session_of(preprocessing: Preprocessing) -> "onnxruntime.InferenceSession":
    from patchconvnet.deploy.preprocessing_graph import put_in_front

    shape = ["batch", preprocessing.channels, *preprocessing.size]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("image", "out")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["image"], ["out"])], "g", ends[:1], ends[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    put_in_front(model, preprocessing, None)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString())


@pytest.mark.parametrize(("resize", "interpolation", "antialias"), WAYS)
def test_images_of_any_size_become_the_same_input(resize: str, interpolation: str, antialias: bool) -> None:
    preprocessing = Preprocessing(
        (48, 64), resize, 0.8 if resize == "crop" else 1.0, interpolation, antialias, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    )
    session, rng = session_of(preprocessing), np.random.default_rng(0)
    for height, width in SIZES:
        pixels = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        found = session.run(None, {"pixels": pixels})[0]
        wanted = np.stack([preprocessing(Image.fromarray(image)).numpy() for image in pixels])
        assert found.shape == (2, 3, 48, 64)
        # positions of onnxruntime's are float32; noise is the worst case, and a deviation of 0.2 makes it five times
        np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-4, err_msg=f"{height} × {width}")


def test_one_channel_stays_one() -> None:
    preprocessing = Preprocessing((8, 8), mean=(0.5,), std=(0.5,))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 20, 30, 1), dtype=np.uint8)
    found = session_of(preprocessing).run(None, {"pixels": pixels})[0][0]
    np.testing.assert_allclose(found, preprocessing(Image.fromarray(pixels[0, ..., 0])).numpy(), rtol=0, atol=1e-5)
