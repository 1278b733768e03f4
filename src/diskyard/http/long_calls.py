"""Calls whose work grows with the size of a repository: how many at a time, and what goes before them.

All of a process's Python runs on one processor at a time. A short call that comes during a long one would
have to wait for it again and again, each time that the short call's thread releases the interpreter.
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

#: A page with at most this many images is not a long call.
FEW_IMAGES = 200
#: The names of bulkheads that are not a repository's begin with this.
NO_PLACE = "\n"
_WAITING_PER_PLACE = 4
# While short calls follow one another, a long call works for so long and then waits for so long.
_WORK_MOST_S = 0.003
_WAIT_MOST_S = 0.020
_SHORT_MOST_S = 1.0


def is_long(request: ask.Request) -> bool:
    """Whether the work of a call grows with the size of a repository, or with everything on this host."""
    if isinstance(request, ask.ListImages):
        return request.limit > FEW_IMAGES or request.status is not None
    return BY_REQUEST[type(request)].is_long


@dataclass(slots=True)
class _Caller:
    """The long calls of one caller with a token on one repository."""

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

    A token may have several long calls open, each from its beginning until the end of its answer is sent. Of
    these, one is worked on at a time; of all tokens together, a few. So the next piece for a token waits for
    one piece of each other token, and not for everything that one of them has requested. Callers on the
    Unix socket wait for nobody.
    """

    def __init__(self, limits: Limits, patience_s: float) -> None:
        self._limits = limits
        self._patience_s = patience_s
        self._bulkheads: dict[str, _Bulkhead] = {}

    @asynccontextmanager
    async def begun(self, share: Share, bulkhead: str) -> AsyncIterator[None]:
        """Wait until a caller may begin another long call, which is open until its answer has been read.

        :raises diskyard.errors.TooManyRequests: too many of the caller's wait, or this one waited too long.
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
        # A call about all repositories may wait for one that hangs; no other call should wait for it.
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
        """Wait until it is the turn of an open long call to have its next piece made."""
        if not share.is_limited:
            yield
            return
        found = self._bulkheads[bulkhead]
        async with found.callers[share.actor].turn, found.turns:
            yield


class Courtesy:
    """Lets short calls go before long ones, while the long ones still make progress."""

    def __init__(self) -> None:
        self._short = 0
        self._none_short = threading.Event()
        self._none_short.set()
        self._ahead = threading.Lock()

    @contextmanager
    def short(self) -> Iterator[None]:
        """A context for a short call; only in the event loop.

        A short call that lasts waits for storage, so that nothing need give way to it any longer.
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
        """A function that a long call's thread calls again and again, to let short calls go first.

        The work is measured in processor time: with many threads waiting for the interpreter, its time by the
        clock would be over before it has done anything.
        """
        resumed_s = 0.0  # in the thread's processor time; 0.0: it gives way once before it begins

        def give_way() -> None:
            nonlocal resumed_s
            if not self._short:
                return
            if resumed_s and time.thread_time() - resumed_s < _WORK_MOST_S:
                return
            with self._ahead:  # only one of those that wait goes on at a time
                self._none_short.wait(_WAIT_MOST_S)
            resumed_s = time.thread_time()

        return give_way
