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
class Bulkhead:
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
        self._of_repositories: dict[str, Bulkhead] = {}
        self.requests = Shared(limits.concurrent_requests, "requests are under way")

    async def enter(self, repo_id: str, share: Share) -> Bulkhead:
        """Wait for capacity in a repository's bulkhead; :meth:`leave` returns it.

        :raises diskyard.errors.RepositoryUnavailable: everything in the bulkhead waits for storage that
            does not answer.
        :raises diskyard.errors.TooManyRequests: too many wait already, or this one has waited too long.
        """
        width = self._limits.concurrent_per_repository
        bulkhead = self._of_repositories.get(repo_id)
        if bulkhead is None:
            waiting = Shared(width * _WAITING_FACTOR, f"requests wait for repository {repo_id}")
            bulkhead = self._of_repositories[repo_id] = Bulkhead(Queue(width), waiting)
        if bulkhead.free.in_the_way(share) is None:
            await bulkhead.free.enter(share)
            return bulkhead
        self._require_answering(bulkhead)
        with bulkhead.waiting.take(share):
            try:
                await asyncio.wait_for(bulkhead.free.enter(share), self._patience_s)
            except TimeoutError:
                self._require_answering(bulkhead)
                raise errors.TooManyRequests(
                    f"{bulkhead.free.count} requests were at work on repository {repo_id} for "
                    f"{self._patience_s:g} seconds."
                ) from None
        return bulkhead

    def _require_answering(self, bulkhead: Bulkhead) -> None:
        for running in bulkhead.running:
            running.require_answering()

    def leave(self, repo_id: str, bulkhead: Bulkhead, share: Share) -> None:
        """Return the capacity in a bulkhead."""
        bulkhead.free.leave(share)
        if (
            not bulkhead.waiting.count
            and not bulkhead.free.count
            and self._of_repositories.get(repo_id) is bulkhead
        ):
            del self._of_repositories[repo_id]
