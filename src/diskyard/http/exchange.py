"""A request on its way through the application."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from diskyard.host.identity import new_uuid
from diskyard.http.access import Sender

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(slots=True)
class Exchange:
    """A request, and what is found out about it on the way.

    :ivar sender: None until the sender is let in.
    :ivar held: what is released when the answer has been read.
    :ivar is_last: its connection ends with the answer.
    """

    request: Request
    request_id: str
    began_s: float = field(default_factory=time.monotonic)
    sender: Sender | None = None
    held: AsyncExitStack = field(default_factory=AsyncExitStack)
    is_last: bool = False


Endpoint = Callable[[Exchange], Awaitable[Response]]


def request_id_of(request: Request) -> str:
    """The caller's own id for a request, if it is acceptable; else a new id."""
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else new_uuid()
