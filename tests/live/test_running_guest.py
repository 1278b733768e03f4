"""The writing guests that other tests rely on, and the judge of their writes."""

from __future__ import annotations

import itertools
import json
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from diskyard import Diskyard, MiB
from diskyard.testing.running_guest import (
    EmulatedGuest,
    RunningGuest,
    StorageDaemonGuest,
    judge,
    require_one_moment,
)
from diskyard.testing.running_guest.blocks import BLOCK_BYTES, SLOTS, block_of, slot_of, stride_bytes
from diskyard.testing.running_guest.by_hand import Monitor, by_hand
from diskyard.testing.running_guest.machine import Machine
from tests.api.helpers import UNLIMITED, Rig, run, wait_until

SIZE = 4 * MiB
Graph = Mapping[str, object]

# -- the judge --------------------------------------------------------------------------


def written(point: int, *, size_bytes: int = SIZE, disk: int = 0, without: Sequence[int] = ()) -> bytearray:
    """An image with the writes up to a point, done one after the other."""
    data = bytearray(size_bytes)
    for number in range(1, point + 1):
        if number not in without:
            put(data, slot_of(number), block_of(number, disk))
    return data


def put(data: bytearray, slot: int, block: bytes) -> None:
    start = slot * stride_bytes(len(data))
    data[start : start + BLOCK_BYTES] = block


@pytest.mark.parametrize("point", [0, 1, SLOTS - 1, SLOTS, SLOTS + 1, 3 * SLOTS + 7])
def test_judge_accepts_every_prefix(point: int, tmp_path: Path) -> None:
    image = written(point)
    assert judge(image, point) == point
    assert judge(image, max(0, point - 1)) == point
    path = tmp_path / "image"
    path.write_bytes(image)
    assert judge(path, point) == point


def test_judge_accepts_disks_of_all_sizes_and_what_was_extended() -> None:
    for size in (MiB, 64 * MiB):
        assert judge(written(300, size_bytes=size), 300) == 300
    longer = written(300) + bytes(SIZE)
    assert judge(longer, 300, first_size_bytes=SIZE) == 300
    with pytest.raises(AssertionError):
        judge(longer, 300)


def test_judge_misses_the_last_acknowledged_write() -> None:
    with pytest.raises(AssertionError, match="has the writes up to 299, but write 300 was acknowledged"):
        judge(written(299), 300)


@pytest.mark.parametrize("lost", [120, 299])
def test_judge_misses_a_write_in_between(lost: int) -> None:
    before = f"write {lost - SLOTS}" if lost > SLOTS else "nothing"
    words = f"has write 300, but slot {slot_of(lost)} has {before} where write {lost} belongs"
    with pytest.raises(AssertionError, match=words):
        judge(written(300, without=[lost]), 0)


def test_judge_refuses_a_write_that_was_overtaken() -> None:
    image = written(300)
    put(image, slot_of(302), block_of(302, 0))  # and 301 is not there
    with pytest.raises(AssertionError, match="has write 302"):
        judge(image, 300)


def test_judge_refuses_a_torn_block() -> None:
    image = written(300)
    older, newer = block_of(300 - SLOTS, 0), block_of(300, 0)
    put(image, slot_of(300), newer[:512] + older[512:])
    with pytest.raises(AssertionError, match=r"a torn block, parts of the writes \[100, 300\] and no other"):
        judge(image, 0)
    put(image, slot_of(300), newer[:2048] + bytes(2048))
    with pytest.raises(AssertionError, match=r"a torn block, parts of the writes \[300\] and zeros"):
        judge(image, 0)


def test_judge_refuses_what_belongs_elsewhere() -> None:
    image = written(300)
    put(image, slot_of(300), block_of(299, 0))
    with pytest.raises(AssertionError, match=f"write 299 of slot {slot_of(299)}"):
        judge(image, 0)
    with pytest.raises(AssertionError, match="a block of disk 1"):
        judge(written(300, disk=1), 0)
    put(image, slot_of(300), b"\xff" * BLOCK_BYTES)
    with pytest.raises(AssertionError, match="never written"):
        judge(image, 0)
    image = written(300)
    image[BLOCK_BYTES] = 1
    with pytest.raises(AssertionError, match="has written nothing at 4096"):
        judge(image, 0)


