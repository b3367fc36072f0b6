"""The page's files at `/`, behind the addresses of the server itself."""

import contextlib
import os

from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Mount
from starlette.types import Scope


class Page(StaticFiles):
    """The page's files.

    Since they are at `/`, every request that no route takes comes here: one with another method than the address
    answers (405), or to an address that is none of the server's and no file (404, whatever the method).
    """

    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file, or one of these two."""
        for route in scope["app"].routes:
            if not isinstance(route, Mount) and route.matches(scope)[0] is Match.PARTIAL:
                raise HTTPException(405, headers={"Allow": ", ".join(sorted(getattr(route, "methods", None) or ()))})
        if scope["method"] not in ("GET", "HEAD") and path != os.curdir and not self._has(path):
            raise HTTPException(404)
        return await super().get_response(path, scope)

    def _has(self, path: str) -> bool:
        with contextlib.suppress(OSError, ValueError):  # a name that no file can have
            return self.lookup_path(path)[1] is not None
        return False
