"""Whatever is sent, the answer is a result or a sentence, and the next valid request is answered right."""

import gzip
import io
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from bad_uploads import CAT, Case, cases, encoded, part
from PIL import Image
from running import Running, running

import patchconvnet

pytestmark = pytest.mark.slow  # a server and all that is sent to it

CASES = cases()
MOST_MEMORY = 1_500_000_000  # bytes, above what the server holds at rest
SECONDS = 4.0  # of a request on the server of these tests
INSIDE = re.compile(r"Traceback|File \"|0x[0-9a-f]{6}|site-packages|/src/|/root|/tmp")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(f"--seconds={SECONDS}") as server:
        yield server


@pytest.fixture(scope="module")
def explained() -> dict[bytes, patchconvnet.Explanation]:
    model = patchconvnet.load("cifar10")
    images = [case.image for case in CASES if case.image is not None]
    return {image: patchconvnet.explain(model, io.BytesIO(image)) for image in dict.fromkeys(images)}


@pytest.fixture
def still_right(server: Running) -> Iterator[None]:
    """After the test the server answers, and rightly."""
    yield
    answer = server.client().post("/v1/explain", files={"image": encoded(CAT, "PNG")})
    assert answer.status_code == 200
    expected = patchconvnet.explain("cifar10", CAT).predicted
    assert answer.json()["predicted"]["name"] == expected.name
    assert answer.json()["predicted"]["probability"] == pytest.approx(expected.probability, abs=1e-5)
    assert "Traceback" not in server.log()


def is_problem(answer: httpx.Response, status: int) -> bool:
    record = answer.json()
    assert not INSIDE.search(answer.text)
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(record["detail"]) < 400
    return bool(record["status"] == answer.status_code == status)


def test_the_table_is_long_enough() -> None:
    assert len(CASES) >= 100
    assert sum(case.status != 200 for case in CASES) >= 40


@pytest.mark.slow
def test_the_table(server: Running, client: httpx.Client, explained: dict[bytes, patchconvnet.Explanation]) -> None:
    cat = encoded(CAT, "JPEG", quality=95)
    server.forget_peak()
    before, wrong = server.memory, []
    for case in CASES:
        with server.client() as client:
            began = time.perf_counter()
            answer = client.post("/v1/explain", content=case.body, headers={"Content-Type": case.content_type})
            seconds = time.perf_counter() - began
            between = client.post("/v1/explain", content=cat, headers={"Content-Type": "image/jpeg"})
        try:
            check(case, answer, explained)
            assert seconds < 2 * SECONDS
            assert between.json()["predicted"]["name"] == explained[cat].predicted.name
        except (AssertionError, KeyError, ValueError) as error:
            wrong.append(f"{case.name}: {answer.status_code} {answer.text[:200]} ({error!s:.100})")
    assert not wrong, "\n".join(wrong)
    print(f"{len(CASES)} uploads: {before / 1e6:.0f} MB before, at most {server.peak / 1e6:.0f} MB with them")
    assert server.peak - before < MOST_MEMORY
    assert "Traceback" not in server.log()


def check(case: Case, answer: httpx.Response, explained: dict[bytes, patchconvnet.Explanation]) -> None:
    assert answer.status_code == case.status
    assert case.said in answer.text
    if case.image is None:
        assert is_problem(answer, case.status)
        return
    expected, record = explained[case.image], answer.json()
    assert record["predicted"]["name"] == expected.predicted.name
    assert record["image"] == {"width": expected.image.width, "height": expected.image.height}
    by_index = {one["index"]: one["logit"] for one in record["classes"]}
    np.testing.assert_allclose([by_index[k] for k in range(10)], expected.logits, atol=1e-5)


@pytest.mark.usefixtures("still_right")
def test_a_body_over_the_limit_is_refused(server: Running) -> None:
    answer = server.client().post("/v1/explain", content=bytes(21_000_000), headers={"Content-Type": "image/png"})
    assert is_problem(answer, 413)


@pytest.mark.usefixtures("still_right")
def test_a_body_that_claims_a_terabyte_is_refused_unread(server: Running) -> None:
    head = b"Content-Type: image/png\r\nContent-Length: 1000000000000\r\n"
    assert b"413" in spoken(server, head, b"")


@pytest.mark.usefixtures("still_right")
def test_an_endless_chunked_body_ends(server: Running) -> None:
    before, began = server.memory, time.perf_counter()
    with connected(server) as connection:
        connection.sendall(request(server, b"Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n"))
        chunk, sent = b"10000\r\n" + bytes(0x10000) + b"\r\n", 0
        try:
            while time.perf_counter() - began < 60:
                connection.sendall(chunk)
                sent += len(chunk)
        except OSError:  # it hung up
            pass
    assert time.perf_counter() - began < 30
    assert sent < 300_000_000
    assert server.memory - before < 100_000_000


