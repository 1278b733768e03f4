"""Merges leave the view as it was, for every order of sizes, and however often they are cut."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.mover.formats.qcow2_header import own_header_flaw
from diskyard.mover.interface import Chain, Layer, Stopped, VolumeFormat
from diskyard.mover.qemu.merge import commit_down, stream_up
from tests.unit.mover.bench import MIB, Bench, RecordingMonitor, check, graph, run

ODD = 3 * MIB + 512  # ends inside a cluster
SIZES = (2 * MIB, ODD, 4 * MIB)


def three_layers(
    bench: Bench, root_format: VolumeFormat, sizes: tuple[int, int, int]
) -> tuple[Layer, Layer, Layer]:
    """Top, middle and root, with data scattered in each."""
    root = bench.layer("root", root_format, sizes[2])
    bench.scatter((root,), 1)
    middle = bench.layer("middle", "qcow2", sizes[1], (root,))
    bench.scatter((middle, root), 2)
    top = bench.layer("top", "qcow2", sizes[0], (middle, root))
    bench.scatter((top, middle, root), 3, count=6)
    return top, middle, root


@pytest.mark.parametrize("sizes", list(itertools.product(SIZES, repeat=3)))
def test_commit_down_into_qcow2(bench: Bench, sizes: tuple[int, int, int]) -> None:
    top, middle, root = three_layers(bench, "qcow2", sizes)
    before = bench.view((top, middle, root))
    below = bench.view((root,))
    for _ in range(2):
        commit_down(bench.host, top, (middle, root), RecordingMonitor())
        assert bench.view((middle, root)) == before
    assert bench.view((root,)) == below
    check(middle)


@pytest.mark.parametrize("sizes", [(a, b) for a in SIZES for b in SIZES])
def test_commit_down_into_raw(bench: Bench, sizes: tuple[int, int]) -> None:
    root = bench.layer("root", "raw", sizes[1])
    bench.scatter((root,), 1)
    top = bench.layer("top", "qcow2", sizes[0], (root,))
    bench.scatter((top, root), 2)
    before = bench.view((top, root))
    for _ in range(2):
        commit_down(bench.host, top, (root,), RecordingMonitor())
        assert bench.view((root,)) == before


@pytest.mark.parametrize("sizes", list(itertools.product(SIZES, repeat=3)))
@pytest.mark.parametrize("keep_root", [True, False])
def test_stream_up(bench: Bench, sizes: tuple[int, int, int], keep_root: bool) -> None:
    top, middle, root = three_layers(bench, "raw", sizes)
    before = bench.view((top, middle, root))
    parents: Chain = (middle,) if keep_root else (middle, root)
    keep: Chain = (root,) if keep_root else ()
    name = "diskyard:root-image" if keep_root else None
    for _ in range(2):
        stream_up(bench.host, top, parents, keep, name, RecordingMonitor())
        assert bench.view((top, *keep)) == before
    info = json.loads(run("qemu-img", "info", "--output=json", graph((top,), read_only=True)))
    assert info.get("backing-filename") == name
    check(top)


def test_stream_up_without_a_name(bench: Bench) -> None:
    top, middle, root = three_layers(bench, "raw", (4 * MIB, 4 * MIB, 4 * MIB))
    before = bench.view((top, middle, root))
    stream_up(bench.host, top, (middle,), (root,), None, RecordingMonitor())
    assert bench.view((top, root)) == before
    info = json.loads(run("qemu-img", "info", "--output=json", graph((top,), read_only=True)))
    assert "backing-filename" not in info
    content = Path(str(top.path)).read_bytes()
    flaw = own_header_flaw(lambda offset, size: content[offset : offset + size], len(content), 4 * MIB)
    assert flaw is None


def test_a_grown_parent_hides_what_a_longer_root_holds(bench: Bench) -> None:
    root = bench.layer("root", "qcow2", 4 * MIB)
    bench.fill((root,), [(0, 4 * MIB, 7)])
    middle = bench.layer("middle", "qcow2", MIB, (root,))
    top = bench.layer("top", "qcow2", 4 * MIB, (middle, root))
    before = bench.view((top, middle, root))
    assert before == b"\7" * MIB + bytes(3 * MIB)
    # What a daemon killed right after the new size was written leaves: the size, and no zeros.
    with open(str(middle.path), "r+b") as file:
        file.seek(24)
        file.write((4 * MIB).to_bytes(8, "big"))
    commit_down(bench.host, top, (middle, root), RecordingMonitor())
    assert bench.view((middle, root)) == before


def test_a_merge_after_shrinking_shows_no_old_bytes(bench: Bench) -> None:
    root = bench.layer("root", "qcow2", 2 * MIB)
    bench.fill((root,), [(0, 2 * MIB, 9)])
    short = bench.layer("short", "qcow2", MIB + 512, (root,))
    commit_down(bench.host, short, (root,), RecordingMonitor())
    root = replace(root, size_bytes=MIB + 512)
    long = bench.layer("long", "qcow2", 3 * MIB, (root,))
    before = bench.view((long, root))
    commit_down(bench.host, long, (root,), RecordingMonitor())
    assert bench.view((root,)) == before == b"\x09" * (MIB + 512) + bytes(2 * MIB - 512)


def big_pair(bench: Bench) -> tuple[Layer, Layer]:
    root = bench.layer("root", "qcow2", 64 * MIB)
    bench.fill((root,), [(0, 64 * MIB, 1)])
    top = bench.layer("top", "qcow2", 64 * MIB, (root,))
    bench.fill((top, root), [(MIB, 48 * MIB, 2)])
    return top, root


def merge(bench: Bench, top: Layer, root: Layer, down: bool, monitor: RecordingMonitor) -> Layer:
    """Merge two layers one way or the other; the one that then has it all."""
    if down:
        commit_down(bench.host, top, (root,), monitor)
        return root
    stream_up(bench.host, top, (root,), (), None, monitor)
    return top


@pytest.mark.parametrize("down", [True, False])
def test_stopped_then_run_again(bench: Bench, down: bool) -> None:
    top, root = big_pair(bench)
    before = bench.view((top, root))
    slow = RecordingMonitor(stop_after=2, rate_limit_bytes_per_s=8 * MIB)
    with pytest.raises(Stopped):
        merge(bench, top, root, down, slow)
    assert bench.view((top, root)) == before
    merged = merge(bench, top, root, down, RecordingMonitor())
    assert bench.view((merged,)) == before
    check(merged)


@pytest.mark.parametrize("down", [True, False])
@pytest.mark.parametrize("after_s", [0.02, 0.1, 0.3])
def test_killed_then_run_again(bench: Bench, down: bool, after_s: float) -> None:
    top, root = big_pair(bench)
    before = bench.view((top, root))
    with pytest.raises(errors.StorageError):
        merge(bench, top, root, down, KillingMonitor(after_s))
    assert bench.view((top, root)) == before
    merged = merge(bench, top, root, down, RecordingMonitor())
    assert bench.view((merged,)) == before
    check(merged)


class KillingMonitor(RecordingMonitor):
    """Kills this process's storage daemon once it has run a job for a while."""

    def __init__(self, after_s: float) -> None:
        super().__init__(rate_limit_bytes_per_s=16 * MIB)
        self._after_s = after_s

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        super().advance(done_bytes, total_bytes)
        if self.calls == 1:
            time.sleep(self._after_s)
            for pid in children():
                os.kill(pid, signal.SIGKILL)


