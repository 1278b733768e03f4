"""How much callers may request from the daemon at a time, so that none takes it from the others."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from diskyard import errors
from diskyard.caller import Parts, Share

_CALLERS_LIMIT = 10_000
_BURST_S = 10.0  # of work: who did none for so long may do as much at once


@dataclass(frozen=True, slots=True)
class Limits:
    """What the configuration allows.

    :param request_bytes: of one request's body.
    :param body_timeout_s: for the body to arrive.
    :param requests_per_s: of one caller with a token; 0 for no limit. Twice as many may come at once.
    :param work_ms_per_s: of the processor's time, for the calls of one caller with a token; 0 for no
        limit. Ten seconds' worth may be used at once.
    :param concurrent_requests: under way at a time, event streams not counted.
    :param concurrent_per_repository: verbs that work on one repository; twice as many may wait.
    :param long_calls: pieces of long calls of callers with tokens that are worked on at a time.
    :param long_calls_per_token: long calls of one caller that are begun, and not taken whole yet.
    :param event_streams: open at a time.
    :param answer_bytes: of answers, made and not taken yet.
    :param connections_per_token: on which a token was used.
    """

    request_bytes: int = 1 << 20
    body_timeout_s: float = 30.0
    requests_per_s: float = 100.0
    work_ms_per_s: float = 500.0
    concurrent_requests: int = 256
    concurrent_per_repository: int = 32
    long_calls: int = 2
    long_calls_per_token: int = 4
    event_streams: int = 64
    answer_bytes: int = 64 << 20
    connections_per_token: int = 64


class Rates:
    """A bucket for each caller: it fills steadily, and what the caller asks for is taken out of it.

    :param per_s: how quickly it fills; 0 for no limit.
    :param most: what it holds.
    :param words: what too much is: "100 {words}".
    """

    def __init__(
        self, per_s: float, most: float, words: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_s = per_s
        self._most = max(1.0, most)
        self._words = words
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}

    @classmethod
    def of_requests(cls, per_s: float, clock: Callable[[], float] = time.monotonic) -> Rates:
        """Requests: twice as many as in a second may come at once."""
        return cls(per_s, 2 * per_s, "requests a second", clock)

    @classmethod
    def of_work(cls, ms_per_s: float, clock: Callable[[], float] = time.monotonic) -> Rates:
        """Milliseconds of work, which are known only when it has been done."""
        return cls(ms_per_s, _BURST_S * ms_per_s, "milliseconds of work a second", clock)

    def take(self, caller: str) -> None:
        """Count a request.

        :raises diskyard.errors.TooManyRequests: the caller's bucket is empty.
        """
        self.require(caller, 1.0)
        self.charge(caller, 1.0)

    def require(self, caller: str, least: float = 0.0) -> None:
        """Refuse a caller whose bucket has less in it; no more than it owes has to be waited for.

        :raises diskyard.errors.TooManyRequests: it says in how many seconds there is enough.
        """
        if not self._per_s:
            return
        left = self._now_left(caller)
        if left < least:
            raise errors.TooManyRequests(
                f"More than {self._per_s:g} {self._words} came from {caller}.",
                advice="Wait as long as Retry-After says, then request less at a time.",
                retry_after_s=math.ceil((least - left) / self._per_s),
            )

    def charge(self, caller: str, amount: float) -> None:
        """Take out what was used; what is missing is owed."""
        if not self._per_s:
            return
        left = self._now_left(caller)
        self._left.pop(caller, None)
        if len(self._left) >= _CALLERS_LIMIT:
            del self._left[next(iter(self._left))]  # the one that has been quiet the longest
        self._left[caller] = (left - amount, self._clock())

    def _now_left(self, caller: str) -> float:
        now_s = self._clock()
        left, at_s = self._left.get(caller, (self._most, now_s))
        return min(self._most, left + (now_s - at_s) * self._per_s)


class Shared(Parts):
    """A limited number of something at a time: callers that come when none is left are refused.

    :param words: what is said of too many: "64 {words}".
    """

    def __init__(self, most: int, words: str) -> None:
        super().__init__(most)
        self._words = words

    @contextmanager
    def take(self, share: Share) -> Iterator[None]:
        """Take one meanwhile.

        :raises diskyard.errors.TooManyRequests: there is none left, or the caller has its part.
        """
        taken = self.in_the_way(share)
        if taken is not None:
            raise errors.TooManyRequests(taken.format(words=self._words) + ".")
        self.add(share)
        try:
            yield
        finally:
            self.remove(share)


@dataclass(frozen=True, slots=True)
class _Waiter:
    share: Share
    amount: int
    turn: asyncio.Future[None]


class Queue(Parts):
    """A limited number of something: callers wait in order when none is left, each for its own part.

    Nobody waits behind a caller that has all of its part already.
    """

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._waiting: list[_Waiter] = []

    async def enter(self, share: Share, amount: int = 1) -> None:
        """Wait for some; :meth:`leave` gives it back."""
        if self.in_the_way(share, amount) is None:
            self.add(share, amount)
            return
        waiter = _Waiter(share, amount, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if not waiter.turn.cancelled():  # its turn came in the same moment
                self.leave(share, amount)
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            raise

    def leave(self, share: Share, amount: int = 1) -> None:
        """Give it back, to the next caller that may have it."""
        self.remove(share, amount)
        for waiter in list(self._waiting):
            if waiter.turn.done():  # cancelled, and its task has not run since
                self._waiting.remove(waiter)
            elif self.in_the_way(waiter.share, waiter.amount) is None:
                self._waiting.remove(waiter)
                self.add(waiter.share, waiter.amount)
                waiter.turn.set_result(None)
