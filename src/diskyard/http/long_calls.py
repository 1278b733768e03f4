"""Calls whose work grows with the size of a repository: how many at a time, and what goes before them.

All of a process's Python runs on one processor at a time. A short call that comes while a long one
runs would wait for it again and again, each time its own thread releases the interpreter.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from diskyard import errors
from diskyard.caller import Share
from diskyard.http.limits import Limits
from diskyard.model import requests as ask
from diskyard.model.verbs import BY_REQUEST

#: A page of so many images is no long call.
FEW_IMAGES = 200
#: Begins the names of lanes that are of no repository.
NO_PLACE = "\n"
_WAITING_PER_PLACE = 4
# While short calls come one after the other, a long one works so long and then waits so long.
_WORK_MOST_S = 0.003
_WAIT_MOST_S = 0.020
_SHORT_MOST_S = 1.0


def is_long(request: ask.Request) -> bool:
    """Whether the work of a call grows with what a repository, or this host, has in all."""
    if isinstance(request, ask.ListImages):
        return request.limit > FEW_IMAGES or request.status is not None
    return BY_REQUEST[type(request)].is_long


@dataclass(slots=True)
class _Caller:
    """The long calls of a caller with a token on one repository."""

    places: asyncio.Semaphore
    turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    waiting: int = 0


@dataclass(slots=True)
class _Bulkhead:
    """The long calls on one repository."""

    turns: asyncio.Semaphore
    callers: dict[str, _Caller] = field(default_factory=dict)
    count: int = 0


class LongCalls:
    """The long calls of callers with tokens, separately for each repository, because one may hang.

    A token may have some long calls begun, from the first read until the last of the answer is sent. Of
    these, one is worked on at a time; of all tokens, a few. So each token's next piece of work waits for
    one piece of each other token, not for all that one of them has requested. Callers on the Unix socket
    wait for nobody.
    """

    def __init__(self, limits: Limits, patience_s: float) -> None:
        self._limits = limits
        self._patience_s = patience_s
        self._bulkheads: dict[str, _Bulkhead] = {}

    @asynccontextmanager
    async def begun(self, share: Share, bulkhead: str) -> AsyncIterator[None]:
        """Wait until a caller may begin one more, which it has until its answer is taken.

        :raises diskyard.errors.TooManyRequests: too many of this caller wait already, or waited too long.
        """
        if not share.is_limited:
            yield
            return
        with self._counted(bulkhead) as found:
            most = self._limits.long_calls_per_token
            caller = found.callers.setdefault(share.actor, _Caller(asyncio.Semaphore(most)))
            await self._enter(caller, share.actor)
            try:
                yield
            finally:
                caller.places.release()

    @contextmanager
    def _counted(self, bulkhead: str) -> Iterator[_Bulkhead]:
        # What asks all places may wait for one that hangs, and keeps nobody else waiting for it.
        is_place = not bulkhead.startswith(NO_PLACE)
        most = self._limits.long_calls if is_place else self._limits.concurrent_per_repository
        found = self._bulkheads.setdefault(bulkhead, _Bulkhead(asyncio.Semaphore(most)))
        found.count += 1
        try:
            yield found
        finally:
            found.count -= 1
            if not found.count:
                del self._bulkheads[bulkhead]

    async def _enter(self, caller: _Caller, actor: str) -> None:
        most = self._limits.long_calls_per_token
        advice = "Read the answers that have begun, and request one long list at a time."
        if caller.places.locked() and caller.waiting >= most * _WAITING_PER_PLACE:
            raise errors.TooManyRequests(
                f"{most} long calls are under way for {actor}, and {caller.waiting} wait.", advice=advice
            )
        caller.waiting += 1
        try:
            await asyncio.wait_for(caller.places.acquire(), self._patience_s)
        except TimeoutError:
            raise errors.TooManyRequests(
                f"{most} long calls were under way for {actor} for {self._patience_s:g} seconds.",
                advice=advice,
            ) from None
        finally:
            caller.waiting -= 1

    @asynccontextmanager
    async def turn(self, share: Share, bulkhead: str) -> AsyncIterator[None]:
        """Wait until it is the turn of a caller that has begun one to have a piece of work done."""
        if not share.is_limited:
            yield
            return
        found = self._bulkheads[bulkhead]
        async with found.callers[share.actor].turn, found.turns:
            yield


class Courtesy:
    """Lets short calls go before long ones, which still get on."""

    def __init__(self) -> None:
        self._short = 0
        self._none_short = threading.Event()
        self._none_short.set()
        self._ahead = threading.Lock()

    @contextmanager
    def short(self) -> Iterator[None]:
        """A short call is under way meanwhile; only in the event loop.

        One that lasts waits for storage: it needs nobody to give way.
        """
        self._short += 1
        self._none_short.clear()
        is_counted = True

        def end() -> None:
            nonlocal is_counted
            if is_counted:
                is_counted = False
                self._short -= 1
                if not self._short:
                    self._none_short.set()

        timer = asyncio.get_running_loop().call_later(_SHORT_MOST_S, end)
        try:
            yield
        finally:
            timer.cancel()
            end()

    def of_one(self) -> Callable[[], None]:
        """What a piece of a long call asks in its thread, again and again, so that short ones go first.

        Its work is counted by the processor's time: where many wait for the interpreter, the other would
        be over before it has done anything.
        """
        resumed_s = 0.0  # of the thread: before its first work it gives way once

        def give_way() -> None:
            nonlocal resumed_s
            if not self._short:
                return
            if resumed_s and time.thread_time() - resumed_s < _WORK_MOST_S:
                return
            with self._ahead:  # of those that wait only one goes on at a time
                self._none_short.wait(_WAIT_MOST_S)
            resumed_s = time.thread_time()

        return give_way
