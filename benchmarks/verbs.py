"""How long createVirtualDisk, createSnapshot and removeImage take to return, durable.

Beside them, in the same run and on the same file system: `qemu-img create` of an overlay,
and the bare system calls of one transaction (two files written and synced, two links, the
folder synced) and of one volume (a file written and synced, its folder synced). Each
round does one of everything, so that a drift of the machine meets all alike.

    .venv/bin/python benchmarks/verbs.py [--rounds 200] [--folder /path/on/the/storage]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial

from diskyard import Diskyard, MiB
from diskyard.host import Host
from diskyard.host.identity import new_uuid

ENTRY = b"x" * 1500
HEADER = b"x" * (256 << 10)


def timed(work: Callable[[], object]) -> float:
    """Milliseconds that some work took."""
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1000


def bare_transaction(host: Host, folder: str, number: int) -> None:
    """What putting one entry costs at least: the storage's own share of a commit."""
    paths = [os.path.join(folder, f"{number}.{copy}") for copy in "ab"]
    host.files.publish(paths, ENTRY)


def bare_volume(host: Host, folder: str, number: int) -> None:
    """What making one empty overlay costs at least."""
    fd = host.files.create(os.path.join(folder, f"{number}.volume"))
    host.files.write(fd, HEADER)
    host.files.sync(fd)
    os.close(fd)
    host.files.sync_folder(folder)


def qemu_img(folder: str, number: int) -> None:
    """The peer: an overlay made by QEMU's own tool, which does not sync it."""
    base = os.path.join(folder, "base.raw")
    path = os.path.join(folder, f"{number}.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, path], check=True)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--folder", default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="diskyard-bench-") as folder:
        times = measure(folder, arguments.rounds)
    volume = statistics.median(times["bare volume"])
    entry = statistics.median(times["bare transaction"])
    peer = statistics.median(times["qemu-img create"])
    bare = {
        "createVirtualDisk": 2 * entry + volume,
        "createSnapshot": 2 * entry + volume,
        "removeImage": entry,
    }
    print(f"{'median of ' + str(arguments.rounds):24} {'ms':>8} {'/ bare syncs':>13} {'/ qemu-img':>11}")
    for name, samples in times.items():
        median = statistics.median(samples)
        ratio = f"{median / bare[name]:.2f}" if name in bare else ""
        print(f"{name:24} {median:8.2f} {ratio:>13} {median / peer:11.2f}")


def measure(folder: str, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each kind of work, round by round."""
    host = Host.real()
    with open(os.path.join(folder, "base.raw"), "wb") as base:
        base.truncate(64 * MiB)
    yard = Diskyard(state_folder=os.path.join(folder, "state"))
    place = {"path": os.path.join(folder, "repository")}
    yard.create_storage_repository("localfs-1.0", place)
    yard.connect_storage_repository("r", "localfs-1.0", place)
    times: dict[str, list[float]] = {}

    def note(name: str, work: Callable[[], object]) -> None:
        times.setdefault(name, []).append(timed(work))

    def verbs() -> None:
        disk = new_uuid()
        asked = {"new_image_id": disk}
        note("createVirtualDisk", lambda: yard.create_virtual_disk("r", 64 * MiB, options=asked))
        note("createSnapshot", lambda: yard.create_snapshot("r", disk))
        commit_only = {"auto_fix": False}
        note("removeImage", lambda: yard.remove_image("r", disk, options=commit_only))

    for number in range(rounds):
        verbs()
        note("bare transaction", partial(bare_transaction, host, folder, number))
        note("bare volume", partial(bare_volume, host, folder, number))
        note("qemu-img create", partial(qemu_img, folder, number))
    yard.close()
    return times


if __name__ == "__main__":
    main()
