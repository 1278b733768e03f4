"""How long the writes of a running guest wait while its disk is switched to a new overlay.

A QEMU storage daemon has a disk of a repository open past the page cache, as prepareImage gives it,
and four writers keep direct writes of 4 to 64 KiB going through it. The disk is switched 20 times in
each way, five at a time in turn; the longest write that was under way meanwhile is the pause, and beside
it is the longest one of an equal time before. All that was written is compared in the end.

- ours: the overlay is made as Diskyard makes a volume, opened, and put in by `blockdev-snapshot`. This
  is the step under the guest alone; benchmarks.running_guest has the whole verb;
- `blockdev-snapshot-sync` on what `qemu-img create` has made: an external snapshot by hand;
- what libvirt 9 does for one: `blockdev-create`, `blockdev-add`, and a transaction.

    .venv/bin/python -m benchmarks.live_snapshot [--snapshots 20] [--folder …]
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks._processes import run
from benchmarks._rows import Row, percentile, print_heading, print_rows
from diskyard import Diskyard, KiB, MiB
from diskyard.host import Host
from diskyard.mover.formats.qcow2_header import empty_qcow2
from diskyard.mover.qemu.blockgraph import StorageDaemon
from diskyard.mover.qemu.nbdclient import NbdClient

SIZE_BYTES = 64 * MiB
WRITERS = 4
SIZES_BYTES = (4 * KiB, 8 * KiB, 16 * KiB, 32 * KiB, 64 * KiB)
AT_A_TIME = 5
BETWEEN_S = 0.5
TARGET_MS = 20.0
DOING = "switching a disk"
DIRECT = {"direct": True}
_FORKING = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Write:
    """One write of the guest's."""

    begin_s: float
    end_s: float


@dataclass(frozen=True)
class Switched:
    """One switch, from the making of the overlay on.

    :param command_s: what QEMU's command that put it in took of that.
    """

    begin_s: float
    end_s: float
    command_s: float


# -- the guest's writers, in a process of their own ------------------------------------------------


def write_on(uri: str, control: Connection) -> None:
    """Write until told to end; then answer all writes, and whether the disk holds what was written."""
    over = threading.Event()
    found: list[list[Write]] = [[] for _ in range(WRITERS)]
    same = [False] * WRITERS

    def work(number: int) -> None:
        found[number], same[number] = _write_part(uri, number, over)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    control.recv()
    over.set()
    for thread in threads:
        thread.join()
    control.send(([write for part in found for write in part], all(same)))


def _write_part(uri: str, number: int, over: threading.Event) -> tuple[list[Write], bool]:
    """One writer's part of the disk, all of its writes, and whether they are there."""
    length_bytes = SIZE_BYTES // WRITERS
    begin_bytes, chance = number * length_bytes, random.Random(number)
    expected, writes = bytearray(length_bytes), list[Write]()
    with NbdClient(Host.real(), uri) as client:
        while not over.is_set():
            size_bytes = chance.choice(SIZES_BYTES)
            at = chance.randrange(0, length_bytes - size_bytes, 4 * KiB)
            data = chance.randbytes(size_bytes)
            begin_s = time.monotonic()
            client.write(data, begin_bytes + at)
            writes.append(Write(begin_s, time.monotonic()))
            expected[at : at + size_bytes] = data
        parts = range(0, length_bytes, MiB)
        return writes, all(client.read(begin_bytes + at, MiB) == expected[at : at + MiB] for at in parts)


# -- the ways to switch -----------------------------------------------------------------------------


