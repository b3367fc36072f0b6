"""/v2 as clients of the Open Inference Protocol use it: Triton's, and plain JSON."""

import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from running import Running

import patchconvnet
from patchconvnet.explanation.evidence import forward_with_maps

triton = pytest.importorskip("tritonclient.http", reason="pip install 'tritonclient[http]'")
INFER = "/v2/models/cifar10/infer"


@pytest.fixture(scope="module")
def expected(cat: bytes) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Two network inputs, and what the network says of them."""
    import torch

    from patchconvnet.explanation.explainer import preprocessing_of

    network = patchconvnet.load("cifar10").eval()
    prepare = preprocessing_of(network)
    image = Image.open(io.BytesIO(cat))
    batch = torch.stack([prepare(image), prepare(image.rotate(180))])
    with torch.no_grad():
        seen = forward_with_maps(network, batch)
    tensors = {"logits": seen.logits, "attention": seen.attention, "evidence": seen.evidence}
    return batch.numpy(), {name: values.numpy() for name, values in tensors.items()}


@pytest.mark.parametrize("binary", [True, False])
def test_triton_s_client_reads_the_maps(server: Running, expected: Any, binary: bool) -> None:
    batch, answers = expected
    client = triton.InferenceServerClient(server.url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("cifar10")
    assert client.is_model_ready("cifar10", "1")
    assert not client.is_model_ready("other")
    metadata = client.get_model_metadata("cifar10")
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 32, 32]}]
    assert {output["name"] for output in metadata["outputs"]} == {*answers, "evidence_classes"}
    tensor = triton.InferInput("image", list(batch.shape), "FP32")
    tensor.set_data_from_numpy(batch, binary_data=binary)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in answers]
    result = client.infer("cifar10", [tensor], outputs=outputs, request_id="seven")
    assert result.get_response()["id"] == "seven"
    for name, values in answers.items():
        np.testing.assert_allclose(result.as_numpy(name), values, atol=1e-5)
    logits, evidence = result.as_numpy("logits"), result.as_numpy("evidence")
    bias = logits - evidence.sum((2, 3))
    np.testing.assert_allclose(bias[0], bias[1], atol=1e-4)
    everything = client.infer("cifar10", [tensor])
    assert everything.as_numpy("evidence_classes").tolist() == [list(range(10))] * 2


def test_triton_s_client_gets_errors_as_sentences(server: Running) -> None:
    client = triton.InferenceServerClient(server.url.removeprefix("http://"))
    tensor = triton.InferInput("image", [1, 3, 31, 32], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 3, 31, 32), np.float32))
    with pytest.raises(Exception, match="this model takes any × 3 × 32 × 32"):
        client.infer("cifar10", [tensor])


def test_numbers_in_json(client: httpx.Client, expected: Any) -> None:
    batch, answers = expected
    for data in (batch.tolist(), batch.ravel().tolist()):
        tensor = {"name": "image", "datatype": "FP32", "shape": list(batch.shape), "data": data}
        answer = client.post(INFER, json={"inputs": [tensor], "outputs": [{"name": "logits"}]})
        assert answer.status_code == 200, answer.text
        (output,) = answer.json()["outputs"]
        assert (output["name"], output["datatype"], output["shape"]) == ("logits", "FP32", [2, 10])
        np.testing.assert_allclose(np.reshape(output["data"], (2, 10)), answers["logits"], atol=1e-5)
        assert (answer.json()["model_name"], answer.json()["model_version"]) == ("cifar10", "1")
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]


PIXEL = [0.0] * 3072
GOOD = {"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": PIXEL}


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"{", 400),
        (b"[" * 100_000, 400),
        ({}, 400),
        ({"inputs": {}}, 400),
        ({"inputs": []}, 400),
        ({"inputs": [GOOD, GOOD]}, 400),
        ({"inputs": [7]}, 400),
        ({"inputs": [GOOD], "id": 7}, 400),
        ({"inputs": [GOOD | {"name": "other"}]}, 400),
        ({"inputs": [GOOD | {"datatype": "BYTES"}]}, 400),
        ({"inputs": [GOOD | {"shape": None}]}, 400),
        ({"inputs": [GOOD | {"shape": [1, 3, 32]}]}, 400),
        ({"inputs": [GOOD | {"shape": [-1, 3, 32, 32]}]}, 400),
        ({"inputs": [GOOD | {"shape": [0, 3, 32, 32]}]}, 400),
        ({"inputs": [GOOD | {"shape": [True, 3, 32, 32]}]}, 400),
        ({"inputs": [GOOD | {"shape": [10**30, 3, 32, 32]}]}, 413),
        ({"inputs": [GOOD | {"shape": [33, 3, 32, 32]}]}, 413),
        ({"inputs": [GOOD | {"shape": [2, 3, 32, 32]}]}, 400),
        ({"inputs": [GOOD | {"data": None}]}, 400),
        ({"inputs": [GOOD | {"data": "0" * 3072}]}, 400),
        ({"inputs": [GOOD | {"data": ["0"] * 3072}]}, 400),
        ({"inputs": [GOOD | {"data": [True] * 3072}]}, 400),
        ({"inputs": [GOOD | {"data": [[0], [0, 0]]}]}, 400),
        ({"inputs": [GOOD | {"data": [10**400] * 3072}]}, 400),
        ({"inputs": [GOOD | {"data": [1e300] * 3072}]}, 400),
        ({"inputs": [GOOD | {"data": [1e38] * 3072}]}, 422),
        ({"inputs": [GOOD | {"parameters": {"binary_data_size": 12288}}]}, 400),
        ({"inputs": [GOOD | {"parameters": {"binary_data_size": "many"}}]}, 400),
        ({"inputs": [GOOD | {"parameters": 5}]}, 200),
        ({"inputs": [GOOD], "outputs": []}, 400),
        ({"inputs": [GOOD], "outputs": "logits"}, 400),
        ({"inputs": [GOOD], "outputs": [{"name": "weights"}]}, 400),
        ({"inputs": [GOOD], "outputs": [{"name": ["logits"]}]}, 400),
        ({"inputs": [GOOD], "parameters": {"binary_data_output": 1}}, 400),
        ({"inputs": [GOOD]}, 200),
    ],
)
def test_bad_requests_get_a_sentence(client: httpx.Client, request_: Any, status: int) -> None:
    content = request_ if isinstance(request_, bytes) else json.dumps(request_).encode()
    answer = client.post(INFER, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    if status != 200:
        assert answer.json()["error"] == answer.json()["detail"]
        assert "Traceback" not in answer.text


@pytest.mark.parametrize("length", ["-1", "x", "99999999", "9" * 400, "²", ""])
def test_a_wrong_length_of_the_header_is_refused(client: httpx.Client, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length.encode()}
    answer = client.post(INFER, content=json.dumps({"inputs": [GOOD]}), headers=headers)
    assert answer.status_code == 400


def test_bytes_that_do_not_fit_are_refused(client: httpx.Client) -> None:
    tensor = {name: GOOD[name] for name in ("name", "datatype", "shape")}
    for size, sent, status in ((12288, 12288, 200), (12288, 12287, 400), (12287, 12287, 400), (12288, 12289, 400)):
        head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": size}}]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        assert client.post(INFER, content=head + bytes(sent), headers=headers).status_code == status
    nan = np.full(3072, np.nan, np.float32).tobytes()
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": 12288}}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    assert "finite" in client.post(INFER, content=head + nan, headers=headers).json()["error"]
