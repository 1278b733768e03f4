"""The queue of tasks is bounded: who may not add to it is told before anything is changed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.caller import CALLER, Caller
from diskyard.model import requests as ask
from diskyard.model.options import Options
from diskyard.service import Service
from diskyard.service.verbs import run, run_unwatched
from diskyard.tasks.limits import TaskLimits
from diskyard.tasks.runner import Job
from diskyard.tasks.watcher import TaskWatcher

_PATIENCE_S = 20.0
GREEDY, OTHER = Caller("token:greedy", is_limited=True), Caller("token:other", is_limited=True)
OPERATOR = Caller("user:root")


class Rig:
    """A service whose only thread for tasks is busy, and eight places for tasks that wait."""

    def __init__(self, folder: Path) -> None:
        self.service = Service(state_folder=str(folder), limits=TaskLimits(at_once=1, queued=8))
        self.release, begun = threading.Event(), threading.Event()

        def keep(_: TaskWatcher) -> bool:
            begun.set()
            return self.release.wait(_PATIENCE_S)

        self.start(OPERATOR, keep)
        assert begun.wait(_PATIENCE_S)

    def start(self, caller: Caller, work: object = lambda _: False) -> None:
        assert callable(work)
        token = CALLER.set(caller)
        try:
            self.service.tasks.start([Job("clean", None, None, work)])
        finally:
            CALLER.reset(token)

    def has_room(self, caller: Caller) -> bool:
        token = CALLER.set(caller)
        try:
            self.service.tasks.require_free_space()
        except errors.TooManyRequests:
            return False
        finally:
            CALLER.reset(token)
        return True


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "state")
    yield made
    made.release.set()
    assert made.service.close(timeout_s=_PATIENCE_S)


def test_a_token_fills_a_quarter_and_all_tokens_leave_one(rig: Rig) -> None:
    taken = []
    for caller in (GREEDY, OTHER, Caller("token:third", is_limited=True), Caller("token:4", is_limited=True)):
        count = 0
        while rig.has_room(caller):
            rig.start(caller)
            count += 1
        taken.append(count)
    assert taken == [2, 2, 2, 0]
    assert rig.has_room(OPERATOR)
    for _ in range(2):
        rig.start(OPERATOR)
    assert not rig.has_room(OPERATOR)
    rig.release.set()
    assert rig.service.tasks.wait(timeout_s=_PATIENCE_S)
    assert rig.has_room(GREEDY)


def test_what_was_begun_before_is_queued_however_many_wait(rig: Rig) -> None:
    """As the daemon does when it goes on with what its end cut short."""
    for _ in range(20):
        rig.start(GREEDY)
    assert not rig.has_room(GREEDY)
    rig.release.set()
    assert rig.service.tasks.wait(timeout_s=_PATIENCE_S)
    assert rig.has_room(GREEDY)


def test_what_is_stopped_gives_its_place_back(rig: Rig) -> None:
    for _ in range(3):
        rig.start(GREEDY)
    assert not rig.has_room(GREEDY)
    for task in rig.service.tasks.unfinished():
        if task.state == "queued":
            rig.service.tasks.stop(task.task_id)
    assert rig.has_room(GREEDY)


def test_a_refused_call_has_changed_nothing_and_says_how_it_is_done(rig: Rig) -> None:
    place = {"name": "full"}
    run(rig.service, ask.CreateStorageRepository(repo_format="memory-1.0", connection_parameters=place))
    connect = ask.ConnectStorageRepository(repo_id="a", repo_format="memory-1.0", connection_parameters=place)
    run(rig.service, connect)
    image_id = run(rig.service, ask.CreateVirtualDisk(target_repo_id="a", size=1 << 20))
    while rig.has_room(OPERATOR):
        rig.start(OPERATOR)
    token = CALLER.set(GREEDY)
    try:
        with pytest.raises(errors.TooManyRequests, match="tasks wait") as refused:
            run_unwatched(rig.service, ask.RemoveImage(repository_id="a", image_id=image_id))
        assert "listTasks" in refused.value.advice
        assert "AutoFix false" in refused.value.advice
        assert run_unwatched(rig.service, ask.GetImageInfo(repository_id="a", image_id=image_id))
        # What leaves no work needs no room for it.
        run_unwatched(rig.service, ask.CheckStorageRepository(repository_id="a"))
        asked = ask.CreateSnapshot(target_repo_id="a", base_virtual_disk_id=image_id)
        snapshot_id = run_unwatched(rig.service, asked)
        only = Options(auto_fix=False)
        for key in (image_id, snapshot_id):
            run_unwatched(rig.service, ask.RemoveImage(repository_id="a", image_id=key, options=only))
    finally:
        CALLER.reset(token)
    assert run(rig.service, ask.ListImages(repository_id="a")).images == ()
