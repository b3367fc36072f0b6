"""The Hugging Face hub, played by a server of our own."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

COMMIT = "1" * 40


class HubServer:
    """As much of the hub as downloads need: repositories of files, large ones behind a redirection as on the real one.

    repositories: the files of each, by `owner/name`.
    requests: the paths that were asked for.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.requests.append(self.path)
                _, owner, name, kind, _, filename = [*self.path.split("/", 5), "", "", "", "", ""][:6]
                files = hub.repositories.get(f"{owner}/{name}")
                if files is None:
                    return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
                if filename not in files:
                    return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                content = files[filename]
                etag = f'"{hashlib.sha256(content).hexdigest()}"'
                headers = {"X-Repo-Commit": COMMIT, "ETag": etag}
                if filename.endswith((".safetensors", ".bin")) and kind == "resolve":
                    headers |= {"X-Linked-ETag": etag, "X-Linked-Size": str(len(content))}
                    return self.answer(302, b"", {**headers, "Location": self.path.replace("/resolve/", "/large/")})
                self.answer(200, content, headers)

            do_HEAD = do_GET

            def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for key, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"


def point_the_hub_at(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", address)


@pytest.fixture
def hub_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    hub = HubServer()
    threading.Thread(target=hub.server.serve_forever, daemon=True).start()
    point_the_hub_at(hub.address, tmp_path / "cache", monkeypatch)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of a hub that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        point_the_hub_at(address, tmp_path / "cache", monkeypatch)
        yield address


@pytest.fixture
def unreachable_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody listens where the hub should be."""
    point_the_hub_at("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
