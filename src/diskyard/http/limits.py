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
_BURST_S = 10.0  # a caller that has been idle for this long may do as many seconds of work at once


@dataclass(frozen=True, slots=True)
class Limits:
    """What the configuration allows.

    :param request_bytes: the size of one request's body.
    :param body_timeout_s: the time for the body to arrive.
    :param requests_per_s: for one caller with a token; 0 for no limit. Twice as many may come at once.
    :param work_ms_per_s: processor time for the calls of one caller with a token; 0 for no limit. Ten
        seconds' worth may be used at once.
    :param concurrent_requests: requests under way at a time, not counting event streams.
    :param concurrent_per_repository: verbs at work on one repository; twice as many may wait.
    :param long_calls: pieces of long calls, of all callers with tokens, that are made on one repository at a
        time.
    :param long_calls_per_token: long calls on one repository that a caller has begun and not read to the end.
    :param event_streams: streams open at a time.
    :param answer_bytes: bytes of answers that are made and not read yet.
    :param connections_per_token: connections on which one token was used.
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
    """A bucket for each caller. It fills steadily, and what the caller uses is taken out of it.

    :param per_s: how quickly it fills; 0 for no limit.
    :param most: how much it holds.
    :param words: names too much in messages: "100 {words}".
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
        """Buckets of requests: twice as many as in one second may come at once."""
        return cls(per_s, 2 * per_s, "requests a second", clock)

    @classmethod
    def of_work(cls, ms_per_s: float, clock: Callable[[], float] = time.monotonic) -> Rates:
        """Buckets of milliseconds of work, which is known only after it was done."""
        return cls(ms_per_s, _BURST_S * ms_per_s, "milliseconds of work a second", clock)

    def take(self, caller: str) -> None:
        """Count a request.

        :raises diskyard.errors.TooManyRequests: the caller's bucket is empty.
        """
        self.require(caller, 1.0)
        self.charge(caller, 1.0)

    def require(self, caller: str, least: float = 0.0) -> None:
        """Refuse a caller whose bucket holds less than this.

        :raises diskyard.errors.TooManyRequests: says in how many seconds the bucket holds enough.
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
        """Take out what was used. The bucket may become less than empty."""
        if not self._per_s:
            return
        left = self._now_left(caller)
        self._left.pop(caller, None)
        if len(self._left) >= _CALLERS_LIMIT:
            del self._left[next(iter(self._left))]  # the caller that has been quiet for longest
        self._left[caller] = (left - amount, self._clock())

    def _now_left(self, caller: str) -> float:
        now_s = self._clock()
        left, at_s = self._left.get(caller, (self._most, now_s))
        return min(self._most, left + (now_s - at_s) * self._per_s)


class Shared(Parts):
    """A limited number of something at a time. Callers that come when none is left are refused.

    :param words: names too many in messages: "64 {words}".
    """

    def __init__(self, most: int, words: str) -> None:
        super().__init__(most)
        self._words = words

    @contextmanager
    def take(self, share: Share) -> Iterator[None]:
        """Take one, for the time of the context.

        :raises diskyard.errors.TooManyRequests: none is left, or the caller has its whole share.
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
    """A limited number of something. When none is left, callers wait in order, each for its own share.

    Nobody waits behind a caller that already has its whole share.
    """

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._waiting: list[_Waiter] = []

    async def enter(self, share: Share, amount: int = 1) -> None:
        """Wait for some; :meth:`leave` returns it."""
        if self.in_the_way(share, amount) is None:
            self.add(share, amount)
            return
        waiter = _Waiter(share, amount, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if not waiter.turn.cancelled():  # its turn came at the same moment
                self.leave(share, amount)
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            raise

    def leave(self, share: Share, amount: int = 1) -> None:
        """Return it, to the next caller that may have it."""
        self.remove(share, amount)
        for waiter in list(self._waiting):
            if waiter.turn.done():  # cancelled, and its task has not run since
                self._waiting.remove(waiter)
            elif self.in_the_way(waiter.share, waiter.amount) is None:
                self._waiting.remove(waiter)
                self.add(waiter.share, waiter.amount)
                waiter.turn.set_result(None)