@pytest.mark.usefixtures("still_right")
def test_a_slow_body_is_given_up(server: Running) -> None:
    began = time.perf_counter()
    with connected(server) as connection:
        connection.sendall(request(server, b"Content-Type: image/png\r\nContent-Length: 1000\r\n"))
        answer = b""
        connection.settimeout(0.2)
        while not answer and time.perf_counter() - began < 30:
            connection.sendall(b"x")
            try:
                answer = connection.recv(4096)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408")
    assert SECONDS / 2 <= time.perf_counter() - began < SECONDS + 4


@pytest.mark.usefixtures("still_right")
def test_many_slow_bodies_keep_nobody_waiting(server: Running) -> None:
    slow = [connected(server) for _ in range(100)]
    for connection in slow:
        connection.sendall(request(server, b"Content-Type: image/png\r\nContent-Length: 1000\r\n") + b"x")
    answer = server.client().post("/v1/explain", files={"image": encoded(CAT, "PNG")})
    assert answer.status_code == 200
    for connection in slow:
        connection.close()


@pytest.mark.slow
@pytest.mark.usefixtures("still_right")
def test_headers_that_do_not_come_are_given_up(server: Running) -> None:
    with connected(server) as silent, connected(server) as slow:
        began = time.perf_counter()
        slow.settimeout(0.5)
        silent.settimeout(20)
        ended = False
        while not ended and time.perf_counter() - began < 30:
            try:
                slow.sendall(b"G")
                ended = slow.recv(100) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
        assert ended
        assert silent.recv(100) == b""
        assert time.perf_counter() - began < 25


@pytest.mark.usefixtures("still_right")
def test_a_client_that_hangs_up_is_forgotten(server: Running) -> None:
    for _ in range(20):
        with connected(server) as connection:
            connection.sendall(request(server, b"Content-Type: image/png\r\nContent-Length: 100000\r\n") + bytes(5000))
    with connected(server) as connection:
        png = encoded(CAT, "PNG")
        connection.sendall(request(server, b"Content-Type: image/png\r\nContent-Length: %d\r\n" % len(png)) + png)


@pytest.mark.usefixtures("still_right")
@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: -5\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: five\r\n",
        b"Transfer-Encoding: chunked, gzip\r\n",
        b"X: " + b"y" * 100_000 + b"\r\n",
        b"no colon\r\n",
        b"\x00\r\n",
    ],
)
def test_bad_heads_are_refused(server: Running, head: bytes) -> None:
    said = spoken(server, head, b"hello")
    assert re.match(rb"HTTP/1.1 (4\d\d|501)", said)
    assert b"Traceback" not in said


@pytest.mark.usefixtures("still_right")
def test_packed_bodies_are_refused(server: Running) -> None:
    content = gzip.compress(bytes(10_000_000))
    headers = {"Content-Type": "image/png", "Content-Encoding": "gzip"}
    assert is_problem(server.client().post("/v1/explain", content=content, headers=headers), 415)


@pytest.mark.slow
def test_the_largest_images_that_are_allowed_take_bounded_memory() -> None:
    image = Image.fromarray(np.zeros((5000, 5000), np.uint16))
    files = {"image": encoded(image, "PNG")}
    with running("--seconds=300") as server, ThreadPoolExecutor(6) as threads:
        before = server.memory
        answers = list(threads.map(lambda _: server.client().post("/v1/explain", files=files), range(12)))
        print(f"12 images of 25 megapixels and 16 bit: {before / 1e6:.0f} → {server.peak / 1e6:.0f} MB")
        assert [answer.status_code for answer in answers] == [200] * 12
        assert server.peak - before < MOST_MEMORY


@pytest.mark.usefixtures("still_right")
def test_a_batch_of_bad_images_is_a_batch_of_problems(server: Running) -> None:
    bad = [case for case in CASES if case.status in (413, 422) and case.body.startswith(part(b"")[:20])][:20]
    files = [("image", (f"{i}.png", case.body)) for i, case in enumerate(bad)]
    answer = server.client().post("/v1/batch", files=files)
    assert answer.status_code == 200
    assert all(one["problem"]["status"] == 422 for one in answer.json()["images"])
    files = [("image", ("a.png", b"x"))] * 33
    assert is_problem(server.client().post("/v1/batch", files=files), 413)


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc/passwd",
        "//etc/passwd",
        "/app.py",
        "/%00",
        "/\\..\\x",
    ],
)
def test_no_file_outside_the_page_is_served(server: Running, path: str) -> None:
    said = spoken(server, b"", b"", b"GET " + path.encode() + b" HTTP/1.1")
    assert said.startswith(b"HTTP/1.1 4")
    assert b"root:" not in said


def connected(server: Running) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def request(server: Running, head: bytes, first: bytes = b"POST /v1/explain HTTP/1.1") -> bytes:
    return first + b"\r\nHost: test\r\n" + head + b"\r\n"


def spoken(server: Running, head: bytes, body: bytes, first: bytes = b"POST /v1/explain HTTP/1.1") -> bytes:
    """What is answered to raw bytes."""
    with connected(server) as connection:
        connection.sendall(request(server, head + b"Connection: close\r\n", first) + body)
        answer = b""
        while more := connection.recv(65536):
            answer += more
        return answer
