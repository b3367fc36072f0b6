"""Real server processes for tests: `patchconvnet serve` on a free port."""

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

STARTED = re.compile(r"serving .* at (http://\S+)")
SECONDS = 120  # until it listens, on a busy machine


@dataclass
class Running:
    """A server that listens."""

    url: str
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=300, **options)  # type: ignore[arg-type]

    @property
    def memory(self) -> int:
        """Bytes of RAM that the process holds."""
        return self._status("VmRSS")

    @property
    def peak(self) -> int:
        """The most bytes of RAM that it held since `forget_peak`."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def _status(self, key: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{key}:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]

    def log(self) -> str:
        return "".join(self.lines)

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)


@contextlib.contextmanager
def running(*options: str, model: str = "cifar10") -> Iterator[Running]:
    """`patchconvnet serve` with these options, until the block ends."""
    port = () if any(option.startswith("--port") for option in options) else ("--port=0",)
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "patchconvnet", "serve", f"--model={model}", *port, *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tempfile.gettempdir(),
    )  # fmt: skip
    server = Running("", process)

    def read() -> None:
        assert process.stdout
        for line in process.stdout:
            server.lines.append(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        ends = time.monotonic() + SECONDS
        while not (said := STARTED.search(server.log())):
            assert process.poll() is None, server.log()
            assert time.monotonic() < ends, f"no answer from the server: {server.log()}"
            time.sleep(0.05)
        server.url = said[1]
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{server.url}/v2/health/ready", timeout=SECONDS).status_code == 200:
                    break
            assert process.poll() is None, server.log()
            assert time.monotonic() < ends, server.log()
            time.sleep(0.05)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join(5)
