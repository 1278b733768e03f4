"""Leases of one machine: OFD locks (fcntl(2)) on single bytes of one file.

The file is never deleted: if a lock file were unlinked, two processes could hold one lock. A lock lives
until the last descriptor of its open file description is closed. So a child that inherited it keeps it
after its parent's death, until the child itself is dead.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence

from diskyard.host import Host


class LocalLease:
    """A lock that this process holds, and every child that inherits its descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    def descriptors(self) -> Sequence[int]:
        """The descriptor that a child must inherit to hold the lock too."""
        return () if self._fd is None else (self._fd,)

    def release(self) -> None:
        """Release the lock. A second call does nothing."""
        fd, self._fd = self._fd, None
        if fd is not None:  # forgotten first: at a second close, the number may be another file's
            os.close(fd)


class LocalLeases:
    """The leases of one lock file.

    :param path: the file; it must exist and is never removed.
    """

    def __init__(self, host: Host, path: str) -> None:
        self._host = host
        self._path = path

    def try_lock(self, name: str) -> LocalLease | None:
        """Take the lease with this name at once; None if somebody holds it."""
        fd = self._host.files.open_for_writing(self._path)
        try:
            locked = self._host.files.try_lock_byte(fd, lease_byte(name))
        except BaseException:
            os.close(fd)
            raise
        if not locked:
            os.close(fd)
            return None
        return LocalLease(fd)

    def is_locked(self, name: str) -> bool:
        """Whether somebody holds the lease with this name. This does not take it."""
        fd = self._host.files.open_to_read(self._path)
        try:
            return self._host.files.byte_is_locked(fd, lease_byte(name))
        finally:
            os.close(fd)

    def locked_among(self, names: Collection[str]) -> set[str]:
        """The names whose lease somebody holds. The file's locks are listed once for all of them."""
        if not names:
            return set()
        fd = self._host.files.open_to_read(self._path)
        try:
            locked = self._host.files.locked_bytes(fd)
        finally:
            os.close(fd)
        if not locked:
            return set()
        return {name for name in names if any(lease_byte(name) in found for found in locked)}


def lease_byte(name: str) -> int:
    """The offset that stands for a name: 62 bits of a hash, so that no table is needed.

    If two names share a byte, they only refuse each other.
    """
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 2
