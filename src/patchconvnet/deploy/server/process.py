"""The server's processes: the port, the workers, connections that say nothing, and an end that loses no request."""

import asyncio
import errno
import logging
import os
import shutil
import signal
import socket
import tempfile
from typing import Any, NoReturn

import uvicorn
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess

from patchconvnet.deploy.server.app import create_app
from patchconvnet.deploy.server.metrics import DIRECTORY
from patchconvnet.deploy.server.settings import VARIABLE, Settings
from patchconvnet.errors import UserError

HEADER_SECONDS = 10.0  # within which a request's headers must have arrived
LINGER_SECONDS = 0.5  # that an idle connection is kept at the end, for a request that is on its way
MOST_CONNECTIONS = 1000
START_SECONDS = 120  # that a new worker has to load the model in, on a busy machine


class Connection(H11Protocol):
    """uvicorn's HTTP, with a time limit on headers, and without lost requests when the process ends.

    RFC 9112 lets a server close a connection that is idle, and a request that is sent at that moment is lost. At the
    end an idle connection therefore waits for one, answers it with "Connection: close", and only then is closed.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._is_ending = False
        self._waiting_for_headers: asyncio.TimerHandle | None = None
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._headers_are_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some of a request."""
        if self._is_idle() and self._waiting_for_headers is None:
            self._expect_headers()
        super().data_received(data)

    def handle_events(self) -> None:
        """What uvicorn makes of what has come."""
        super().handle_events()
        if not self._is_idle():
            self._headers_are_there()
            if self._is_ending:
                self._say_that_it_ends()

    def shutdown(self) -> None:
        """The process is to end."""
        self._is_ending = True
        if self._is_idle():
            self.loop.call_later(LINGER_SECONDS, self._close_if_idle)
        else:
            self._say_that_it_ends()

    def _say_that_it_ends(self) -> None:
        """Answer with "Connection: close", which uvicorn leaves out: a client must not send its next request here."""
        self.cycle.keep_alive = False
        if CLOSE_HEADER not in self.cycle.scope["headers"]:
            self.cycle.scope["headers"] = [*self.cycle.scope["headers"], CLOSE_HEADER]  # uvicorn answers it in kind

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_headers(self) -> None:
        self._waiting_for_headers = self.loop.call_later(HEADER_SECONDS, self._close_if_idle)

    def _headers_are_there(self) -> None:
        if self._waiting_for_headers is not None:
            self._waiting_for_headers.cancel()
            self._waiting_for_headers = None

    def _close_if_idle(self) -> None:
        if self._is_idle() and not self.transport.is_closing():
            self.transport.close()


def serve(
    settings: Settings,
    host: str,
    port: int,
    workers: int = 1,
    *,
    worker: str,
    reuse_port: bool = False,
) -> None:
    """Serve until SIGTERM or Ctrl-C, and then finish what was accepted.

    Args:
        settings: of the server.
        host, port: where to listen.
        workers: processes, each with the model; SIGHUP replaces one after the other.
        worker: "module:function" that makes the application of each of several workers.
        reuse_port: whether another server may listen at the same port, so that one can take over from the other.

    Raises:
        UserError: the port cannot be had, or there is no such model or token.
    """
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it would log what clients send
    listener = _listen(host, port, reuse_port)
    shared: dict[str, Any] = {
        "http": Connection,
        "ws": "none",
        "lifespan": "on",
        "access_log": False,
        "log_level": "warning",
        "server_header": False,
        "proxy_headers": False,
        "limit_concurrency": MOST_CONNECTIONS,
        "timeout_worker_healthcheck": START_SECONDS,
        "timeout_graceful_shutdown": int(settings.seconds) + 5,
    }
    signal.signal(signal.SIGTERM, _end)  # uvicorn raises it again when it has ended
    with listener:
        address = listener.getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        if workers == 1:
            app = create_app(settings)
            listener.listen()  # whoever reads the line and connects at once waits for the answer
            _say(f"serving {settings.model} at http://{shown}:{address[1]}")
            uvicorn.Server(uvicorn.Config(app, **shared)).run([listener])
            return
        numbers = tempfile.mkdtemp(prefix="patchconvnet-metrics-")
        os.environ |= {VARIABLE: settings.to_json(), DIRECTORY: numbers}
        try:
            config = uvicorn.Config(worker, factory=True, workers=workers, **shared)
            _say(f"serving {settings.model} at http://{shown}:{address[1]} in {workers} processes")
            Multiprocess(config, [listener]).run()
        finally:
            shutil.rmtree(numbers, ignore_errors=True)


def _end(*_: object) -> NoReturn:
    raise SystemExit(0)


def _listen(host: str, port: int, reuse_port: bool) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.set_inheritable(True)
        return listener
    except (OSError, OverflowError, ValueError) as error:
        number = getattr(error, "errno", None)
        if number == errno.EADDRINUSE:
            raise UserError(
                f"port {port} of {host} is in use; end what listens there, or choose another --port"
            ) from error
        if number == errno.EACCES:
            raise UserError(f"port {port} may not be listened at by this user; choose one above 1023") from error
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot listen at {host}, port {port}: {why}") from error


def _say(line: str) -> None:
    logging.getLogger("patchconvnet.serve").info(line)
    print(line, flush=True)
