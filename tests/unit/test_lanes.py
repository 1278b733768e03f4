"""Who waits in which lane, and that places in it are given back."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.caller import Caller
from diskyard.http.limits import Lanes, Limits
from diskyard.http.running import Verbs
from diskyard.model import requests as ask
from diskyard.service import Service

_PATIENCE_S = 0.2
ANYBODY = Caller("anybody")


@pytest.fixture
def verbs(tmp_path: Path) -> Verbs:
    """Lanes of one place each, and a repository of which only the name is known."""
    service = Service(state_folder=str(tmp_path / "state"))
    service.connections.remember("b", "localfs-1.0", {"path": str(tmp_path / "b")})
    return Verbs(service, Lanes(Limits(concurrent_per_repository=1), _PATIENCE_S))


def test_a_lane_that_is_full_is_no_news_for_who_may_not_use_it(verbs: Verbs) -> None:
    async def attempt() -> None:
        await verbs._lanes.enter("b")
        await verbs.run(ask.ListImages(repository_id="b"), Caller("of-a", repositories=frozenset("a")))

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
                await verbs.run(ask.GetHostInfo(), ANYBODY)
        return await verbs.run(ask.GetHostInfo(), ANYBODY)

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
        connecting = asyncio.create_task(verbs.run(request, ANYBODY))
        try:
            while not verbs._lanes._places:
                await asyncio.sleep(0.01)
            return await verbs.run(ask.GetHostInfo(), ANYBODY)
        finally:
            answers.set()
            await connecting

    assert b"hostID" in asyncio.run(attempt())
