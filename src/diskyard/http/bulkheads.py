"""A bulkhead for each repository, so that one whose storage hangs does not block the others."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from diskyard import errors
from diskyard.caller import Share
from diskyard.host.supervise import Running
from diskyard.http.limits import Limits, Queue, Shared

_WAITING_FACTOR = 2


@dataclass(slots=True)
class Place:
    """Verbs under way on one repository.

    :ivar running: the verbs that have a thread.
    """

    free: Queue
    waiting: Shared
    running: list[Running] = field(default_factory=list)


class Bulkheads:
    """A bulkhead for each repository, in which only a limited number of verbs run at a time.

    A verb whose storage does not answer stays in its bulkhead until its thread ends, even if its caller has
    gone. So storage that hangs gets no more threads than its bulkhead has. A caller with a token gets a
    quarter of a bulkhead, and all such callers together leave a quarter to the Unix socket.

    :ivar requests: the requests whose answers have not been read yet.
    """

    def __init__(self, limits: Limits, patience_s: float) -> None:
        self._limits = limits
        self._patience_s = patience_s
        self._places: dict[str, Place] = {}
        self.requests = Shared(limits.concurrent_requests, "requests are under way")

    async def enter(self, repo_id: str, share: Share) -> Place:
        """Wait for capacity in a repository's bulkhead; :meth:`leave` returns it.

        :raises diskyard.errors.RepositoryUnavailable: everything in the bulkhead waits for storage that
            does not answer.
        :raises diskyard.errors.TooManyRequests: too many wait already, or this one has waited too long.
        """
        width = self._limits.concurrent_per_repository
        place = self._places.get(repo_id)
        if place is None:
            waiting = Shared(width * _WAITING_FACTOR, f"requests wait for repository {repo_id}")
            place = self._places[repo_id] = Place(Queue(width), waiting)
        if place.free.in_the_way(share) is None:
            await place.free.enter(share)
            return place
        self._require_answering(place)
        with place.waiting.take(share):
            try:
                await asyncio.wait_for(place.free.enter(share), self._patience_s)
            except TimeoutError:
                self._require_answering(place)
                raise errors.TooManyRequests(
                    f"{place.free.count} requests were at work on repository {repo_id} for "
                    f"{self._patience_s:g} seconds."
                ) from None
        return place

    def _require_answering(self, place: Place) -> None:
        for running in place.running:
            running.require_answering()

    def leave(self, repo_id: str, place: Place, share: Share) -> None:
        """Return the capacity in a bulkhead."""
        place.free.leave(share)
        if not place.waiting.count and not place.free.count and self._places.get(repo_id) is place:
            del self._places[repo_id]
