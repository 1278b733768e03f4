"""Guests that are not where, or what, one would think: nothing is decided on what was true before."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskyard import Diskyard, errors
from diskyard.live.monitor import Monitor
from diskyard.model.fix import CleanChanged
from diskyard.mover.qemu.graphs import guest_nodes
from diskyard.operations import guests
from diskyard.planner import common
from diskyard.testing.running_guest import StorageDaemonGuest, judge
from diskyard.testing.running_guest.by_hand import by_hand
from tests.api.helpers import Killed, Rig, code_of, fixes, wait_until
from tests.live.test_verbs import OWNER, LiveDisk, interrupted


@pytest.fixture
def rig(quick_folder: Path) -> Iterator[Rig]:
    made = Rig(quick_folder)
    yield made
    made.close()


@pytest.fixture
def disk(rig: Rig) -> Iterator[LiveDisk]:
    made = LiveDisk(rig)
    yield made
    made.guest.kill()


def is_sound(rig: Rig, disk: LiveDisk) -> bool:
    """Whether the disk and all its Snapshots can be used."""
    images = rig.yard.list_images("a").images
    return disk.id in {image.image_id for image in images} and all(
        image.status != "broken" for image in images
    )


def top_node(rig: Rig, disk: LiveDisk) -> str:
    (attachment,) = rig.repository("a").state().attachments_of(disk.id)
    return guest_nodes(attachment.id, attachment.volume_ids[0])[0]


# -- others at the same time ------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["snapshot", "prepare"])
def test_somebody_else_moves_the_guest_while_its_monitor_is_awaited(
    rig: Rig, disk: LiveDisk, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read before does not name the volume that the guest is on by then."""
    enter = Monitor.__enter__
    waiting = [True]

    def late(monitor: Monitor) -> Monitor:
        if waiting:
            waiting.clear()
            other = threading.Thread(target=disk.snapshot)
            other.start()
            other.join()
        return enter(monitor)

    monkeypatch.setattr(Monitor, "__enter__", late)
    if verb == "snapshot":
        disk.snapshot()
    else:
        disk.prepare()
    assert is_sound(rig, disk)
    disk.end()


def test_many_at_once(rig: Rig, disk: LiveDisk) -> None:
    """Each ends well, or says that somebody else is at it."""
    refused: list[str] = []

    def work() -> None:
        for _ in range(4):
            try:
                rig.yard.create_snapshot("a", disk.id)
            except errors.DiskyardError as error:
                refused.append(error.code)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(refused) <= {"LeaseHeld"}
    assert is_sound(rig, disk)
    assert disk.judged_snapshots() == 3 * 4 - len(refused)
    disk.end()


# -- interrupted, and the guest does not tell -----------------------------------------------------