def test_disks_are_of_one_moment() -> None:
    for possible in ([7], [7, 7], [8, 7], [8, 8, 7]):
        require_one_moment(possible)
    for impossible in ([7, 8], [9, 7], [8, 7, 8], [9, 8, 7]):
        with pytest.raises(AssertionError):
            require_one_moment(impossible)


# -- guests -----------------------------------------------------------------------------


@pytest.fixture
def rig(quick_folder: Path) -> Iterator[Rig]:
    made = Rig(quick_folder)
    yield made
    made.close()


@pytest.fixture
def graphs(rig: Rig) -> list[Graph]:
    """Two new disks, attached."""
    return [attached(rig.yard, rig.yard.create_virtual_disk("a", SIZE)) for _ in range(2)]


def attached(yard: Diskyard, disk: str) -> Graph:
    graph = yard.prepare_image("a", disk).blockdev
    assert graph is not None
    return graph


def converted(graph: Graph, folder: Path) -> bytes:
    """What a graph shows, to another process than the guest."""
    out = folder / "converted"
    run("qemu-img", "convert", "-O", "raw", "json:" + json.dumps(graph), str(out))
    return out.read_bytes()


def judged(graphs: Sequence[Graph], acknowledged_before: int, folder: Path) -> list[int]:
    """The points of a guest's disks, all of one moment."""
    points = [
        judge(converted(graph, folder), acknowledged_before, disk=index) for index, graph in enumerate(graphs)
    ]
    require_one_moment(points)
    return points


class ByHand:
    """Snapshots of a guest's disks without Diskyard; knows the chains that come of them."""

    def __init__(self, guest: RunningGuest, graphs: Sequence[Graph]) -> None:
        self._guest, self.graphs = guest, list(graphs)
        self._names = (f"overlay{number}" for number in itertools.count())

    def freeze(self, *disks: int) -> list[Graph]:
        """Some disks, or all, at one moment; returns the graphs that are frozen from now on."""
        chosen = disks or range(len(self.graphs))
        frozen = [frozen_graph(self.graphs[disk]) for disk in chosen]
        overlays = [self._guest.folder / f"{next(self._names)}.qcow2" for _ in frozen]
        for overlay in overlays:
            run("qemu-img", "create", "-q", "-f", "qcow2", str(overlay), str(SIZE))
        with by_hand(self._guest.monitor) as monitor:
            tops = [str(graph["node-name"]) for graph in frozen]
            monitor.switch(dict(zip(tops, overlays, strict=True)))
        for disk, overlay, graph in zip(chosen, overlays, frozen, strict=True):
            file = {"driver": "file", "filename": str(overlay)}
            top = {"driver": "qcow2", "node-name": overlay.stem, "file": file, "backing": graph}
            self.graphs[disk] = top
        return frozen


def frozen_graph(graph: Graph) -> Graph:
    file = graph["file"]
    assert isinstance(file, Mapping)
    return {**graph, "read-only": True, "file": {**file, "read-only": True}}


def is_frozen_while_it_writes(guest: RunningGuest, hand: ByHand) -> None:
    """The disks that are frozen are exact prefixes of what the guest has written, all of one moment."""
    errors = guest.errors()
    for _ in range(3):
        before = guest.acknowledged()
        frozen = hand.freeze()
        seen = guest.wait_for(20)
        points = judged(frozen, before, guest.folder)
        assert points[0] <= seen
    assert 0 < guest.pause_longest_ms(guest.acknowledged() - 20) <= guest.pause_longest_ms(0)
    assert guest.errors() == errors


def killed(guest: RunningGuest) -> int:
    """Kill the guest; the number of the last write that was acknowledged."""
    seen = guest.acknowledged()
    assert guest.is_alive()
    last = guest.kill()
    assert not guest.is_alive()
    assert last == guest.acknowledged() >= seen
    return last


