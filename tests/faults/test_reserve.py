"""A guest fills the storage and takes whatever becomes free: images can be removed all the same."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from diskyard import errors
from diskyard.fixes.runner import run_fix
from diskyard.host import Files, HostIdentity
from diskyard.model.fix import Merge
from diskyard.model.transaction import Frees
from diskyard.service import Service, call
from diskyard.storage.localfs import layout
from diskyard.storage.localfs.access import Follower
from diskyard.storage.localfs.reserve import Reserve
from diskyard.testing.scenarios.base import LATER
from diskyard.testing.world import KIB, MIB, PLACES, World, host_named
from tests.conftest import Tally

_MAKE: dict[str, tuple[int, list[str]]] = {
    "ext4": (64 * MIB, ["mkfs.ext4", "-q", "-m", "0"]),
    "ext4 of small blocks": (64 * MIB, ["mkfs.ext4", "-q", "-m", "0", "-b", "1024"]),
    "xfs": (320 * MIB, ["mkfs.xfs", "-q", "-m", "reflink=1"]),
    "btrfs": (256 * MIB, ["mkfs.btrfs", "-q"]),
    "tmpfs": (64 * MIB, []),
}
_PIECES_BYTES = (MIB, 64 * KIB, 4 * KIB, KIB)
_DISKS, _STORM, _AT_A_TIME = 12, 394, 16


@pytest.fixture(params=_MAKE)
def small(request: pytest.FixtureRequest, quick_folder: Path) -> Iterator[Path]:
    """A small file system of a kind, mounted."""
    size_bytes, words = _MAKE[request.param]
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    if words and shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed (Debian: xfsprogs, e2fsprogs, btrfs-progs)")
    disk, place = quick_folder / "disk", quick_folder / "mounted"
    place.mkdir()
    if words:
        with disk.open("wb") as file:
            file.truncate(size_bytes)
        subprocess.run([*words, str(disk)], check=True)
        subprocess.run(["mount", "-o", "loop", str(disk), str(place)], check=True)
    else:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


class Greedy:
    """A guest that writes on whenever its disk takes something, until :meth:`end`."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY)
        self._at_bytes = 0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.fill()

    def fill(self) -> None:
        """Write until there is no room, to the last kibibyte."""
        for piece_bytes in _PIECES_BYTES:
            with contextlib.suppress(OSError):
                while True:
                    self._at_bytes += os.pwrite(self._fd, b"\7" * piece_bytes, self._at_bytes)
        with contextlib.suppress(OSError):
            os.fsync(self._fd)

    def fill_unless(self, is_writing: bool) -> None:
        """The same, but by who writes on by himself."""
        if not is_writing:
            self.fill()

    def start(self) -> None:
        """Go on beside others."""
        self._thread.start()

    def _run(self) -> None:
        while not self._ends.wait(0.001):
            self.fill()

    def end(self) -> None:
        """Stop writing."""
        self._ends.set()
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._fd)


def _service(world: World, outside: Path, name: str) -> Service:
    """A host whose state folder has room."""
    service = Service(host_named(name), str(outside / name))
    for place in PLACES:
        asked = {"repoFormat": world.format, "connectionParameters": world.parameters(place)}
        call(service, "connectStorageRepository", {"repoId": place, **asked})
    return service


def _prepare(world: World, service: Service) -> None:
    """Disks with data, every other one over a Snapshot."""
    for number in range(_DISKS):
        world.disk(service, "a", f"d{number}")
        world.write(service, "a", f"d{number}", number + 1, 0, 256 * KIB)
        if number % 2:
            world.snapshot(service, "a", f"d{number}", f"s{number}")
            world.write(service, "a", f"d{number}", 77, 0, 128 * KIB)


def _remove(world: World, service: Service, image_id: str) -> None:
    call(service, "removeImage", {"repositoryId": "a", "imageId": image_id, "options": LATER})
    world.images.pop(("a", image_id), None)


def _guest(service: Service) -> tuple[str, Greedy]:
    """A disk larger than all there is, in the hands of a guest that has filled it as far as it goes."""
    asked: dict[str, Any] = {"targetRepoId": "a", "size": 1 << 30, "options": LATER}
    disk = call(service, "createVirtualDisk", asked)
    attached = call(service, "prepareImage", {"repositoryId": "a", "imageId": disk})
    return disk, Greedy(attached["path"])


def _fix(world: World, service: Service) -> int:
    """Run what is listed; how many merges had no room for their bytes, which nobody can keep for them."""
    waiting = 0
    for fix in world.fixes(service, "a"):
        if not fix.runnable:
            continue
        try:
            run_fix(service.engine, service.connections.get("a"), fix.data.action)
        except errors.NoSpace:
            assert isinstance(fix.data.action, Merge), fix
            waiting += 1
    return waiting


