"""Reading the bytes of whole disks, to move and compare them: the bulk part of the host door."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from diskyard.host.calls import storage_call
from diskyard.host.filesystems import FileSystems
from diskyard.host.ownership import Grant

_FS_IOC_FIEMAP = 0xC020660B  # linux/fs.h: _IOWR('f', 11, struct fiemap)
_FIEMAP = struct.Struct("=QQIIII")  # start, length, flags, mapped extents, extent count, reserved
_FIEMAP_EXTENT = struct.Struct("=QQQ16xI12x")  # logical, physical, length, flags
_FIEMAP_FLAG_SYNC = 1
_EXTENTS_AT_ONCE = 256
_NO_EXTENTS = frozenset((errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EBADR, errno.ENOSYS))
_NOT_AT_ONCE = frozenset((errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL))  # not cached, or cannot tell
_FS_IOC_FSGETXATTR = 0x801C581F  # linux/fs.h: _IOR('X', 31, struct fsxattr)
_FSXATTR_BYTES, _XFLAG_REALTIME = 28, 1
_XFS, _BTRFS = 0x58465342, 0x9123683E  # linux/magic.h
_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4  # linux/fs.h: SYNC_FILE_RANGE_*
_STATFS_BYTES = 256  # more than any struct statfs, which begins with the type
_libc = ctypes.CDLL(None, use_errno=True)
_libc.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


@dataclass(frozen=True, slots=True)
class PhysicalExtent:
    """A run of a file and where its bytes lie on the device.

    :param flags: FIEMAP_EXTENT_* of linux/fiemap.h.
    """

    offset_bytes: int
    physical_bytes: int
    length_bytes: int
    flags: int


FilePiece = tuple[int, int, memoryview]
"""A descriptor, an offset, and where the bytes from there go."""


class Buffer:
    """Memory that is allocated when it is first written. Comparing it lets other threads run."""

    def __init__(self, size_bytes: int) -> None:
        self._memory = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.view = memoryview(self._memory)

    def equals(self, other: Buffer, start: int, end: int) -> bool:
        """Whether both hold the same bytes in a range."""
        if self.view[start] != other.view[start]:  # most that differ do so here; quicker than a call
            return False
        return not _libc.memcmp(self._address + start, other._address + start, end - start)


class BulkFiles(FileSystems):
    """Reads much of a file at once. Raises the system's own :class:`OSError`."""

    @storage_call
    def drop_room(self, folder: str, names: Iterable[str]) -> None:
        """Remove files that :meth:`keep_room` made, or whatever has their names now."""
        handle = self._enter(folder)
        try:
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=handle)
        finally:
            os.close(handle)

    @storage_call
    def keep_room(
        self, folder: str, sizes_bytes: Mapping[str, int], temporary: str, grant: Grant | None = None
    ) -> None:
        """Make files of zeros that have all of their blocks.

        A file gets its name only once it is whole, in place of whatever had the name before: nothing
        here ever changes a file that others can find.

        :param sizes_bytes: the length of each file, by its name in the directory.
        :param temporary: a path in the directory, for the file that is being made.
        :param grant: the owner and the mode of the files.
        """
        with self._holder(temporary) as (handle, new):
            for name, size_bytes in sizes_bytes.items():
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
                fd = os.open(new, flags, 0o640, dir_fd=handle)
                try:
                    if grant is not None:
                        grant.apply(fd)
                    if size_bytes:
                        os.posix_fallocate(fd, 0, size_bytes)
                    os.rename(new, name, src_dir_fd=handle, dst_dir_fd=handle)
                except BaseException:
                    os.unlink(new, dir_fd=handle)
                    raise
                finally:
                    os.close(fd)

    @storage_call
    def read_into(self, fd: int, memory: memoryview, offset_bytes: int) -> int:
        """Fill ``memory`` from an offset. Return how many bytes were read: fewer only at the file's end."""
        return self._read_into(fd, memory, offset_bytes)

    def _read_into(self, fd: int, memory: memoryview, offset_bytes: int) -> int:
        done = os.preadv(fd, (memory,), offset_bytes)
        while done < len(memory):
            count = os.preadv(fd, (memory[done:],), offset_bytes + done)
            if not count:
                break
            done += count
        return done

    @storage_call
    def read_each(self, pieces: Sequence[FilePiece]) -> list[int]:
        """Fill the memory of each piece, in one call for many little pieces.

        :returns: how many bytes each piece got: fewer only at its file's end.
        """
        return [self._read_into(fd, memory, offset_bytes) for fd, offset_bytes, memory in pieces]

    @storage_call
    def read_cached(self, pieces: Sequence[FilePiece]) -> list[int]:
        """The same without waiting for the storage: a piece that is not cached gets fewer bytes."""
        return [self._read_cached(fd, memory, offset_bytes) for fd, offset_bytes, memory in pieces]

    def _read_cached(self, fd: int, memory: memoryview, offset_bytes: int) -> int:
        try:
            return os.preadv(fd, (memory,), offset_bytes, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno in _NOT_AT_ONCE:
                return 0
            raise

    @storage_call
    def will_need(self, ranges: Sequence[tuple[int, int, int]]) -> None:
        """Let the storage begin to read ranges (descriptor, offset, length). This does not wait for it."""
        for fd, offset_bytes, length_bytes in ranges:
            os.posix_fadvise(fd, offset_bytes, length_bytes, os.POSIX_FADV_WILLNEED)

    @storage_call
    def begin_write_out(self, fd: int, offset_bytes: int, length_bytes: int) -> None:
        """Let the storage begin to write a range out. This does not wait for it."""
        _sync_file_range(fd, offset_bytes, length_bytes, _WRITE)

    @storage_call
    def end_write_out(self, fd: int, offset_bytes: int, length_bytes: int) -> None:
        """Wait until a range is written out, and free the page cache that held it.

        The range is not durable before :meth:`diskyard.host.files.Files.sync`: this writes neither the
        file's metadata nor the disk's cache.
        """
        _sync_file_range(fd, offset_bytes, length_bytes, _WAIT_BEFORE | _WRITE | _WAIT_AFTER)
        os.posix_fadvise(fd, offset_bytes, length_bytes, os.POSIX_FADV_DONTNEED)

    @storage_call
    def next_data(self, fd: int, offset_bytes: int, most: int) -> list[tuple[int, int]]:
        """The begin and end of the next ranges of data, that is, not of holes; empty if there are none.

        A block device has no holes: all of it from the offset on is one range.

        :param most: how many ranges are returned at most.
        """
        found: list[tuple[int, int]] = []
        try:
            while len(found) < most:
                start = os.lseek(fd, offset_bytes, os.SEEK_DATA)
                offset_bytes = os.lseek(fd, start, os.SEEK_HOLE)
                found.append((start, offset_bytes))
        except OSError as error:
            if error.errno == errno.ENXIO:
                return found
            if error.errno != errno.EINVAL or found:
                raise
            end = os.lseek(fd, 0, os.SEEK_END)
            return [(offset_bytes, end)] if offset_bytes < end else []
        return found

    @storage_call
    def physical_extents(self, fd: int, offset_bytes: int, length_bytes: int) -> list[PhysicalExtent] | None:
        """Where the first extents of a range lie on the device, in order (FIEMAP).

        The kernel writes the file's data out first. Of a long range only the first extents are returned.
        None if the file system does not say, or if one number could mean two places there.
        """
        if not _has_plain_addresses(fd):
            return None
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


def _has_plain_addresses(fd: int) -> bool:
    """Whether a file's physical addresses are those of one device, or of one space over all of them.

    On other file systems one number may mean two places: on bcachefs with several devices, on an overlay
    of two file systems. In XFS's real-time section, addresses count from that section's beginning.
    """
    told = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.fstatfs(fd, told):
        return False
    kind = ctypes.c_long.from_buffer(told).value
    if kind == _BTRFS:
        return True
    if kind != _XFS:
        return False
    attributes = fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(_FSXATTR_BYTES))
    return not int.from_bytes(attributes[:4], sys.byteorder) & _XFLAG_REALTIME


def _sync_file_range(fd: int, offset_bytes: int, length_bytes: int, flags: int) -> None:
    if _libc.sync_file_range(fd, offset_bytes, length_bytes, flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
