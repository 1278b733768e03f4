"""A copy shows what the source shows, stores only what differs, and resumes."""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
from dataclasses import replace

import pytest

from diskyard import errors
from diskyard.host import Files
from diskyard.mover.copying.copy import copy_view
from diskyard.mover.copying.workers import WorkerPool
from diskyard.mover.interface import Chain, Layer, Stopped, VolumeFormat
from diskyard.storage.leases import LocalLeases
from tests.unit.mover.bench import MIB, Bench, RecordingMonitor, check

ODD = 3 * MIB + 512


def copy(bench: Bench, source: Chain, target: Chain, **options: object) -> RecordingMonitor:
    monitor = options.pop("monitor", None) or RecordingMonitor()
    assert isinstance(monitor, RecordingMonitor)
    arguments: dict[str, object] = {"start_bytes": 0, "monitor": monitor, "target_zeroed": True, **options}
    copy_view(bench.host, source, target, target[0].size_bytes, **arguments)  # type: ignore[arg-type]
    return monitor


def used(layer: Layer) -> int:
    return os.stat(str(layer.path)).st_blocks * 512


@pytest.mark.parametrize("format", ["raw", "qcow2"])
@pytest.mark.parametrize("source_bytes", [2 * MIB, ODD, 4 * MIB])
def test_full_copy(bench: Bench, format: str, source_bytes: int) -> None:
    root = bench.layer("root", "raw", 4 * MIB)
    bench.scatter((root,), 1)
    top = bench.layer("top", "qcow2", source_bytes, (root,))
    bench.scatter((top, root), 2)
    target = bench.layer("target", format, ODD)  # type: ignore[arg-type]
    monitor = copy(bench, (top, root), (target,))
    assert bench.view((target,)) == bench.view((top, root), ODD)
    assert monitor.checkpoints[-1] == ODD
    assert monitor.done_bytes == monitor.total_bytes
    check(target)


def test_a_target_that_is_not_zero(bench: Bench) -> None:
    source = bench.layer("source", "raw", 4 * MIB)
    bench.scatter((source,), 1)
    target = bench.layer("target", "raw", 4 * MIB)
    bench.fill((target,), [(0, 4 * MIB, 7)])
    copy(bench, (source,), (target,), target_zeroed=False)
    assert bench.view((target,)) == bench.view((source,))


@pytest.mark.parametrize("sizes", list(itertools.product((2 * MIB, ODD, 4 * MIB), repeat=2)))
@pytest.mark.parametrize("is_shared", [True, False])
def test_difference(bench: Bench, sizes: tuple[int, int], is_shared: bool) -> None:
    root = bench.layer("root", "raw", 4 * MIB)
    bench.scatter((root,), 1)
    middle = bench.layer("middle", "qcow2", sizes[0], (root,))
    bench.scatter((middle, root), 2)
    top = bench.layer("top", "qcow2", sizes[1], (middle, root))
    bench.scatter((top, middle, root), 3)
    base: Chain = (root,)
    if not is_shared:
        other = bench.layer("other", "raw", 4 * MIB)
        bench.scatter((other,), 1)
        bench.scatter((other,), 9, count=2)
        base = (other,)
    target = bench.layer("target", "qcow2", 4 * MIB, base)
    for _ in range(2):
        copy(bench, (top, middle, root), (target, *base))
        assert bench.view((target, *base)) == bench.view((top, middle, root), 4 * MIB)
    check(target)


@pytest.mark.parametrize("base_bytes", [2 * MIB, ODD, 8 * MIB])
def test_both_sides_over_a_common_root(bench: Bench, base_bytes: int) -> None:
    root = bench.layer("root", "raw", 8 * MIB)
    bench.scatter((root,), 1, count=40)
    one = bench.layer("one", "qcow2", 8 * MIB, (root,))
    bench.scatter((one, root), 2)
    other = bench.layer("other", "qcow2", base_bytes, (root,))
    bench.scatter((other, root), 3)
    target = bench.layer("target", "qcow2", 8 * MIB, (other, root))
    copy(bench, (one, root), (target, other, root))
    assert bench.view((target, other, root)) == bench.view((one, root))


def test_equal_bytes_are_not_stored(bench: Bench) -> None:
    source = bench.layer("source", "raw", 64 * MIB)
    base = bench.layer("base", "raw", 64 * MIB)
    for layer in (source, base):
        bench.fill((layer,), [(0, 32 * MIB, 5)])
    bench.fill((source,), [(10 * MIB, 4096, 6), (40 * MIB, 4096, 6), (20 * MIB, 65536, 0)])
    target = bench.layer("target", "qcow2", 64 * MIB, (base,))
    copy(bench, (source,), (target, base))
    assert bench.view((target, base)) == bench.view((source,))
    assert used(target) < MIB