@pytest.mark.parametrize("keeps_nodes", [False, True])
def test_a_disk_that_was_unplugged_after_it_followed(
    rig: Rig, disk: LiveDisk, keeps_nodes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU does not read the overlay any more, but what the guest wrote is there, or in QEMU's memory."""
    interrupted(disk, monkeypatch, followed=True)
    disk.guest.wait_for(5)
    top = top_node(rig, disk)
    with by_hand(disk.guest.monitor) as monitor:
        monitor.command("block-export-del", id="export0", mode="hard")
        wait_until(lambda: monitor.command("query-block-exports") == [])
        last = disk.guest.acknowledged()
        if not keeps_nodes:
            monitor.command("blockdev-del", node_name=top)
    rig.yard.teardown_image("a", disk.id, OWNER)
    rig.wait()
    assert judge(rig.read("a", disk.id), last) <= last + 1


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_guest_that_did_not_follow_and_is_started_again(
    rig: Rig, disk: LiveDisk, elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the graph that it had: that is right, as the overlay is empty. It may answer at another path."""
    old = rig.yard.prepare_image("a", disk.id, OWNER).blockdev
    interrupted(disk, monkeypatch, followed=False)
    last = disk.guest.kill()
    folder = rig.folder / ("elsewhere" if elsewhere else "guest")
    disk.guest = StorageDaemonGuest(folder, [old], after=last)
    with disk.guest:
        disk.guest.wait_for(3)
        disk.prepare()
        assert is_sound(rig, disk)
        disk.snapshot()
        disk.end()


def test_two_state_directories(rig: Rig, disk: LiveDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest that one of them knew has ended; another one runs, which only the other knows."""
    old = rig.yard.prepare_image("a", disk.id, OWNER).blockdev
    last = disk.guest.kill()
    disk.guest = StorageDaemonGuest(rig.folder / "again", [old], after=last)
    with disk.guest:
        monkeypatch.setenv("DISKYARD_HOST_ID", "one")
        second = Diskyard(state_folder=str(rig.folder / "state-of-another"))
        second.connect_storage_repository("a", rig.format, rig.place("a"))
        disk.prepare(second)
        with monkeypatch.context() as patched:
            patched.setattr(guests.RunningGuest, "move", _cut)
            with pytest.raises((Killed, errors.InternalError)):
                second.create_snapshot("a", disk.id)
        rig.yard.prepare_image("a", disk.id, OWNER)
        assert rig.yard.list_images("a", kind="snapshot").images == ()
        disk.guest.wait_for(3)
        second.create_snapshot("a", disk.id)
        second.close()
        assert is_sound(rig, disk)
        disk.end()


def _cut(*words: object) -> None:
    raise Killed


def test_force_does_not_end_what_runs(rig: Rig, disk: LiveDisk) -> None:
    """Not even while somebody else has its monitor, so that it cannot be asked."""
    force = {**OWNER, "force": True}
    with by_hand(disk.guest.monitor):
        assert code_of(lambda: rig.yard.teardown_image("a", disk.id, force)) == "LeaseHeld"
    assert code_of(lambda: rig.yard.teardown_image("a", disk.id, force)) == "ImageInUse"
    disk.snapshot()
    disk.end()


# -- other files, and other programs ---------------------------------------------------------------


def test_files_that_were_exchanged_under_the_guest(rig: Rig, disk: LiveDisk) -> None:
    """The names of its nodes are right, and it writes to what is gone. It cannot be made known either."""
    for path in rig.files("a"):
        shutil.copyfile(path, rig.folder / "copy")
        (rig.folder / "copy").replace(path)
    for call in (disk.snapshot, disk.prepare):
        with pytest.raises(errors.ImageInUse, match="was exchanged since the guest opened it"):
            call()
    assert rig.yard.list_images("a", kind="snapshot").images == ()


@pytest.mark.parametrize("by", ["graph from before", "foreign overlay"])
def test_a_person_accepts_what_others_did(rig: Rig, disk: LiveDisk, by: str) -> None:
    """Nobody else can: the fix is listed, and runs by force only."""
    old = rig.yard.prepare_image("a", disk.id, OWNER).blockdev
    disk.snapshot()
    if by == "foreign overlay":
        overlay = rig.folder / "by-hand.qcow2"
        shutil.copyfile(rig.volume_path("a", disk.id), overlay)
        with by_hand(disk.guest.monitor) as monitor:
            monitor.switch({top_node(rig, disk): overlay})
        assert code_of(lambda: rig.yard.create_snapshot("a", disk.id)) == "ImageInUse"
        disk.guest.kill()
    else:
        last = disk.guest.kill()
        disk.guest = StorageDaemonGuest(rig.folder / "guest", [old], after=last)
        with disk.guest:
            disk.guest.wait_for(3)
            assert code_of(disk.prepare) == "ImageInUse"
    rig.yard.teardown_image("a", disk.id, OWNER)
    assert not is_sound(rig, disk)
    (fix,) = (found for found in fixes(rig.yard, "a") if isinstance(found.data.action, CleanChanged))
    assert not fix.runnable
    task = rig.yard.fix_storage_repository("a", fix)
    with pytest.raises(errors.ImageInUse, match="only a person can decide"):
        rig.yard.wait_for_task(task.task_id, 60)
    task = rig.yard.fix_storage_repository("a", fix, options={"force": True})
    assert rig.yard.wait_for_task(task.task_id, 60).state == "done"
    assert is_sound(rig, disk)
    rig.yard.prepare_image("a", disk.id, OWNER)
    rig.yard.teardown_image("a", disk.id, OWNER)


def test_a_chain_that_would_be_too_deep_to_start_from(
    rig: Rig, disk: LiveDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that runs on could not be started again."""
    monkeypatch.setattr(common, "CHAIN_DEPTH_OPENED", 4)
    for _ in range(3):
        disk.snapshot()
    assert code_of(lambda: rig.yard.create_snapshot("a", disk.id)) == "Unsupported"
    rig.yard.prepare_image("a", disk.id, OWNER)
    disk.end()
