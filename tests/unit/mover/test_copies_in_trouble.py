"""Copies of volumes that are not as recorded, and from storage that answers late, in part or nonsense."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.host import Clock, Files, Host
from diskyard.mover.copying.copy import copy_view
from diskyard.mover.copying.differences import Differences, Side
from diskyard.mover.copying.views import FileView, Reader, Run
from diskyard.mover.interface import Stopped, VolumeFormat
from diskyard.mover.opening import opened_files
from diskyard.mover.transfer import private_copy
from diskyard.mover.untrusted import IMPORT_LIMITS, import_layer
from tests.unit.mover.bench import MIB, Bench, RecordingMonitor, graph, run

CLUSTER = 65536


@pytest.mark.parametrize("format", ["raw", "qcow2"])
@pytest.mark.parametrize("start_bytes", [0, 5 * MIB])
def test_a_base_that_is_longer_than_its_record(bench: Bench, format: VolumeFormat, start_bytes: int) -> None:
    """What lies over it shows all of it, where nobody has bounded it."""
    longer = bench.layer("base", format, 4 * MIB)
    bench.fill((longer,), [(0, 4 * MIB, 7)])
    base = replace(longer, size_bytes=2 * MIB)
    source = bench.layer("source", "raw", 8 * MIB)
    target = bench.layer("target", "qcow2", 8 * MIB, (base,))
    monitor = RecordingMonitor()
    if start_bytes:  # what is below is done
        bench.fill((target, base), [(0, start_bytes, 0)])
    copy_view(
        bench.host, (source,), (target, base), 8 * MIB,
        start_bytes=start_bytes, monitor=monitor, target_zeroed=True,
    )  # fmt: skip
    assert not any(bench.view((target, base)))


def test_a_source_that_shrinks_is_not_taken_for_zeros(bench: Bench) -> None:
    """What was cut off it since it was opened is no hole."""
    source = bench.layer("source", "raw", 4 * MIB)
    bench.fill((source,), [(0, 4 * MIB, 7)])
    assert source.path is not None
    with ExitStack() as stack:
        view = FileView.of(stack, bench.host, stack.enter_context(opened_files(bench.host, (source,))))
        assert view is not None
        os.truncate(source.path, MIB)
        with pytest.raises(errors.StorageError, match="shorter"):
            list(view.runs(0))


class Stopping(RecordingMonitor):
    """Stops the work once something has happened."""

    def __init__(self, happened: threading.Event) -> None:
        super().__init__()
        self._happened = happened

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        super().advance(done_bytes, total_bytes)
        if self._happened.is_set():
            raise Stopped


def wait_for_workers() -> None:
    deadline_s = time.monotonic() + 60
    while any(re.fullmatch(r"(copy|flush|tell)-.*", thread.name) for thread in threading.enumerate()):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_a_read_that_hangs_reads_no_other_file_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller closes what it has opened, and another file gets the number."""
    monkeypatch.setattr("diskyard.mover.copying.moving.STUCK_S", 0.2)
    hangs, go_on = threading.Event(), threading.Event()

    class HangingFiles(Files):
        def read_into(self, fd: int, memory: memoryview, offset_bytes: int) -> int:
            half = len(memory) // 2
            done = super().read_into(fd, memory[:half], offset_bytes)
            hangs.set()
            assert go_on.wait(60)
            return done + super().read_into(fd, memory[half:], offset_bytes + half)

    source = bench.layer("source", "raw", 16 * MIB)
    bench.fill((source,), [(0, 16 * MIB, 5)])
    target = bench.layer("target", "raw", 16 * MIB)
    secret = bench.folder / "secret"
    secret.write_bytes(b"s" * 16 * MIB)
    fd = os.open(str(source.path), os.O_RDONLY)
    untrusted = import_layer(bench.host, fd, "raw", 16 * MIB)
    with pytest.raises(Stopped):
        copy_view(
            replace(bench.host, files=HangingFiles(bench.host.identity)), (untrusted,), (target,), 16 * MIB,
            start_bytes=0, monitor=Stopping(hangs), target_zeroed=True,
            source_limits=IMPORT_LIMITS,
        )  # fmt: skip
    os.close(fd)
    other = os.open(secret, os.O_RDONLY)
    try:
        assert other == fd
        go_on.set()
        wait_for_workers()
    finally:
        os.close(other)
    assert set(bench.view((target,))) == {0, 5}