class Guest:
    """A QEMU that has a disk open, and what is on top of it now."""

    def __init__(self, daemon: StorageDaemon, blockdev: dict[str, Any], folder: Path) -> None:
        self.daemon, self.top, self._folder = daemon, "disk", folder
        self.switched = (0.0, 0.0)
        self._names = (f"overlay{number}" for number in itertools.count(1))
        self.command("blockdev-add", {**blockdev, "node-name": self.top})
        self.uri = daemon.export_nbd(self.top, writable=True, allocation_depth=False)

    def command(self, name: str, arguments: Mapping[str, object]) -> None:
        """One QMP command."""
        self.daemon.command(name, arguments, doing=DOING)

    def put_in(self, overlay: str, name: str, arguments: Mapping[str, object]) -> None:
        """The command that switches the disk; when it began and ended is kept."""
        begin_s = time.monotonic()
        self.command(name, arguments)
        self.switched, self.top = (begin_s, time.monotonic()), overlay

    def next_overlay(self) -> tuple[str, Path]:
        """A name for a node, and where its file is to be."""
        name = next(self._names)
        return name, self._folder / f"{name}.qcow2"

    def open_overlay(self, name: str, file: object) -> None:
        """Open an overlay, with nothing below it yet."""
        options = {"driver": "qcow2", "node-name": name, "cache": DIRECT, "file": file, "backing": None}
        self.command("blockdev-add", options)

    def run_job(self, options: Mapping[str, object]) -> None:
        """Create something in QEMU, and wait for it."""
        self.command("blockdev-create", {"job-id": "create", "options": options})
        while True:
            jobs: Any = self.daemon.command("query-jobs", {}, doing=DOING)
            if jobs[0]["status"] == "concluded":
                assert "error" not in jobs[0], jobs
                self.command("job-dismiss", {"id": "create"})
                return
            time.sleep(0.001)


def switch_as_we_do(guest: Guest) -> None:
    """Make an overlay durably, open it, put it in."""
    name, path = guest.next_overlay()
    Host.real().files.replace(str(path), empty_qcow2(SIZE_BYTES, "diskyard:frozen"))
    guest.open_overlay(name, {"driver": "file", "filename": str(path), "cache": DIRECT})
    guest.put_in(name, "blockdev-snapshot", {"node": guest.top, "overlay": name})


def switch_by_hand(guest: Guest) -> None:
    """Let qemu-img make the overlay, and QEMU open it and put it in."""
    name, path = guest.next_overlay()
    run(
        "qemu-img",
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        "below",
        str(path),
        str(SIZE_BYTES),
    )
    guest.put_in(
        name,
        "blockdev-snapshot-sync",
        {
            "node-name": guest.top,
            "snapshot-file": str(path),
            "snapshot-node-name": name,
            "format": "qcow2",
            "mode": "existing",
        },
    )


def switch_as_libvirt_does(guest: Guest) -> None:
    """Let QEMU make the overlay, open it, and put it in by a transaction."""
    name, path = guest.next_overlay()
    guest.run_job({"driver": "file", "filename": str(path), "size": 0})
    file = {"driver": "file", "node-name": f"{name}-file", "filename": str(path), "cache": DIRECT}
    guest.command("blockdev-add", file)
    guest.run_job({"driver": "qcow2", "file": f"{name}-file", "size": SIZE_BYTES})
    guest.open_overlay(name, f"{name}-file")
    switch = {"type": "blockdev-snapshot", "data": {"node": guest.top, "overlay": name}}
    guest.put_in(name, "transaction", {"actions": [switch]})


WAYS: dict[str, Callable[[Guest], None]] = {
    "diskyard": switch_as_we_do,
    "blockdev-snapshot-sync": switch_by_hand,
    "libvirt 9": switch_as_libvirt_does,
}

# -- measuring --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paused:
    """What one switch did to the guest.

    :param pause_ms: the longest write meanwhile.
    :param before_ms: the longest write of as long a time before.
    :param command_ms: of QEMU's command alone, which waits for the writes under way.
    :param whole_ms: of the switch, from the overlay's making on.
    """

    pause_ms: float
    before_ms: float
    command_ms: float
    whole_ms: float


@contextmanager
def guests_disk(folder: Path) -> Iterator[dict[str, Any]]:
    """The graph of a new disk of a repository, attached for writing."""
    place = {"path": str(folder / "repository")}
    with Diskyard(state_folder=str(folder / "state")) as yard:
        yard.create_storage_repository("localfs-1.0", place)
        yard.connect_storage_repository("r", "localfs-1.0", place)
        disk = yard.create_virtual_disk("r", SIZE_BYTES)
        yield yard.prepare_image("r", disk, options={"owner": "guest"}).blockdev
        yard.teardown_image("r", disk, options={"owner": "guest"})


