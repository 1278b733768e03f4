"""The daemon: how soon it is ready, what many callers get, what it needs while nobody calls.

createVirtualDisk, createSnapshot and removeImage by 1 and by 64 callers over the Unix socket, each
verb for itself; and with a repository of 10,000 images, resident memory after a start, and every
system call on a file or folder of the repository within 30 s in which nobody calls (by strace).

    .venv/bin/python -m benchmarks.daemon [--callers 1 64] [--calls 512] [--images 10000] [--folder …]
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks._rows import Row, percentile, print_heading, print_rows, timed_ms
from diskyard.testing.daemon_process import DaemonProcess

MiB = 1 << 20
RUNS = 7
IDLE_S = 30
MORE_CALLS = 2.0
WORST_OVER_USUAL = 10.0
MOST_MIB = 100


def connect(daemon: DaemonProcess, name: str) -> None:
    asked = {"repoFormat": "localfs-1.0", "connectionParameters": daemon.place(name)}
    daemon.call("createStorageRepository", **asked)
    daemon.call("connectStorageRepository", repoId=name, **asked)


# -- start -------------------------------------------------------------------------------------


def starts(folder: Path) -> list[Row]:
    daemon = DaemonProcess(folder / "d")

    def start_and_stop() -> float:
        took_ms = timed_ms(daemon.start)
        daemon.stop()
        return took_ms

    start_and_stop()
    return [Row("start to ready", "ms", statistics.median(start_and_stop() for _ in range(RUNS)))]


# -- callers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Called:
    """What so many callers got of one verb."""

    count: int
    calls_per_s: float
    p50_ms: float
    p99_ms: float
    answers: list[object]


class Callers:
    """So many callers, each on a connection of its own."""

    def __init__(self, daemon: DaemonProcess, count: int, calls: int) -> None:
        self._daemon, self.count, self._each = daemon, count, max(1, calls // count)

    def all_call(self, verb: str, words: Callable[[int, int], dict[str, object]]) -> Called:
        """Let each call a verb."""
        times_ms: list[float] = []
        answers: list[object] = []
        barrier = threading.Barrier(self.count + 1)

        def work(caller: int) -> None:
            with self._daemon.client() as client:
                client.get("/healthz")
                barrier.wait()
                for number in range(self._each):
                    begin_s = time.perf_counter()
                    answer: httpx.Response = client.post(f"/v1/{verb}", json=words(caller, number))
                    times_ms.append((time.perf_counter() - begin_s) * 1000)
                    assert answer.status_code == 200, answer.text
                    answers.append(answer.json())

        threads = [threading.Thread(target=work, args=(caller,)) for caller in range(self.count)]
        for thread in threads:
            thread.start()
        barrier.wait()
        begin_s = time.perf_counter()
        for thread in threads:
            thread.join()
        rate = len(times_ms) / (time.perf_counter() - begin_s)
        return Called(self.count, rate, percentile(times_ms, 50), percentile(times_ms, 99), answers)


def callers(folder: Path, counts: list[int], calls: int) -> list[Row]:
    called: dict[str, list[Called]] = {}
    with DaemonProcess(folder / "c") as daemon:
        for count in counts:
            for verb, found in of_so_many(Callers(daemon, count, calls), daemon, f"of-{count}").items():
                called.setdefault(verb, []).append(found)
    return [row for verb, found in called.items() for row in caller_rows(verb, found)]


def of_so_many(those: Callers, daemon: DaemonProcess, repo: str) -> dict[str, Called]:
    connect(daemon, repo)
    created = those.all_call("createVirtualDisk", lambda *_: {"targetRepoId": repo, "size": MiB})
    left, due = iter(created.answers), iter(created.answers)
    only = {"AutoFix": False}
    return {
        "createVirtualDisk": created,
        "createSnapshot": those.all_call(
            "createSnapshot", lambda *_: {"targetRepoId": repo, "baseVirtualDiskId": next(left)}
        ),
        "removeImage": those.all_call(
            "removeImage", lambda *_: {"repositoryId": repo, "imageId": next(due), "options": only}
        ),
    }


def caller_rows(verb: str, found: list[Called]) -> list[Row]:
    """Two rows for each number of callers: how many calls a second, and the worst over the usual."""
    few, rows = found[0], []
    for one in found:
        work, is_peer = f"{verb}, {one.count} callers", one is few
        rate_target = "" if is_peer else f">= {MORE_CALLS:.0f} x the rate of {few.count}"
        enough = None if is_peer else one.calls_per_s >= MORE_CALLS * few.calls_per_s
        peers = {} if is_peer else {f"{few.count} callers": few.calls_per_s}
        rows.append(Row(work, "/s", one.calls_per_s, peers, rate_target, enough))
        rows.append(
            Row(
                f"{verb}, {one.count} callers, p99",
                "ms",
                one.p99_ms,
                {"p50": one.p50_ms},
                "" if is_peer else f"p99 <= {WORST_OVER_USUAL:.0f} x p50",
                None if is_peer else one.p99_ms <= WORST_OVER_USUAL * one.p50_ms,
            )
        )
    return rows


# -- idle --------------------------------------------------------------------------------------


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MiB


def idle(folder: Path, images: int) -> list[Row]:
    daemon = DaemonProcess(folder / "m")
    with daemon:
        connect(daemon, "many")
        those = Callers(daemon, 16, images)
        those.all_call("createVirtualDisk", lambda *_: {"targetRepoId": "many", "size": MiB})
        after_mib = resident_mib(daemon.pid)
    with daemon:
        while not daemon.call("listImages", repositoryId="many", limit=1)["images"]:
            time.sleep(0.1)
        idle_mib = resident_mib(daemon.pid)
        rows = storage_calls(daemon, "many")
        whole_ms = timed_ms(lambda: daemon.call("listImages", repositoryId="many", limit=10_000))
        listed_mib = resident_mib(daemon.pid)
    target = f"<= {MOST_MIB} MiB"
    return [
        Row(
            f"resident, {images:,} images, idle after a start",
            "MiB",
            idle_mib,
            {},
            target,
            idle_mib <= MOST_MIB,
        ),
        Row("resident after listing all of them", "MiB", listed_mib),
        Row("resident after making them", "MiB", after_mib),
        Row("listing all of them", "ms", whole_ms),
        *rows,
    ]


def storage_calls(daemon: DaemonProcess, repo: str) -> list[Row]:
    """What a daemon that nobody calls asks of its repository; and one call, to see that it would be seen."""
    if shutil.which("strace") is None:
        print("strace is not installed: what an idle daemon asks of storage is not counted")
        return []
    place = Path(daemon.place(repo)["path"])
    nothing = traced_calls(daemon, place, lambda: time.sleep(IDLE_S))
    something = traced_calls(daemon, place, lambda: daemon.call("listImages", repositoryId=repo, limit=1))
    assert something, "strace sees nothing of what a call asks of storage"
    work = f"calls on the repository in {IDLE_S} s idle"
    return [Row(work, "", nothing, {"one listImages": something}, "0", nothing == 0)]


def traced_calls(daemon: DaemonProcess, place: Path, meanwhile: Callable[[], object]) -> int:
    """The system calls of a daemon that name something in a folder, or have it open."""
    trace = daemon.folder / "trace"
    words = ["strace", "-f", "-q", "-y", "-s", "4096", "-e", "trace=%file,%desc", "-o", str(trace)]
    tracer = subprocess.Popen([*words, "-p", str(daemon.pid)], stderr=subprocess.DEVNULL)
    try:
        while "TracerPid:\t0\n" in Path(f"/proc/{daemon.pid}/status").read_text():
            assert tracer.poll() is None, "strace may not look at the daemon"
            time.sleep(0.01)
        meanwhile()
    finally:
        tracer.terminate()
        tracer.wait()
    return sum(str(place) in line for line in trace.read_text(errors="replace").splitlines())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--calls", type=int, default=512)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--folder", help="where to measure; its path must be short")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dy-", dir=given.folder) as name:
        folder = Path(name)
        print_heading(folder)
        print_rows(f"Start, median of {RUNS}", starts(folder))
        print_rows(f"Callers at one time, {given.calls} calls", callers(folder, given.callers, given.calls))
        print_rows("Idle", idle(folder, given.images))


if __name__ == "__main__":
    main()
