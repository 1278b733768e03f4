"""Repositories of very many images: listing, checking, one page, and long chains, beside libvirt.

The repositories are made by `benchmarks/_many.py`, of sparse files: one of 100,000 images, half of them
raw and half qcow2, one with 10,000 Snapshots of one disk in one chain, and one with as many that all read
the same image. Each round a fresh process does all of our work, first with no header known to it and
then again, and tells its peak memory; then `virsh vol-list --details` and `virsh pool-refresh` have their
turn, on a pool whose folder has volumes of the same kind. They take far longer for each, so there are
fewer of them, and times are compared by image. (Debian: libvirt-clients, libvirt-daemon. A
libvirtd that is not running is started, and ends by itself when it is idle.) What is measured is warm.

    .venv/bin/python benchmarks/scale.py [--images 100000] [--deep 10000] [--peer-images 2000] [--rounds 5]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# The folder above: started by its path, a script finds only its own folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._many import FORMAT, Shape, make_repository
from diskyard import Diskyard, MiB

FIRST, PAGE, LARGE_PAGE = 100, 1_000, 10_000
SNAPSHOTS = 5
POOL = "diskyard-scale"
COMMAND = (sys.executable, "-m", "diskyard.cli")
LIST, REFRESH = "virsh vol-list --details", "virsh pool-refresh"
#: Of which of our works a program of libvirt's does the like, and by how much ours is to be faster.
PEERS = {
    f"list all, pages of {PAGE:,}": (LIST, 20.0),
    f"list all again, pages of {PAGE:,}": (LIST, 20.0),
    f"list all, pages of {LARGE_PAGE:,}": (LIST, 20.0),
    "check": (REFRESH, None),
    "connect": (REFRESH, None),
}
Times = dict[str, float]


@dataclass(frozen=True, slots=True)
class Storage:
    """One that is measured."""

    name: str
    folder: str
    shape: Shape
    images: int


def timed(times: Times, name: str, work: Callable[[], object]) -> None:
    """Note the seconds that some work took."""
    begin = time.perf_counter()
    work()
    times[name] = time.perf_counter() - begin


def medians(rounds: list[Times]) -> Times:
    """The median of each work."""
    return {name: statistics.median(times[name] for times in rounds) for name in rounds[0]}


# -- ours, in a process of its own ---------------------------------------------------------------


def list_all(yard: Diskyard, limit: int) -> int:
    found, cursor = 0, None
    while True:
        page = yard.list_images("r", limit=limit, cursor=cursor)
        found += len(page.images)
        cursor = page.next_cursor
        if cursor is None:
            return found


def measure_ours(repository: Storage, state_folder: str) -> tuple[Times, float]:
    """Seconds by work, and the process's peak memory in MiB."""
    times: Times = {}
    place = {"path": repository.folder}
    with Diskyard(state_folder=state_folder) as yard:
        timed(times, "connect", lambda: yard.connect_storage_repository("r", FORMAT, place))
        timed(times, f"first page of {FIRST}", lambda: yard.list_images("r", limit=FIRST))
        timed(times, f"list all, pages of {PAGE:,}", lambda: list_all(yard, PAGE))
        timed(times, f"list all again, pages of {PAGE:,}", lambda: list_all(yard, PAGE))
        timed(times, f"list all, pages of {LARGE_PAGE:,}", lambda: list_all(yard, LARGE_PAGE))
        timed(times, "check", lambda: yard.check_storage_repository("r"))
        timed(times, "listStorageRepositories", yard.list_storage_repositories)
        assert list_all(yard, LARGE_PAGE) >= repository.images
        if repository.shape != "mixed":
            measure_disk(yard, times)
    return times, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MiB


def measure_disk(yard: Diskyard, times: Times) -> None:
    """The verbs of the one disk that reads all that there is."""
    (disk,) = yard.list_images("r", kind="virtual_disk").images
    timed(times, "getImageStatus of the disk", lambda: yard.get_image_status("r", disk.image_id))
    timed(times, "getImageInfo of the disk", lambda: yard.get_image_info("r", disk.image_id))
    took: list[Times] = [{} for _ in range(SNAPSHOTS)]  # they stay: so few more make no difference
    for own in took:
        timed(own, "createSnapshot of the disk", lambda: yard.create_snapshot("r", disk.image_id))
    times |= medians(took)


def measure_command(repository: Storage, state_folder: str) -> Times:
    """The command line's list, until its first byte and to its end."""
    with Diskyard(state_folder=state_folder) as yard:
        yard.connect_storage_repository("r", FORMAT, {"path": repository.folder})
    begin = time.perf_counter()
    words = [*COMMAND, "--json", "image", "list", "r", "--embedded"]
    environment = {**os.environ, "DISKYARD_STATE_DIR": state_folder}
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment) as program:
        assert program.stdout is not None
        program.stdout.read(1)
        first_s = time.perf_counter() - begin
        while program.stdout.read(1 << 20):
            pass
    assert program.returncode == 0
    return {"image list --json, first byte": first_s, "image list --json": time.perf_counter() - begin}


