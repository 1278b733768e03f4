"""Verbs on the disk of a guest that writes all the time: it loses nothing, and nothing stops it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from diskyard import Diskyard, MiB, errors
from diskyard.live.graph import Move
from diskyard.live.qmp_graph import QmpGraph
from diskyard.model.fix import CleanSwitch
from diskyard.model.state import State
from diskyard.mover.qemu.graphs import guest_nodes
from diskyard.operations import guests
from diskyard.repository.repository import Repository
from diskyard.testing.running_guest import StorageDaemonGuest, judge
from diskyard.testing.running_guest.by_hand import by_hand
from tests.api.helpers import Killed, Rig, code_of, fixes, run, run_fix, wait_until

SIZE = 4 * MiB
OWNER = {"owner": "vm"}


@pytest.fixture
def rig(quick_folder: Path) -> Iterator[Rig]:
    made = Rig(quick_folder)
    yield made
    made.close()


class LiveDisk:
    """A disk whose guest writes, and that Diskyard can talk to."""

    def __init__(self, rig: Rig, *, live: bool = True, user: str | None = None) -> None:
        self.rig, self._user = rig, user
        self.id = rig.yard.create_virtual_disk("a", SIZE)
        if user is not None:
            shutil.chown(rig.volume_path("a", self.id), user)  # as libvirt does for its guests
        self.guest = self._started(after=0)
        if live:
            self.prepare()

    def _started(self, after: int) -> StorageDaemonGuest:
        graph = self.rig.yard.prepare_image("a", self.id, OWNER).blockdev
        guest = StorageDaemonGuest(self.rig.folder / "guest", [graph], after=after, user=self._user)
        guest.__enter__()
        return guest

    def prepare(self, yard: Diskyard | None = None) -> None:
        live = {"qmp": str(self.guest.monitor)}
        (yard or self.rig.yard).prepare_image("a", self.id, {**OWNER, "live": live})

    def snapshot(self) -> str:
        """A Snapshot; all that was acknowledged before is in it, and nothing else."""
        before = self.guest.acknowledged()
        snapshot = self.rig.yard.create_snapshot("a", self.id)
        self.guest.wait_for(3)
        assert judge(self.rig.read("a", snapshot), before) <= self.guest.acknowledged()
        return snapshot

    def end(self) -> None:
        """The guest ends, and the disk has all that it wrote."""
        last = self.guest.end()
        assert self.guest.errors() == []
        self.rig.yard.teardown_image("a", self.id, OWNER)
        assert judge(self.rig.read("a", self.id), last) == last

    def kill(self) -> None:
        """The same for one that is killed."""
        last = self.guest.kill()
        self.rig.yard.teardown_image("a", self.id, OWNER)
        assert judge(self.rig.read("a", self.id), last) <= last + 1

    def judged_snapshots(self) -> int:
        """How many Snapshots there are; each is exactly what the guest had written by some moment."""
        snapshots = self.rig.yard.list_images("a", kind="snapshot").images
        for snapshot in snapshots:
            judge(self.rig.read("a", snapshot.image_id), 0)
        return len(snapshots)

    def volumes(self) -> tuple[str, ...]:
        """What its attachment names."""
        (attachment,) = self.rig.repository("a").state().attachments_of(self.id)
        return attachment.volume_ids


@pytest.fixture
def disk(rig: Rig) -> Iterator[LiveDisk]:
    made = LiveDisk(rig)
    yield made
    made.guest.kill()


def test_snapshots_of_a_running_disk(rig: Rig, disk: LiveDisk) -> None:
    """Each has what was written until its moment, however much is written after it."""
    snapshots = [disk.snapshot() for _ in range(3)]
    points = [judge(rig.read("a", snapshot), 0) for snapshot in snapshots]
    assert points == sorted(points)
    assert len(disk.volumes()) == 4
    disk.end()
    assert [judge(rig.read("a", snapshot), 0) for snapshot in snapshots] == points
    rig.clean_slate("a")


def test_a_killed_guest_has_lost_nothing(rig: Rig, disk: LiveDisk) -> None:
    disk.snapshot()
    disk.kill()
    rig.clean_slate("a")


def test_copies_of_a_running_disk(rig: Rig, disk: LiveDisk) -> None:
    """A full copy, then the difference: both of one moment each, made while the guest writes on."""
    before = disk.guest.acknowledged()
    first = rig.yard.copy_image("b", disk.id, options={"track_changes": True})
    rig.wait()
    point = judge(rig.read("b", first), before)
    disk.guest.wait_for(3)
    before = disk.guest.acknowledged()
    second = rig.yard.copy_image("b", disk.id, first)
    rig.wait()
    assert judge(rig.read("b", second), before) > point
    assert judge(rig.read("b", first), point) == point
    disk.end()


def test_a_copy_onto_a_running_disk(rig: Rig, disk: LiveDisk) -> None:
    """The base is frozen first; its guest goes on beside what is made on it."""
    other = rig.disk("a", (7, 0, SIZE))
    copy = rig.yard.copy_image("a", other, disk.id)
    rig.wait()
    rig.expect("a", copy, bytes([7]) * SIZE)
    disk.snapshot()
    disk.end()


def test_an_export_of_a_running_disk(rig: Rig, disk: LiveDisk) -> None:
    before = disk.guest.acknowledged()
    path = rig.folder / "exported.raw"
    task = rig.yard.export_image("a", disk.id, str(path), "raw")
    rig.yard.wait_for_task(task.task_id, 60)
    judge(path, before)
    disk.end()


def test_a_guest_of_another_user(rig: Rig) -> None:
    """The overlay is given to whoever the disk's volume was given to: its QEMU must be able to open it."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    rig.folder.chmod(0o755)
    disk = LiveDisk(rig, user="nobody")
    disk.snapshot()
    disk.snapshot()
    owner = Path(f"/proc/{disk.guest.pid}").stat().st_uid
    assert {path.stat().st_uid for path in rig.files("a")} == {owner}
    disk.end()


