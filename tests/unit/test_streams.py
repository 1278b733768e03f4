"""What a stream of events holds for a listener who reads slowly."""

from __future__ import annotations

import asyncio

from diskyard.caller import Caller
from diskyard.events import Events
from diskyard.http.access import Sender
from diskyard.http.limits import Limits
from diskyard.http.streams import Streams, Wanted

_COUNT = 3000


def test_many_missed_events_come_a_few_at_a_time() -> None:
    events = Events()
    events.tell("task", "a", {"number": 0})
    seen = events.id_of(events.newest())
    for number in range(1, _COUNT + 1):
        events.tell("task", "a", {"number": number})

    async def parts() -> list[bytes]:
        sender = Sender(Caller("somebody"), "read")
        answer = Streams(events, Limits()).answer(Wanted(), sender, seen)
        found: list[bytes] = []
        async for part in answer.body_iterator:
            assert isinstance(part, bytes)
            found.append(part)
            if b'"number":%d}' % _COUNT in part:
                break
        return found

    found = asyncio.run(parts())
    assert sum(part.count(b"data: ") for part in found) == _COUNT
    assert b"reset" not in b"".join(found)
    assert max(map(len, found)) < len(b"".join(found)) / 10