# -- libvirt's -----------------------------------------------------------------------------------


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@contextmanager
def pool(folder: Path, images: int) -> Iterator[bool]:
    """A pool of such volumes, known to libvirt; False where there is no libvirt."""
    if not shutil.which("virsh") or not _has_libvirt():
        yield False
        return
    make_repository(str(folder), images)
    subprocess.run(["virsh", "-q", "pool-destroy", POOL], check=False, capture_output=True)
    run("virsh", "-q", "pool-create-as", POOL, "dir", "--target", str(folder / "volumes"))
    try:
        yield True
    finally:
        run("virsh", "-q", "pool-destroy", POOL)


def _has_libvirt() -> bool:
    """Whether libvirt answers, after it was started if it was not running."""
    for daemon in (None, "virtstoraged", "libvirtd"):
        if daemon is not None:
            if not shutil.which(daemon):
                continue
            subprocess.run([daemon, "-d", "-t", "120"], check=False, capture_output=True)
        if subprocess.run(["virsh", "-q", "pool-list"], check=False, capture_output=True).returncode == 0:
            return True
    return False


def measure_peers() -> Times:
    times: Times = {}
    timed(times, LIST, lambda: run("virsh", "-q", "vol-list", "--details", POOL))
    timed(times, REFRESH, lambda: run("virsh", "-q", "pool-refresh", POOL))
    return times


# -- rounds and the table ------------------------------------------------------------------------


def print_table(repository: Storage, ours: Times, peers: Times, peer_images: int, peak_mib: float) -> None:
    print(f"\n{repository.name}: {repository.images:,} images, peak {peak_mib:.0f} MiB")
    heading = ("work", "ms", "us/image", "peer us/image", "peer / ours", "target")
    print("{:40} {:>10} {:>10} {:>15} {:>12} {:>8}".format(*heading))
    for name, took_s in ours.items():
        own_us = took_s / repository.images * 1e6
        peer, target = PEERS.get(name, ("", None))
        if peer in peers:
            peer_us = peers[peer] / peer_images * 1e6
            against = f"{peer_us:15.1f} {peer_us / own_us:12.1f} {target or '':>8}"
        else:
            against = ""
        per_image = f"{own_us:10.1f}" if name not in FIXED and "of the disk" not in name else " " * 10
        print(f"{name:40} {took_s * 1000:10.1f} {per_image} {against}".rstrip())
    if "check" in ours:
        listed_s = ours[f"list all, pages of {PAGE:,}"]
        print(f"check / list all: {ours['check'] / listed_s:.2f} (target: at most 2)")


FIXED = (f"first page of {FIRST}", "image list --json, first byte")


def main() -> None:
    """Measure and print a table for each repository."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--deep", type=int, default=10_000)
    parser.add_argument("--peer-images", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where to make them")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="diskyard-scale-") as folder:
        repositories = [
            Storage("mixed", f"{folder}/mixed", "mixed", given.images),
            Storage("one chain", f"{folder}/chain", "chain", given.deep),
            Storage("all on one Snapshot", f"{folder}/fan", "fan", given.deep),
        ]
        for repository in repositories:
            make_repository(repository.folder, repository.images, repository.shape)
        with pool(Path(folder, "pool"), given.peer_images) as has_peer:
            if not has_peer:
                print("libvirt is not installed or does not start: no peer")
            compare(repositories, given, folder, has_peer=has_peer)


def compare(repositories: list[Storage], given: argparse.Namespace, folder: str, *, has_peer: bool) -> None:
    """Round by round, all in turn; then the tables."""
    ours: dict[str, list[Times]] = {repository.name: [] for repository in repositories}
    peaks: dict[str, float] = {}
    peers: list[Times] = []
    for _ in range(given.rounds):
        for repository in repositories:
            state_folder = f"{repository.folder}.used"
            # A process of its own, that has nothing in memory yet.
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                times, peak_mib = fresh.submit(measure_ours, repository, state_folder).result()
            if repository.shape == "mixed":
                times |= measure_command(repository, state_folder)
            ours[repository.name].append(times)
            peaks[repository.name] = max(peak_mib, peaks.get(repository.name, 0.0))
        if has_peer:
            peers.append(measure_peers())
    peer_medians = medians(peers) if peers else {}
    print(f"medians of {given.rounds} rounds; libvirt with {given.peer_images:,} volumes; in {folder}")
    for name, took_s in peer_medians.items():
        print(f"{name:40} {took_s * 1000:10.1f} {took_s / given.peer_images * 1e6:10.1f}")
    for repository in repositories:
        print_table(
            repository,
            medians(ours[repository.name]),
            peer_medians,
            given.peer_images,
            peaks[repository.name],
        )


if __name__ == "__main__":
    main()
