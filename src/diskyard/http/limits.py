"""How much callers may ask of the daemon at a time, so that none of them takes it from the others."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from diskyard import errors
from diskyard.service.supervise import Running

_CALLERS_LIMIT = 10_000
_WAITING_FACTOR = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """What the configuration allows.

    :param request_bytes: of one request's body.
    :param body_timeout_s: for the body to arrive.
    :param requests_per_s: of one caller with a token; 0 for no limit. Twice as many may come at once.
    :param concurrent_requests: under way at a time, event streams not counted.
    :param concurrent_per_repository: verbs that work on one repository; twice as many may wait.
    :param event_streams: open at a time.
    """

    request_bytes: int = 1 << 20
    body_timeout_s: float = 30.0
    requests_per_s: float = 100.0
    concurrent_requests: int = 256
    concurrent_per_repository: int = 32
    event_streams: int = 64


class Rates:
    """A bucket of requests for each caller: it fills steadily, and each request takes one.

    :param per_s: how quickly it fills; 0 for no limit.
    """

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._most = max(1.0, 2 * per_s)
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, caller: str) -> None:
        """Count a request.

        :raises diskyard.errors.TooManyRequests: the caller's bucket is empty.
        """
        if not self._per_s:
            return
        now_s = self._clock()
        left, at_s = self._left.pop(caller, (self._most, now_s))
        left = min(self._most, left + (now_s - at_s) * self._per_s)
        if len(self._left) >= _CALLERS_LIMIT:
            del self._left[next(iter(self._left))]  # the one that has been quiet the longest
        self._left[caller] = (max(0.0, left - 1), now_s)
        if left < 1:
            raise errors.TooManyRequests(f"More than {self._per_s:g} requests a second came from {caller}.")


@dataclass(frozen=True, slots=True)
class Share:
    """Whose part of something shared is taken.

    :param actor: the caller.
    :param is_limited: the caller gets a quarter of it at most, and all such callers together leave
        a quarter to those on the Unix socket.
    """

    actor: str
    is_limited: bool


class Shared:
    """So many of something at a time, of which no caller with a token takes all.

    :param most: how many there are.
    :param words: what is said of too many: "64 {words}".
    :ivar count: how many are taken.
    """

    def __init__(self, most: int, words: str) -> None:
        self._most, self._words = most, words
        self._of_actor: Counter[str] = Counter()
        self._limited = 0
        self.count = 0

    @contextmanager
    def take(self, share: Share) -> Iterator[None]:
        """Take one meanwhile.

        :raises diskyard.errors.TooManyRequests: there is none left, or the caller has its part.
        """
        quarter = max(1, self._most // 4)
        if self.count >= self._most:
            raise errors.TooManyRequests(f"{self.count} {self._words}.")
        if share.is_limited and self._of_actor[share.actor] >= quarter:
            raise errors.TooManyRequests(f"{quarter} {self._words} for {share.actor}.")
        if share.is_limited and self._limited >= max(1, self._most - quarter):
            raise errors.TooManyRequests(f"{self._limited} {self._words} for callers with tokens.")
        self.count += 1
        self._limited += share.is_limited
        self._of_actor[share.actor] += 1
        try:
            yield
        finally:
            self.count -= 1
            self._limited -= share.is_limited
            self._of_actor[share.actor] -= 1
            if not self._of_actor[share.actor]:
                del self._of_actor[share.actor]


@dataclass(slots=True)
class _Place:
    """Verbs under way on one repository."""

    free: asyncio.Semaphore
    waiting: int = 0
    running: list[Running] = field(default_factory=list)


class Lanes:
    """A lane for each repository, in which only so many verbs run at a time.

    A verb whose storage does not answer stays in its lane until its thread ends, also when its
    caller has gone: so storage that hangs gets no more threads than its lane is wide.

    :ivar requests: those that are not answered yet.
    """

    def __init__(self, limits: Limits, patience_s: float) -> None:
        self._limits = limits
        self._patience_s = patience_s
        self._places: dict[str, _Place] = {}
        self.requests = Shared(limits.concurrent_requests, "requests are under way")

    async def enter(self, repo_id: str) -> _Place:
        """Wait for room in a repository's lane; who enters gives it back with :meth:`leave`.

        :raises diskyard.errors.RepositoryUnavailable: all in the lane wait for storage that does
            not answer.
        :raises diskyard.errors.TooManyRequests: too many wait already, or waited too long.
        """
        width = self._limits.concurrent_per_repository
        place = self._places.setdefault(repo_id, _Place(asyncio.Semaphore(width)))
        if place.free.locked():
            self._require_answering(place)
            if place.waiting >= width * _WAITING_FACTOR:
                raise errors.TooManyRequests(f"{place.waiting} requests wait for repository {repo_id}.")
        place.waiting += 1
        try:
            await asyncio.wait_for(place.free.acquire(), self._patience_s)
        except TimeoutError:
            self._require_answering(place)
            raise errors.TooManyRequests(
                f"{width} requests were at work on repository {repo_id} for {self._patience_s:g} seconds."
            ) from None
        finally:
            place.waiting -= 1
        return place

    def _require_answering(self, place: _Place) -> None:
        for running in place.running:
            running.require_answering()

    def leave(self, repo_id: str, place: _Place) -> None:
        """Give the room in a lane back."""
        place.free.release()
        if not place.waiting and not place.running and self._places.get(repo_id) is place:
            del self._places[repo_id]
