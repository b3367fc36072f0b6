"""An exported file behind the server: onnxruntime, and no PyTorch."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from patchconvnet.data.preprocessing import Geometry
from patchconvnet.deploy.runtime import OnnxModel
from patchconvnet.deploy.server.classifier import Outputs, Signature

EXAMPLE = 64  # pixels of a side of an image that files with preprocessing inside are tried with


class OnnxClassifier:
    """A `Classifier` that runs a file which `patchconvnet export` wrote.

    Args:
        model: the file.
    """

    platform = "onnxruntime_onnx"

    def __init__(self, model: OnnxModel):
        self._model, about = model, model.description
        self.class_names, self.size, self.temperature = about.class_names, about.size, about.temperature
        self.bias = np.array(about.bias, np.float32)
        self.exact = about.evidence == "exact"
        self.removal = about.removal
        channels = about.preprocessing.channels
        inside = about.input == "pixels"
        shape = (-1, -1, channels) if inside else (channels, *self.size)
        example = np.zeros([1, *(side if side > 0 else EXAMPLE for side in shape)], np.uint8 if inside else np.float32)
        outputs = self.run(example)
        queries, height, width = outputs["attention"].shape[1:]
        self.grid = about.placement.grid(self.size, (height, width))
        self.signature = Signature(about.input, "UINT8" if inside else "FP32", shape, queries, about.evidence_classes)

    def prepare(self, image: Image.Image) -> tuple[np.ndarray, Geometry]:
        """See `Classifier`."""
        return self._model.prepare(image)

    def run(self, batch: np.ndarray, classes: Sequence[int] = (), top: int = 5) -> Outputs:
        """See `Classifier`; which classes have evidence was settled when the file was exported."""
        outputs = self._model.run(np.ascontiguousarray(batch))
        count = len(batch)
        if "evidence" not in outputs:
            height, width = outputs["attention"].shape[2:]
            outputs["evidence"] = np.zeros((count, 0, height, width), np.float32)
        if "evidence_classes" not in outputs:
            number = outputs["evidence"].shape[1]
            outputs["evidence_classes"] = np.broadcast_to(np.arange(number, dtype=np.int64), (count, number))
        return outputs
