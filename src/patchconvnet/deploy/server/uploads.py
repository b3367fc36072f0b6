"""From a request's body to the files in it, within limits on bytes, parts and time.

A body is read into memory before anything looks at it, so that a client that sends it slowly, or without end, holds a
connection and its share of a `Budget`, and no thread.
"""

import asyncio
import base64
import binascii
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from patchconvnet.deploy.server.asgi import Receive
from patchconvnet.deploy.server.budget import Budget
from patchconvnet.deploy.server.problems import Problem, overloaded

DRAIN_SECONDS = 1.0  # for a client that sends more than it may, so that it reads the refusal before the connection ends
MOST_FIELDS = 32  # of a form that are no files
MOST_PART_HEADERS = 16_000  # bytes
LONGEST_NAME = 100  # characters


@dataclass(frozen=True)
class Upload:
    """One file of a request.

    Attributes:
        name: what the client calls it, without folders and ending; nothing is opened by it.
        content: its bytes.
    """

    name: str
    content: bytes


@asynccontextmanager
async def body_of(request: Request, most: int, budget: Budget, seconds: float) -> AsyncIterator[bytes]:
    """A request's whole body, for as long as it is needed.

    Args:
        request: that has not been read from.
        most: bytes.
        budget: that they are taken from.
        seconds: within which it must have arrived.

    Raises:
        Problem: it is too long, too slow, encoded, or the server holds too much already.
    """
    if (encoding := request.headers.get("content-encoding", "identity").lower()) != "identity":
        raise Problem(415, f"send the body as it is, without Content-Encoding {encoding!r}", close=True)
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > most:
        await drain(request.receive, 4 * most)
        raise _too_long(most)
    content, taken = bytearray(), 0
    try:
        try:
            async with asyncio.timeout(seconds):
                async for chunk in request.stream():
                    if len(content) + len(chunk) > most:
                        content.clear()
                        await drain(request.receive, most)
                        raise _too_long(most)
                    if not budget.take(len(chunk)):
                        content.clear()
                        await drain(request.receive, most)
                        raise overloaded()
                    taken += len(chunk)
                    content += chunk
        except TimeoutError:
            raise Problem(408, f"the body had not arrived after {seconds:g} seconds", close=True) from None
        except ClientDisconnect:
            raise Problem(400, "the connection ended before the body did", close=True) from None
        yield bytes(content)
    finally:
        await asyncio.shield(budget.give_back(taken))


async def drain(receive: Receive, most: int) -> None:
    """Read on for a moment, at most so many bytes, and throw them away: who still sends does not see the answer."""
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while most > 0:
                message = await receive()
                most -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
    except TimeoutError:
        return


def _too_long(most: int) -> Problem:
    return Problem(
        413, f"the body is longer than {most / 1e6:g} MB, which is the limit; send a smaller image", close=True
    )


def files_in(content: bytes, content_type: str, field: str, most: int) -> list[Upload]:
    """The files of a body: parts of a form, one image as it is, or base64 in JSON.

    Args:
        content: the body.
        content_type: what the request says of it. What a file is, its content tells later.
        field: the name of the form's parts, and of the JSON's key.
        most: files.

    Raises:
        Problem: there are none, too many, or the body is not what `content_type` says.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        files = _parts(content, content_type, field, most)
    elif kind == "application/json" or kind.endswith("+json"):
        files = _from_json(content, field, most)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        files = [Upload("image", content)]
    else:
        raise Problem(
            415,
            f"the content type is {kind[:60]!r}; send a form (multipart/form-data) with the field {field!r}, an image "
            f"(image/…), or JSON with the key {field!r} in base64",
        )
    if not files:
        raise Problem(422, f"the body holds no file in the field {field!r}")
    return files


def _parts(content: bytes, content_type: str, field: str, most: int) -> list[Upload]:
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= 256:
        raise Problem(400, "the form's content type names no boundary")
    reader = _FormReader(field, most)
    try:
        parser = MultipartParser(boundary, reader.callbacks())  # type: ignore[arg-type]
        parser.write(content)
        parser.finalize()
    except FormParserError as error:
        raise Problem(400, "the form cannot be read: its parts are not divided as its content type says") from error
    if not reader.ended:
        raise Problem(400, "the form is cut off: its last boundary is missing")
    return reader.files


class _FormReader:
    """What a multipart parser reports, put together."""

    def __init__(self, field: str, most: int):
        self.files: list[Upload] = []
        self.ended = False
        self._field, self._most, self._parts, self._header_bytes = field, most, 0, 0
        self._header, self._value, self._disposition, self._data = bytearray(), bytearray(), b"", bytearray()

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._head(self._header, data[start:end]),
            "on_header_value": lambda data, start, end: self._head(self._value, data[start:end]),
            "on_header_end": self._header_end,
            "on_part_data": self._more,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > self._most + MOST_FIELDS:
            raise Problem(413, f"the form has over {self._most + MOST_FIELDS} parts")
        self._disposition, self._data, self._header_bytes = b"", bytearray(), 0

    def _head(self, into: bytearray, piece: bytes) -> None:
        self._header_bytes += len(piece)
        if self._header_bytes > MOST_PART_HEADERS:
            raise Problem(400, "a part of the form has too long a header")
        into += piece

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _more(self, data: bytes, start: int, end: int) -> None:
        self._data += memoryview(data)[start:end]

    def _part_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        if options.get(b"name", b"").decode("utf-8", "replace") != self._field:
            return
        if len(self.files) == self._most:
            raise Problem(413, f"the form has over {self._most} files, which is the limit")
        name = options.get(b"filename", b"").decode("utf-8", "replace")
        self.files.append(Upload(bare_name(name), bytes(self._data)))

    def _end(self) -> None:
        self.ended = True


def _from_json(content: bytes, field: str, most: int) -> list[Upload]:
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Problem(400, "the body is not JSON") from error
    values = record.get(field) if isinstance(record, dict) else None
    values = values if isinstance(values, list) else [values]
    if not all(isinstance(value, str) for value in values):
        raise Problem(422, f'the JSON must be an object such as {{"{field}": "…"}}, with the image in base64')
    if len(values) > most:
        raise Problem(413, f"the request has over {most} images, which is the limit")
    return [Upload("image", _from_base64(value, field)) for value in values]


def _from_base64(text: str, field: str) -> bytes:
    text = re.sub(r"^data:[^,]{0,100};base64,", "", text)  # as canvases and file readers give it
    try:
        return base64.b64decode(re.sub(r"\s", "", text), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(422, f"{field!r} is not base64") from error


def bare_name(name: str) -> str:
    """What to call a file: its name without folders, ending and what cannot be printed."""
    stem = PurePosixPath(name.replace("\\", "/")).stem
    return "".join(c for c in stem if c.isprintable())[:LONGEST_NAME] or "image"
