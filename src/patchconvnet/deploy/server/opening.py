"""The classifier of a name or path, with no more imported than it needs."""

from pathlib import Path

from patchconvnet.deploy.server.classifier import Classifier
from patchconvnet.errors import UserError


def open_classifier(model: str, threads: int | None = None) -> Classifier:
    """The model by its name or path.

    Args:
        model: an ONNX file, or whatever `patchconvnet.load` takes.
        threads: that a forward pass computes with; by default as many as there are cores.

    Raises:
        UserError: there is no such model, or it has no maps.
    """
    if not model or "\0" in model:
        raise UserError(f"there is no model {model!r}")
    if Path(model).suffix.lower() == ".onnx":
        from patchconvnet.deploy.runtime import OnnxModel
        from patchconvnet.deploy.server.onnx_classifier import OnnxClassifier

        return OnnxClassifier(OnnxModel(model, threads))
    try:
        from patchconvnet.deploy.server.torch_classifier import TorchClassifier
        from patchconvnet.models import load
    except ImportError as error:
        raise UserError(f"{model} needs PyTorch: pip install patchconvnet; an ONNX file does not") from error
    return TorchClassifier(load(model), threads)