def test_storage_daemon_guest(graphs: list[Graph], quick_folder: Path) -> None:
    with StorageDaemonGuest(quick_folder / "guest", graphs) as guest:
        guest.wait_for(SLOTS)
        hand = ByHand(guest, graphs)
        is_frozen_while_it_writes(guest, hand)
        assert guest.errors() == []
        assert guest.sizes_bytes() == [SIZE, SIZE]
        last = killed(guest)
    assert judged(hand.graphs, last, quick_folder)[0] <= last + 1


def test_disks_that_are_frozen_one_after_the_other_are_not_of_one_moment(
    graphs: list[Graph], quick_folder: Path
) -> None:
    with StorageDaemonGuest(quick_folder / "guest", graphs) as guest:
        hand = ByHand(guest, graphs)
        first = hand.freeze(0)
        guest.wait_for(2)
        second = hand.freeze(1)
        with pytest.raises(AssertionError, match="a disk is ahead of one that is always written before it"):
            judged(first + second, 0, quick_folder)


def test_emulated_guest(graphs: list[Graph], rig: Rig, quick_folder: Path, machine: Machine) -> None:
    """All in one, since it takes long to boot. Its third disk fails it, the fourth is served to it."""
    third, fourth = (attached(rig.yard, rig.yard.create_virtual_disk("a", SIZE)) for _ in range(2))
    socket = quick_folder / "served"
    with ExitStack() as stack:
        first_server = stack.enter_context(ExitStack())
        first_server.enter_context(served_as_vhost_user(fourth, socket))
        disks = [*graphs, failing_once(third)]
        guest = stack.enter_context(
            EmulatedGuest(quick_folder / "guest", disks, machine, vhost_user=[socket])
        )
        guest.wait_for(SLOTS)
        first_server.close()
        stack.enter_context(served_as_vhost_user(fourth, socket))
        assert guest.errors() == ["write 1 on disk 2: Input/output error"]
        hand = ByHand(guest, graphs)
        is_frozen_while_it_writes(guest, hand)
        with by_hand(guest.monitor) as monitor:
            monitor.command("block_resize", node_name=hand.graphs[1]["node-name"], size=2 * SIZE)
            zero = f'qemu-io -d /machine/peripheral/disk2/virtio-backend "write -z 0 {SIZE}"'
            assert monitor.command("human-monitor-command", command_line=zero) == ""
        guest.wait_for(SLOTS + 1)  # every slot is written anew
        errors = guest.errors()
        assert all("of disk 2 instead of write" in error for error in errors[1:])
        assert len(errors) > 1
        assert guest.sizes_bytes() == [SIZE, 2 * SIZE, SIZE, SIZE]
        last = killed(guest)
    points = [
        judge(converted(graph, quick_folder), last, disk=index, first_size_bytes=SIZE)
        for index, graph in enumerate([*hand.graphs, third, fourth])
    ]
    require_one_moment(points)


@contextmanager
def served_as_vhost_user(graph: Graph, socket: Path) -> Iterator[None]:
    """A storage daemon that serves a disk, and is killed in the end."""
    export = {"type": "vhost-user-blk", "id": "x", "node-name": graph["node-name"], "writable": True}
    export |= {"writethrough": True, "addr": {"type": "unix", "path": str(socket)}}
    words = ["qemu-storage-daemon", "--blockdev", json.dumps(graph), "--export", json.dumps(export)]
    with subprocess.Popen(words) as daemon:
        try:
            wait_until(socket.exists)
            yield
        finally:
            daemon.kill()
    socket.unlink()


def failing_once(graph: Graph) -> Graph:
    """A disk of which the first write fails."""
    once = {"event": "none", "iotype": "write", "errno": 5, "once": True, "immediately": True}
    return {"driver": "blkdebug", "image": graph, "inject-error": [once]}


def test_next_guest_goes_on_where_one_was_killed(graphs: list[Graph], quick_folder: Path) -> None:
    last = 0
    for _ in range(3):
        with StorageDaemonGuest(quick_folder / "guest", graphs, after=last, gap_ms=0) as guest:
            assert guest.acknowledged() > last
            guest.wait_for(30)
            last = guest.kill()
            assert guest.errors() == []
    judged(graphs, last, quick_folder)


