"""Tasks over the API: what runs first, what is told of it, the host's rate, stopping, closing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from diskyard import MiB
from diskyard.caller import CALLER, Caller
from diskyard.model.fix import Fix
from diskyard.model.options import FixOptions
from diskyard.model.requests import FixStorageRepository
from diskyard.model.results import Task
from diskyard.service import Service, call
from diskyard.service.verbs import run_unwatched
from diskyard.tasks.limits import TaskLimits
from tests.api.helpers import COMMIT_ONLY, SIZE, UNLIMITED, Rig, actors, picture, settle, wait_until

WHOLE = (1, 0, SIZE)
#: So slow that it does not end within a test.
CRAWL = {"rateLimit": 1}


class Host:
    """A host of the rig with limits of its own, called as the wire does."""

    def __init__(self, rig: Rig, folder: Path, limits: TaskLimits) -> None:
        self.service = Service(state_folder=str(folder), limits=limits, actor="host")
        for name in ("a", "b"):
            self.call("connectStorageRepository", repoId=name, repoFormat=rig.format, **place(rig, name))

    def call(self, verb: str, **parameters: Any) -> Any:
        return call(self.service, verb, parameters)

    def fixes(self, repo: str, *types: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("checkStorageRepository", repositoryId=repo)
        return [fix for fix in found if fix["runnable"] and (not types or fix["type"] in types)]

    def fix(self, repo: str, fix: dict[str, Any], **options: Any) -> str:
        task_id: str = self.call("fixStorageRepository", repositoryId=repo, fix=fix, options=options)[
            "taskId"
        ]
        return task_id

    def task(self, task_id: str) -> Task:
        return self.service.records.get(task_id)

    def await_bytes(self, task_id: str) -> None:
        """Until a task moves bytes."""
        wait_until(lambda: self.task(task_id).total_bytes > 0)


def place(rig: Rig, name: str) -> dict[str, Any]:
    return {"connectionParameters": rig.place(name)}


MakeHost = Callable[[TaskLimits], Host]


@pytest.fixture
def make_host(rig: Rig, tmp_path: Path) -> Iterator[MakeHost]:
    made: list[Host] = []

    def make(limits: TaskLimits) -> Host:
        made.append(Host(rig, tmp_path / f"host-{len(made)}", limits))
        return made[-1]

    yield make
    for host in made:
        host.service.close()


def copies(rig: Rig, number: int) -> list[str]:
    """Copies in ``b`` that are to be completed."""
    disk = rig.disk("a", WHOLE)
    return [rig.yard.copy_image("b", disk, options=COMMIT_ONLY) for _ in range(number)]


def test_fixes_run_by_type_and_the_first_before_all(rig: Rig, make_host: MakeHost) -> None:
    """With one place: what ran when is in the tasks' records."""
    copies(rig, 3)
    for _ in range(2):
        rig.yard.remove_image("b", rig.disk("b", WHOLE), options=COMMIT_ONLY)
    disk = rig.disk("b", WHOLE)
    rig.yard.set_strategy("b", disk, "performance")
    rig.yard.create_snapshot("b", disk)
    host = make_host(TaskLimits(at_once=1))
    slow, *mends = host.fixes("b", "mend")
    cleans, (optimize, *_) = host.fixes("b", "clean"), host.fixes("b", "optimize")
    held = host.fix("b", slow, **CRAWL)
    host.await_bytes(held)
    ids = [host.fix("b", fix) for fix in (cleans[0], optimize, mends[0], mends[1])]
    first = host.fix("b", cleans[1], runFirst=True)
    assert {host.task(task_id).state for task_id in [*ids, first]} == {"queued"}
    host.call("stopTask", taskId=held)
    assert host.service.tasks.wait(timeout_s=60)
    ran = sorted([held, first, *ids], key=lambda task_id: host.task(task_id).started_at or "")
    assert ran == [held, first, ids[2], ids[3], ids[1], ids[0]]
    assert [host.task(task_id).error for task_id in ran] == [None] * 6
    settle(rig.yard, "b", "a")
    rig.clean_slate("a", "b")


def test_what_is_told_of_tasks_is_what_is_shown(rig: Rig, make_host: MakeHost) -> None:
    copies(rig, 1)
    host = make_host(TaskLimits())
    before = host.service.events.newest()
    task_id = host.fix("b", *host.fixes("b", "mend"), rateLimit=UNLIMITED)
    assert host.service.tasks.wait(timeout_s=60)
    events, _, all_kept = host.service.events.after(before)
    told = [event for event in events if event.kind == "task"]
    assert all_kept
    assert {event.repository_id for event in told} == {"b"}
    states = [event.data["state"] for event in told]
    assert (states[0], states[-1], set(states[1:-1])) == ("queued", "done", {"running"})
    assert told[-1].data == host.call("getTask", taskId=task_id)


