"""Files of an http server: fetched whole into a cache, where a transfer that breaks off goes on, or read in parts.

A server that does not answer is asked again, with pauses that grow from half a second to half a minute, until it has
sent nothing for as long as its source's `patience` says.
"""

import functools
import hashlib
import os
import re
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from patchconvnet.errors import NotOfOneImageError, UserError, first_line
from patchconvnet.files import aside

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
PATIENCE = 90.0  # seconds without a byte
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between attempts, doubled by each in vain
SILENCE = 20.0  # seconds, of one attempt
WARN_AT = 3  # attempts in vain


class Part(NamedTuple):
    """Bytes of a file, the length of the whole file, and a word that changes with its content if the server has one."""

    content: bytes
    total: int
    version: str


def default_root() -> Path:
    """Where downloaded data is kept: $PATCHCONVNET_DATA, or ~/.cache/patchconvnet."""
    return Path(os.environ.get("PATCHCONVNET_DATA") or "~/.cache/patchconvnet").expanduser()


def is_url(place: str) -> bool:
    """Whether a place is on an http server."""
    return place.startswith(("http://", "https://"))


def patience_of(options: Mapping[str, str]) -> float:
    """The seconds that a source's name gives its server.

    Raises:
        UserError: they are no number.
    """
    word = options.get("patience", f"{PATIENCE:g}")
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", word):
        raise UserError(f"patience is {word!r}; give seconds, such as 90.")
    return float(word)


def cache_folder(together: str, root: str | os.PathLike[str] | None) -> Path:
    """Where the files of one place of a server are kept.

    Args:
        together: the place; others have other folders.
        root: folder whose `shards` is the cache; by default $PATCHCONVNET_DATA or ~/.cache/patchconvnet.
    """
    base = Path(root).expanduser() if root else default_root()
    return base / "shards" / hashlib.sha256(together.encode()).hexdigest()[:16]


def fetched(
    url: str, root: str | os.PathLike[str] | None = None, together: str | None = None, patience: float = PATIENCE
) -> Path:
    """A file of a server in the cache; one that is there already is not asked for again.

    Args:
        url: of the file.
        root: as for `cache_folder`.
        together: the same for files that are to be in one folder; by default each has its own.
        patience: seconds without a byte after which it is given up.

    Raises:
        UserError: the server does not have it, or has not answered for so long.
    """
    target = cache_folder(together or url, root) / url.rpartition("/")[2].partition("?")[0]
    if target.is_file():
        return target
    part = aside(target)

    def size() -> int:
        return part.stat().st_size if part.exists() else 0

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        persistently(lambda: _transfer(url, part), url, patience, size)
        part.replace(target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def read_part(
    url: str, begin: int, size: int, patience: float = PATIENCE, headers: Mapping[str, str] | None = None
) -> Part:
    """Some bytes of a file of a server, without the others.

    Args:
        url: of the file.
        begin: of the first byte.
        size: how many; at the end of the file there are less.
        patience: seconds without an answer after which it is given up.
        headers: to ask with, such as who asks; not passed on to another server that the file is at.

    Raises:
        NotOfOneImageError: the server does not have the file, sends no parts of files, or has not answered for so long.
    """

    def attempt() -> Part:
        asked = {**(headers or {}), "Range": f"bytes={begin}-{begin + size - 1}"}
        with _client().stream("GET", url, headers=asked) as answer:
            answer.raise_for_status()
            found = re.fullmatch(rf"bytes {begin}-\d+/(\d+)", answer.headers.get("Content-Range", ""))
            if answer.status_code != 206 or not found:
                raise NotOfOneImageError(f"the server of {url} sends whole files only; leave out keep=no.")
            content = answer.read()
            return Part(content, int(found[1]), answer.headers.get("ETag", ""))

    return persistently(attempt, url, patience)


def persistently(attempt: Callable[[], T], url: str, patience: float, done: Callable[[], int] = lambda: 0) -> T:
    """What `attempt` returns, tried again until `done` has not grown for `patience` seconds.

    Args:
        attempt: raises httpx's errors where the server does not answer, or answers with an error.
        url: what is asked for, for messages.
        patience: seconds.
        done: how much there is already.

    Raises:
        NotOfOneImageError: the server does not have it, or has not answered for so long.
    """
    import httpx

    since, vain, before = time.monotonic(), 0, done()
    while True:
        try:
            return attempt()
        except httpx.HTTPStatusError as error:
            code = error.response.status_code
            if code < 500 and code not in (408, 429):
                raise NotOfOneImageError(f"{url} cannot be fetched: {code} {error.response.reason_phrase}") from error
            why, fault = f"{code} {error.response.reason_phrase}", error
        except httpx.TransportError as error:
            why, fault = first_line(error) or type(error).__name__, error  # type: ignore[assignment]
        except httpx.InvalidURL as error:
            raise UserError(f"{url} is no address: {first_line(error)}") from error
        if (now := done()) > before:
            since, vain, before = time.monotonic(), 0, now
        vain += 1
        left = since + patience - time.monotonic()
        if left <= 0:
            raise NotOfOneImageError(f"{url} cannot be fetched: nothing for {patience:g} seconds ({why})") from fault
        if vain == WARN_AT and left > 1:
            warnings.warn(f"{url} does not come ({why}); asking again for {left:.0f} seconds", stacklevel=3)
        time.sleep(min(FIRST_WAIT * 2 ** (vain - 1), LONGEST_WAIT, left))


def _transfer(url: str, part: Path) -> None:
    """Go on with a file."""
    begin = part.stat().st_size if part.exists() else 0
    with _client().stream("GET", url, headers={"Range": f"bytes={begin}-"} if begin else {}) as answer:
        if answer.status_code == 416:  # it has become shorter
            part.unlink(missing_ok=True)
            return _transfer(url, part)
        answer.raise_for_status()
        with part.open("ab" if answer.status_code == 206 else "wb") as file:
            for chunk in answer.iter_raw():
                file.write(chunk)


def _client() -> "httpx.Client":
    return _client_of(os.getpid())  # connections do not survive a fork


@functools.cache
def _client_of(process: int) -> "httpx.Client":
    import httpx

    headers = {"Accept-Encoding": "identity"}  # a part is of the file as it is
    return httpx.Client(follow_redirects=True, timeout=SILENCE, headers=headers)
