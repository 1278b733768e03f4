"""Sending answers: little is made before it is read, for each connection and for all together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diskyard.caller import Share
from diskyard.errors import DiskyardError, InternalError
from diskyard.http.connections import Connections, connection_of
from diskyard.http.pieces import PIECE_BYTES

_log = logging.getLogger("diskyard.http")

#: Answers up to this length need no capacity that others could use up: errors, statuses, probes.
_SMALL_BYTES = 4 << 10


class Sending:
    """Sends each answer in pieces, the next one when the one before has left the process.

    For a caller that reads nothing, this process keeps one piece of the answer, besides what the kernel
    buffers. The answer waits when the caller's share of the budget for unread bytes, or the whole budget,
    is used up.
    """

    def __init__(self, app: ASGIApp, connections: Connections) -> None:
        self._app = app
        self._connections = connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        held = connection_of(scope)
        if held is None:
            await self._app(scope, receive, send)
            return

        async def send_in_pieces(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
                return
            for data, more in _cut(message.get("body", b""), is_more=message.get("more_body", False)):
                async with self._room(held.share, len(data)):
                    await send({**message, "body": data, "more_body": more})
                    await held.drained.wait()
                # A disconnection is noticed in the loop's next turn; asyncio logs every write after it.
                await asyncio.sleep(0)

        await self._app(scope, receive, send_in_pieces)

    @contextlib.asynccontextmanager
    async def _room(self, share: Share, size_bytes: int) -> AsyncIterator[None]:
        if size_bytes <= _SMALL_BYTES:
            yield
            return
        await self._connections.unsent.enter(share, size_bytes)
        try:
            yield
        finally:
            self._connections.unsent.leave(share, size_bytes)


def _cut(body: bytes, *, is_more: bool) -> Iterator[tuple[bytes, bool]]:
    """A body in pieces, and after each piece whether more follows."""
    view = memoryview(body)
    for begin in range(0, max(1, len(body)), PIECE_BYTES):
        end = begin + PIECE_BYTES
        yield bytes(view[begin:end]), is_more or end < len(body)


class Releasing(Response):
    """An answer that holds something until it has been read, or is not wanted any more.

    :param held: released then.
    """

    def __init__(self, answer: Response, held: AsyncExitStack) -> None:
        self._answer, self._held = answer, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, and release what was held."""
        async with self._held:
            await self._answer(scope, receive, send)


def streamed(
    first: bytes, rest: AsyncIterator[bytes], scope: Scope, connections: Connections, request_id: str
) -> StreamingResponse:
    """An answer in several pieces. If one cannot be made, the connection is cut, so the JSON is invalid."""

    async def sent() -> AsyncIterator[bytes]:
        try:
            yield first
            async for data in rest:
                yield data
        except Exception as error:
            held = connection_of(scope)
            if held is None:
                raise
            _log.log(_level_of(error), "an answer is cut, request %s: %s", request_id, error)
            connections.note("failed", held.peer, requestId=request_id)
            held.cut()
            await held.gone.wait()

    return StreamingResponse(sent(), media_type="application/json")


def _level_of(error: Exception) -> int:
    is_defect = isinstance(error, InternalError) or not isinstance(error, DiskyardError)
    return logging.ERROR if is_defect else logging.WARNING
