"""A real file system in a file, whose power can be cut.

A system call (``XFS_IOC_GOINGDOWN``, which ext4 has too) stops everything that the file system would still
write. Then it is mounted again, and its journal recovers what had reached the disk.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
_MAKE = {
    "xfs": (320 * MIB, ["mkfs.xfs", "-q", "-m", "reflink=1"]),
    "ext4": (64 * MIB, ["mkfs.ext4", "-q", "-m", "0", "-N", "2048"]),
}
# The dead one that another namespace still has mounted has the same UUID.
_MOUNT_OPTIONS = {"xfs": ("nouuid",), "ext4": ()}
KINDS = tuple(_MAKE)
_GOING_DOWN = 0x8004587D  # _IOR('X', 125, __u32)
_DYING_MOST_S, _POLL_S = 10.0, 0.01
_LOG_KEPT, _LOG_LOST = 1, 2


def why_no_real_disk(kind: str) -> str | None:
    """Why this is not possible here; None if it is."""
    if os.geteuid() != 0:
        return "mounting a file system needs root"
    program = _MAKE[kind][1][0]
    if shutil.which(program) is None:
        return f"{program} is not installed (Debian: xfsprogs, e2fsprogs)"
    return None


@dataclass(frozen=True)
class RealDisk:
    """A file system in a file.

    :param kind: of the file system; ``file``: where it is kept; ``place``: where it is mounted.
    """

    kind: str
    file: Path
    place: Path

    def _mount(self) -> None:
        options = ",".join(("loop", *_MOUNT_OPTIONS[self.kind]))
        subprocess.run(["mount", "-o", options, str(self.file), str(self.place)], check=True)

    def _unmount(self) -> None:
        """Unmount it, with patience: a killed program may still have files open when its name is gone."""
        deadline_s = time.monotonic() + _DYING_MOST_S
        while subprocess.run(["umount", str(self.place)], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline_s, f"{self.place} stays in use"
            time.sleep(_POLL_S)

    def sync(self) -> None:
        """Make all that it holds durable."""
        subprocess.run(["sync", "--file-system", str(self.place)], check=True)

    def cut_power(self, *, log_kept: bool) -> None:
        """Lose what was not synced, and mount it again.

        :param log_kept: what the file system's journal had in memory still reaches the disk, so that names
            and sizes exist whose data does not.
        """
        fd = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _GOING_DOWN, struct.pack("I", _LOG_KEPT if log_kept else _LOG_LOST))
        finally:
            os.close(fd)
        self._unmount()
        self._take_out()
        self._mount()

    def _take_out(self) -> None:
        """Keep what it holds in another file.

        A mount namespace that was made meanwhile, by whatever else runs on this host, still has the dead
        file system mounted, and mounting the same file again would give that one back.
        """
        copy = self.file.with_name("copy-of-disk")
        subprocess.run(["cp", "--sparse=always", str(self.file), str(copy)], check=True)
        copy.replace(self.file)


@contextmanager
def real_disk(kind: str, folder: Path) -> Iterator[RealDisk]:
    """A small file system of a kind, mounted for the time of the context."""
    size_bytes, words = _MAKE[kind]
    disk = RealDisk(kind, folder / "disk", folder / "mounted")
    disk.place.mkdir()
    with disk.file.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run([*words, str(disk.file)], check=True)
    disk._mount()
    try:
        yield disk
    finally:
        disk._unmount()
