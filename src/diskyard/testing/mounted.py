"""Real file systems of several kinds in files, mounted for a while, and what an operator may do to them."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
_MAKE = {
    "xfs": (420 * MIB, ["mkfs.xfs", "-q", "-m", "reflink=1"]),
    "ext4": (260 * MIB, ["mkfs.ext4", "-q", "-b", "4096", "-m", "0"]),
    "btrfs": (420 * MIB, ["mkfs.btrfs", "-q"]),
}
MOUNTED_KINDS = tuple(_MAKE)
REFLINK_KINDS = ("xfs", "btrfs")
_PACKAGES = "Debian: xfsprogs, e2fsprogs, btrfs-progs"
_BUSY_MOST_S, _POLL_S = 60.0, 0.05


def why_not_mounted(*kinds: str) -> str | None:
    """Why file systems of these kinds are not possible here; None if they are."""
    if os.geteuid() != 0:
        return "mounting a file system needs root"
    known = Path("/proc/filesystems").read_text().split()
    for kind in kinds:
        program = _MAKE[kind][1][0]
        if shutil.which(program) is None:
            return f"{program} is not installed ({_PACKAGES})"
        loads = shutil.which("modprobe") is not None
        if kind not in known and not (loads and _runs("modprobe", kind)):
            return f"the kernel has no {kind}"
    return None


def _runs(*words: str) -> bool:
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


@dataclass(frozen=True)
class Mounted:
    """A file system in a file.

    :param kind: of the file system; ``place``: where it is mounted.
    """

    kind: str
    place: Path

    def set_read_only(self, read_only: bool) -> bool:
        """Mount it anew. Return whether that was possible: it is not while a file is open for writing."""
        return _runs("mount", "-o", f"remount,{'ro' if read_only else 'rw'}", str(self.place))

    def freeze(self) -> bool:
        """Make everything that writes to it wait. Return whether that was possible."""
        return _runs("fsfreeze", "--freeze", str(self.place))

    def thaw(self) -> bool:
        """Let everything that waits go on. Return whether it was frozen."""
        return _runs("fsfreeze", "--unfreeze", str(self.place))

    def well_again(self) -> None:
        """Make it writable, not frozen, and without anything immutable."""
        self.thaw()
        deadline_s = time.monotonic() + _BUSY_MOST_S
        while not self.set_read_only(False):
            assert time.monotonic() < deadline_s, f"{self.place} cannot be made writable again"
            time.sleep(_POLL_S)
        subprocess.run(["chattr", "-R", "-f", "-i", "-a", str(self.place)], capture_output=True, check=False)

    @contextmanager
    def seen_read_only(self, place: Path) -> Iterator[None]:
        """A context with a second mount of it, through which nothing can be changed."""
        place.mkdir(exist_ok=True)
        subprocess.run(["mount", "--bind", str(self.place), str(place)], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
            yield
        finally:
            unmount(place)


def unmount(place: Path) -> None:
    """Unmount it. A program that was killed closes its files a moment later."""
    deadline_s = time.monotonic() + _BUSY_MOST_S
    while not _runs("umount", str(place)):
        assert time.monotonic() < deadline_s, f"{place} stays in use"
        time.sleep(_POLL_S)


@contextmanager
def mounted(kind: str, folder: Path) -> Iterator[Mounted]:
    """A small file system of a kind, in a new directory, mounted for the time of the context."""
    size_bytes, words = _MAKE[kind]
    folder.mkdir()
    file, place = folder / "disk", folder / "mounted"
    place.mkdir()
    with file.open("wb") as disk:
        disk.truncate(size_bytes)
    subprocess.run([*words, str(file)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(file), str(place)], check=True)
    made = Mounted(kind, place)
    try:
        yield made
    finally:
        made.well_again()
        unmount(place)
        file.unlink()
