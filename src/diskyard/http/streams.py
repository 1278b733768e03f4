"""``GET /v1/events``: what happens on this host, as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import get_args

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from diskyard import errors
from diskyard.caller import Caller
from diskyard.events import Event, Events, Kind
from diskyard.http.access import Sender
from diskyard.http.limits import Limits, Shared

STREAM_TYPE = "text/event-stream"
_QUIET_S = 15.0
_AT_ONCE_MOST = 200  # events; so many are kept for a listener that does not read
_KINDS = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The events that a listener wants.

    :param kinds: events of these kinds; all if empty. ``reset`` is always sent.
    :param repository_id: only events about this repository.
    """

    kinds: tuple[str, ...] = ()
    repository_id: str | None = None

    @classmethod
    def parse(cls, types: str | None, repository_id: str | None) -> Wanted:
        """Read the query of a request.

        :raises diskyard.errors.InvalidParameter: there is no such type of event.
        """
        kinds = tuple(filter(None, (types or "").split(",")))
        unknown = [kind for kind in kinds if kind not in _KINDS]
        if unknown:
            raise errors.InvalidParameter(
                f"There are no events of type {unknown[0]!r:.80}.", advice=f"Types: {', '.join(_KINDS)}."
            )
        return cls(kinds, repository_id)

    def takes(self, event: Event, caller: Caller) -> bool:
        """Whether a listener gets an event: it wants it, and may see it."""
        if not caller.may_use(event.repository_id):
            return False
        if event.kind == "reset":
            return True
        if self.kinds and event.kind not in self.kinds:
            return False
        return self.repository_id is None or event.repository_id == self.repository_id


def encoded(event_id: str, kind: str, data: object) -> bytes:
    """One event, ready to be sent."""
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (event_id.encode(), kind.encode(), msgspec.json.encode(data))


@dataclass(slots=True)
class Streams:
    """The streams of events.

    :ivar opened: the streams that are open.
    """

    events: Events
    limits: Limits
    opened: Shared = field(init=False)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.opened = Shared(self.limits.event_streams, "streams of events are open")

    def answer(self, wanted: Wanted, sender: Sender, last_event_id: str | None) -> StreamingResponse:
        """Events from now on, or after ``last_event_id`` if those are still kept.

        The stream counts as open from this call until it has been sent, or its listener has gone. It ends
        when its sender is no longer let in.

        :raises diskyard.errors.TooManyRequests: too many streams are open, in all or for this sender.
        """
        place = contextlib.ExitStack()
        place.enter_context(self.opened.take(sender.share))
        number = self.events.newest()
        missed = False
        if last_event_id:
            known = self.events.number_of(last_event_id)
            missed = known is None
            number = number if known is None else known
        return _Counted(place, self._send(wanted, sender, number, missed))

    async def _send(self, wanted: Wanted, sender: Sender, number: int, missed: bool) -> AsyncIterator[bytes]:
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(woken.set)

        stop = asyncio.create_task(self.stopping.wait())
        end = self.events.listen(wake)
        try:
            yield b": events of this host\n\n"
            while not self.stopping.is_set() and sender.is_still_let_in():
                woken.clear()
                found, last, complete = self.events.after(number, _AT_ONCE_MOST)
                if missed or not complete:
                    before = self.events.id_of(last - len(found))
                    yield encoded(before, "reset", {"repositoryId": None})
                    missed = False
                number = last
                taken = _joined([event for event in found if wanted.takes(event, sender.caller)])
                if taken:
                    yield taken
                if len(found) < _AT_ONCE_MOST and not woken.is_set() and not await _either(woken, stop):
                    yield b": nothing new\n\n"
        finally:
            end()
            stop.cancel()


class _Counted(StreamingResponse):
    """A stream that has been counted as open.

    :param place: closed when the stream has ended, which ends the count.
    """

    def __init__(self, place: contextlib.ExitStack, sent: AsyncIterator[bytes]) -> None:
        super().__init__(sent, media_type=STREAM_TYPE)
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._place.close()


def _joined(events: Sequence[Event]) -> bytes:
    return b"".join(encoded(event.event_id, event.kind, _data(event)) for event in events)


def _data(event: Event) -> object:
    if isinstance(event.data, dict):
        return {"repositoryId": event.repository_id, **event.data}
    return {"repositoryId": event.repository_id, "data": event.data}


async def _either(woken: asyncio.Event, stop: asyncio.Task[object]) -> bool:
    """Wait for news or for the end; False if neither came for a long time."""
    news = asyncio.create_task(woken.wait())
    try:
        done, _ = await asyncio.wait((news, stop), timeout=_QUIET_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        news.cancel()
    return bool(done)
