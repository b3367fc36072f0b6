"""A real web server for a folder, which can be told to break off, and be stopped and started again at its address."""

import contextlib
import http.server
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files with ranges, below /moved by redirection.

    Sends at most `most` bytes an answer, nothing while `down` is above 0, no parts of files with `whole_files_only`.
    """

    most, down, whole_files_only = 10**9, 0, False
    asked: list[tuple[str, str]]  # paths and ranges
    open: set[socket.socket]
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        self.open.add(self.connection)
        with contextlib.suppress(ConnectionError):
            super().handle()
        self.open.discard(self.connection)

    def do_GET(self) -> None:
        kind = type(self)
        asked = "" if kind.whole_files_only else self.headers.get("Range", "")
        kind.asked.append((self.path, asked))
        if kind.down:
            kind.down -= 1
            self.close_connection = True
            return
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        begin, _, end = asked.removeprefix("bytes=").partition("-")
        part = content[int(begin or 0) : int(end) + 1 if end else None]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{int(begin) + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[: kind.most])
        self.close_connection = self.close_connection or len(part) > kind.most

    def log_message(self, *words: object) -> None:
        pass


class Served:
    """A server of a folder.

    Attributes:
        handler: its class of answers, which says what was asked.
        port: where it is, and comes back to.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.handler: type[Handler] = type("OwnHandler", (Handler,), {"asked": [], "open": set()})
        self.folder, self.port = folder, port
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Answer, at the same address as before."""
        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", self.port), lambda *given: self.handler(*given, directory=str(self.folder))
        )
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        """Be gone: connections end, and new ones are refused."""
        self._server.shutdown()
        for connection in list(self.handler.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def process_of(folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """The same server in a process of its own, whose end is the end of the server even for processes forked here."""
    command = [sys.executable, __file__, str(folder), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    Served(Path(sys.argv[1]), int(sys.argv[2]))
    print("ready", flush=True)
