"""Copies, differences and exports of disks that others snapshot, extend, write, merge and remove.

Nothing is held or helped: the processes race as they may. In races of one kind the disk is never
written, so that its copies are known to the byte. It is replaced by a fresh one now and then, since a
disk that was never merged upwards is raw, and can be cloned. In races of the other kind a guest writes a
number to three places of the disk, so that a copy must show one number in all three.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from diskyard import errors
from diskyard.testing.attackers.hosts import Counts, Places, YardHost, create_places
from diskyard.testing.attackers.others import Worker, fix_at_random
from diskyard.testing.attackers.sectors import SECTOR_BYTES, convert, difference
from diskyard.testing.world import KIB

_PATTERN = 0x5A
_QUIET_BYTES, _QUIET_MOST_BYTES = 192 * KIB, 2048 * KIB
_COPIES_OF_ONE = 24
_DISK = "disk"
_BUSY_BYTES = 256 * KIB + SECTOR_BYTES
_NUMBERED = (0, 100 * KIB, _BUSY_BYTES - SECTOR_BYTES)
_KEPT_MOST = 4
_WHOLE_MOST_S, _POLL_S = 120.0, 0.05


Judge = Callable[[YardHost, Counts, str, str, str], None]
RaceKind = Literal["quiet", "busy"]
RACE_KINDS: tuple[RaceKind, ...] = ("quiet", "busy")


def race(kind: RaceKind, folder: Path, places: Places, seconds: float, seed: int) -> Counts:
    """Race for some time; then fix everything and judge once more. Return what was tried and found.

    :param folder: for the state directories of hosts, and for exports.
    :param places: repositories ``a`` and ``b``, which this makes.
    """
    create_places(places, folder / "state-creator")
    host = YardHost("first", folder, places)
    if kind == "quiet":
        disk = _quiet_disk(host, folder)
        workers = [Worker(act, (folder, places, seed)) for act in (_change, _copy)]
    else:
        disk = host("createVirtualDisk", targetRepoId="a", size=_BUSY_BYTES)
        workers = [Worker(act, (folder, places, disk, seed)) for act in (_write, _keep)]
        workers.append(Worker(fix_at_random, ("fixer", folder, places, seed)))
    host.close()
    for worker in workers:
        worker.start()
    time.sleep(seconds)
    told = Counts()
    for worker in workers:
        told.add(worker.end())
    if kind == "quiet":
        disk = (folder / _DISK).read_text()
    _end(folder, places, disk, _JUDGES[kind], told)
    return told


def _quiet_disk(host: YardHost, folder: Path) -> str:
    """A fresh disk. All processes of the race find its id in a file."""
    disk: str = host("createVirtualDisk", targetRepoId="a", size=_QUIET_BYTES)
    host.write("a", disk, [f"write -P {_PATTERN} 0 {_QUIET_BYTES}", "flush"])
    fresh = folder / "disk.fresh"
    fresh.write_text(disk)
    fresh.rename(folder / _DISK)
    return disk


def _end(folder: Path, places: Places, disk: str, judge: Judge, told: Counts) -> None:
    """Let another host fix everything; then the disk must be right, and without it nothing may be left."""
    host = YardHost("last", folder, places)
    rng = random.Random(0)
    host("untrackChanges", repositoryId="a", imageId=disk)
    host.fix_all(list(places), rng)
    judge(host, told, "a", disk, "the disk in the end")
    for place in places:
        for image in host("listImages", repositoryId=place)["images"]:
            if image["status"] == "broken":
                told.broken.append(f"{image['imageId']} in {place} in the end")
            host("removeImage", repositoryId=place, imageId=image["imageId"], options={"AutoFix": False})
    host.fix_all(list(places), rng)
    for place in places:
        state = host.repo(place).state()
        left = [*state.images, *state.volumes, *(fix.description for fix in host.fixes(place))]
        left += [str(item.name) for item in host.repo(place).storage.list_volumes()]
        assert not left, f"left over in {place}: {left}"
    host.close()


# -- what the processes do --------------------------------------------------------------------


def _change(folder: Path, places: Places, seed: int, goes_on: Callable[[], bool]) -> Counts:
    """Take and remove Snapshots of the quiet disk, and extend it."""
    told, rng, host = Counts(), random.Random(f"{seed} changer"), YardHost("changer", folder, places)
    while goes_on():
        disk = (folder / _DISK).read_text()
        with told.refusals("createSnapshot"):
            snapshot = host("createSnapshot", targetRepoId="a", baseVirtualDiskId=disk)
            told.did("createSnapshot")
            if rng.random() < 0.05:
                _extend(host, told, disk)
            host("removeImage", repositoryId="a", imageId=snapshot)
        host.wait()
        with told.refusals("merge"):
            for fix in host.fixes("a"):
                if fix.runnable and fix.type == "merge":
                    told.fixes += host.run_fix("a", fix)
        if rng.random() < 0.5:
            time.sleep(rng.random() * _POLL_S)
    host.close()
    return told


def _extend(host: YardHost, told: Counts, disk: str) -> None:
    asked = {"repositoryId": "a", "imageId": disk}
    size = host("getImageInfo", **asked)["sizeBytes"] + SECTOR_BYTES
    if size < _QUIET_MOST_BYTES:
        host("extendVirtualDisk", **asked, size=size)
        told.did("extendVirtualDisk")


def _write(folder: Path, places: Places, disk: str, seed: int, goes_on: Callable[[], bool]) -> Counts:
    """Start a guest that writes its number, and ends."""
    told, rng, host = Counts(), random.Random(f"{seed} writer"), YardHost("writer", folder, places)
    number = 0
    while goes_on():
        number += 1
        commands = [f"write -P {number % 250 + 1} {at} {SECTOR_BYTES}" for at in _NUMBERED]
        with told.refusals("prepareImage"):
            host.write("a", disk, [*commands, "flush"])
            told.did("guest")
        time.sleep(rng.random() * 0.3)
    host.close()
    return told


@dataclass
class _Copier:
    """Takes copies, and judges each at once and again before it is removed."""

    host: YardHost
    told: Counts
    rng: random.Random
    disk: str
    judge: Judge
    kept: list[tuple[str, str]] = field(default_factory=list)

    def copy(self, place: str, *, track: bool = False, snapshot: bool = False) -> None:
        """Take a copy, whole or on the base of an earlier one."""
        bases = [image_id for where, image_id in self.kept if where == place]
        asked: dict[str, Any] = {"targetRepoId": place, "imageId": self.disk}
        if bases and self.rng.random() < 0.4:
            asked["baseImageId"] = bases[-1]
        options = {"trackChanges": track, **({"as": "snapshot"} if snapshot else {})}
        what = "difference" if "baseImageId" in asked else "copy"
        made = self.host("copyImage", **asked, options=options)
        self.told.did(what)
        self.keep(place, made, what)

    def keep(self, place: str, image_id: str, what: str) -> None:
        """Judge an image, and keep some of them as bases."""
        self.host.wait()
        self.kept.append((place, image_id))
        if not _becomes_whole(self.host, place, image_id):
            status = self.host("getImageStatus", repositoryId=place, imageId=image_id)
            self.told.broken.append(f"{what} {image_id} in {place}: {status['lastError']}")
        self.judge(self.host, self.told, place, image_id, what)
        while len(self.kept) > _KEPT_MOST:
            self.remove(*self.kept.pop(0))

    def remove(self, place: str, image_id: str) -> None:
        """Judge an image again, and remove it."""
        self.judge(self.host, self.told, place, image_id, "again")
        self.host("removeImage", repositoryId=place, imageId=image_id)


def _becomes_whole(host: YardHost, place: str, image_id: str) -> bool:
    """Whether an image is usable, or becomes so by listed fixes: another host may be mending it."""
    deadline_s = time.monotonic() + _WHOLE_MOST_S
    while host("getImageStatus", repositoryId=place, imageId=image_id)["status"] == "broken":
        if time.monotonic() > deadline_s:
            return False
        for fix in host.fixes(place):
            if fix.runnable and fix.image_id == image_id:
                with contextlib.suppress(errors.DiskyardError):
                    host.run_fix(place, fix)
        time.sleep(_POLL_S)
    return True


def _copy(folder: Path, places: Places, seed: int, goes_on: Callable[[], bool]) -> Counts:
    """Take copies, differences and exports of the disk that is never written."""
    told, rng, host = Counts(), random.Random(f"{seed} copier"), YardHost("copier", folder, places)
    copier = _Copier(host, told, rng, (folder / _DISK).read_text(), _judge_quiet)
    taken = 0
    while goes_on():
        with told.refusals("copyImage"):
            taken += 1
            if taken % _COPIES_OF_ONE == 0:
                old, copier.disk = copier.disk, _quiet_disk(host, folder)
                host("removeImage", repositoryId="a", imageId=old)
            if rng.random() < 0.2:
                _export(host, told, rng, copier.disk, folder / "out")
            else:
                copier.copy(rng.choice("abbbb"))
    host.close()
    return told


def _export(host: YardHost, told: Counts, rng: random.Random, disk: str, path: Path) -> None:
    format = rng.choice(["raw", "qcow2"])
    asked = {"repositoryId": "a", "imageId": disk, "path": str(path), "format": format}
    task = host("exportImage", **asked)
    host.wait()
    if not path.exists():
        ended = host("getTask", taskId=task["taskId"])
        code = (ended["error"] or {}).get("code", "none")
        told.refused[code] = told.refused.get(code, 0) + 1
        if code in ("none", "InternalError", "StorageError"):
            told.serious.append(f"export: {ended}")
        return
    told.did("export")
    _judge_quiet_bytes(told, convert(str(path), "-f", format), f"export as {format}")
    path.unlink()


def _keep(folder: Path, places: Places, disk: str, seed: int, goes_on: Callable[[], bool]) -> Counts:
    """Take Snapshots and tracked copies of the disk that a guest writes."""
    told, rng, host = Counts(), random.Random(f"{seed} keeper"), YardHost("keeper", folder, places)
    copier = _Copier(host, told, rng, disk, _judge_busy)
    while goes_on():
        with told.refusals("keep"):
            if rng.random() < 0.4:
                made = host("createSnapshot", targetRepoId="a", baseVirtualDiskId=disk)
                told.did("createSnapshot")
                copier.keep("a", made, "snapshot")
            else:
                copier.copy("b", track=True, snapshot=True)
    host.close()
    return told


# -- judging ------------------------------------------------------------------------------------


def _judge_quiet(host: YardHost, told: Counts, place: str, image_id: str, what: str) -> None:
    _judge_quiet_bytes(told, host.read(place, image_id), f"{what} {image_id} in {place}")


def _judge_quiet_bytes(told: Counts, data: bytes, what: str) -> None:
    wanted = (bytes([_PATTERN]) * _QUIET_BYTES).ljust(len(data), b"\0")
    if len(data) < _QUIET_BYTES or data != wanted:
        told.wrong.append(f"wrong bytes: {what}: {difference(data, wanted)}")
    else:
        told.reads += 1


def _judge_busy(host: YardHost, told: Counts, place: str, image_id: str, what: str) -> None:
    data = host.read(place, image_id)
    numbers = {data[at] for at in _NUMBERED} | {data[at + SECTOR_BYTES - 1] for at in _NUMBERED}
    rest = bytearray(data)
    for at in _NUMBERED:
        rest[at : at + SECTOR_BYTES] = bytes(SECTOR_BYTES)
    if len(numbers) != 1 or any(rest) or len(data) != _BUSY_BYTES:
        told.wrong.append(f"wrong bytes: {what} {image_id} in {place}: numbers {numbers}, {len(data)} bytes")
    else:
        told.reads += 1


_JUDGES: dict[RaceKind, Judge] = {"quiet": _judge_quiet, "busy": _judge_busy}
