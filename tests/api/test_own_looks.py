"""What Diskyard itself only looks at can be given to a guest at the same moment."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from diskyard import MiB
from diskyard.testing.fake_programs import FakePrograms
from tests.api.helpers import SIZE, Rig, fixes, graph, picture, run_fix, settle, wait_until
from tests.live_qemu import LiveQemu

ONE = (1, 0, MiB)
TWO = (2, MiB, MiB)
WRITE_TWO = f"write -P 2 {MiB} {MiB}"

#: It opens what it is to look at, with the locks that it would have, and stays so until it may go on.
_HELD = """
import os, subprocess, sys, time
folder = FOLDER
if os.path.exists(folder + "/go on"):
    os.execv(TRUE_PROGRAM, sys.argv)
reader = subprocess.Popen(
    ["qemu-io", "-r", sys.argv[-1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False
)
reader.stdin.write(b"read 0 512\\n")
reader.stdin.flush()
while b"ops" not in (line := reader.stdout.readline()):
    assert line
open(folder + "/begun", "w").close()
while not os.path.exists(folder + "/go on"):
    time.sleep(0.01)
reader.communicate()
"""
_THEN_LOOK = "os.execv(TRUE_PROGRAM, sys.argv)"
_THEN_SAY_DAMAGED = """print('{"corruptions": 7}'); sys.exit(2)"""


class Held:
    """Something of ours that looks at a volume, from its beginning until :meth:`go_on`."""

    def __init__(self, folder: Path, then: str, patch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        programs = FakePrograms(folder / "programs")
        code = _HELD.replace("FOLDER", repr(str(folder)))
        programs.wrap("qemu-img", f"{code}\n{then}")
        patch.setenv("PATH", programs.path)
        self._pool = ThreadPoolExecutor(1)

    def begin(self, look: Callable[[], Any]) -> Future[Any]:
        """Start it; it has the volume open when this returns."""
        future = self._pool.submit(look)
        wait_until(lambda: future.done() or (self._folder / "begun").exists())
        return future

    def go_on(self, future: Future[Any]) -> Any:
        """Let it end."""
        (self._folder / "go on").touch()
        return future.result()

    def close(self) -> None:
        """Whatever has happened, nothing is left waiting."""
        (self._folder / "go on").touch()
        self._pool.shutdown()


@pytest.fixture
def hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Held]]:
    made: list[Held] = []

    def make(then: str) -> Held:
        folder = tmp_path / "held"
        folder.mkdir()
        made.append(Held(folder, then, monkeypatch))
        return made[0]

    yield make
    for held in made:
        held.close()


def _disk(rig: Rig) -> str:
    """A disk with a qcow2 volume."""
    disk = rig.raw_disk("a", ONE)
    rig.yard.create_snapshot("a", disk)
    rig.write("a", disk, (3, 2 * MiB, MiB))
    return disk


def test_a_guest_starts_in_the_middle_of_a_deep_check(rig: Rig, hold: Callable[[str], Held]) -> None:
    """Its QEMU opens the disk for writing, with its locks on, though the check has it open."""
    yard, disk = rig.yard, _disk(rig)
    held = hold(_THEN_LOOK)
    check = held.begin(lambda: yard.check_storage_repository("a", {"deep": True}))
    attached = yard.prepare_image("a", disk)
    with LiveQemu(graph(attached)) as guest:
        guest.ask(WRITE_TWO)
        assert not check.done()
        assert held.go_on(check) == []
    yard.teardown_image("a", disk)
    rig.expect("a", disk, picture(SIZE, ONE, TWO, (3, 2 * MiB, MiB)))


def _prepared(rig: Rig, disk: str) -> None:
    rig.yard.prepare_image("a", disk)


def _came_and_went(rig: Rig, disk: str) -> None:
    attached = rig.yard.prepare_image("a", disk)
    with LiveQemu(graph(attached)) as guest:
        guest.ask(WRITE_TWO)
    rig.yard.teardown_image("a", disk)


def _nobody_prepared(rig: Rig, disk: str) -> None:
    """A guest of which nothing in the log tells, and which has ended."""
    file = {"driver": "file", "filename": str(rig.volume_path("a", disk))}
    with LiveQemu("json:" + json.dumps({"driver": "qcow2", "backing": None, "file": file})) as guest:
        guest.ask(WRITE_TWO)


@pytest.mark.parametrize("happens", [_prepared, _came_and_went, _nobody_prepared])
def test_what_a_check_saw_of_a_disk_given_out_says_nothing(
    rig: Rig, hold: Callable[[str], Held], happens: Callable[[Rig, str], None]
) -> None:
    """Half of a guest's change looks like damage: it is not noted, and the disk is not broken."""
    yard, disk = rig.yard, _disk(rig)
    held = hold(_THEN_SAY_DAMAGED)
    check = held.begin(lambda: yard.check_storage_repository("a", {"deep": True}))
    happens(rig, disk)
    held.go_on(check)
    assert all(volume.damage is None for volume in rig.repository("a").state().volumes.values())
    assert yard.get_image_status("a", disk).status != "broken"


def test_damage_that_nobody_is_making_is_noted(rig: Rig, hold: Callable[[str], Held]) -> None:
    """The look that shares is the same look."""
    yard, disk = rig.yard, _disk(rig)
    held = hold(_THEN_SAY_DAMAGED)
    held.go_on(held.begin(lambda: yard.check_storage_repository("a", {"deep": True})))
    assert yard.get_image_status("a", disk).status == "broken"


def test_a_guest_starts_while_its_disk_is_optimized(rig: Rig, hold: Callable[[str], Held]) -> None:
    """It has the disk, and what was read of it beside the guest is thrown away."""
    yard, disk = rig.yard, _disk(rig)
    yard.set_strategy("a", disk, "performance")
    (fix,) = fixes(yard, "a", "optimize")
    held = hold(_THEN_LOOK)
    task = held.begin(lambda: run_fix(yard, "a", fix))
    attached = yard.prepare_image("a", disk)
    with LiveQemu(graph(attached)) as guest:
        guest.ask(WRITE_TWO)
        assert not held.go_on(task).changed
    yard.teardown_image("a", disk)
    settle(yard, "a")
    rig.expect("a", disk, picture(SIZE, ONE, TWO, (3, 2 * MiB, MiB)))
    rig.clean_slate("a")
