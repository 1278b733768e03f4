"""Running a verb for a request, on a thread, while the event loop goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import msgspec

from diskyard.caller import CALLER, Caller
from diskyard.http.limits import Lanes
from diskyard.model import requests as ask
from diskyard.service import Service
from diskyard.service.verbs import BY_REQUEST, outcome_details, run_unwatched

# Lanes that no repoId can name.
_NO_REPOSITORY, _NEW_PLACES = "", "\n"
_REPOSITORY_FIELDS = ("repository_id", "target_repo_id", "repo_id")


def repository_of(request: ask.Request) -> str | None:
    """The repoId that a request is about."""
    for name in _REPOSITORY_FIELDS:
        found = getattr(request, name, None)
        if isinstance(found, str):
            return found
    return None


class Verbs:
    """Runs requests on a service, each in the lane of its repository."""

    def __init__(self, service: Service, lanes: Lanes) -> None:
        self.service = service
        self._lanes = lanes

    async def run(self, request: ask.Request, caller: Caller) -> bytes:
        """Run a request; its answer as JSON.

        :raises diskyard.errors.DiskyardError: of the table.
        """

        def work() -> bytes:
            token = CALLER.set(caller)
            try:
                return msgspec.json.encode(run_unwatched(self.service, request))
            finally:
                CALLER.reset(token)

        lane = self._lane_of(request, caller)
        place = await self._lanes.enter(lane)
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def end() -> None:
            place.running.remove(running)
            self._lanes.leave(lane, place)
            ended.set()

        try:
            running = self.service.supervisor.begin(work, _in_loop(loop, end))
        except BaseException:  # the host gives no more threads
            self._lanes.leave(lane, place)
            raise
        place.running.append(running)
        details = outcome_details(BY_REQUEST[type(request)])
        while True:
            try:
                await asyncio.wait_for(ended.wait(), self.service.supervisor.look_every_s)
            except TimeoutError:
                running.require_answering(**details)
            else:
                answer: Any = running.job.answer()
                return bytes(answer)

    def _lane_of(self, request: ask.Request, caller: Caller) -> str:
        """That of the repository, if there is one and the caller may know how it is.

        Places that are not connected yet may hang too, and what asks no place waits for none.
        """
        repo_id = repository_of(request)
        if repo_id is not None and repo_id in self.service.connections.remembered():
            return repo_id if caller.may_use(repo_id) else _NO_REPOSITORY
        is_new = isinstance(request, ask.ConnectStorageRepository | ask.CreateStorageRepository)
        return _NEW_PLACES if is_new else _NO_REPOSITORY


def _in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> Callable[[], None]:
    """``call``, made in the loop from another thread."""

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(call)

    return wake