def test_the_rate_of_the_host_is_for_who_gave_none(rig: Rig, make_host: MakeHost) -> None:
    """At a byte a second nothing ends; what asked for more speed does, whoever asked when."""
    first, second, third = copies(rig, 3)
    disk = rig.disk("a", WHOLE)
    own = rig.yard.copy_image("b", disk, options={**COMMIT_ONLY, "rate_limit": UNLIMITED})
    host = make_host(TaskLimits(at_once=4, at_once_per_repository=4, rate_limit_bytes_per_s=1))
    by_image = {fix["imageId"]: fix for fix in host.fixes("b", "mend")}
    slow = host.fix("b", by_image[first])
    export = host.call(
        "exportImage", repositoryId="a", imageId=disk, path=str(rig.folder / "out"), format="raw"
    )["taskId"]
    for quick in (host.fix("b", by_image[second], rateLimit=UNLIMITED), host.fix("b", by_image[own])):
        assert host.service.tasks.wait([quick], 60)
        assert host.task(quick).state == "done"
    assert (host.task(slow).state, host.task(export).state) == ("running", "running")
    for task_id in (slow, export):
        host.call("stopTask", taskId=task_id)
    assert host.service.tasks.wait(timeout_s=60)
    assert (host.task(slow).state, host.task(export).state) == ("stopped", "stopped")
    assert not (rig.folder / "out").exists()
    settle(rig.host("two"), "b", "a")
    for copy in (first, second, third, own):
        rig.expect("b", copy, picture(SIZE, WHOLE))


def test_a_task_names_its_caller(rig: Rig, make_host: MakeHost) -> None:
    """Both what it commits and the ids that its request answers with."""
    copies(rig, 1)
    host = make_host(TaskLimits())
    (fix,) = host.fixes("b", "mend")
    caller = Caller("token:alice")
    token = CALLER.set(caller)
    try:
        request = FixStorageRepository(
            repository_id="b", fix=msgspec.convert(fix, Fix), options=FixOptions(rate_limit=UNLIMITED)
        )
        task = run_unwatched(host.service, request)
    finally:
        CALLER.reset(token)
    assert caller.started == [task.task_id]
    assert host.service.tasks.wait(timeout_s=60)
    assert actors(rig.repository("b"), "mend") == {"token:alice"}


def test_a_queued_task_is_stopped_without_a_trace(rig: Rig, make_host: MakeHost) -> None:
    """It ends before its turn; nothing is written in the repository, and its fix stays listed."""
    copies(rig, 2)
    host = make_host(TaskLimits(at_once=1))
    one, two = host.fixes("b", "mend")
    held = host.fix("b", one, **CRAWL)
    host.await_bytes(held)
    queued = host.fix("b", two)
    version = rig.repository("b").state().version
    host.call("stopTask", taskId=queued)
    assert (host.task(queued).state, host.task(queued).started_at) == ("stopped", None)
    assert host.task(held).state == "running"
    assert rig.repository("b").state().version == version
    assert [fix["fixId"] for fix in host.fixes("b", "mend")] == [two["fixId"]]


def test_closing_leaves_what_runs_at_its_checkpoint(
    rig: Rig, make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done is kept, what was queued is listed as it was; another host completes both."""
    monkeypatch.setattr("diskyard.mover.copying.moving._CHECKPOINT_S", 0.0)
    monkeypatch.setattr("diskyard.mover.copying.telling._BATCH_MOVES", 1)
    monkeypatch.setattr("diskyard.mover.copying.moving._IN_FLIGHT_MOST", 1)
    images = copies(rig, 2)
    host = make_host(TaskLimits(at_once=1))
    one, two = host.fixes("b", "mend")
    runs = host.fix("b", one, rateLimit=MiB)
    wait_until(
        lambda: (
            (found := rig.repository("b").progress(one["imageId"])) is not None and found.durable_bytes > 0
        )
    )
    queued = host.fix("b", two)
    assert host.service.close()
    assert [host.task(task_id).state for task_id in (runs, queued)] == ["stopped", "stopped"]
    assert host.service.records.interrupted() == []  # it was asked for, by whoever closed
    progress = rig.repository("b").progress(one["imageId"])
    assert progress is not None
    assert 0 < progress.durable_bytes < SIZE
    assert rig.repository("b").progress(two["imageId"]) is None
    other = rig.host("two")
    listed = other.check_storage_repository("b")
    assert {fix.fix_id for fix in listed if fix.runnable} >= {one["fixId"], two["fixId"]}
    (task,) = (
        other.wait_for_task(other.fix_storage_repository("b", fix).task_id, 60)
        for fix in listed
        if fix.fix_id == one["fixId"]
    )
    assert task.total_bytes <= SIZE - progress.durable_bytes
    settle(other, "b", "a")
    for image in images:
        rig.expect("b", image, picture(SIZE, WHOLE))
    rig.clean_slate("a", "b")
