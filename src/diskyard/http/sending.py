"""Answers on their way: little is made ahead of what is read, for each connection and in all."""

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

#: Answers up to this length need no capacity that others could have taken: errors, statuses, probes.
_SMALL_BYTES = 4 << 10


class Sending:
    """Sends each answer in pieces, the next when the one before has left the process.

    A caller that reads nothing keeps one piece of its answer here, besides what the kernel has. It
    waits when its part of the budget for unread bytes, or the whole budget, is used up.
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
                # That nobody takes it any more is told in the loop's next turn; asyncio logs who writes on.
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
    """A body in pieces, and whether more comes after each."""
    view = memoryview(body)
    for begin in range(0, max(1, len(body)), PIECE_BYTES):
        end = begin + PIECE_BYTES
        yield bytes(view[begin:end]), is_more or end < len(body)


class Releasing(Response):
    """An answer that holds something until it is read, or nobody wants it any more.

    :param held: given back then.
    """

    def __init__(self, answer: Response, held: AsyncExitStack) -> None:
        self._answer, self._held = answer, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, and give back what was held."""
        async with self._held:
            await self._answer(scope, receive, send)


def streamed(
    first: bytes, rest: AsyncIterator[bytes], scope: Scope, connections: Connections, request_id: str
) -> StreamingResponse:
    """An answer of several pieces. If one cannot be made the connection is cut: what came is no JSON."""

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
