"""The process: ends without losing a request, replaces its workers, hands its port on, and refuses in words."""

import http.client
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from running import Running, running

from patchconvnet.cli import main

pytestmark = pytest.mark.slow  # servers that are started and ended


@contextmanager
def asking(url: str, cat: bytes, clients: int = 4, *, until_refused: bool = False) -> Iterator[Counter[str]]:
    """Clients that ask without a pause on connections that they keep; what they were answered."""
    outcomes: Counter[str] = Counter()
    stop = threading.Event()

    request = httpx.Request("POST", f"{url}/v1/explain", files={"image": cat})
    body, headers = request.read(), dict(request.headers)

    def ask() -> None:  # a client that believes the server's headers: httpx would look whether a connection was closed
        connection = http.client.HTTPConnection(request.url.host, request.url.port or 80, timeout=60)
        while not stop.is_set():
            try:
                connection.request("POST", "/v1/explain", body, headers)
                answer = connection.getresponse()
                answer.read()
                outcomes[str(answer.status)] += 1
            except ConnectionRefusedError:
                outcomes["not listening"] += 1
                if until_refused:
                    return
            except (OSError, http.client.HTTPException) as error:
                outcomes[f"lost: {type(error).__name__}"] += 1
                connection.close()
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def wait_for(outcomes: Counter[str], more: int) -> None:
    wanted, ends = outcomes["200"] + more, time.monotonic() + 60
    while outcomes["200"] < wanted:
        assert time.monotonic() < ends, outcomes
        time.sleep(0.01)


def test_sigterm_finishes_what_was_accepted(cat: bytes) -> None:
    with running() as server, asking(server.url, cat, until_refused=True) as outcomes:
        wait_for(outcomes, 8)
        assert server.stop(signal.SIGTERM) == 0
    assert outcomes["200"] >= 8
    assert set(outcomes) <= {"200", "not listening"}, outcomes


def test_ctrl_c_ends_it_too(cat: bytes) -> None:
    with running() as server:
        assert server.client().post("/v1/explain", files={"image": cat}).status_code == 200
        assert server.stop(signal.SIGINT) in (0, 130)
        assert "Traceback" not in server.log()


@pytest.mark.slow
def test_sighup_replaces_the_workers_and_loses_no_request(cat: bytes) -> None:
    with running("--workers=2") as server:
        before = children(server)
        assert len(before) == 2
        with asking(server.url, cat) as outcomes:
            wait_for(outcomes, 10)
            server.process.send_signal(signal.SIGHUP)
            ends = time.monotonic() + 120
            while children(server) & before or len(children(server)) < 2:
                assert time.monotonic() < ends, server.log()
                time.sleep(0.2)
            wait_for(outcomes, 10)
        assert set(outcomes) == {"200"}, outcomes
        text = server.client().get("/metrics").text
        found = re.search(r'requests_total\{route="/v1/explain",status="200"\} (\S+)', text)
        assert found is not None  # the sum of all workers, those that have ended included
        assert float(found[1]) >= outcomes["200"]
        assert server.stop() == 0


@pytest.mark.slow
def test_a_new_server_takes_over_the_port_and_no_request_is_lost(cat: bytes) -> None:
    port = f"--port={free_port()}"
    with running(port, "--reuse-port") as old, asking(old.url, cat) as outcomes:
        wait_for(outcomes, 5)
        with running(port, "--reuse-port"):
            wait_for(outcomes, 5)
            assert old.stop() == 0
            wait_for(outcomes, 10)
            assert set(outcomes) == {"200"}, outcomes


def test_too_many_requests_are_told_to_come_again(cat: bytes) -> None:
    with running("--queue=2", "--batch=1") as server, asking(server.url, cat, 12) as outcomes:
        ends = time.monotonic() + 60
        while not (outcomes["503"] and outcomes["200"] > 5):
            assert time.monotonic() < ends, outcomes
            time.sleep(0.01)
        statuses = set()
        with server.client() as client:
            for _ in range(200):
                answer = client.post("/v1/explain", files={"image": cat})
                statuses.add(answer.status_code)
                if answer.status_code == 503:
                    assert int(answer.headers["Retry-After"]) >= 1
                    assert answer.headers["content-type"] == "application/problem+json"
                    break
        assert 503 in statuses
    assert set(outcomes) <= {"200", "503"}, outcomes


def test_a_request_whose_time_runs_out_is_told_so(cat: bytes) -> None:
    with running("--seconds=0.001") as server:
        answer = server.client().post("/v1/explain", files={"image": cat})
        if answer.status_code == 408:  # the time ran out while its body was read
            assert "had not arrived" in answer.json()["detail"]
        else:
            assert answer.status_code == 503
            assert "no answer was ready within 0.001 seconds" in answer.json()["detail"]
            assert "Retry-After" in answer.headers


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "required: --model"),
        (["--model=no_such_model"], "no_such_model"),
        (["--model="], "there is no model"),
        (["--model=nowhere.onnx"], "nowhere.onnx"),
        (["--model=FOLDER/text.onnx"], "not an ONNX file"),
        (["--model=cifar10", "--port=TAKEN"], "is in use; end what listens there, or choose another --port"),
        (["--model=cifar10", "--port=70000"], "between 0 and 65535"),
        (["--model=cifar10", "--port=-1"], "between 0 and 65535"),
        (["--model=cifar10", "--port=http"], "--port: expected a whole number"),
        (["--model=cifar10", "--host=no such host"], "cannot listen at no such host"),
        (["--model=cifar10", "--host=203.0.113.7"], "cannot listen at 203.0.113.7"),
        (["--model=cifar10", "--workers=0"], "--workers is 0"),
        (["--model=cifar10", "--queue=0"], "--queue is 0"),
        (["--model=cifar10", "--seconds=-1"], "--seconds is -1"),
        (["--model=cifar10", "--megapixels=nan"], "expected a number"),
        (["--model=cifar10", "--token=FOLDER/nothing"], "there is no token file"),
        (["--model=cifar10", "--token=FOLDER"], "cannot read the token file"),
        (["--model=cifar10", "--token=FOLDER/empty"], "one word of at least 16 characters"),
        (["--model=cifar10", "--token=FOLDER/short"], "one word of at least 16 characters"),
        (["--model=cifar10", "--token=FOLDER/binary"], "other characters than ASCII"),
        (["--model=cifar10", "--tokn=x"], "Did you mean --token?"),
    ],
)
def test_mistakes_get_a_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "short").write_text("secret\n")
    (tmp_path / "binary").write_bytes(b"\xff" * 40)
    (tmp_path / "text.onnx").write_text("no model")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = [word.replace("FOLDER", str(tmp_path)).replace("TAKEN", port) for word in words]
        assert main(["serve", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith(("patchconvnet.deploy.server", "fastapi"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve", "--model=cifar10"]) == 2
    assert "pip install 'patchconvnet[serve]'" in capsys.readouterr().err


def children(server: Running) -> set[int]:
    """Worker processes; Python's own resource tracker is none."""
    pids = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return {int(pid) for pid in pids if "spawn_main" in _command(pid)}


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
