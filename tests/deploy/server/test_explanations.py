"""/v1: what is answered about an image is what the command writes about it."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from running import Running

import patchconvnet
from patchconvnet.cli import main

KINDS = ("attention", "evidence", "contrast")


def without_names(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("name", "source")}


@pytest.mark.parametrize("options", [{}, {"top": 2}, {"target": "ship"}, {"target": "3", "top": 1}])
def test_the_answer_is_what_the_command_writes(
    client: httpx.Client, cat: bytes, tmp_path: Path, options: dict[str, Any]
) -> None:
    file = tmp_path / "cat.jpg"
    file.write_bytes(cat)
    words = [f"--{name}={value}" for name, value in options.items()]
    assert main(["explain", str(file), "--model=cifar10", "--only=json", f"--out={tmp_path}", *words]) == 0
    written = json.loads((tmp_path / "cat.json").read_text())
    answer = client.post("/v1/explain", params=options, files={"image": ("cat.jpg", cat)})
    assert answer.status_code == 200, answer.text
    assert without_names(answer.json()) == without_names(written)
    assert answer.json()["name"] == "cat"
    assert answer.json()["source"] is None


def test_a_form_bytes_and_base64_are_answered_alike(client: httpx.Client, cat: bytes) -> None:
    text = base64.b64encode(cat).decode()
    answers = [
        client.post("/v1/explain", files={"image": ("a.xyz", cat, "text/plain")}),  # known by its content
        client.post("/v1/explain", content=cat, headers={"Content-Type": "image/jpeg"}),
        client.post("/v1/explain", content=cat, headers={"Content-Type": "application/octet-stream"}),
        client.post("/v1/explain", json={"image": text}),
        client.post("/v1/explain", json={"image": f"data:image/png;base64,{text}"}),
    ]
    assert [answer.status_code for answer in answers] == [200] * 5
    records = [without_names(answer.json()) for answer in answers]
    assert all(record == records[0] for record in records)


def test_maps_are_added_as_they_are_drawn(client: httpx.Client, cat: bytes) -> None:
    answer = client.post("/v1/explain", params={"maps": ",".join(KINDS)}, files={"image": cat}).json()
    expected = patchconvnet.explain("cifar10", io.BytesIO(cat))
    assert set(answer["maps"]) == set(KINDS)
    for kind in KINDS:
        assert answer["maps"][kind]["about"]["name"] == expected.subject.name
        np.testing.assert_array_equal(np.float32(answer["maps"][kind]["map"]), expected.map_for(kind=kind))
    assert expected.runner_up is not None
    assert answer["maps"]["contrast"]["against"]["name"] == expected.runner_up.name


def test_evidence_and_bias_add_up_to_the_logit(client: httpx.Client, cat: bytes) -> None:
    answer = client.post("/v1/explain", files={"image": cat}).json()
    assert answer["evidence"]["exact"]
    logits = {one["index"]: one["logit"] for one in answer["classes"]}
    for one in answer["evidence"]["maps"]:
        assert np.sum(one["map"]) + one["bias"] == pytest.approx(logits[one["index"]], abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_those_of_the_explanation(client: httpx.Client, cat: bytes, kind: Any) -> None:
    expected = patchconvnet.explain("cifar10", io.BytesIO(cat))
    for form, drawn in (("png", expected.attended(map=kind)), ("overlay", expected.overlay(map=kind))):
        answer = client.post("/v1/explain", params={"format": form, "maps": kind}, files={"image": cat})
        assert answer.headers["content-type"] == "image/png"
        image = Image.open(io.BytesIO(answer.content))
        assert image.mode == drawn.mode
        np.testing.assert_array_equal(np.asarray(image), np.asarray(drawn))


def test_a_batch_keeps_its_order_and_says_which_image_is_refused(client: httpx.Client, cat: bytes) -> None:
    grey = io.BytesIO()
    Image.new("RGB", (40, 30), "grey").save(grey, "PNG")
    files = [("image", ("a.jpg", cat)), ("image", ("b.png", b"no image")), ("image", ("c.png", grey.getvalue()))]
    answer = client.post("/v1/batch", files=files)
    assert answer.status_code == 200
    first, second, third = answer.json()["images"]
    assert [one["name"] for one in (first, second, third)] == ["a", "b", "c"]
    assert second["problem"]["status"] == 422
    for one, content in ((first, cat), (third, grey.getvalue())):
        alone = client.post("/v1/explain", files={"image": content}).json()
        assert one["predicted"]["name"] == alone["predicted"]["name"]
        assert one["predicted"]["probability"] == pytest.approx(alone["predicted"]["probability"], abs=1e-5)


def test_the_model_says_what_it_is(client: httpx.Client) -> None:
    model = client.get("/v1/model").json()
    network = patchconvnet.load("cifar10")
    assert model["class_names"] == network.class_names
    assert model["name"] == "cifar10"
    assert (model["size"]["height"], model["size"]["width"]) == (32, 32)
    assert model["temperature"] == pytest.approx(network.metadata.temperature)
    assert (model["grid"]["height"], model["grid"]["width"]) == (8, 8)
    assert model["maps"] == list(KINDS)
    assert model["evidence_is_exact"]
    assert {"JPEG", "PNG", "WEBP"} <= set(model["formats"])
    assert set(model["limits"]) == {"bytes", "pixels", "images", "seconds", "top"}


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/v1/explain?top=0", 422, "top"),
        ("/v1/explain?top=many", 422, "top"),
        ("/v1/explain?target=shipp", 422, "did you mean 'ship'?"),
        ("/v1/explain?target=10", 422, "there is no class 10"),
        ("/v1/explain?target=²", 422, "unknown class"),
        ("/v1/explain?maps=heat", 422, "there is no map 'heat'"),
        ("/v1/explain?format=gif", 422, "format"),
        ("/v1/nothing", 404, "there is nothing at this address"),
        ("/v1/explain/", 404, "there is nothing at this address"),
        ("/nothing%00", 404, "there is nothing at this address"),
        ("/v1/model", 405, "does not answer this method"),
        ("/", 405, "does not answer this method"),
        ("/app.js", 405, "does not answer this method"),
        ("/v2/models/other/infer", 404, "there is no such model"),
    ],
)
def test_wrong_options_get_a_sentence(client: httpx.Client, cat: bytes, path: str, status: int, said: str) -> None:
    answer = client.post(path, files={"image": cat})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert said in answer.json()["detail"]


def test_an_address_says_which_method_it_answers(client: httpx.Client) -> None:
    answer = client.get("/v1/explain")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["detail"] == "this address does not answer this method"
    assert client.get("/v1/nothing").status_code == 404
    assert client.get("/app.js").status_code == 200


def test_it_lives_and_is_ready(server: Running, client: httpx.Client) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/cifar10/ready"):
        assert client.get(path).status_code == 200
    assert "Traceback" not in server.log()


def test_an_answer_tells_what_would_be_said_without_some_patches(client: httpx.Client, cat: bytes) -> None:
    assert client.get("/v1/model").json()["removal"]
    answer = client.post("/v1/explain", params={"top": 10}, files={"image": cat}).json()
    expected = patchconvnet.explain("cifar10", io.BytesIO(cat)).without((100, 50, 300, 200))
    kept = ~expected.patches
    (attention,) = np.array(answer["attention"]["maps"])
    for one in answer["evidence"]["maps"]:
        logit = one["bias"] + np.array(one["map"])[kept].sum() / attention[kept].sum()
        assert logit == pytest.approx(expected.logits[one["index"]], abs=1e-4)
