"""Where a benchmark works: a folder, or file systems that it makes, mounts and removes again."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from benchmarks._processes import Failed, run

FICLONE = 0x40049409  # linux/fs.h
CACHESTAT = 451  # asm-generic/unistd.h
READ_BYTES = 4 << 20
UNMOUNT_TRIES = 20


@dataclass(frozen=True)
class Places:
    """The folders of a benchmark.

    :param one: where sources are.
    :param other: on another file system; None if there is none.
    """

    one: Path
    other: Path | None


@contextmanager
def places(
    folder: str | None, other_folder: str | None, file_system: str | None, rooms_bytes: Sequence[int]
) -> Iterator[Places]:
    """Folders to work in, gone again at the end, also after Ctrl-C or SIGTERM.

    :param folder: an existing folder, for all; the usual one for temporary files if None.
    :param other_folder: an existing folder on another file system.
    :param file_system: ``ext4`` or ``xfs``: make new ones in files there, which needs root.
    :param rooms_bytes: the sizes of these: of one, and of the other if one is needed.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    with ExitStack() as stack:
        one = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dy-", dir=folder)))
        found = [one]
        if other_folder is not None:
            made = tempfile.TemporaryDirectory(prefix="dy-", dir=other_folder)
            found.append(Path(stack.enter_context(made)))
        if file_system is not None:
            found = []
            for name, room_bytes in zip("ab", rooms_bytes, strict=False):
                found.append(stack.enter_context(_mounted(one, name, file_system, room_bytes)))
        yield Places(found[0], found[1] if len(found) > 1 else None)


def _end(number: int, frame: FrameType | None) -> None:
    """End by way of all that cleans up, which a second signal must not cut short."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    raise SystemExit(128 + number)


@contextmanager
def _mounted(folder: Path, name: str, file_system: str, size_bytes: int) -> Iterator[Path]:
    """A new file system in a file; direct I/O below it, so that nothing is cached twice."""
    if os.geteuid() != 0:
        raise SystemExit("--file-system mounts, which needs root.")
    image, place = folder / f"{name}.image", folder / name
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(size_bytes)
    make = {"xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"], "ext4": ["mkfs.ext4", "-q", "-F"]}[file_system]
    run(*make, str(image))
    device = run("losetup", "--direct-io=on", "--find", "--show", str(image)).strip()
    try:
        run("mount", device, str(place))
        try:
            yield place
        finally:
            _unmount(place)
    finally:
        run("losetup", "-d", device)
        image.unlink()


def _unmount(place: Path) -> None:
    """A program that was just killed may hold it for a moment."""
    for _ in range(UNMOUNT_TRIES):
        try:
            run("umount", str(place))
            return
        except Failed:
            time.sleep(0.1)
    run("umount", str(place))


def shares_blocks(folder: Path) -> bool:
    """Whether files in a folder can be cloned."""
    with tempfile.TemporaryFile(dir=folder) as source, tempfile.TemporaryFile(dir=folder) as target:
        source.write(bytes(4096))
        source.flush()
        try:
            fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
        except OSError:
            return False
    return True


def settle(folder: Path) -> None:
    """Wait until a file system has written everything, so that no contestant pays for another."""
    run("sync", "-f", str(folder))


def make_cold(paths: Sequence[Path]) -> None:
    """Drop files from the page cache.

    :raises Failed: more than a hundredth of one is still there.
    """
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if _cached_bytes(file.fileno()) * 100 > os.fstat(file.fileno()).st_blocks * 512:
                raise Failed(f"{path} stays in the page cache; no cold run is possible.")


def _cached_bytes(fd: int) -> int:
    """How much of a file is in the page cache; 0 where the kernel (before 6.5) does not tell."""
    whole, found = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
    failed = ctypes.CDLL(None).syscall(CACHESTAT, fd, ctypes.byref(whole), ctypes.byref(found), 0)
    return 0 if failed else int(found[0]) * os.sysconf("SC_PAGE_SIZE")


def make_warm(paths: Sequence[Path]) -> None:
    """Read files into the page cache."""
    buffer = bytearray(READ_BYTES)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            for start, end in _data_of(file.fileno()):
                for offset in range(start, end, READ_BYTES):
                    os.preadv(file.fileno(), [buffer], offset)


def _data_of(fd: int) -> Iterator[tuple[int, int]]:
    """Where a file has data, from start to end."""
    size_bytes, offset = os.fstat(fd).st_size, 0
    while offset < size_bytes:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError:
            return  # a hole up to the end
        offset = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, offset
