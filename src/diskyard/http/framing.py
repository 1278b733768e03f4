"""Requests whose end two servers could see differently are refused before they are read."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

_VERSIONS = ("1.0", "1.1")


class Framing:
    """Lets only requests through that state their end once, in a supported version of HTTP.

    A proxy that uses Content-Length where this server uses Transfer-Encoding would take one caller's
    request for a part of the body before it.

    :param refuse: makes the answer to a refused request from the reason; its connection then ends.
    """

    def __init__(self, app: ASGIApp, refuse: Callable[[Request, str], Response]) -> None:
        self._app = app
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        why = flaw(scope)
        if why is None:
            await self._app(scope, receive, send)
            return
        response = self._refuse(Request(scope), why)
        response.headers["Connection"] = "close"
        await response(scope, receive, send)


def flaw(scope: Scope) -> str | None:
    """Why a request must not be read; None if it may be."""
    names = [name for name, _ in scope["headers"]]
    if scope["http_version"] not in _VERSIONS:
        return f"HTTP {scope['http_version']} is not spoken here, but {' and '.join(_VERSIONS)}."
    if b"transfer-encoding" in names and b"content-length" in names:
        return "The request has both Content-Length and Transfer-Encoding: where it ends is not certain."
    if b"transfer-encoding" in names and scope["http_version"] == "1.0":
        return "HTTP 1.0 knows no Transfer-Encoding."
    return None