def children() -> list[int]:
    """The storage daemons that this process started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = status.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        if name.startswith("qemu-storage-da") and int(rest.split()[1]) == os.getpid():
            found.append(int(status.parent.name))
    return found


def test_a_damaged_parent_is_left_alone(bench: Bench) -> None:
    top, root = big_pair(bench)
    with open(str(root.path), "r+b") as file:
        file.seek(65536)
        file.write(bytes(8))  # the refcount table's only entry
    contents = Path(str(root.path)).read_bytes()
    with pytest.raises(errors.StorageError):
        commit_down(bench.host, top, (root,), RecordingMonitor())
    assert Path(str(root.path)).read_bytes() == contents


@pytest.mark.parametrize("way", ["down", "up"])
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_what_is_beyond_the_records_does_not_come_along(bench: Bench, format: VolumeFormat, way: str) -> None:
    """Somebody made the parent, and the overlay, longer than their records."""
    root = bench.layer("root", "raw", 6 * MIB)
    bench.fill((root,), [(0, 6 * MIB, 5)])
    below = () if format == "raw" else (root,)
    longer = bench.layer("parent", format, 4 * MIB, below)
    bench.fill((longer, *below), [(MIB, 3 * MIB, 7)])
    overlay = bench.layer("top", "qcow2", 8 * MIB, (longer, *below))
    bench.fill((overlay, longer, *below), [(3 * MIB, 64 << 10, 9), (7 * MIB, 64 << 10, 9)])
    parent = replace(longer, size_bytes=2 * MIB, bound_bytes=2 * MIB if format == "raw" else None)
    wanted = bytearray(bench.view((longer, *below))[: 2 * MIB].ljust(6 * MIB, b"\0"))
    wanted[3 * MIB : 3 * MIB + (64 << 10)] = b"\x09" * (64 << 10)
    top = replace(overlay, size_bytes=6 * MIB)
    for _ in range(2 if way == "down" else 1):
        if way == "down":
            commit_down(bench.host, top, (parent, *below), RecordingMonitor())
            assert bench.view((longer, *below)) == wanted
        else:
            name = "diskyard:below" if below else None
            stream_up(bench.host, top, (parent,), below, name, RecordingMonitor())
            assert bench.view((overlay, *below))[: 6 * MIB] == wanted
