"""What is printed can always be shown: characters that the terminal lacks or would obey are written otherwise."""

import codecs
import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, cast

# what stands for a character that the output's encoding lacks (cp1252, latin-1, ascii)
STAND_INS = {
    "→": "->", "←": "<-", "×": "x", "−": "-", "–": "-", "—": "-", "…": "...", "±": "+/-", "·": ".", "⁹": "^9",
    "²": "^2", "≤": "<=", "≥": ">=", "“": '"', "”": '"', "‘": "'", "’": "'", "━": "-", "─": "-", "│": "|",
}  # fmt: skip
# C0 and C1 controls, marks that turn the direction of writing, and halves of characters (file names that are not UTF-8)
_CONTROL = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE = re.compile(f"[{_CONTROL}]")
_UNSAFE_IN_NAMES = re.compile(rf"[{_CONTROL}\n\t]")
# colours and movements, as rich writes them; only a terminal gets them
_STYLE = re.compile(r"(\x1b\[[0-9;?]*[A-Za-z])|([\r])|" + f"([{_CONTROL}])")


def printable(name: Any) -> str:
    """A name of a file or class on one line: control characters and bytes that are no text become `\\xNN`."""
    return _UNSAFE_IN_NAMES.sub(_escaped, str(name))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class _Stream:
    """An output stream that escapes what a terminal would obey; everything but `write` is the stream's own."""

    def __init__(self, stream: Any):
        self._stream = stream
        self._terminal = bool(getattr(stream, "isatty", bool)())

    def write(self, text: str) -> int:
        if self._terminal:
            text = _STYLE.sub(lambda found: found[0] if found[1] or found[2] else _escaped(found), text)
        else:
            text = _UNSAFE.sub(_escaped, text)
        self._stream.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(STAND_INS.get(c, "?") for c in text), error.end


@contextlib.contextmanager
def safe_output() -> Iterator[None]:
    """While this lasts, nothing printed fails for its encoding, and no control character gets through."""
    codecs.register_error("patchconvnet", _stand_in)
    streams = sys.stdout, sys.stderr
    for stream in streams:
        with contextlib.suppress(AttributeError, ValueError):  # a stream that was put in its place by someone
            cast(Any, stream).reconfigure(errors="patchconvnet")
    sys.stdout, sys.stderr = (cast(Any, _Stream(stream)) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def give_up_output() -> None:
    """After a failed write: what is still buffered goes nowhere, or Python would fail again when it ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())


def _give_back_semaphores() -> None:
    """Of queues to other processes, or the process that watches over them warns of those that were left."""
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._run_finalizers(0)  # what is registered with this priority; queues themselves come after it


SECONDS_UNTIL_AGAIN = 0.05


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """While this lasts, Ctrl-C ends the process at once if it is importing modules, which may swallow the exception.

    Python ignores what is raised while it finalizes an object; there Ctrl-C counts again a moment later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield
        return

    def interrupt(_: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                os.write(2, b"\npatchconvnet: interrupted\n")
                _give_back_semaphores()
                os._exit(130)
            frame = frame.f_back
        raise KeyboardInterrupt

    ignored = sys.unraisablehook

    def again(unraisable: "sys.UnraisableHookArgs") -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            threading.Timer(SECONDS_UNTIL_AGAIN, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            ignored(unraisable)

    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = again
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = ignored
