"""The token, the headers, and what /metrics tells."""

import re
from pathlib import Path

import httpx
import pytest
from running import Running, running

pytestmark = pytest.mark.slow  # a server and all that is sent to it

TOKEN = "0123456789abcdef0123456789abcdef"
OPEN = ("/v2/health/live", "/v2/health/ready")
GUARDED = ("/v1/model", "/v2", "/v2/models/cifar10", "/v2/models/cifar10/ready", "/metrics", "/openapi.json")


def test_the_token_is_asked_for(tmp_path: Path, cat: bytes) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    with running(f"--token={file}") as server, server.client() as client:
        for path in OPEN:
            assert client.get(path).status_code == 200
        wrong = ({}, {"Authorization": "Bearer"}, {"Authorization": f"Basic {TOKEN}"}, {"Authorization": TOKEN})
        near = ({"Authorization": f"Bearer {TOKEN[:-1]}"}, {"Authorization": b"Bearer caf\xe9"})
        for headers in (*wrong, *near):
            for path in GUARDED:
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401, path
                assert answer.headers["www-authenticate"] == "Bearer"
                assert "Content-Security-Policy" in answer.headers
            answer = client.post("/v1/explain", headers=headers, files={"image": cat})
            assert answer.status_code == 401
            assert "predicted" not in answer.text
        headers = {"Authorization": f"Bearer {TOKEN}"}
        for path in GUARDED:
            assert client.get(path, headers=headers).status_code == 200, path
        assert client.post("/v1/explain", headers=headers, files={"image": cat}).status_code == 200
        for path in ("//v1/model", "/v1/../v1/model", "/V1/model", "/v1%2fmodel", "/./metrics"):
            assert "class_names" not in client.get(path).text
        assert TOKEN not in server.log()


@pytest.mark.parametrize("path", ["/v1/model", "/v2/health/live", "/nothing", "/", "/openapi.json"])
def test_every_answer_has_the_headers(client: httpx.Client, path: str) -> None:
    headers = client.get(path, headers={"Origin": "https://example.org"}).headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "'unsafe-inline'" not in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert not [name for name in headers if name.startswith("access-control")]
    assert "server" not in headers


def test_no_origin_but_its_own_may_ask(client: httpx.Client) -> None:
    asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    answer = client.options("/v1/explain", headers=asked)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_metrics_count_requests_and_batches(client: httpx.Client, cat: bytes) -> None:
    def value(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    good = 'patchconvnet_requests_total{route="/v1/explain",status="200"}'
    bad = 'patchconvnet_requests_total{route="/v1/explain",status="422"}'
    names = (good, bad, "patchconvnet_batch_images_sum", "patchconvnet_queue_seconds_count")
    before = [value(name) for name in names]
    for content in (cat, cat, b"no image"):
        client.post("/v1/explain", files={"image": content})
    assert [value(name) - b for name, b in zip(names, before, strict=True)] == [2, 1, 2, 2]
    text = client.get("/metrics").text
    for part in ("request_seconds_bucket", "decode_seconds_bucket", "batch_seconds_bucket", "requests_in_progress"):
        assert f"patchconvnet_{part}" in text
    for path in ("/a", "/b", "/c"):  # clients invent no labels
        client.get(path)
    assert 'route="/a"' not in client.get("/metrics").text


def test_the_description_asks_nobody_else(server: Running, client: httpx.Client) -> None:
    description = client.get("/openapi.json").json()
    addresses = {"/v1/explain", "/v1/batch", "/v1/model", "/v2/models/{model}/infer", "/metrics"}
    assert addresses <= set(description["paths"])
    assert description["components"]["schemas"]["Problem"]
    for path in ("/docs", "/redoc"):
        assert client.get(path).status_code == 404
