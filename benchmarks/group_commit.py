"""How many changes a second one process makes durable: by one thread, and by many at once.

Each thread has disks of its own in one repository: it creates them, takes a snapshot of each,
and removes each. All threads do one verb at a time and wait for each other before the next.
Beside the rate and the times of single calls: how many entries of the log the calls became, and
in the same run the rate of bare transactions (two files written and synced, two links, the folder
synced), one after another, which is what a log without groups could do at most.

    .venv/bin/python benchmarks/group_commit.py [--threads 1 64] [--calls 256] [--folder /path/on/the/storage]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from diskyard import Diskyard, MiB
from diskyard.host import Host
from diskyard.host.identity import new_uuid
from diskyard.host.publishing import publish

ENTRY = b"x" * 1500
BARE = 100
PERCENT = 100


@dataclass(frozen=True)
class Measured:
    """One verb, called by so many threads.

    :param times_ms: of each call.
    :param entries: by which the log grew meanwhile.
    """

    verb: str
    threads: int
    elapsed_s: float
    times_ms: list[float]
    entries: int

    def line(self) -> str:
        calls = len(self.times_ms)
        p50, p99 = (statistics.quantiles(self.times_ms, n=PERCENT)[at - 1] for at in (50, 99))
        rate = f"{calls / self.elapsed_s:9.1f} {p50:8.1f} {p99:8.1f}"
        return f"{self.verb:20} {self.threads:8} {rate} {self.entries / calls:13.2f}"


def bare_rate(folder: str) -> float:
    """Bare transactions a second."""
    host, numbers = Host.real(), count()
    begin = time.perf_counter()
    for _ in range(BARE):
        name = os.path.join(folder, str(next(numbers)))
        publish(host.files, [f"{name}.a", f"{name}.b"], ENTRY)
    return BARE / (time.perf_counter() - begin)


class Yard:
    """A repository of its own, and threads that use it."""

    def __init__(self, folder: str, threads: int) -> None:
        self.threads = threads
        self.yard = Diskyard(state_folder=os.path.join(folder, "state"))
        place = {"path": os.path.join(folder, "repository")}
        self.yard.create_storage_repository("localfs-1.0", place)
        self.yard.connect_storage_repository("r", "localfs-1.0", place)

    def version(self) -> int:
        """The number of the newest entry."""
        return self.yard.service.connections.get("r").state().version

    def all_do(self, verb: str, calls: list[Callable[[], object]]) -> Measured:
        """Make the calls, shared out to the threads, all at once."""
        times_ms: list[float] = []
        barrier = threading.Barrier(self.threads + 1)

        def work(mine: list[Callable[[], object]]) -> None:
            barrier.wait()
            for call in mine:
                begin = time.perf_counter()
                call()
                times_ms.append((time.perf_counter() - begin) * 1000)

        shares = [calls[number :: self.threads] for number in range(self.threads)]
        workers = [threading.Thread(target=work, args=(share,)) for share in shares]
        for worker in workers:
            worker.start()
        before = self.version()
        barrier.wait()
        begin = time.perf_counter()
        for worker in workers:
            worker.join()
        elapsed_s = time.perf_counter() - begin
        return Measured(verb, self.threads, elapsed_s, times_ms, self.version() - before)

    def measure(self, calls: int) -> list[Measured]:
        """Each verb in turn, so many times."""
        disks = [new_uuid() for _ in range(calls)]

        def create(disk: str) -> Callable[[], object]:
            return lambda: self.yard.create_virtual_disk("r", 64 * MiB, options={"new_image_id": disk})

        def snapshot(disk: str) -> Callable[[], object]:
            return lambda: self.yard.create_snapshot("r", disk)

        def remove(disk: str) -> Callable[[], object]:
            return lambda: self.yard.remove_image("r", disk, options={"auto_fix": False})

        return [
            self.all_do("createVirtualDisk", [create(disk) for disk in disks]),
            self.all_do("createSnapshot", [snapshot(disk) for disk in disks]),
            self.all_do("removeImage", [remove(disk) for disk in disks]),
        ]

    def close(self) -> None:
        self.yard.close()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--calls", type=int, default=256)
    parser.add_argument("--folder", default=None)
    arguments = parser.parse_args()
    print(f"{'':20} {'threads':>8} {'calls/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'entries/call':>13}")
    for threads in arguments.threads:
        with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="diskyard-bench-") as folder:
            yard = Yard(folder, threads)
            for measured in yard.measure(arguments.calls):
                print(measured.line())
            yard.close()
            print(f"{'bare transactions':20} {1:8} {bare_rate(folder):9.1f}")


if __name__ == "__main__":
    main()
