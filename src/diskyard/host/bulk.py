"""What moves and compares the bytes of whole disks reads through: the door's wide half."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import struct
from dataclasses import dataclass

from diskyard.host.calls import storage_call
from diskyard.host.reading import ReadingFiles

DIRECT_ALIGNMENT_BYTES = 4096  # of memory, offset and length: what every disk in use takes
_FS_IOC_FIEMAP = 0xC020660B  # linux/fs.h: _IOWR('f', 11, struct fiemap)
_FIEMAP = struct.Struct("=QQIIII")  # start, length, flags, mapped extents, extent count, reserved
_FIEMAP_EXTENT = struct.Struct("=QQQ16xI12x")  # logical, physical, length, flags
_FIEMAP_FLAG_SYNC = 1
_EXTENTS_AT_ONCE = 256
_NO_EXTENTS = frozenset((errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EBADR, errno.ENOSYS))
_libc = ctypes.CDLL(None, use_errno=True)
_libc.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


@dataclass(frozen=True, slots=True)
class PhysicalExtent:
    """A run of a file and where its bytes lie on the device.

    :param flags: FIEMAP_EXTENT_* of linux/fiemap.h.
    """

    offset_bytes: int
    physical_bytes: int
    length_bytes: int
    flags: int


class Buffer:
    """Memory at a page's border, as O_DIRECT wants it; comparing it lets other threads run.

    :param size_bytes: a multiple of the page size.
    """

    def __init__(self, size_bytes: int) -> None:
        self._memory = mmap.mmap(-1, size_bytes)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.view = memoryview(self._memory)

    def equals(self, other: Buffer, start: int, end: int) -> bool:
        """Whether both hold the same bytes in a range."""
        return not _libc.memcmp(self._address + start, other._address + start, end - start)


class CachedPages:
    """Tells what of an open file is in the page cache; the storage is not asked.

    The file is mapped, and the mapping is never read: a file that is cut short harms nobody.
    """

    def __init__(self, fd: int) -> None:
        self._size_bytes = os.lseek(fd, 0, os.SEEK_END)
        self._mapped: mmap.mmap | None = None
        self._address = 0
        if self._size_bytes:
            with contextlib.suppress(OSError, ValueError):  # a device, or what else cannot be mapped
                # Private, so that one that is open for reading can be mapped in a way that ctypes takes.
                self._mapped = mmap.mmap(fd, self._size_bytes, mmap.MAP_PRIVATE)
                self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapped))

    def hold(self, offset_bytes: int, length_bytes: int) -> bool:
        """Whether nearly all of a range, which begins at a page's border, is there."""
        if self._mapped is None or offset_bytes + length_bytes > self._size_bytes:
            return False
        pages = -(-length_bytes // mmap.PAGESIZE)
        held = ctypes.create_string_buffer(pages)
        if _libc.mincore(self._address + offset_bytes, length_bytes, held):
            return False
        return held.raw.count(b"\1") * 8 >= pages * 7

    def close(self) -> None:
        """Let go of the file."""
        if self._mapped is not None:
            self._address = 0
            mapped, self._mapped = self._mapped, None
            mapped.close()


class BulkFiles(ReadingFiles):
    """Reads much of a file at once. Errors are the system's own :class:`OSError`."""

    @storage_call
    def open_direct(self, fd: int, *, writing: bool = False) -> int | None:
        """Another descriptor of an open file, past the page cache; None if its storage cannot.

        :param writing: for that too.
        """
        mode = os.O_RDWR if writing else os.O_RDONLY
        try:
            return os.open(f"/proc/self/fd/{fd}", mode | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None
            raise

    @storage_call
    def read_into(self, fd: int, memory: memoryview, offset_bytes: int) -> int:
        """Fill ``memory`` from an offset; how many bytes there were, fewer only at the file's end."""
        done = 0
        while done < len(memory):
            count = os.preadv(fd, [memory[done:]], offset_bytes + done)
            if not count:
                break
            done += count
            if done % DIRECT_ALIGNMENT_BYTES and done < len(memory):
                # The end of the file: past the page cache nothing may be asked for from here.
                break
        return done

    @storage_call
    def next_data(self, fd: int, offset_bytes: int) -> tuple[int, int] | None:
        """Where the next range begins and ends that is no hole; None if there is none.

        Of a block device, which has no holes, that is all there is.
        """
        try:
            start = os.lseek(fd, offset_bytes, os.SEEK_DATA)
            return start, os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            if error.errno != errno.EINVAL:
                raise
        end = os.lseek(fd, 0, os.SEEK_END)
        return (offset_bytes, end) if offset_bytes < end else None

    @storage_call
    def physical_extents(self, fd: int, offset_bytes: int, length_bytes: int) -> list[PhysicalExtent] | None:
        """Where the first extents of a range lie on the device, in order (FIEMAP).

        What was written is on the device first. Not all extents of a long range need be told.
        None: the file system does not tell.
        """
        request = bytearray(_FIEMAP.size + _EXTENTS_AT_ONCE * _FIEMAP_EXTENT.size)
        _FIEMAP.pack_into(request, 0, offset_bytes, length_bytes, _FIEMAP_FLAG_SYNC, 0, _EXTENTS_AT_ONCE, 0)
        try:
            fcntl.ioctl(fd, _FS_IOC_FIEMAP, request)
        except OSError as error:
            if error.errno in _NO_EXTENTS:
                return None
            raise
        count = _FIEMAP.unpack_from(request)[3]
        found = []
        for index in range(count):
            at = _FIEMAP.size + index * _FIEMAP_EXTENT.size
            logical, physical, length, flags = _FIEMAP_EXTENT.unpack_from(request, at)
            found.append(PhysicalExtent(logical, physical, length, flags))
        return found
