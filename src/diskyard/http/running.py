"""Running a verb for a request, on a thread, while the event loop goes on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

from diskyard import errors
from diskyard.caller import CALLER, Caller, Share
from diskyard.http.bulkheads import Bulkheads
from diskyard.http.limits import Limits
from diskyard.http.long_calls import NO_PLACE, Courtesy, LongCalls, is_long
from diskyard.http.pieces import Piece, pieces
from diskyard.model import requests as ask
from diskyard.model.courtesy import WAY
from diskyard.model.verbs import BY_REQUEST
from diskyard.service import Service

# Bulkheads with names that no repoId can have.
_NO_REPOSITORY, _NEW_PLACES = "", "\n"
_MS_PER_MIB = 4.0  # sending counts as so much work
_REPOSITORY_FIELDS = ("repository_id", "target_repo_id", "repo_id")


def repository_of(request: ask.Request) -> str | None:
    """The repoId that a request is about."""
    for name in _REPOSITORY_FIELDS:
        found = getattr(request, name, None)
        if isinstance(found, str):
            return found
    return None


@dataclass(frozen=True, slots=True)
class Asked:
    """A request and its sender.

    :param charge: called with the milliseconds of processor time that each piece of its work took.
    """

    request: ask.Request
    caller: Caller
    share: Share
    charge: Callable[[float], None] = lambda work_ms: None


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request.

    :param first: all of it, or its first piece.
    :param rest: the other pieces, each made when it is needed; None if there is no other.
    """

    first: bytes
    rest: AsyncIterator[bytes] | None


class Verbs:
    """Runs requests on a service, each in the bulkhead of its repository."""

    def __init__(self, service: Service, bulkheads: Bulkheads, limits: Limits) -> None:
        self.service = service
        self._bulkheads = bulkheads
        self._long = LongCalls(limits, service.supervisor.timeout_s)
        self._courtesy = Courtesy()

    async def run(self, asked: Asked, held: AsyncExitStack) -> Answer:
        """Run a request. Return its answer as JSON.

        :param held: what is to be released when the answer has been read, or is not wanted any more.
        :raises diskyard.errors.DiskyardError: any error of the verb; the rest of the answer raises them too.
        """
        made = pieces(self.service, asked.request)
        bulkhead = self._bulkhead_of(asked.request, asked.caller)
        try:
            if is_long(asked.request):
                await held.enter_async_context(self._long.begun(asked.share, _long_bulkhead(asked, bulkhead)))
            piece = await self._next(asked, bulkhead, made)
        except asyncio.CancelledError:  # the server ends, and does not wait for work that still runs
            kind: type[errors.DiskyardError] = errors.RepositoryUnavailable
            if not BY_REQUEST[type(asked.request)].only_looks:
                kind = errors.unknown_outcome(kind)
            raise kind(
                "The daemon ended before the call was complete.",
                advice="Repeat the call when the daemon runs again. A change may have taken effect, or may "
                "still take effect: check before you repeat one.",
            ) from None
        return Answer(piece.data, None if piece.is_last else self._rest(asked, bulkhead, made))

    async def _rest(self, asked: Asked, bulkhead: str, made: Iterator[Piece]) -> AsyncIterator[bytes]:
        is_last = False
        while not is_last:
            piece = await self._next(asked, bulkhead, made)
            yield piece.data
            is_last = piece.is_last

    async def _next(self, asked: Asked, bulkhead: str, made: Iterator[Piece]) -> Piece:
        """The next piece of an answer, when it is the caller's turn."""
        if not is_long(asked.request):
            with self._courtesy.short():
                return await self._piece(asked, bulkhead, made)
        async with self._long.turn(asked.share, _long_bulkhead(asked, bulkhead)):
            return await self._piece(asked, bulkhead, made, self._courtesy.of_one())

    async def _piece(
        self, asked: Asked, bulkhead: str, made: Iterator[Piece], way: Callable[[], None] | None = None
    ) -> Piece:
        """The next piece of an answer, made on a thread.

        :param way: for a long call: lets short calls go first.
        """
        piece, work_ms = await self._in_bulkhead(asked, bulkhead, lambda: _measured(made, asked.caller, way))
        asked.charge(work_ms + len(piece.data) / (1 << 20) * _MS_PER_MIB)
        return piece

    async def _in_bulkhead(
        self, asked: Asked, name: str, work: Callable[[], tuple[Piece, float]]
    ) -> tuple[Piece, float]:
        """Do work on a thread, in a bulkhead."""
        bulkhead = await self._bulkheads.enter(name, asked.share)
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        done: list[tuple[Piece, float]] = []

        def end() -> None:
            try:
                bulkhead.running.remove(running)
                self._bulkheads.leave(name, bulkhead, asked.share)
            finally:
                ended.set()

        try:
            running = self.service.supervisor.begin(lambda: done.append(work()), _in_loop(loop, end))
        except BaseException:  # the host allows no more threads
            self._bulkheads.leave(name, bulkhead, asked.share)
            raise
        bulkhead.running.append(running)
        may_be_done = not BY_REQUEST[type(asked.request)].only_looks
        while True:
            try:
                await asyncio.wait_for(ended.wait(), self.service.supervisor.look_every_s)
            except TimeoutError:
                running.require_answering(may_be_done=may_be_done)
            else:
                running.answer()
                return done[0]

    def _bulkhead_of(self, request: ask.Request, caller: Caller) -> str:
        """The repository's bulkhead, if there is one and the caller may use the repository.

        Locations that are not connected yet may hang too. They share a bulkhead of their own, so that calls
        without a repository do not wait for them.
        """
        repo_id = repository_of(request)
        if repo_id is not None and repo_id in self.service.connections.remembered():
            return repo_id if caller.may_use(repo_id) else _NO_REPOSITORY
        is_new = isinstance(request, ask.ConnectStorageRepository | ask.CreateStorageRepository)
        return _NEW_PLACES if is_new else _NO_REPOSITORY


def _long_bulkhead(asked: Asked, bulkhead: str) -> str:
    """The bulkhead of a long call. Without a repository, it is that of its own verb."""
    return bulkhead or f"{NO_PLACE}{type(asked.request).__name__}"


def _measured(made: Iterator[Piece], caller: Caller, way: Callable[[], None] | None) -> tuple[Piece, float]:
    """The next piece, and the milliseconds of processor time that it took."""
    began_s = time.thread_time()
    who, ahead = CALLER.set(caller), WAY.set(way)
    try:
        piece = next(made)
    finally:
        CALLER.reset(who)
        WAY.reset(ahead)
    return piece, (time.thread_time() - began_s) * 1000


def _in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> Callable[[], None]:
    """A function that makes ``call`` run in the loop, from another thread."""

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(call)

    return wake