def test_guest_that_ends_has_written_everything(graphs: list[Graph], quick_folder: Path) -> None:
    with StorageDaemonGuest(quick_folder / "guest", graphs) as guest:
        guest.wait_for(10)
        last = guest.end()
        assert not guest.is_alive()
    assert judged(graphs, last, quick_folder) == [last, last]


def job_status(monitor: Monitor) -> str:
    """The status of the only job."""
    (job,) = msgspec.convert(monitor.command("query-jobs"), list[dict[str, Any]])
    return str(job["status"])


def test_guest_ends_though_a_job_holds_its_writes(graphs: list[Graph], quick_folder: Path) -> None:
    with StorageDaemonGuest(quick_folder / "guest", graphs) as guest:
        hand = ByHand(guest, graphs)
        hand.freeze()
        guest.wait_for(10)
        with by_hand(guest.monitor) as monitor:
            top, below = hand.graphs[0]["node-name"], graphs[0]["node-name"]
            held = {"auto_finalize": False, "auto_dismiss": False}
            monitor.command("block-commit", job_id="j", device=top, top_node=top, base_node=below, **held)
            wait_until(lambda: job_status(monitor) == "ready")
            monitor.command("job-complete", id="j")
            wait_until(lambda: job_status(monitor) == "pending")
        last = guest.end()
        assert guest.errors() == []
    for chain in (hand.graphs, [graphs[0], hand.graphs[1]]):
        assert judged(chain, last, quick_folder)[0] <= last + 1


def test_guest_says_that_what_it_has_written_is_gone(graphs: list[Graph], quick_folder: Path) -> None:
    with StorageDaemonGuest(quick_folder / "guest", graphs) as guest:
        guest.wait_for(2 * SLOTS)
        assert guest.errors() == []
        with by_hand(guest.monitor) as monitor:
            node = graphs[1]["node-name"]
            monitor.command("block-export-add", type="nbd", id="x", name="x", node_name=node, writable=True)
        socket = guest.folder / "nbd"
        run("qemu-io", "-f", "raw", "-c", f"write -z 0 {SIZE}", f"nbd+unix:///x?socket={socket}")
        guest.wait_for(20)
        assert "of disk 1 instead of write" in guest.errors()[0]


def test_guest_says_that_a_write_failed_and_tries_again(graphs: list[Graph], quick_folder: Path) -> None:
    with StorageDaemonGuest(quick_folder / "guest", [graphs[0], failing_once(graphs[1])]) as guest:
        guest.wait_for(10)
        (told,) = guest.errors()
        assert told.startswith("write 1 on disk 1: EIO: ")
        last = guest.end()
    assert judged(graphs, last, quick_folder) == [last, last]


def test_guest_that_has_crashed_is_waited_for_in_vain(graphs: list[Graph], quick_folder: Path) -> None:
    with StorageDaemonGuest(quick_folder / "guest", graphs) as guest:
        os.kill(guest.pid, signal.SIGSEGV)
        with pytest.raises(
            AssertionError, match=r"the guest has ended: write \d+ was the last; exit status -11"
        ):
            guest.wait_for(UNLIMITED)
        assert not guest.is_alive()


def test_disks_that_cannot_be_opened_are_told_in_words(graphs: list[Graph], quick_folder: Path) -> None:
    missing = {**graphs[0], "file": {"driver": "file", "filename": str(quick_folder / "missing")}}
    with (
        pytest.raises(AssertionError, match="No such file or directory"),
        StorageDaemonGuest(quick_folder / "guest", [missing]),
    ):
        raise AssertionError("it has started")


def test_qemu_runs_as_the_user_that_is_named(graphs: list[Graph], rig: Rig, quick_folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    quick_folder.chmod(0o755)
    for path in rig.files("a"):
        shutil.chown(path, "nobody")
    with StorageDaemonGuest(quick_folder / "guest", graphs, user="nobody") as guest:
        assert Path(f"/proc/{guest.pid}").stat().st_uid == pwd.getpwnam("nobody").pw_uid
        guest.wait_for(10)
        last = guest.end()
    assert judged(graphs, last, quick_folder) == [last, last]
