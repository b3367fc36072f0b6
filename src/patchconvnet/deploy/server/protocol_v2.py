"""The Open Inference Protocol, version 2, with its binary extension: what clients of KServe and Triton speak.

Tensors travel as numbers in JSON, or as raw little-endian bytes behind the JSON, whose length a header then tells.
Source: github.com/kserve/open-inference-protocol, and Triton's "Binary Tensor Data Extension".
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchconvnet.deploy.server.classifier import Classifier
from patchconvnet.deploy.server.problems import Problem

HEADER_LENGTH = "Inference-Header-Content-Length"
VERSION = "1"  # a server has one model, in one version
OUTPUTS = ("logits", "attention", "evidence", "evidence_classes")
DATATYPES: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "UINT8": np.dtype("u1"),
    "INT64": np.dtype("<i8"),
}


@dataclass(frozen=True)
class InferRequest:
    """What is asked.

    Attributes:
        id: that the client gave; None if it gave none.
        batch: (B, …), network inputs.
        outputs: names, each with whether it is wanted as bytes.
    """

    id: str | None
    batch: np.ndarray
    outputs: dict[str, bool]


def model_metadata(name: str, classifier: Classifier) -> dict[str, Any]:
    """What `GET /v2/models/NAME` answers."""
    signature, (height, width) = classifier.signature, classifier.grid.shape
    evidence = signature.evidence_classes
    shapes = {
        "logits": ("FP32", [len(classifier.class_names)]),
        "attention": ("FP32", [signature.queries, height, width]),
        "evidence": ("FP32", [evidence, height, width]),
        "evidence_classes": ("INT64", [evidence]),
    }
    return {
        "name": name,
        "versions": [VERSION],
        "platform": classifier.platform,
        "inputs": [{"name": signature.name, "datatype": signature.datatype, "shape": [-1, *signature.input_shape]}],
        "outputs": [
            {"name": output, "datatype": datatype, "shape": [-1, *shape]}
            for output, (datatype, shape) in shapes.items()
        ],
    }


def read_infer(content: bytes, header_length: str | None, classifier: Classifier, most: int) -> InferRequest:
    """An inference request's body.

    Args:
        content: JSON, and the bytes of tensors behind it.
        header_length: of the JSON, as the request's header says; None where all is JSON.
        classifier: whose inputs they must be.
        most: images.

    Raises:
        Problem: it is not such a request.
    """
    length = len(content)
    if header_length is not None:
        if not header_length.isdecimal() or len(header_length) > 12 or int(header_length) > length:
            raise Problem(400, f"{HEADER_LENGTH} is not the length of a JSON header in this body")
        length = int(header_length)
    try:
        record = json.loads(content[:length])
    except (ValueError, RecursionError) as error:
        raise Problem(400, "the request is not JSON") from error
    if not isinstance(record, dict):
        raise Problem(400, "the request must be a JSON object with `inputs`")
    inputs = record.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Problem(400, f"`inputs` must be a list of one tensor, {classifier.signature.name!r}")
    identity = record.get("id")
    if identity is not None and not isinstance(identity, str):
        raise Problem(400, "`id` must be text")
    return InferRequest(identity, _tensor(inputs[0], content[length:], classifier, most), _outputs(record))


def _tensor(record: Mapping[str, Any], binary: bytes, classifier: Classifier, most: int) -> np.ndarray:
    signature = classifier.signature
    if record.get("name") != signature.name:
        raise Problem(400, f"the input's name must be {signature.name!r}")
    if record.get("datatype") != signature.datatype:
        raise Problem(400, f"the input's datatype must be {signature.datatype}")
    shape = record.get("shape")
    if not isinstance(shape, list) or any(type(side) is not int or side < 1 for side in shape):
        raise Problem(400, "the input's shape must be a list of whole numbers above 0")
    wanted = (-1, *signature.input_shape)
    if len(shape) != len(wanted) or any(side not in (-1, given) for side, given in zip(wanted, shape, strict=True)):
        raise Problem(400, f"the input's shape is {_words(shape)}; this model takes {_words(wanted)}")
    if shape[0] > most:
        raise Problem(413, f"the batch has {shape[0]} images and the limit is {most}")
    dtype, count = DATATYPES[signature.datatype], math.prod(shape)
    size = _parameter(record, "binary_data_size")
    if size is not None:
        if size != count * dtype.itemsize or size != len(binary):
            raise Problem(
                400, f"the shape needs {count * dtype.itemsize} bytes; binary_data_size and the body must have as many"
            )
        values = np.frombuffer(binary, dtype).reshape(shape)
    else:
        if binary:
            raise Problem(400, "bytes follow the JSON, and the input has no binary_data_size")
        values = _numbers(record.get("data"), count, dtype).reshape(shape)
    if not np.isfinite(values).all():
        raise Problem(400, "the input holds values that are not finite numbers")
    return values


def _numbers(data: Any, count: int, dtype: np.dtype) -> np.ndarray:
    if not isinstance(data, list):
        raise Problem(400, "the input has neither `data`, a list of numbers, nor binary_data_size")
    try:
        values = np.asarray(data)
    except (ValueError, OverflowError, RecursionError, TypeError) as error:
        raise Problem(400, "`data` must be numbers in lists of equal length") from error
    if values.dtype.kind not in "iuf":
        raise Problem(400, "`data` must be numbers")
    if values.size != count:
        raise Problem(400, f"`data` has {values.size} numbers and the shape needs {count}")
    if dtype.kind == "u" and not (values.dtype.kind != "f" and values.min() >= 0 and values.max() <= 255):
        raise Problem(400, "`data` must be whole numbers from 0 to 255")
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def _outputs(record: Mapping[str, Any]) -> dict[str, bool]:
    all_binary = bool(_parameter(record, "binary_data_output", bool))
    outputs = record.get("outputs")
    if outputs is None:
        return dict.fromkeys(OUTPUTS, all_binary)
    if not isinstance(outputs, list) or not outputs or not all(isinstance(output, dict) for output in outputs):
        raise Problem(400, '`outputs` must be a list of objects such as {"name": "logits"}')
    wanted = {}
    for output in outputs:
        if output.get("name") not in OUTPUTS:
            raise Problem(400, f"unknown output; known: {', '.join(OUTPUTS)}")
        binary = _parameter(output, "binary_data", bool)
        wanted[output["name"]] = all_binary if binary is None else bool(binary)
    return wanted


def _parameter(record: Mapping[str, Any], name: str, kind: type = int) -> Any:
    parameters = record.get("parameters") or {}
    value = parameters.get(name) if isinstance(parameters, dict) else None
    if value is not None and type(value) is not kind:
        raise Problem(400, f"the parameter {name} must be {'a whole number' if kind is int else 'true or false'}")
    return value


def write_infer(
    name: str, request: InferRequest, rows: Sequence[Mapping[str, np.ndarray]]
) -> tuple[bytes, dict[str, str]]:
    """The answer to an inference request.

    Args:
        name: of the model.
        request: that is answered.
        rows: each image's outputs.

    Returns:
        The body, and its headers.

    Raises:
        Problem: the answer holds values that are not finite numbers, which JSON cannot write.
    """
    outputs, binary = [], []
    for output, as_bytes in request.outputs.items():
        values = np.stack([row[output] for row in rows])
        datatype = "INT64" if output == "evidence_classes" else "FP32"
        values = values.astype(DATATYPES[datatype], copy=False)
        record: dict[str, Any] = {"name": output, "datatype": datatype, "shape": list(values.shape)}
        if as_bytes:
            binary.append(values.tobytes())
            record["parameters"] = {"binary_data_size": values.nbytes}
        elif not np.isfinite(values).all():
            raise Problem(422, f"the {output} of this input are not finite numbers; its values are too large")
        else:
            record["data"] = values.ravel().tolist()
        outputs.append(record)
    answer: dict[str, Any] = {"model_name": name, "model_version": VERSION, "outputs": outputs}
    if request.id is not None:
        answer["id"] = request.id
    header = json.dumps(answer).encode()
    if not binary:
        return header, {"Content-Type": "application/json"}
    return b"".join([header, *binary]), {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}


def _words(shape: Sequence[int]) -> str:
    return " × ".join("any" if side == -1 else str(side) for side in shape[:8])
