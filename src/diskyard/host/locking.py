"""Locks on bytes of files, and on directories: they last as long as a process has them open."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from diskyard.host.bulk import BulkFiles
from diskyard.host.calls import storage_call
from diskyard.host.reading import OFD_GETLK

_OFD_SETLK = 37  # asm-generic/fcntl.h
_LOCKABLE_BYTES = (1 << 63) - 1


class LockingFiles(BulkFiles):
    """Takes locks and reports them. Raises the system's own :class:`OSError`."""

    @storage_call
    def try_lock_byte(self, fd: int, offset_bytes: int) -> bool:
        """Lock one byte of an open file for its open file description; False if another one holds the lock.

        An OFD lock (fcntl(2)) lives until the last descriptor of its open file description is closed, also
        one that a child inherited.
        """
        request = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, offset_bytes, 1, 0)
        try:
            fcntl.fcntl(fd, _OFD_SETLK, request)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    @storage_call
    def try_lock_folder(self, folder: str) -> int | None:
        """Take the only lock on a directory, or return None. Closing the descriptor releases it."""
        fd = self._enter(folder, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        return fd

    @storage_call
    def lock_folder(self, folder: str) -> int:
        """Wait for the only lock on a directory (flock(2)). Closing the descriptor releases it."""
        fd = self._enter(folder, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except BaseException:
            os.close(fd)
            raise
        return fd

    @storage_call
    def locked_bytes(self, fd: int) -> list[range]:
        """The bytes of an open file on which other open file descriptions have locks, in no order.

        This takes at most two calls for each lock, and one more.
        """
        found = []
        asked = [range(_LOCKABLE_BYTES)]
        while asked:
            among = asked.pop()
            if not among:
                continue
            request = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, among.start, len(among), 0)
            answer = fcntl.fcntl(fd, OFD_GETLK, request)
            lock_type, _, begin, length, _ = struct.unpack("hhqqi", answer)
            if lock_type != fcntl.F_UNLCK:
                # A length of 0 means up to the end. A lock may begin before the range that was asked about.
                locked = range(begin, begin + length if length else _LOCKABLE_BYTES)
                found.append(locked)
                asked += [range(among.start, locked.start), range(locked.stop, among.stop)]
        return found