def test_what_still_needs_the_guest_to_end(rig: Rig, disk: LiveDisk) -> None:
    """It is refused, also by force, and the guest does not notice."""
    snapshot = disk.snapshot()
    yard = rig.yard
    refused: list[Callable[[], object]] = [
        lambda: yard.revert_virtual_disk("a", disk.id, snapshot),
        lambda: yard.extend_virtual_disk("a", disk.id, 2 * SIZE),
        lambda: yard.remove_image("a", disk.id),
        lambda: yard.teardown_image("a", disk.id, OWNER),
        lambda: yard.teardown_image("a", disk.id, {**OWNER, "force": True}),
    ]
    assert [code_of(call) for call in refused] == ["ImageInUse"] * len(refused)
    disk.end()


def test_a_guest_that_nobody_can_talk_to(rig: Rig) -> None:
    """All is as before: the verbs wait until it has ended, and say how they need not."""
    disk = LiveDisk(rig, live=False)
    with pytest.raises(errors.ImageInUse, match="nobody has said how to talk to that guest") as refused:
        rig.yard.create_snapshot("a", disk.id)
    assert "with live" in refused.value.advice
    disk.end()


def test_only_its_own_host_and_state_can_talk_to_it(rig: Rig, disk: LiveDisk) -> None:
    """What a record says does not make another state directory, or host, talk to anybody."""
    with pytest.raises(errors.ImageInUse, match="only host one can talk"):
        rig.host("two").create_snapshot("a", disk.id)
    (rig.folder / "state-one" / "guests").rename(rig.folder / "away")
    with pytest.raises(errors.ImageInUse, match="does not know where"):
        rig.yard.create_snapshot("a", disk.id)
    disk.prepare()
    disk.snapshot()
    disk.end()


