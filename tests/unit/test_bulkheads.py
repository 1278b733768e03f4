"""Which callers wait in which bulkhead, and that capacity in it is given back."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.caller import Caller, Share
from diskyard.http.bulkheads import Bulkheads
from diskyard.http.limits import Limits
from diskyard.http.running import Answer, Asked, Verbs
from diskyard.model import requests as ask
from diskyard.service import Service

_PATIENCE_S = 0.2
ANYBODY = Caller("anybody")
SOMEBODY = Share("anybody", is_limited=False)


@pytest.fixture
def verbs(tmp_path: Path) -> Verbs:
    """Bulkheads of one caller each, and a repository of which only the name is known."""
    service = Service(state_folder=str(tmp_path / "state"))
    service.connections.remember("b", "localfs-1.0", {"path": str(tmp_path / "b")})
    limits = Limits(concurrent_per_repository=1)
    return Verbs(service, Bulkheads(limits, _PATIENCE_S), limits)


async def answered(verbs: Verbs, request: ask.Request, caller: Caller = ANYBODY) -> bytes:
    """What a request of somebody's on the Unix socket is answered, whole."""
    async with AsyncExitStack() as held:
        answer: Answer = await verbs.run(Asked(request, caller, SOMEBODY), held)
        assert answer.rest is None
        return answer.first


def test_a_lane_that_is_full_is_no_news_for_who_may_not_use_it(verbs: Verbs) -> None:
    async def attempt() -> None:
        await verbs._bulkheads.enter("b", SOMEBODY)
        await answered(verbs, ask.ListImages(repository_id="b"), Caller("of-a", repositories=frozenset("a")))

    with pytest.raises(errors.Forbidden):
        asyncio.run(attempt())


def test_a_place_in_a_lane_is_given_back_if_there_is_no_thread(
    verbs: Verbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async def attempt() -> bytes:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError):
                await answered(verbs, ask.GetHostInfo())
        return await answered(verbs, ask.GetHostInfo())

    assert b"hostID" in asyncio.run(attempt())


def test_a_new_place_that_hangs_keeps_none_waiting_who_ask_no_place(
    verbs: Verbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def hang(*_: object) -> bool:
        return answers.wait()

    async def attempt() -> bytes:
        monkeypatch.setattr(verbs.service.connections, "connect", hang)
        request = ask.ConnectStorageRepository(
            repo_id="c", repo_format="memory-1.0", connection_parameters={"name": "c"}
        )
        connecting = asyncio.create_task(answered(verbs, request))
        try:
            while not verbs._bulkheads._of_repositories:
                await asyncio.sleep(0.01)
            return await answered(verbs, ask.GetHostInfo())
        finally:
            answers.set()
            await connecting

    assert b"hostID" in asyncio.run(attempt())


def test_a_caller_is_answered_also_if_the_lane_fails_as_its_place_is_given_back(
    verbs: Verbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a defect")

    async def attempt() -> bytes:
        monkeypatch.setattr(verbs._bulkheads, "leave", fail)
        heard: list[str] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, told: heard.append(str(told.get("exception")))
        )
        answer = await asyncio.wait_for(answered(verbs, ask.GetHostInfo()), 60.0)
        assert heard == ["a defect"]
        return answer

    assert b"hostID" in asyncio.run(attempt())