def measure(folder: Path, switch: Callable[[Guest], None], count: int) -> list[Paused]:
    """Switch a disk so many times under its writers.

    :raises AssertionError: the disk does not hold what was written.
    """
    switches: list[Switched] = []
    with guests_disk(folder) as blockdev, StorageDaemon(Host.real()) as daemon:
        guest = Guest(daemon, blockdev, folder)
        control, theirs = _FORKING.Pipe()
        writer = _FORKING.Process(target=write_on, args=(guest.uri, theirs))
        writer.start()
        time.sleep(4 * BETWEEN_S)
        for _ in range(count):
            begin_s = time.monotonic()
            switch(guest)
            switches.append(Switched(begin_s, time.monotonic(), guest.switched[1] - guest.switched[0]))
            time.sleep(BETWEEN_S)
        control.send("end")
        writes, same = control.recv()
        writer.join()
        assert same, "the disk does not hold what was written"
    return [paused(writes, switch) for switch in switches]


def paused(writes: Sequence[Write], switch: Switched) -> Paused:
    """What a switch did."""
    length_s = switch.end_s - switch.begin_s

    def longest_ms(begin_s: float, end_s: float) -> float:
        those = [write for write in writes if write.begin_s < end_s and write.end_s > begin_s]
        return max((write.end_s - write.begin_s for write in those), default=0.0) * 1000

    pause_ms = longest_ms(switch.begin_s, switch.end_s)
    before_ms = longest_ms(switch.begin_s - length_s, switch.begin_s)
    return Paused(pause_ms, before_ms, switch.command_s * 1000, length_s * 1000)


def rows_of(found: dict[str, list[Paused]]) -> list[Row]:
    """The table: the pause of each way, then what else there is to know of ours."""
    pauses = {name: [one.pause_ms for one in those] for name, those in found.items()}
    rows = []
    for name, of in (("median", statistics.median), ("p95", _p95), ("longest", max)):
        figures = {way: of(those) for way, those in pauses.items()}
        ours = figures.pop("diskyard")
        rows.append(Row(f"pause, {name}", "ms", ours, figures, f"<= {TARGET_MS:.0f} ms", ours <= TARGET_MS))
    for name, of in (("median", statistics.median), ("longest", max)):
        figures = {way: of([one.before_ms for one in those]) for way, those in found.items()}
        rows.append(Row(f"longest write before, {name}", "ms", figures.pop("diskyard"), figures))
    for name, of in (("median", statistics.median), ("longest", max)):
        figures = {way: of([one.command_ms for one in those]) for way, those in found.items()}
        rows.append(Row(f"QEMU's command alone, {name}", "ms", figures.pop("diskyard"), figures))
    figures = {way: statistics.median(one.whole_ms for one in those) for way, those in found.items()}
    rows.append(Row("whole switch, median", "ms", figures.pop("diskyard"), figures))
    return rows


def _p95(samples: Sequence[float]) -> float:
    return percentile(samples, 95)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--snapshots", type=int, default=20)
    parser.add_argument("--folder", help="where to measure; its path must be short")
    given = parser.parse_args()
    found: dict[str, list[Paused]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory(prefix="dy-", dir=given.folder) as folder:
        print_heading(Path(folder))
        for number in range(-(-given.snapshots // AT_A_TIME)):
            for name, switch in WAYS.items():
                place = Path(folder) / f"{number}-{len(found[name])}-{name.replace(' ', '-')}"
                place.mkdir()
                found[name] += measure(place, switch, AT_A_TIME)
    count = len(found["diskyard"])
    print_rows(f"A disk switched {count} times under {WRITERS} writers, cache.direct", rows_of(found))


if __name__ == "__main__":
    main()