def test_common_layers_are_not_read(bench: Bench) -> None:
    root = bench.layer("root", "raw", 64 * MIB)
    bench.fill((root,), [(0, 64 * MIB, 5)])
    top = bench.layer("top", "qcow2", 64 * MIB, (root,))
    bench.fill((top, root), [(MIB, MIB, 6)])
    target = bench.layer("target", "qcow2", 64 * MIB, (root,))
    monitor = copy(bench, (top, root), (target, root))
    assert monitor.total_bytes == MIB
    assert bench.view((target, root)) == bench.view((top, root))


def test_a_source_that_is_the_base(bench: Bench) -> None:
    root = bench.layer("root", "raw", 4 * MIB)
    bench.scatter((root,), 1)
    target = bench.layer("target", "qcow2", 8 * MIB, (root,))
    monitor = copy(bench, (root,), (target, root))
    assert monitor.total_bytes == 0
    assert bench.view((target, root)) == bench.view((root,), 8 * MIB)


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_resumes_after_stopping(bench: Bench, format: str) -> None:
    source = bench.layer("source", "raw", 64 * MIB)
    bench.fill((source,), [(0, 60 * MIB, 5)])
    target = bench.layer("target", format, 64 * MIB)  # type: ignore[arg-type]
    first = RecordingMonitor(stop_at_checkpoint=True, rate_limit_bytes_per_s=12 * MIB)
    with pytest.raises(Stopped):
        copy(bench, (source,), (target,), monitor=first)
    durable = first.checkpoints[-1]
    assert 0 < durable < 64 * MIB
    assert bench.view((target,))[:durable] == bench.view((source,))[:durable]
    copy(bench, (source,), (target,), start_bytes=durable)
    assert bench.view((target,)) == bench.view((source,))


def test_the_rate_limit_holds(bench: Bench) -> None:
    source = bench.layer("source", "raw", 16 * MIB)
    bench.fill((source,), [(0, 16 * MIB, 5)])
    target = bench.layer("target", "raw", 16 * MIB)
    monitor = RecordingMonitor(rate_limit_bytes_per_s=16 * MIB)
    begin = bench.host.clock.monotonic_s()
    copy(bench, (source,), (target,), monitor=monitor)
    assert bench.host.clock.monotonic_s() - begin > 0.8


def test_moves_that_have_not_begun_do_not_keep_a_failed_copy_waiting() -> None:
    pool, begun, go_on, done = WorkerPool(["tool"], "test"), threading.Event(), threading.Event(), list[str]()

    def hang(tool: str) -> None:
        begun.set()
        go_on.wait()

    pool.submit(hang)
    later = pool.submit(done.append)
    assert begun.wait(10)
    pool.end(0.1)
    assert pool.is_alive()  # it hangs, and is waited for no longer
    go_on.set()
    pool.join()
    assert done == []
    assert not later.done()


