"""What is answered to a request that cannot be: problem+json (RFC 9457), a sentence, and never a traceback."""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

logger = logging.getLogger("patchconvnet.serve")
RETRY_SECONDS = 1


class Problem(Exception):
    """A request that is refused.

    Args:
        status: of HTTP, 400 or above.
        detail: a sentence for the person who sent it.
        close: whether the connection is closed behind the answer, for a body that was not read to its end.
    """

    def __init__(self, status: int, detail: str, *, close: bool = False):
        super().__init__(detail)
        self.status, self.detail, self.close = status, detail, close

    def to_dict(self) -> dict[str, Any]:
        """As RFC 9457 writes it."""
        return {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }

    def response(self, path: str = "") -> JSONResponse:
        """The answer; for paths of the Open Inference Protocol with the `error` that its clients read."""
        headers = {"Retry-After": str(RETRY_SECONDS)} if self.status in (429, 503) else {}
        headers |= {"Connection": "close"} if self.close else {}
        headers |= {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        body = self.to_dict() | ({"error": self.detail} if path.startswith("/v2") else {})
        return JSONResponse(body, self.status, headers, "application/problem+json")


def overloaded() -> Problem:
    """The server has as much to do as it takes on; what was sent may not have been read to its end."""
    return Problem(503, "the server has as many requests as it takes on; try again in a moment", close=True)


def too_slow(seconds: float) -> Problem:
    """The time of a request has run out."""
    return Problem(503, f"no answer was ready within {seconds:g} seconds; try again, or send less at once")


def answer_problems(app: FastAPI) -> None:
    """Let an application answer every error as a problem."""

    async def problem(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Problem)
        return error.response(request.url.path)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return Problem(422, f"{where}: {first['msg']}").response(request.url.path)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        known = {404: "there is nothing at this address", 405: "this address does not answer this method"}
        detail = known.get(error.status_code, str(error.detail))
        response = Problem(error.status_code, detail).response(request.url.path)
        response.headers.update(error.headers or {})
        return response

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return Problem(500, "the server failed on this request; its log says why").response(request.url.path)

    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)
