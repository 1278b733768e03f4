"""Verbs and fixes on the disk "d" of a guest that writes all the time. See :mod:`diskyard.testing.live_runs`.

The guest is another process, and its disk must be attached before it starts. So these scenarios are only for
runs that have one; they are found by their names, and no other suite tries them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from diskyard import errors
from diskyard.fixes.runner import run_fix
from diskyard.model.fix import CleanSwitch
from diskyard.operations import guests
from diskyard.service import Service, call
from diskyard.testing.running_guest import RunningGuest, StorageDaemonGuest, judge
from diskyard.testing.scenarios.base import (
    LATER,
    NEW_ID,
    Act,
    Scenario,
    fix_first,
    new,
    same,
    verb,
)
from diskyard.testing.world import KIB, World

OWNER = {"owner": "guest"}
DISK = {"repositoryId": "a", "imageId": "@d"}
#: The first copy of the disk, from which the difference is made.
BASE_ID = "44444444-2222-4333-8444-555555555555"
_TASKS_END_S = 120.0
_EARLIER_WRITES = 5

Begin = Callable[[World, Service, RunningGuest], int]
"""Does something on the guest's host after its start. The result is a write that is certainly in what the
scenario freezes."""


def nothing_before(world: World, service: Service, guest: RunningGuest) -> int:
    """Nothing is done between the guest's start and the verb."""
    return guest.acknowledged()


@dataclass(frozen=True)
class LiveScenario(Scenario):
    """A scenario whose disk "d" has a running guest, attached for :data:`OWNER`.

    :param verb: its name in the API; None for a fix.
    :param makes: the repository in which it makes one image; None if it makes none.
    :param new_id: the id of that image, if the caller chose it.
    :param content: the bytes of that image; None for those of the guest's disk at one moment.
    :param begin: what is done before the scenario. It may end the guest.
    :param is_known: whether Diskyard has been told before where the guest's monitor is.
    """

    verb: str | None = None
    makes: str | None = None
    new_id: str | None = None
    content: Callable[[World], bytes] | None = None
    begin: Begin = nothing_before
    is_known: bool = True


# -- where it is ---------------------------------------------------------------------------


def guest_folder(world: World) -> Path:
    """The folder of the guest of a world."""
    return world.folder / "guest"


def answer_file(world: World) -> Path:
    """The file with the id that the caller was told, which a crash does not take back."""
    return world.folder / "answer"


def export_file(world: World) -> Path:
    """The file to which a disk is exported."""
    return world.folder / "export.raw"


# -- what they work on ---------------------------------------------------------------------


def written_before(world: World, service: Service) -> None:
    """Disk "d" over the Snapshot "s1", each with writes of a guest that has ended."""
    world.disk(service, "a", "d")
    _write_on(world, service, after=0)
    world.snapshot(service, "a", "d", "s1")
    _write_on(world, service, after=judge(world.images["a", world.names["s1"]], 0))


def _write_on(world: World, service: Service, after: int) -> None:
    asked = {"repositoryId": "a", "imageId": world.names["d"]}
    graph = call(service, "prepareImage", {**asked, "options": OWNER})["blockdev"]
    with StorageDaemonGuest(guest_folder(world), [graph], after=after) as guest:
        guest.wait_for(_EARLIER_WRITES)
        last = guest.end()
    call(service, "teardownImage", {**asked, "options": {**OWNER, **LATER}})
    world.images["a", world.names["d"]] = world.read(service, "a", world.names["d"])
    assert judge(world.images["a", world.names["d"]], last) == last


def beside_another(world: World, service: Service) -> None:
    """The same, and a disk "e" with other bytes."""
    written_before(world, service)
    world.disk(service, "a", "e")
    world.write(service, "a", "e", 7, 0, 256 * KIB)


def tracked(world: World, service: Service, guest: RunningGuest) -> int:
    """A copy in b from which a difference can be made, and writes since."""
    options = {"newImageId": BASE_ID, "trackChanges": True}
    call(service, "copyImage", {"targetRepoId": "b", "imageId": world.names["d"], "options": options})
    _wait(world, service)
    world.names["first copy"] = BASE_ID
    world.images["b", BASE_ID] = world.read(service, "b", BASE_ID)
    return guest.wait_for(3)


class _Interrupted(BaseException):
    """Ends a verb as the death of its process does: nothing is undone, and nobody is told."""


_SNAPSHOT = new("createSnapshot", targetRepoId="a", baseVirtualDiskId="@d")


def interrupted(*, followed: bool) -> Begin:
    """A Snapshot was interrupted just before the guest followed its disk to the overlay, or just after."""
    move = guests.RunningGuest.move

    def cut(*words: Any) -> None:
        if followed:
            move(*words)
        raise _Interrupted

    def begin(world: World, service: Service, guest: RunningGuest) -> int:
        before = guest.acknowledged()
        with mock.patch.object(guests.RunningGuest, "move", cut):
            try:
                _SNAPSHOT(world, service)
            except (_Interrupted, errors.InternalError):
                pass
            else:
                raise AssertionError("it was not interrupted")
        (attachment,) = service.connections.get("a").state().attachments_of(world.names["d"])
        assert attachment.switching is not None
        guest.wait_for(3)
        return before

    return begin


