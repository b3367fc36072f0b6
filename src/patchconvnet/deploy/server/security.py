"""Who is let in, and the headers that keep a browser from doing more with an answer than to show it."""

import hmac

from patchconvnet.deploy.server.asgi import Application, Message, Receive, Send
from patchconvnet.deploy.server.problems import Problem
from patchconvnet.deploy.server.uploads import drain

MOST_DRAINED = 20_000_000  # bytes of a body that is not wanted

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'wasm-unsafe-eval'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob:",
        "connect-src 'self' blob: data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# what is measured or asked about a model needs the token; the page's files, which say nothing of it, and health do not
GUARDED = ("/v1/", "/v2", "/metrics", "/openapi.json")
OPEN = ("/v2/health/",)


class Security:
    """Middleware around all of a server: without the token nothing of a body is kept.

    Args:
        app: what it stands in front of.
        token: that requests must bring; None lets everybody in.
    """

    def __init__(self, app: Application, token: str | None = None):
        self._app, self._token = app, token

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, headers = scope["path"], dict(scope["headers"])

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                added = HEADERS | ({"Cache-Control": "no-store"} if path.startswith(GUARDED) else {})
                message["headers"] = [
                    *message["headers"],
                    *((n.lower().encode(), v.encode()) for n, v in added.items() if n.lower().encode() not in names),
                ]
            await send(message)

        if path.startswith(GUARDED) and not path.startswith(OPEN) and not self._knows(headers):
            problem = Problem(401, "this server asks for its token: Authorization: Bearer TOKEN", close=True)
            await drain(receive, MOST_DRAINED)
            await problem.response(path)(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)

    def _knows(self, headers: dict[bytes, bytes]) -> bool:
        if self._token is None:
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token.encode())
