"""The Hugging Face hub's data sets, played by a server of our own: its API, and files behind redirections."""

import contextlib
import functools
import hashlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

CONVERTED = "refs/convert/parquet"


class Hub:
    """A server of the repositories in a folder.

    Args:
        folder: has those of data sets as OWNER/NAME/main/…, and what the hub converted as OWNER/NAME/converted/….

    Attributes:
        asked: of each request that read a file: its path in the repository, and the bytes that were sent.
        down: as many requests as this get no answer but a broken connection.
        failing: as many requests as this are answered with the error 503.
        broken: as many files break off halfway.
        large: after as many answers of 100 kB or more there is no further one.
        secret: the token that is asked for, if any.
        told: the tokens that the place of the files, which is not the hub itself, was told.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, int]] = []
        self.down = self.failing = self.broken = 0
        self.large = 10**9
        self.secret = ""
        self.told: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or a small answer waits 40 ms for the one before it to be acknowledged

            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else {}
                if hub.down or hub.failing:
                    if hub.down:
                        hub.down -= 1
                        self.close_connection = True
                        return
                    hub.failing -= 1
                    return self.answer(503, b"")
                url = urlsplit(self.path)
                words = [unquote(word) for word in url.path.strip("/").split("/")]
                if words[0] == "files":
                    hub.told.append(self.headers.get("Authorization", ""))
                    return self.send_file(words[1:])
                if hub.secret and self.headers.get("Authorization") != f"Bearer {hub.secret}":
                    return self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
                if words[:2] == ["api", "datasets"]:
                    return self.api(words[2:], body, parse_qs(url.query))
                if words[0] == "datasets" and words[3:4] == ["resolve"]:
                    return self.resolve(words[1:3], words[4], words[5:])
                self.answer(404, b"")

            do_POST = do_HEAD = do_GET

            def resolve(self, name: list[str], revision: str, path: list[str]) -> None:
                found = hub.repository(name, revision)
                if found is None:
                    return self.unknown(name)
                branch, commit = found
                file = branch.joinpath(*path)
                if not file.is_file():
                    return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
                etag = f'"{digest_of(file)}"'
                headers = {"X-Repo-Commit": commit, "ETag": etag}
                if file.suffix != ".parquet":
                    return self.answer(200, file.read_bytes(), headers)
                # large files are elsewhere, at an address that holds for a while
                headers |= {"X-Linked-ETag": etag, "X-Linked-Size": str(file.stat().st_size)}
                place = file.relative_to(hub.folder).as_posix()
                self.answer(302, b"", {**headers, "Location": f"{hub.files}/files/{place}?signed=1"})

            def send_file(self, words: list[str]) -> None:
                file = hub.folder.joinpath(*words)
                content = file.read_bytes()
                asked = self.headers.get("Range", "")
                begin, _, end = asked.removeprefix("bytes=").partition("-")
                part = content[int(begin or 0) : int(end) + 1 if end else None]
                if len(part) >= 100_000:
                    if not hub.large:
                        self.close_connection = True
                        return
                    hub.large -= 1
                headers = {"ETag": f'"{digest_of(file)}"'}
                if asked:
                    headers["Content-Range"] = f"bytes {begin}-{int(begin) + len(part) - 1}/{len(content)}"
                if self.command != "HEAD":
                    hub.asked.append(("/".join(words[3:]), len(part)))
                cut = hub.broken > 0 and len(part) > 1
                hub.broken -= cut
                self.answer(206 if asked else 200, part, headers, cut=cut)

            def api(self, words: list[str], body: dict[str, Any], query: dict[str, list[str]]) -> None:
                name, what, revision, path = words[:2], (words[2:3] or [""])[0], (words[3:4] or ["main"])[0], words[4:]
                found = hub.repository(name, revision)
                if found is None:
                    return self.unknown(name)
                branch, commit = found
                if what in ("", "revision"):
                    files = [{"rfilename": p.relative_to(branch).as_posix()} for p in branch.rglob("*") if p.is_file()]
                    return self.say({"id": "/".join(name), "sha": commit, "siblings": files, "private": False})
                if what == "tree":
                    top = branch.joinpath(*path)
                    if not top.is_dir():
                        return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                    deep = query.get("recursive", ["false"])[0].lower() in ("true", "1")
                    return self.say([hub.entry(branch, p) for p in sorted(top.rglob("*") if deep else top.iterdir())])
                if what == "paths-info":
                    paths = [branch / p for p in body.get("paths", ()) if (branch / p).exists()]
                    return self.say([hub.entry(branch, p) for p in paths])
                self.answer(404, b"")

            def unknown(self, name: list[str]) -> None:
                code = "RevisionNotFound" if hub.folder.joinpath(*name).is_dir() else "RepoNotFound"
                self.answer(404, b"", {"X-Error-Code": code})

            def say(self, value: Any) -> None:
                self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

            def answer(
                self, status: int, body: bytes, headers: dict[str, str] | None = None, *, cut: bool = False
            ) -> None:
                self.send_response(status)
                for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body[: len(body) // 2] if cut else body)
                self.close_connection = self.close_connection or cut

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:  # clients that are gone
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.files = f"http://localhost:{self.server.server_port}"  # of another name, as the real one's are
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def repository(self, name: list[str], revision: str) -> tuple[Path, str] | None:
        """The folder of a revision, and the commit that it is."""
        for branch, called in (("main", "main"), ("converted", CONVERTED)):
            folder = self.folder.joinpath(*name, branch)
            files = sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file())
            commit = hashlib.sha1(repr(files).encode()).hexdigest()
            if revision in (called, commit) and folder.is_dir():
                return folder, commit
        return None

    def entry(self, branch: Path, path: Path) -> dict[str, Any]:
        """What the API says of a file or folder."""
        place = path.relative_to(branch).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": place, "oid": "0" * 40, "size": 0}
        digest, size = digest_of(path), path.stat().st_size
        large = {"lfs": {"oid": digest, "size": size, "pointerSize": 130}} if path.suffix == ".parquet" else {}
        return {"type": "file", "path": place, "oid": digest[:40], "size": size, **large}

    def sent(self) -> int:
        """Bytes of files so far; begins again."""
        total = sum(size for _, size in self.asked)
        self.asked.clear()
        return total

    def stop(self) -> None:
        """Be gone."""
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    return _digest_of(path, path.stat().st_mtime_ns, path.stat().st_size)


@functools.cache
def _digest_of(path: Path, *_: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def point_at(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `datasets` and `huggingface_hub` take a server for the hub, as HF_ENDPOINT and HF_HOME do."""
    import datasets
    import huggingface_hub

    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.address)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
    for name in ("HF_MODULES_CACHE", "DOWNLOADED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, str(cache / name.lower()))
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    with contextlib.suppress(socket.gaierror):
        huggingface_hub.HfFileSystem.clear_instance_cache()
