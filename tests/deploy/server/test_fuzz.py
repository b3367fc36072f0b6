"""Mutated images, and requests made from the API's own description: an answer each, and the server stays up."""

import importlib
import io
import time

import numpy as np
import pytest
from bad_uploads import CAT, encoded, valid_images
from running import Running

import patchconvnet

SECONDS = 20
MARKERS = (b"\xff\xda", b"\xff\xd8", b"IDAT", b"IHDR", b"RIFF", b"GIF89a", b"II*\0", b"ftyp", b"\0" * 8, b"\xff" * 8)

schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")
hypothesis = pytest.importorskip("hypothesis")


def mutated(content: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """One of the usual mutations, or several."""
    data = bytearray(content)
    for _ in range(random.integers(1, 4)):
        at = int(random.integers(0, max(len(data), 1)))
        match random.integers(0, 7):
            case 0:
                data[at : at + 1] = bytes([int(random.integers(0, 256))])
            case 1:  # in the header, where sizes are
                at = int(random.integers(0, min(max(len(data), 1), 64)))
                data[at : at + 4] = random.bytes(4)
            case 2:
                del data[at:]
            case 3:
                del data[at : at + int(random.integers(1, 500))]
            case 4:
                data[at:at] = MARKERS[int(random.integers(0, len(MARKERS)))]
            case 5:
                data[at:at] = data[: int(random.integers(0, len(data) + 1))]
            case 6:
                data[at:] = other[int(random.integers(0, len(other))) :]
    return bytes(data)


@pytest.mark.slow
def test_mutated_images_are_answered_one_by_one(server: Running) -> None:
    random, seeds = np.random.default_rng(int(time.time())), list(valid_images().values())
    expected = patchconvnet.explain("cifar10", io.BytesIO(encoded(CAT, "PNG"))).predicted
    before, ends, count, refused = server.memory, time.monotonic() + SECONDS, 0, 0
    server.forget_peak()
    with server.client() as client:
        while time.monotonic() < ends:
            chosen = random.integers(0, len(seeds), (16, 2))
            files = [("image", ("a", mutated(seeds[i], seeds[j], random))) for i, j in chosen]
            answer = client.post("/v1/batch", files=files)
            assert answer.status_code == 200, answer.text
            for one in answer.json()["images"]:
                count += 1
                refused += "problem" in one
                if "problem" in one:
                    assert one["problem"]["status"] in (413, 422), one
                    assert "0x" not in one["problem"]["detail"]
                else:
                    assert 0 <= one["predicted"]["probability"] <= 1
            good = client.post("/v1/explain", files={"image": encoded(CAT, "PNG")}).json()
            assert good["predicted"]["probability"] == pytest.approx(expected.probability, abs=1e-5)
    print(f"{count} mutated images, {refused} refused; {before / 1e6:.0f} → {server.peak / 1e6:.0f} MB")
    assert count >= 50
    assert 0 < refused < count
    assert server.peak - before < 1_500_000_000
    assert "Traceback" not in server.log()


@pytest.mark.slow
def test_requests_made_from_the_description(server: Running) -> None:
    of_openapi = importlib.import_module("schemathesis.specs.openapi.checks")
    operations = [one.ok() for one in schemathesis.openapi.from_url(f"{server.url}/openapi.json").get_all_operations()]
    assert len(operations) >= 12
    for operation in operations:

        @hypothesis.settings(max_examples=12, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
        @hypothesis.given(case=operation.as_strategy())
        def ask(case: "schemathesis.Case") -> None:
            case.call_and_validate(
                checks=[
                    schemathesis.checks.not_a_server_error,
                    of_openapi.status_code_conformance,
                    of_openapi.content_type_conformance,
                    of_openapi.response_schema_conformance,
                ],
                timeout=60,
            )

        ask()
    assert "Traceback" not in server.log()