@pytest.mark.parametrize(("goes_on", "made_before"), [(False, 0), (True, 0), (False, 10**5), (True, 10**9)])
def test_a_full_storage_strands_nothing(
    small: Path,
    tmp_path: Path,
    tally: Tally,
    monkeypatch: pytest.MonkeyPatch,
    goes_on: bool,
    made_before: int,
) -> None:
    """Remove, tear down, clean and merge, from this host and from another, while a guest takes all.

    :param goes_on: it writes all the time, and not only after each call.
    :param made_before: how many temporary files this process has had: their names become longer.
    """
    tally("full file systems")
    monkeypatch.setattr("diskyard.host.files._counter", itertools.count(made_before))
    world = World(small / "world")
    world.create()
    service, other = (_service(world, tmp_path, name) for name in ("host", "other"))
    _prepare(world, service)
    attached = [world.names[f"d{number}"] for number in range(0, _DISKS, 3)]
    for image_id in attached:
        call(service, "prepareImage", {"repositoryId": "a", "imageId": image_id})
    disk, guest = _guest(service)
    if goes_on:
        guest.start()
    try:
        for number in range(1, _DISKS, 2):
            _remove(world, service, world.names[f"s{number}"])
            guest.fill_unless(goes_on)
        for image_id in attached:
            call(service, "teardownImage", {"repositoryId": "a", "imageId": image_id})
            guest.fill_unless(goes_on)
        for number in range(0, _DISKS, 2):
            _remove(world, other if number % 4 else service, world.names[f"d{number}"])
            guest.fill_unless(goes_on)
        waiting = _fix(world, other) + _fix(world, service)
    finally:
        guest.end()
    call(service, "teardownImage", {"repositoryId": "a", "imageId": disk})
    _remove(world, service, disk)
    _fix(world, service)  # merges may come before what makes room for them
    world.fix_all([service, other], Random(0))
    world.judge(other)
    for host in (service, other):
        host.close()
    tally("full file systems", runs=1, merges_without_room=waiting)


def test_a_storm_of_images_is_removable(small: Path, tmp_path: Path, tally: Tally) -> None:
    """Hundreds of them on a full storage, a few at a time with their fixes, the last byte taken again."""
    tally("full file systems")
    world = World(small / "world")
    world.create()
    service = _service(world, tmp_path, "host")
    ids = [
        call(service, "createVirtualDisk", {"targetRepoId": "a", "size": 64 * KIB, "options": LATER})
        for _ in range(_STORM)
    ]
    for volume in (small / "world" / "a" / "volumes").iterdir():
        volume.write_bytes(b"\1" * (64 * KIB))
    disk, guest = _guest(service)
    try:
        for begin in range(0, _STORM, _AT_A_TIME):
            for image_id in ids[begin : begin + _AT_A_TIME]:
                _remove(world, service, image_id)
            _fix(world, service)
            guest.fill()
    finally:
        guest.end()
    assert set(service.connections.get("a").state().images) == {disk}
    service.close()
    tally("full file systems", runs=1, removed=_STORM)


class FullDirectory(Files):
    """Files in a directory that has no space for a name, but where one at least as long was removed."""

    def __init__(self, host: HostIdentity) -> None:
        super().__init__(host)
        self.is_full = False
        self._hole_bytes = 0

    def unlink(self, path: str) -> None:
        """See :meth:`Files.unlink`; it leaves a hole."""
        super().unlink(path)
        self._hole_bytes = max(self._hole_bytes, len(os.path.basename(path)))

    def rename(self, source: str, target: str) -> None:
        """See :meth:`Files.rename`; the new name is written before the old one goes."""
        if self.is_full and len(os.path.basename(target)) > self._hole_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)
        super().rename(source, target)
        self._hole_bytes = len(os.path.basename(source))


def test_a_directory_without_space_for_a_name_costs_no_file_of_the_reserve(tmp_path: Path) -> None:
    """As on a full XFS: which names fit there depends on how long those of this process are."""
    host, root = host_named("host"), str(tmp_path)
    (tmp_path / layout.LOG).mkdir()
    files = FullDirectory(host.identity)
    reserve = Reserve(files, root, Follower(host, root))
    reserve.fill()
    before = _with_blocks(reserve)
    files.is_full = True
    published = 5
    for number in range(published):
        paths = (str(tmp_path / f"entry-{number}"), str(tmp_path / f"replica-{number}"))
        assert reserve.publish(paths, b"an entry", Frees.AT_ONCE, lambda: False)
        assert {Path(path).read_bytes() for path in paths} == {b"an entry"}
    assert before - _with_blocks(reserve) == 2 * published  # two replicas of each entry


def _with_blocks(reserve: Reserve) -> int:
    return sum(not name.startswith("name.") for name in os.listdir(reserve.folder))
