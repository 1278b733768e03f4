"""The daemon: how soon it is ready, how long the command takes, what many callers get, what it needs.

Start to ready, and `diskyard image list` from start to end through the daemon and without one,
beside `virsh vol-list` on as many volumes where libvirt is installed (Debian:
libvirt-daemon-system, libvirt-clients). Then createVirtualDisk, createSnapshot and removeImage by
1 and by 64 callers over the Unix socket, each verb for itself; and resident memory with a
repository of 10,000 images, idle and after listing it.

    .venv/bin/python benchmarks/daemon.py [--callers 1 64] [--calls 512] [--images 10000] [--folder …]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from diskyard.testing.daemon_process import DaemonProcess

MiB = 1 << 20
RUNS = 7
LISTED = 100
COMMAND = (sys.executable, "-m", "diskyard.cli")


def timed(work: Callable[[], object]) -> float:
    """Milliseconds that some work took."""
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1000


def median_of(work: Callable[[], object]) -> float:
    work()
    return statistics.median(timed(work) for _ in range(RUNS))


def connect(daemon: DaemonProcess, name: str) -> None:
    asked = {"repoFormat": "localfs-1.0", "connectionParameters": daemon.place(name)}
    daemon.call("createStorageRepository", **asked)
    daemon.call("connectStorageRepository", repoId=name, **asked)


def run(*words: str, **environment: str) -> None:
    subprocess.run(words, check=True, capture_output=True, env={**os.environ, **environment})


# -- start -------------------------------------------------------------------------------------


def starts(folder: Path) -> None:
    daemon = DaemonProcess(folder / "d")

    def start_and_stop() -> float:
        took_ms = timed(daemon.start)
        daemon.stop()
        return took_ms

    start_and_stop()
    median_ms = statistics.median(start_and_stop() for _ in range(RUNS))
    print(f"start to ready                       {median_ms:8.0f} ms")
    state = {"DISKYARD_STATE_DIR": str(daemon.state_folder)}
    with daemon:
        connect(daemon, "fast")
        for _ in range(LISTED):
            daemon.call("createVirtualDisk", targetRepoId="fast", size=MiB)
        listing = (*COMMAND, "image", "list", "fast")
        through_ms = median_of(lambda: run(*listing, **state))
        embedded_ms = median_of(lambda: run(*listing, "--embedded", **state))
    print(f"image list, {LISTED} images, daemon         {through_ms:8.0f} ms")
    print(f"image list, {LISTED} images, embedded       {embedded_ms:8.0f} ms")
    with virsh_pool(folder / "pool") as pool:
        if pool is None:
            print("virsh vol-list: libvirt is not installed or not running")
            return
        virsh_ms = median_of(lambda: run("virsh", "-q", "vol-list", "--details", pool))
        print(f"virsh vol-list --details, {LISTED} volumes  {virsh_ms:8.0f} ms")
        print(f"ratio to virsh: daemon {through_ms / virsh_ms:.2f}, embedded {embedded_ms / virsh_ms:.2f}")


@contextmanager
def virsh_pool(folder: Path) -> Iterator[str | None]:
    """A pool of as many qcow2 volumes, known to libvirt; None where there is no libvirt."""
    name = "diskyard-benchmark"
    folder.mkdir()
    for number in range(LISTED):
        run("qemu-img", "create", "-q", "-f", "qcow2", str(folder / f"{number}.qcow2"), "1M")
    try:
        run("virsh", "-q", "pool-create-as", name, "dir", "--target", str(folder))
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    yield name
    run("virsh", "-q", "pool-destroy", name)


# -- callers -----------------------------------------------------------------------------------


class Callers:
    """So many callers, each on a connection of its own."""

    def __init__(self, daemon: DaemonProcess, count: int, calls: int) -> None:
        self._daemon, self._count, self._each = daemon, count, max(1, calls // count)

    def all_call(self, verb: str, words: Callable[[int, int], dict[str, object]]) -> list[object]:
        """Let each call a verb; the answers, and a line of the table."""
        times: list[float] = []
        answers: list[object] = []
        barrier = threading.Barrier(self._count + 1)

        def work(caller: int) -> None:
            with self._daemon.client() as client:
                client.get("/healthz")
                barrier.wait()
                for number in range(self._each):
                    begin = time.perf_counter()
                    answer: httpx.Response = client.post(f"/v1/{verb}", json=words(caller, number))
                    times.append((time.perf_counter() - begin) * 1000)
                    assert answer.status_code == 200, answer.text
                    answers.append(answer.json())

        threads = [threading.Thread(target=work, args=(caller,)) for caller in range(self._count)]
        for thread in threads:
            thread.start()
        barrier.wait()
        begin = time.perf_counter()
        for thread in threads:
            thread.join()
        took_s = time.perf_counter() - begin
        times.sort()
        p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
        rate = len(times) / took_s
        print(
            f"{verb:<20} {self._count:>3} callers  {rate:7.0f}/s  p50 {p50:7.1f} ms  p99 {p99:7.1f} ms"
            f"  p99/p50 {p99 / p50:5.1f}"
        )
        return answers


def callers(folder: Path, counts: list[int], calls: int) -> None:
    with DaemonProcess(folder / "c") as daemon:
        for count in counts:
            of_so_many(Callers(daemon, count, calls), daemon, f"of-{count}")


def of_so_many(those: Callers, daemon: DaemonProcess, repo: str) -> None:
    connect(daemon, repo)
    disks = those.all_call("createVirtualDisk", lambda *_: {"targetRepoId": repo, "size": MiB})
    left = iter(disks)
    those.all_call("createSnapshot", lambda *_: {"targetRepoId": repo, "baseVirtualDiskId": next(left)})
    due = iter(disks)
    only = {"AutoFix": False}
    those.all_call("removeImage", lambda *_: {"repositoryId": repo, "imageId": next(due), "options": only})


# -- memory ------------------------------------------------------------------------------------


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MiB


def memory(folder: Path, images: int) -> None:
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
        whole_ms = timed(lambda: daemon.call("listImages", repositoryId="many", limit=10_000))
        busy_mib = resident_mib(daemon.pid)
    print(f"resident with {images:,} images: {idle_mib:.0f} MiB idle after a start, {busy_mib:.0f} MiB after")
    print(f"  listing all of them ({whole_ms:.0f} ms), {after_mib:.0f} MiB after making them")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--calls", type=int, default=512)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--folder", help="where to measure; its path must be short")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dy-", dir=given.folder) as folder:
        starts(Path(folder))
        callers(Path(folder), given.callers, given.calls)
        memory(Path(folder), given.images)


if __name__ == "__main__":
    main()