# -- interrupted ------------------------------------------------------------------------------


def interrupted(disk: LiveDisk, patch: pytest.MonkeyPatch, *, followed: bool) -> None:
    """A verb is cut off between the log and the guest, or between the guest and the log."""
    move = guests.RunningGuest.move

    def cut(guest: guests.RunningGuest, repo: Repository, state: State, overlay_id: str) -> None:
        if followed:
            move(guest, repo, state, overlay_id)
        raise Killed

    with patch.context() as patched:
        patched.setattr(guests.RunningGuest, "move", cut)
        with pytest.raises((Killed, errors.InternalError)):
            disk.rig.yard.create_snapshot("a", disk.id)
    (attachment,) = disk.rig.repository("a").state().attachments_of(disk.id)
    assert attachment.switching is not None


@pytest.mark.parametrize("followed", [False, True])
def test_the_next_verb_asks_the_guest(
    rig: Rig, disk: LiveDisk, followed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the guest did counts: the Snapshot is there, or nothing has happened."""
    interrupted(disk, monkeypatch, followed=followed)
    disk.guest.wait_for(3)
    disk.snapshot()
    assert disk.judged_snapshots() == (2 if followed else 1)
    disk.end()
    for fix in fixes(rig.yard, "a"):
        run_fix(rig.yard, "a", fix)
    rig.clean_slate("a")


@pytest.mark.parametrize("followed", [False, True])
@pytest.mark.parametrize("killed", [False, True])
def test_check_lists_it(
    rig: Rig, disk: LiveDisk, followed: bool, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fix asks the guest. If that was killed, what it wrote last is in the overlay, or nothing is."""
    interrupted(disk, monkeypatch, followed=followed)
    disk.guest.wait_for(3)
    if killed:
        disk.guest.kill()
    (fix,) = (found for found in fixes(rig.yard, "a") if isinstance(found.data.action, CleanSwitch))
    assert fix.runnable, fix
    assert run_fix(rig.yard, "a", fix).state == "done"
    (attachment,) = rig.repository("a").state().attachments_of(disk.id)
    assert attachment.switching is None
    assert len(rig.yard.list_images("a", kind="snapshot").images) == followed
    if killed:
        disk.kill()
    else:
        disk.end()


@pytest.mark.parametrize("followed", [False, True])
def test_teardown_of_a_guest_that_was_killed_meanwhile(
    rig: Rig, disk: LiveDisk, followed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(disk, monkeypatch, followed=followed)
    disk.guest.wait_for(3)
    disk.kill()
    assert disk.judged_snapshots() == followed
    rig.wait()
    rig.clean_slate("a")


def test_a_guest_that_refuses(rig: Rig, disk: LiveDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The overlay is gone before it is opened: QEMU says so, and all is as it was."""
    before = disk.volumes()
    switch = QmpGraph.switch

    def without_overlay(graph: QmpGraph, moves: Sequence[Move]) -> None:
        path = Path(moves[0].overlay.path or "")
        path.rename(rig.folder / "away")
        try:
            switch(graph, moves)
        finally:
            (rig.folder / "away").rename(path)

    with monkeypatch.context() as patched:
        patched.setattr(QmpGraph, "switch", without_overlay)
        with pytest.raises(errors.StorageError, match="No such file"):
            rig.yard.create_snapshot("a", disk.id)
    assert disk.volumes() == before
    disk.snapshot()
    disk.end()


def test_a_monitor_that_hangs_decides_nothing(
    rig: Rig, disk: LiveDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(disk, monkeypatch, followed=True)
    os.kill(disk.guest.pid, signal.SIGSTOP)
    try:
        with pytest.raises((errors.StorageError, errors.LeaseHeld)):
            rig.yard.create_snapshot("a", disk.id)
        (attachment,) = rig.repository("a").state().attachments_of(disk.id)
        assert attachment.switching is not None
    finally:
        os.kill(disk.guest.pid, signal.SIGCONT)
    disk.snapshot()
    disk.end()


# -- other programs ---------------------------------------------------------------------------


def test_a_chain_that_another_program_changed(rig: Rig, disk: LiveDisk) -> None:
    """Nothing is frozen or merged, and the disk is damaged until a person has put it right."""
    disk.snapshot()
    (attached,) = rig.repository("a").state().attachments_of(disk.id)
    top, _ = guest_nodes(attached.id, disk.volumes()[0])
    overlay = rig.folder / "by-hand.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(overlay), str(SIZE))
    with by_hand(disk.guest.monitor) as monitor:
        monitor.switch({top: overlay})
    with pytest.raises(errors.ImageInUse, match="Another program changed the chain"):
        rig.yard.create_snapshot("a", disk.id)
    assert code_of(lambda: rig.yard.create_snapshot("a", disk.id)) in ("ImageBroken", "ImageInUse")
    assert rig.yard.get_image_status("a", disk.id).status == "broken"
    disk.guest.wait_for(3)
    with by_hand(disk.guest.monitor) as monitor:
        monitor.command("block-commit", job_id="by-hand", device="by-hand", base_node=top)
        wait_until(lambda: "ready" in str(monitor.command("query-jobs")))
        monitor.command("job-complete", id="by-hand")
        wait_until(lambda: monitor.command("query-jobs") == [])
        monitor.command("blockdev-del", node_name="by-hand")
    disk.prepare()
    assert rig.yard.get_image_status("a", disk.id).status != "broken"
    disk.snapshot()
    disk.end()


def test_a_guest_that_is_started_with_a_graph_from_before(rig: Rig, disk: LiveDisk) -> None:
    """It writes to a volume that is frozen. That is found when Diskyard is told of it, and no copy has it."""
    old = rig.yard.prepare_image("a", disk.id, OWNER).blockdev
    snapshot = disk.snapshot()
    last = disk.guest.kill()
    disk.guest = StorageDaemonGuest(rig.folder / "guest", [old], after=last)
    with disk.guest:
        disk.guest.wait_for(3)
        with pytest.raises(errors.ImageInUse, match="graph from before"):
            disk.prepare()
    assert rig.yard.get_image_status("a", snapshot).status == "broken"
    rig.yard.teardown_image("a", disk.id, OWNER)


def test_a_guest_that_is_started_again(rig: Rig, disk: LiveDisk) -> None:
    """From what prepareImage returns then; Diskyard talks to it once it is told."""
    disk.snapshot()
    last = disk.guest.kill()
    graph = rig.yard.prepare_image("a", disk.id, OWNER).blockdev
    disk.guest = StorageDaemonGuest(rig.folder / "guest", [graph], after=last)
    disk.guest.__enter__()
    with pytest.raises(errors.ImageInUse, match="was started again"):
        rig.yard.create_snapshot("a", disk.id)
    disk.prepare()
    disk.snapshot()
    disk.end()


@pytest.mark.parametrize("words", [{"qmp": "relative"}, {"qmp": "/run/a\nb"}, {"qmp": "/nobody/there"}])
def test_live_that_cannot_be(rig: Rig, disk: LiveDisk, words: dict[str, str]) -> None:
    with pytest.raises((errors.InvalidParameter, errors.StorageError)):
        rig.yard.prepare_image("a", disk.id, {**OWNER, "live": words})
    disk.snapshot()


def test_live_before_the_guest(rig: Rig) -> None:
    """It is refused: the guest must have been started with what this verb returned."""
    disk = rig.yard.create_virtual_disk("a", SIZE)
    with pytest.raises(errors.InvalidParameter, match="No guest vm has image"):
        rig.yard.prepare_image("a", disk, {**OWNER, "live": {"qmp": "/run/vm/monitor"}})
    assert rig.yard.get_image_info("a", disk).attachments == ()