def then_killed(begin: Begin) -> Begin:
    """The same, and then the guest is killed."""

    def killed(world: World, service: Service, guest: RunningGuest) -> int:
        before = begin(world, service, guest)
        guest.kill()
        return before

    return killed


# -- actions -------------------------------------------------------------------------------


def told(act: Act) -> Act:
    """Do it, and keep what the caller is told."""

    def asked(world: World, service: Service) -> Any:
        answer = act(world, service)
        answer_file(world).write_text(answer if isinstance(answer, str) else "")
        return answer

    return asked


def _wait(world: World, service: Service) -> None:
    """Until the tasks have ended. An error of one is what check lists later."""
    assert service.tasks.wait(timeout_s=_TASKS_END_S), "what it started does not end"


def _copy(world: World, service: Service) -> Any:
    """Copy d to b, with its bytes."""
    answer = new("copyImage", targetRepoId="b", imageId="@d", options={"AutoFix": True})(world, service)
    _wait(world, service)
    return answer


def make_known(world: World, service: Service) -> None:
    """Tell Diskyard where the monitor of the guest is."""
    live = {"qmp": str(guest_folder(world) / "monitor")}
    asked = {"repositoryId": "a", "imageId": world.names["d"], "options": {**OWNER, "live": live}}
    call(service, "prepareImage", asked)


def _export(world: World, service: Service) -> None:
    asked = {"repositoryId": "a", "imageId": world.names["d"], "path": str(export_file(world))}
    call(service, "exportImage", {**asked, "format": "raw"})
    _wait(world, service)


def _disk_e(world: World) -> bytes:
    return world.images["a", world.names["e"]]


_TEARDOWN = verb("teardownImage", **DISK, options={**OWNER, **LATER})


def _fix_switches(world: World, service: Service) -> None:
    """Run the fixes of all switches that check lists, also of those that somebody works on."""
    for fix in world.fixes(service, "a"):
        if isinstance(fix.data.action, CleanSwitch):
            run_fix(service.engine, service.connections.get("a"), fix.data.action)


#: What is done beside a scenario: with the repository in which it makes one image, if it does.
BESIDE: dict[str, tuple[str | None, Act]] = {
    "create snapshot": ("a", verb("createSnapshot", targetRepoId="a", baseVirtualDiskId="@d")),
    "copy": ("b", verb("copyImage", targetRepoId="b", imageId="@d", options=LATER)),
    "prepare": (None, verb("prepareImage", **DISK, options=OWNER)),
    "prepare with live": (None, make_known),
    "fix": (None, _fix_switches),
    "teardown": (None, _TEARDOWN),
}

LIVE = [
    LiveScenario(
        "live create snapshot",
        written_before,
        told(verb("createSnapshot", targetRepoId="a", baseVirtualDiskId="@d")),
        same,
        verb="createSnapshot",
        makes="a",
    ),
    LiveScenario(
        "live create snapshot with an id",
        written_before,
        told(_SNAPSHOT),
        same,
        verb="createSnapshot",
        makes="a",
        new_id=NEW_ID,
    ),
    LiveScenario(
        "live copy",
        written_before,
        told(_copy),
        same,
        verb="copyImage",
        makes="b",
        new_id=NEW_ID,
    ),
    LiveScenario(
        "live copy onto the running disk",
        beside_another,
        told(new("copyImage", targetRepoId="a", imageId="@e", baseImageId="@d")),
        same,
        verb="copyImage",
        makes="a",
        new_id=NEW_ID,
        content=_disk_e,
    ),
    LiveScenario(
        "live difference",
        written_before,
        told(
            new(
                "copyImage",
                targetRepoId="b",
                imageId="@d",
                baseImageId="@first copy",
                options={"trackChanges": True},
            )
        ),
        same,
        verb="copyImage",
        makes="b",
        new_id=NEW_ID,
        begin=tracked,
    ),
    LiveScenario("live export", written_before, told(_export), same, verb="exportImage"),
    LiveScenario("live prepare", written_before, told(make_known), same, verb="prepareImage", is_known=False),
    *(
        LiveScenario(
            f"live fix of a switch that the guest {'followed' if followed else 'did not follow'}",
            written_before,
            told(fix_first("a", CleanSwitch)),
            same,
            makes="a",
            new_id=NEW_ID,
            begin=interrupted(followed=followed),
        )
        for followed in (False, True)
    ),
    *(
        LiveScenario(
            f"live teardown of a guest that died {'after' if followed else 'before'} it followed",
            written_before,
            told(_TEARDOWN),
            same,
            verb="teardownImage",
            makes="a",
            new_id=NEW_ID,
            begin=then_killed(interrupted(followed=followed)),
        )
        for followed in (False, True)
    ),
]
