"""Requests a second of `patchconvnet serve` with its maps, and of the plainest server with Grad-CAM, under wrk.

    patchconvnet export --model imagenet --out lite0.onnx
    python benchmarks/serving.py PHOTO --onnx lite0.onnx [--clients 1,8,64] [--seconds 8] [--restart]

Each server runs alone, one after the other, beside wrk (github.com/wg/wrk; on Debian: apt-get install wrk) on the same
machine; a request is the photograph in a form, and its answer has maps. With --restart, two workers are replaced one
after the other (SIGHUP) while 8 clients ask, and what was lost is counted. Prints one JSON object;
`--table FILE` prints the table of one.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SERVERS = {
    "serve, ONNX": ["-m", "patchconvnet", "serve", "--model={onnx}"],
    "serve, ONNX, one image a pass": ["-m", "patchconvnet", "serve", "--model={onnx}", "--batch=1"],
    "serve, PyTorch": ["-m", "patchconvnet", "serve", "--model=imagenet"],
    "FastAPI, PyTorch, Grad-CAM": [str(HERE / "plain_server.py")],
}
PLAIN = "FastAPI, PyTorch, Grad-CAM"
BOUNDARY = "frontier"
SCRIPT = """
local file = io.open(os.getenv("WRK_BODY"), "rb")
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["Content-Type"] = "multipart/form-data; boundary=frontier"
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('{"requests": %d, "microseconds": %d, "p50": %f, "p99": %f, "refused": %d, "lost": %d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.status, e.connect + e.read + e.write + e.timeout))
end
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path, nargs="?")
    parser.add_argument("--onnx", default="lite0.onnx")
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--seconds", type=int, default=8, help="that each is measured for")
    parser.add_argument("--restart", action="store_true", help="replace two workers under load, and nothing else")
    parser.add_argument("--table", type=Path, help="a stored result, to print as a table")
    a = parser.parse_args()
    if a.table:
        print(table(json.loads(a.table.read_text())))
        return
    if not a.photo or not shutil.which("wrk"):
        parser.error("give a photograph; wrk must be installed")
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder, "body")
        body.write_bytes(form(a.photo.read_bytes()))
        script = Path(folder, "post.lua")
        script.write_text(SCRIPT)
        if a.restart:
            result: dict[str, Any] = {"restart": restart(a.onnx, body, script)}
        else:
            clients = [int(count) for count in a.clients.split(",")]
            result = {"servers": {name: measured(name, a.onnx, clients, a.seconds, body, script) for name in SERVERS}}
    about = {
        "photo": a.photo.name,
        "bytes": a.photo.stat().st_size,
        "when": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
    }
    print(json.dumps({**result, "about": about}))


def measured(name: str, onnx: str, clients: list[int], seconds: int, body: Path, script: Path) -> dict[str, Any]:
    """By number of clients, what wrk measured."""
    rows = {}
    with server(name, onnx) as (port, process):
        path = "/explain" if name == PLAIN else "/v1/explain"
        load(port, path, 4, 2, body, script)
        for count in clients:
            before = processor_seconds(process.pid)
            row = load(port, path, count, seconds, body, script)
            used = processor_seconds(process.pid) - before
            rows[str(count)] = {**row, "processor_ms": 1e3 * used / (row["requests"] or 1)}
    return rows


def processor_seconds(pid: int) -> float:
    """Of a process so far; a busy machine changes them less than anything else."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def restart(onnx: str, body: Path, script: Path, seconds: int = 45) -> dict[str, Any]:
    """What 8 clients are answered while two workers are replaced."""
    with server("serve, ONNX", onnx, "--workers=2") as (port, process):
        asking = load_process(port, "/v1/explain", 8, seconds, body, script)
        time.sleep(3)
        before = workers(process.pid)
        process.send_signal(signal.SIGHUP)
        text, _ = asking.communicate(timeout=seconds + 60)
        return {**json.loads(text.splitlines()[-1]), "workers_replaced": len(before - workers(process.pid))}


def workers(pid: int) -> set[str]:
    """The processes that were spawned by one."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {child for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()}


def load(port: int, path: str, clients: int, seconds: int, body: Path, script: Path) -> dict[str, float]:
    """Requests a second, median and 99th percentile in milliseconds, and what was refused or lost."""
    text, _ = load_process(port, path, clients, seconds, body, script).communicate()
    found = json.loads(text.splitlines()[-1])
    return {
        "requests": found["requests"],
        "requests_per_second": found["requests"] / found["microseconds"] * 1e6,
        "p50_ms": found["p50"] / 1e3,
        "p99_ms": found["p99"] / 1e3,
        "refused": found["refused"],
        "lost": found["lost"],
    }


def load_process(port: int, path: str, clients: int, seconds: int, body: Path, script: Path) -> subprocess.Popen[str]:
    """wrk under way."""
    words = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout=60s", f"-s{script}"]
    environment = {**os.environ, "WRK_BODY": str(body)}
    address = f"http://127.0.0.1:{port}{path}"
    return subprocess.Popen([*words, address], stdout=subprocess.PIPE, text=True, env=environment)


@contextlib.contextmanager
def server(name: str, onnx: str, *options: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A server that answers, and its port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    words = [word.format(onnx=onnx) for word in SERVERS[name]]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    process = subprocess.Popen(
        [sys.executable, *words, f"--port={port}", *options], stdout=subprocess.DEVNULL, env=environment
    )
    try:
        address = f"http://127.0.0.1:{port}/openapi.json"
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(address, timeout=5).read()
                break
            time.sleep(0.2)
        yield port, process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def form(photo: bytes) -> bytes:
    """A photograph in a form, as a browser sends it."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="photo.jpg"\r\n\r\n'
    return head.encode() + photo + f"\r\n--{BOUNDARY}--\r\n".encode()


def table(result: dict[str, Any]) -> str:
    """The stored result in Markdown."""
    counts = list(next(iter(result["servers"].values())))
    lines = ["| server | " + " | ".join(f"{c} client{'s' * (c != '1')}" for c in counts) + " |"]
    lines[0] += " processor time of a request |"
    lines.append("|---" * (2 + len(counts)) + "|")
    plain = result["servers"][PLAIN]
    for name, rows in result["servers"].items():
        cells = []
        for count in counts:
            row = rows[count]
            rate = row["requests_per_second"]
            times = "" if name == PLAIN else f" ({rate / plain[count]['requests_per_second']:.1f} ×)"
            cells.append(f"{rate:.1f}/s{times}, {row['p50_ms']:.0f} / {row['p99_ms']:.0f} ms")
        cells.append(f"{rows[counts[-1]]['processor_ms']:.0f} ms")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
