"""Files from elsewhere, the Hugging Face hub above all: a word when nothing comes, and a limit to waiting for it."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from patchconvnet.errors import UserError, first_line

_logger = logging.getLogger(__name__)
T = TypeVar("T")

WORD_AFTER, LIMIT = 2.0, 20.0  # seconds


class Unreachable(UserError):
    """The place that weights come from does not answer."""


def fetch(repo: str, *names: str) -> Path:
    """The first of these files that a repository on the hub has, from the cache or downloaded into it.

    Args:
        repo: `owner/name` or `owner/name@revision`.
        names: files that will do, the best first.

    Raises:
        Unreachable: the hub can't be reached, or sends nothing for `LIMIT` seconds, and the cache has no copy.
        UserError: the hub has no such repository or file, or does not show it.
    """
    for name in names:
        try:
            return _fetch(repo, name)
        except EntryNotFoundError:
            continue
    raise UserError(f"{repo} on the hub has no {' or '.join(names)}, so it is no model of ours or timm's")


def _fetch(repo: str, name: str) -> Path:
    repo_id, _, revision = repo.partition("@")
    asked: dict[str, Any] = {"repo_id": repo_id, "filename": name, "revision": revision or None}
    endpoint, cache = huggingface_hub.constants.ENDPOINT, Path(huggingface_hub.constants.HF_HUB_CACHE)

    def download(**options: Any) -> Path:
        return Path(str(huggingface_hub.hf_hub_download(**asked, **options)))

    def first_ask_then_download() -> Path:
        # the download alone would try to connect again and again, for half a minute, and say so each time
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(**asked))
        return download()

    try:
        folder = cache / f"models--{repo_id.replace('/', '--')}"
        return patiently(first_ask_then_download, f"{endpoint} to send {name} of {repo}", folder)
    except HFValidationError as error:
        raise UserError(f"{repo!r} is neither a folder nor a hub id (owner/name): {error}") from error
    except Exception as error:  # of many libraries, by the version of the hub's
        try:
            return download(local_files_only=True)
        except LocalEntryNotFoundError:
            pass
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise
        if isinstance(error, HfHubHTTPError):  # unknown repository, no access, or out of order
            raise UserError(
                f"there is no folder {repo!r}, and no such model to be had from the hub: {first_line(error)}"
            ) from error
        raise Unreachable(
            f"there is no folder {repo!r}, and the Hugging Face hub cannot be reached to look for a model of that "
            f"name: {first_line(error)}"
        ) from error


def patiently(work: Callable[[], T], what: str, folder: Path) -> T:
    """Do a piece of work that waits for others, with a word after two seconds and a limit to silence.

    The work runs in a thread that is left behind when it takes too long: libraries that download retry for minutes, and
    can't be told to stop. So Ctrl-C works at once, too.

    Args:
        what: what is waited for, in words that follow "waiting for".
        folder: where what arrives is put; as long as it grows there is no silence.

    Raises:
        Unreachable: nothing has arrived for `LIMIT` seconds.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        done.set()

    threading.Thread(target=run, daemon=True).start()
    start = news = time.monotonic()
    arrived, said = _size(folder), False
    while not done.wait(0.1):
        now, size = time.monotonic(), _size(folder)
        if size != arrived:
            arrived, news = size, now
        if now - start > WORD_AFTER and not said:
            _logger.warning("waiting for %s …", what)
            said = True
        if now - news > LIMIT:
            raise Unreachable(f"waited {LIMIT:.0f} seconds for {what}, and nothing came")
    if errors:
        raise errors[0]
    return results[0]


def _size(folder: Path) -> int:
    """Bytes in a folder that others may be writing to."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except OSError:  # gone meanwhile
            continue
    return total