def test_a_crew_whose_threads_are_not_given_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, list[threading.Thread]()

    def give_two(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", give_two)
    with pytest.raises(errors.StorageError, match="cannot start another thread"):
        WorkerPool(["a", "b", "c"], "test")
    for thread in started:
        thread.join(10)
    assert [thread.is_alive() for thread in started] == [False, False]


def test_a_copy_that_is_not_given_all_threads_leaves_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, before = threading.Thread.start, set(threading.enumerate())

    def give_no_flusher(thread: threading.Thread) -> None:
        if thread.name.startswith("flush"):
            raise RuntimeError("can't start new thread")
        start(thread)

    source, target = (bench.layer(name, "raw", MIB) for name in ("source", "target"))
    monkeypatch.setattr(threading.Thread, "start", give_no_flusher)
    with pytest.raises(errors.StorageError, match="cannot start another thread"):
        copy(bench, (source,), (target,))
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("format", ["raw", "qcow2"])
@pytest.mark.parametrize("kept_moves", [-1, 3, 10_000])
def test_what_is_found_faster_than_moved_is_told_twice(
    bench: Bench, format: VolumeFormat, kept_moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the second telling begins, all is moved once, and the total is right."""
    monkeypatch.setattr("diskyard.mover.copying.telling._KEPT_MOVES", kept_moves)
    base = bench.layer("base", "raw", 64 * MIB)
    bench.scatter((base,), 2)
    source = bench.layer("source", "raw", 64 * MIB)
    bench.fill((source,), [(index * 4 * MIB, MIB, index + 1) for index in range(16)])
    chain: Chain = (bench.layer("target", format, 64 * MIB, (base,) if format == "qcow2" else ()),)
    if format == "qcow2":
        chain = (*chain, base)
    totals = list[int]()

    class Totals(RecordingMonitor):
        def advance(self, done_bytes: int, total_bytes: int) -> None:
            super().advance(done_bytes, total_bytes)
            totals.append(total_bytes)

    monitor = copy(bench, (source,), chain, monitor=Totals(rate_limit_bytes_per_s=64 * MIB))
    assert bench.view(chain) == bench.view((source,))
    assert set(totals) <= {0, monitor.done_bytes}
    assert totals[-1] == monitor.done_bytes


def test_moving_begins_before_all_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The total is not known at first, then it is."""
    source = bench.layer("source", "raw", 16 * MIB)
    bench.fill((source,), [(0, MIB, 1), (8 * MIB, MIB, 2)])
    target = bench.layer("target", "raw", 16 * MIB)
    is_written = threading.Event()

    class LateFiles(Files):
        def next_data(self, fd: int, offset_bytes: int, most: int) -> list[tuple[int, int]]:
            if offset_bytes > 8 * MIB:  # what is before is known by then
                assert is_written.wait(60)
            return super().next_data(fd, offset_bytes, 1)

        def write(self, fd: int, data: bytes | memoryview, offset_bytes: int = 0) -> None:
            super().write(fd, data, offset_bytes)
            is_written.set()

    totals = list[int]()

    class Totals(RecordingMonitor):
        def advance(self, done_bytes: int, total_bytes: int) -> None:
            super().advance(done_bytes, total_bytes)
            totals.append(total_bytes)

    monkeypatch.setattr("diskyard.mover.copying.views._RANGES_AT_ONCE", 1)
    late = Bench(bench.folder, replace(bench.host, files=LateFiles(bench.host.identity)))
    copy(late, (source,), (target,), monitor=Totals())
    assert bench.view((target,)) == bench.view((source,))
    assert (totals[0], totals[-1]) == (0, 2 * MIB)


def test_a_source_that_is_cut_short_is_an_error(bench: Bench) -> None:
    """What is not read is not taken for zeros."""
    source = bench.layer("source", "raw", 16 * MIB)
    bench.fill((source,), [(0, 16 * MIB, 5)])
    target = bench.layer("target", "raw", 16 * MIB)

    class Cutting(RecordingMonitor):
        def advance(self, done_bytes: int, total_bytes: int) -> None:
            super().advance(done_bytes, total_bytes)
            os.truncate(str(source.path), 4096)

    with pytest.raises(errors.StorageError, match="shorter"):
        copy(bench, (source,), (target,), monitor=Cutting())


def test_a_write_that_hangs_keeps_the_lease_and_its_file(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is let go; whoever gets the lease afterwards finds that nothing is written any more."""
    monkeypatch.setattr("diskyard.mover.copying.moving.STUCK_S", 0.2)
    hangs, go_on = threading.Event(), threading.Event()

    class HangingFiles(Files):
        def write(self, fd: int, data: bytes | memoryview, offset_bytes: int = 0) -> None:
            hangs.set()
            assert go_on.wait(60)
            super().write(fd, data, offset_bytes)

    class Stopping(RecordingMonitor):
        def advance(self, done_bytes: int, total_bytes: int) -> None:
            if hangs.is_set():
                raise Stopped

    source = bench.layer("source", "raw", 64 * MIB)
    bench.fill((source,), [(0, 64 * MIB, 5)])
    target = bench.layer("target", "raw", 64 * MIB)
    (bench.folder / "locks").touch()
    leases = LocalLeases(bench.host, str(bench.folder / "locks"))
    lease = leases.try_lock("work")
    assert lease is not None
    monitor = Stopping()
    monitor.inherit_fds = lease.descriptors()
    hanging = Bench(bench.folder, replace(bench.host, files=HangingFiles(bench.host.identity)))
    with pytest.raises(Stopped):
        copy(hanging, (source,), (target,), monitor=monitor)
    lease.release()
    assert leases.is_locked("work")
    go_on.set()
    deadline_s = time.monotonic() + 60
    while leases.is_locked("work") and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert not leases.is_locked("work")
    assert not [thread for thread in threading.enumerate() if re.fullmatch(r"copy-\d", thread.name)]
    assert 0 < used(target) <= 4 * MIB  # what each worker had begun
