"""File systems of a test's own, in sparse files."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

_SIZE_BYTES = 320 << 20  # the least that XFS takes


@contextmanager
def mounted(folder: Path, make: Sequence[str], size_bytes: int = _SIZE_BYTES) -> Iterator[Path]:
    """A new file system below a folder, mounted until the context ends.

    :param make: the program that makes it, with its options.
    """
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    if shutil.which(make[0]) is None:
        pytest.skip(f"{make[0]} is not installed")
    disk, place = folder / "disk", folder / "mounted"
    place.mkdir(parents=True)
    with disk.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run([*make, str(disk)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(disk), str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
        disk.unlink()


def remount(place: Path, how: str) -> None:
    """Mount a file system anew as read-only (``ro``) or writable (``rw``)."""
    subprocess.run(["mount", "-o", f"remount,{how}", str(place)], check=True)


@contextmanager
def another_namespace() -> Iterator[None]:
    """A mount namespace with all that is mounted now, as any program on the host may make one."""
    words = ["unshare", "--mount", "--", "sh", "-c", "echo ready; exec sleep infinity"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()
