"""Files of an http server, fetched whole into a cache; a transfer that breaks off goes on where it stopped."""

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from patchconvnet.errors import UserError, first_line
from patchconvnet.files import aside

ATTEMPTS = 6  # without a byte between them
FIRST_WAIT = 0.5  # seconds, doubled by each attempt in vain
SILENCE = 20.0  # seconds
CHUNK = 1 << 20


def default_root() -> Path:
    """Where downloaded data is kept: $PATCHCONVNET_DATA, or ~/.cache/patchconvnet."""
    return Path(os.environ.get("PATCHCONVNET_DATA") or "~/.cache/patchconvnet").expanduser()


def fetched(url: str, root: str | os.PathLike[str] | None = None) -> Path:
    """A file of a server in the cache; one that is there already is not asked for again.

    Args:
        url: of the file.
        root: folder whose `shards` is the cache; by default $PATCHCONVNET_DATA or ~/.cache/patchconvnet.

    Raises:
        UserError: the server does not have it, or has not answered or has broken off several times in a row.
    """
    base = Path(root).expanduser() if root else default_root()
    target = base / "shards" / hashlib.sha256(url.encode()).hexdigest()[:16] / url.rpartition("/")[2].partition("?")[0]
    if target.is_file():
        return target
    part, vain, done = aside(target), 0, -1
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                _transfer(url, part)
                part.replace(target)
                return target
            except urllib.error.HTTPError as error:
                if error.code < 500 and error.code not in (408, 416, 429):
                    raise UserError(f"{url} cannot be fetched: {error.code} {error.reason}") from error
                if error.code == 416:
                    part.unlink(missing_ok=True)
                fault: Exception = error
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
                fault = error
            now = part.stat().st_size if part.exists() else 0
            vain, done = (1 if now > done else vain + 1), now
            if vain >= ATTEMPTS:
                raise UserError(f"{url} cannot be fetched, after {vain} attempts in vain: {_why(fault)}") from fault
            time.sleep(FIRST_WAIT * 2 ** (vain - 1))
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error


def _transfer(url: str, part: Path) -> None:
    begin = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={begin}-"} if begin else {})
    with urllib.request.urlopen(request, timeout=SILENCE) as answer:
        resumed = answer.status == 206
        expected = answer.headers.get("Content-Length")
        received = 0
        with part.open("ab" if resumed else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                received += len(chunk)
    if expected is not None and received < int(expected):
        raise http.client.IncompleteRead(b"", int(expected) - received)


def _why(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return "it broke off"
    reason = getattr(error, "reason", error)
    return first_line(reason) if isinstance(reason, Exception) else str(reason)