def test_storage_that_hangs_while_it_tells_holds_nobody(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop is heard; the file that was asked stays open until the answer has come."""
    monkeypatch.setattr("diskyard.mover.copying.copy.STUCK_S", 0.2)
    monkeypatch.setattr("diskyard.mover.copying.moving.STUCK_S", 0.2)
    hangs, go_on = threading.Event(), threading.Event()
    asked = set[int]()

    class HangingFiles(Files):
        def next_data(self, fd: int, offset_bytes: int, most: int) -> list[tuple[int, int]]:
            asked.add(fd)
            hangs.set()
            assert go_on.wait(60)
            return super().next_data(fd, offset_bytes, most)

    source, target = (bench.layer(name, "raw", MIB) for name in ("source", "target"))
    bench.fill((source,), [(0, MIB, 5)])
    host = replace(bench.host, files=HangingFiles(bench.host.identity))
    with pytest.raises(Stopped):
        copy_view(host, (source,), (target,), MIB, start_bytes=0, monitor=Stopping(hangs), target_zeroed=True)
    (fd,) = asked
    assert os.readlink(f"/proc/self/fd/{fd}") == source.path
    go_on.set()
    wait_for_workers()
    deadline_s = time.monotonic() + 60
    while os.path.exists(f"/proc/self/fd/{fd}") and os.readlink(f"/proc/self/fd/{fd}") == source.path:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_a_stop_is_heard_while_the_last_is_made_durable(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diskyard.mover.copying.moving.STUCK_S", 0.2)
    hangs, go_on = threading.Event(), threading.Event()

    class HangingFiles(Files):
        def sync(self, fd: int) -> None:
            hangs.set()
            assert go_on.wait(60)
            super().sync(fd)

    source = bench.layer("source", "raw", MIB)
    bench.fill((source,), [(0, MIB, 5)])
    target = bench.layer("target", "raw", MIB)
    monitor = Stopping(hangs)
    host = replace(bench.host, files=HangingFiles(bench.host.identity))
    with pytest.raises(Stopped):
        copy_view(host, (source,), (target,), MIB, start_bytes=0, monitor=monitor, target_zeroed=True)
    assert monitor.checkpoints == []
    go_on.set()
    wait_for_workers()


def maps_running() -> list[str]:
    """The command lines of this process's children that are qemu-img."""
    found = []
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            try:
                line = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            except FileNotFoundError:
                continue  # it has ended since it was listed
            if "qemu-img" in line:
                found.append(line)
    return found


def test_nothing_goes_on_telling_what_lies_where_if_a_server_is_needed(bench: Bench) -> None:
    size = 512 * MIB
    base = bench.layer("base", "qcow2", size)
    writes = [("-c", f"write -q -P 1 {index * 2 * CLUSTER} 512") for index in range(3000)]
    run("qemu-io", *(word for write in writes for word in write), graph((base,), read_only=False))
    source = bench.layer("source", "qcow2", size)
    some, compressed = "write -q -P 3 0 512", f"write -q -c -P 3 {64 * CLUSTER} {CLUSTER}"
    run("qemu-io", "-c", some, "-c", compressed, graph((source,), read_only=False))
    target = bench.layer("target", "qcow2", size, (base,))
    running = list[list[str]]()

    class Looking(RecordingMonitor):
        def advance(self, done_bytes: int, total_bytes: int) -> None:
            super().advance(done_bytes, total_bytes)
            running.append(maps_running())

    copy_view(
        bench.host, (source,), (target, base), size, start_bytes=0, monitor=Looking(), target_zeroed=True
    )
    assert running[-1] == []
    assert bench.view((target, base)) == bench.view((source,))


class StandingClock(Clock):
    """Goes on only when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic_s(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s


def test_time_without_moves_allows_no_burst(bench: Bench) -> None:
    source = bench.layer("source", "raw", 16 * MIB)
    bench.fill((source,), [(0, 16 * MIB, 5)])
    target = bench.layer("target", "raw", 16 * MIB)
    clock = StandingClock()

    class Waiting(RecordingMonitor):
        def advance(self, done_bytes: int, total_bytes: int) -> None:
            if not self.calls:
                clock.now_s += 100
            super().advance(done_bytes, total_bytes)

    host = replace(bench.host, clock=clock)
    monitor = Waiting(rate_limit_bytes_per_s=MIB)
    copy_view(host, (source,), (target,), 16 * MIB, start_bytes=0, monitor=monitor, target_zeroed=True)
    assert clock.now_s == pytest.approx(115, abs=1.1)


def test_a_private_copy_is_whole_though_reads_are_short(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = bench.folder / "source", bench.folder / "target"
    source.write_bytes(b"x" * MIB)
    monkeypatch.setattr("diskyard.mover.transfer.clone_into", lambda host, fd, target_fd: False)
    preadv, pread = os.preadv, os.pread
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at: preadv(fd, [parts[0][:4096]], at))
    monkeypatch.setattr(os, "pread", lambda fd, size, at: pread(fd, min(size, 4096), at))
    fd = os.open(source, os.O_RDONLY)
    try:
        os.close(private_copy(bench.host, fd, str(target), RecordingMonitor()))
    finally:
        os.close(fd)
    assert target.read_bytes() == b"x" * MIB


def nonsense(host: Host, start: int, end: int) -> Host:
    class Telling(Files):
        def next_data(self, fd: int, offset_bytes: int, most: int) -> list[tuple[int, int]]:
            return [(offset_bytes + start, offset_bytes + end)]

    return replace(host, files=Telling(host.identity))


@pytest.mark.parametrize(("start", "end"), [(0, 0), (-4096, 4096), (4096, 0)])
def test_a_file_that_tells_nonsense_is_an_error(bench: Bench, start: int, end: int) -> None:
    layer = bench.layer("source", "raw", MIB)
    with ExitStack() as stack:
        files = stack.enter_context(opened_files(bench.host, (layer,)))
        view = FileView.of(stack, nonsense(bench.host, start, end), files)
        assert view is not None
        with pytest.raises(errors.StorageError, match="does not say where its data is"):
            list(view.runs(0))


def test_what_is_told_is_of_the_files_that_are_open(bench: Bench) -> None:
    """A merge and a clean may take their names away meanwhile."""
    root = bench.layer("root", "raw", MIB)
    bench.fill((root,), [(0, MIB, 5)])
    top = bench.layer("top", "qcow2", MIB, (root,))
    with ExitStack() as stack:
        view = FileView.of(stack, bench.host, stack.enter_context(opened_files(bench.host, (top, root))))
        assert view is not None
        os.unlink(str(root.path))
        with closing(view.runs(0)) as runs:
            (run_told,) = runs
    assert (run_told.layer, run_told.is_zero, run_told.length_bytes) == (1, False, MIB)


def test_a_stop_is_heard_while_nothing_differs(bench: Bench) -> None:
    """A huge image whose every cluster is the base's has no move for a long time."""
    told = 0

    class Same:
        size_bytes = 1 << 40

        def runs(self, start_bytes: int) -> Generator[Run]:
            nonlocal told
            for offset in range(start_bytes, self.size_bytes, CLUSTER):
                told += 1
                assert told < 10_000
                yield Run(offset, CLUSTER, False, offset // CLUSTER % 2, offset)

        def expect(self, runs: Iterable[Run]) -> None:
            raise AssertionError("no data is read")

        def reader(self, stack: ExitStack) -> Reader:
            raise AssertionError("no data is read")

    differences = Differences(
        Side(Same(), 0),
        Side(Same(), 0),
        Same.size_bytes,
        base_is_zeroed=True,
        sharing=None,
        unit_bytes=CLUSTER,
        most_bytes=MIB,
    )

    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        list(differences.moves(0, stop))
