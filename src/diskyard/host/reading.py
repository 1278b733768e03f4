"""Reading the file system: the half of the host door that changes nothing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from diskyard.host.calls import noted, storage_call
from diskyard.host.names import Names
from diskyard.host.ownership import Ownership, ownership_of
from diskyard.host.places import identities_of

R = TypeVar("R")
_BEGINNING_BYTES = 256  # enough to judge what the file may be
_DEVICES = "/dev"
_BLOCK_BYTES = 512  # the unit of st_blocks on every file system
OFD_GETLK = 36  # asm-generic/fcntl.h
#: Bytes of an image file that a QEMU program locks while it may write to the file, or change its
#: length: RAW_PERM_BASE of block/file-posix.c, plus the bits of BLK_PERM_WRITE and BLK_PERM_RESIZE.
_QEMU_WRITES = (100 + 1, 100 + 3)
_NO_LOCKS = frozenset((errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP))


class FileEntry(msgspec.Struct, frozen=True, gc=False):
    """One name in a directory. A struct, because there may be very many, and structs are quick to make.

    :param links: how many names the file has, in all directories.
    :param stamp: device, inode, and the nanoseconds at which the contents and the inode last changed. No
        program can write to a file without changing its stamp, except within one tick of the kernel's
        clock.
    """

    name: str
    is_file: bool
    size_bytes: int
    allocated_bytes: int
    modified_s: float
    links: int
    stamp: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class FreeSpace:
    """The size of a file system, and how much of it an unprivileged user can still use."""

    total_bytes: int
    free_bytes: int


def _file_entry(name: str, info: os.stat_result) -> FileEntry:
    return FileEntry(
        name,
        stat.S_ISREG(info.st_mode),
        info.st_size,
        info.st_blocks * _BLOCK_BYTES,
        info.st_mtime,
        info.st_nlink,
        (info.st_dev, info.st_ino, info.st_mtime_ns, info.st_ctime_ns),
    )


def _fingerprint(info: os.stat_result) -> str:
    return f"{info.st_dev}:{info.st_ino}:{info.st_size}:{info.st_mtime_ns}:{info.st_ctime_ns}"


def _is_in_dev(path: str) -> bool:
    return os.path.commonpath((path, _DEVICES)) == _DEVICES


def _is_locked(fd: int, offset_bytes: int) -> bool:
    request = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, offset_bytes, 1, 0)
    lock_type: int = struct.unpack("hhqqi", fcntl.fcntl(fd, OFD_GETLK, request))[0]
    return lock_type != fcntl.F_UNLCK


def _is_written_by_qemu(fd: int) -> bool:
    try:
        return any(_is_locked(fd, byte) for byte in _QEMU_WRITES)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False  # where there are no locks, QEMU holds none either
        raise


class ReadingFiles(Names):
    """Reads files of this host. Raises the system's own :class:`OSError`."""

    def passing(self, name: str, words: tuple[object, ...], do: Callable[[], R]) -> R:
        """Make a storage call. Every one goes through here, and is recorded while it lasts.

        :param words: its arguments; the first is a path or a descriptor.
        """
        with noted(name, words[0] if words and isinstance(words[0], str) else ""):
            return do()

    @storage_call
    def read(
        self, path: str, limit_bytes: int, *, may_be: Callable[[bytes, bytes, int], bool] | None = None
    ) -> bytes | None:
        """The contents of a regular file; None if absent.

        A link, FIFO, device or directory in its place is an OSError, at once. So is a file of more than
        ``limit_bytes``, which is not read.

        :param may_be: whether a file with this beginning, these last two bytes and this length is worth
            reading. If it is not, only the beginning is returned.
        """
        try:
            fd = self._open_regular(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            info = os.fstat(fd)
            if info.st_size > limit_bytes:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
            if may_be is not None and info.st_size > _BEGINNING_BYTES:
                beginning, end = os.pread(fd, _BEGINNING_BYTES, 0), os.pread(fd, 2, info.st_size - 2)
                if not may_be(beginning, end, info.st_size):
                    return beginning
            with os.fdopen(fd, "rb", closefd=False) as file:
                # Python allocates as much memory as it is asked to read. Mostly the file has not grown.
                data = file.read(info.st_size + 1)
                if len(data) <= info.st_size:
                    return data
                return data + file.read(limit_bytes + 1 - len(data))
        finally:
            os.close(fd)

    @storage_call
    def read_at(self, path: str, offset_bytes: int, size_bytes: int) -> bytes:
        """At most ``size_bytes`` of a regular file from an offset; fewer only at its end."""
        fd = self._open_regular(path, os.O_RDONLY)
        try:
            return os.pread(fd, size_bytes, offset_bytes)
        finally:
            os.close(fd)

    @storage_call
    def read_open(self, fd: int, offset_bytes: int, size_bytes: int) -> bytes:
        """The same for an open file."""
        return os.pread(fd, size_bytes, offset_bytes)

    @storage_call
    def open_to_read(self, where: str | int, *, block_device: bool = False) -> int:
        """Open a regular file, or a block device if allowed, for reading; the descriptor.

        Anything else is not opened but is an OSError (EINVAL): a FIFO would hang, and opening a character
        device may have effects. If the name itself is a link, it is not followed.

        :param where: a path, or a descriptor that is open on the file.
        """
        return self._open_regular(where, os.O_RDONLY, block_device=block_device)

    @storage_call
    def open_folder(self, path: str) -> int:
        """Open a directory, links followed. The descriptor stays on it, whatever gets its name later."""
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    @storage_call
    def list(self, folder: str, wanted: Callable[[str], object] | None = None) -> Iterator[FileEntry]:
        """Every name in ``folder``, in no order; names that vanish meanwhile are left out.

        :param wanted: names for which this returns None are left out, and no ``stat`` is made for them.
        """
        found = []
        handle = self._enter(folder, os.O_RDONLY)
        try:
            with os.scandir(handle) as names:
                for name in names:
                    if wanted is not None and wanted(name.name) is None:
                        continue
                    try:
                        info = name.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    found.append(_file_entry(name.name, info))
        finally:
            os.close(handle)
        return iter(found)

    @storage_call
    def names(self, folder: str) -> tuple[str, ...]:
        """Every name in ``folder``, in no order, without a ``stat`` of any."""
        handle = self._enter(folder, os.O_RDONLY)
        try:
            return tuple(os.listdir(handle))
        finally:
            os.close(handle)

    @storage_call
    def look(self, path: str) -> FileEntry | None:
        """One name as :meth:`list` would return it; None if there is no such name."""
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            return None
        return _file_entry(os.path.basename(path), info)

    @storage_call
    def look_open(self, fd: int) -> FileEntry:
        """The same for an open file, without a name."""
        return _file_entry("", os.fstat(fd))

    @storage_call
    def read_beginning(self, path: str, size_bytes: int) -> bytes:
        """At most the first ``size_bytes`` of what was a regular file a moment ago.

        This takes half as long as :meth:`read_at`, which opens nothing before it knows what it is. If
        something else has taken the file's place since, this is an OSError: it does not wait for a FIFO, nor
        follow a link. Only root could have put a device there meanwhile.
        """
        fd = self._open_name(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "Not a regular file", path)
            return os.pread(fd, size_bytes, 0)
        finally:
            os.close(fd)

    @storage_call
    def look_at(self, folder: str, names: Sequence[str]) -> tuple[FileEntry | None, ...]:
        """Each of these names in ``folder`` as :meth:`look` would return it, in the same order."""
        found: list[FileEntry | None] = []
        handle = self._enter(folder)
        try:
            for name in names:
                try:
                    info = os.stat(name, dir_fd=handle, follow_symlinks=False)
                except FileNotFoundError:
                    found.append(None)
                else:
                    found.append(_file_entry(name, info))
        finally:
            os.close(handle)
        return tuple(found)

    @storage_call
    def fingerprint(self, path: str) -> str:
        """What changes when a file does: device, inode, size, and when contents and inode last changed.

        A link is not followed. No program can write to a file without changing its fingerprint, except within
        one tick of the kernel's clock.
        """
        return _fingerprint(os.lstat(path))

    @storage_call
    def fingerprint_of(self, fd: int) -> str:
        """The same for an open file."""
        return _fingerprint(os.fstat(fd))

    @storage_call
    def byte_is_locked(self, fd: int, offset_bytes: int) -> bool:
        """Whether another open file description has a lock on this byte of an open file."""
        return _is_locked(fd, offset_bytes)

    @storage_call
    def is_written_by_qemu(self, fd: int) -> bool:
        """Whether a program of QEMU, a guest or a tool, has an open file open for writing.

        QEMU's own locks show it. This takes no lock, because other readers do take locks. It does not see a
        program that was started with ``locking=off``, nor one on another host unless the file system shares
        locks.
        """
        return _is_written_by_qemu(fd)

    @storage_call
    def name_is_written_by_qemu(self, path: str) -> bool:
        """The same for a regular file or block device by its name; False for anything else, or nothing."""
        try:
            fd = self._open_regular(path, os.O_RDONLY, block_device=True)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL):
                return False
            raise
        try:
            return _is_written_by_qemu(fd)
        finally:
            os.close(fd)

    @storage_call
    def identities_of(self, path: str) -> tuple[str, str]:
        """What distinguishes a file from its copies, now and lastingly; see :func:`places.identities_of`."""
        return identities_of(path)

    @storage_call
    def ownership_of(self, path: str) -> Ownership:
        """The owner and mode of a file or directory; a link is not followed."""
        return ownership_of(path)

    @storage_call
    def type_of(self, path: str) -> int:
        """The type of what has a name, as :func:`stat.S_IFMT` gives it; of a link its own."""
        return stat.S_IFMT(os.lstat(path).st_mode)

    @storage_call
    def exists(self, path: str) -> bool:
        """Whether anything has this name."""
        try:
            os.lstat(path)
        except FileNotFoundError:
            return False
        return True

    @storage_call
    def is_folder(self, path: str) -> bool:
        """Whether a directory has this name; False for a link, wherever it leads."""
        try:
            return stat.S_ISDIR(os.lstat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    @storage_call
    def size_bytes_of(self, fd: int) -> int:
        """The length of an open file or block device."""
        return os.lseek(fd, 0, os.SEEK_END)

    @storage_call
    def resolve(self, path: str) -> str:
        """The path with all links resolved; parts that do not exist stay as they are."""
        return os.path.realpath(path)

    @storage_call
    def device_behind(self, path: str) -> str:
        """The block device behind a link in /dev that root made, as udev does; else the path itself.

        Only root can change what such a link leads to, so it is followed. In some directories there, such as
        /dev/shm, others may make links too.
        """
        with contextlib.suppress(OSError):
            folder = os.path.realpath(os.path.dirname(path))
            about = os.stat(folder)
            if about.st_uid != 0 or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or not _is_in_dev(folder):
                return path
            link = os.path.join(folder, os.path.basename(path))
            told = os.lstat(link)
            real = os.path.realpath(link)
            is_roots_link = stat.S_ISLNK(told.st_mode) and told.st_uid == 0
            if is_roots_link and _is_in_dev(real) and stat.S_ISBLK(os.lstat(real).st_mode):
                return real
        return path

    def is_inside(self, folder: str, folders: Sequence[str]) -> bool:
        """Whether a directory, links followed, is one of others or inside one; it need not exist."""
        real = self.resolve(folder)
        return any(os.path.commonpath((real, allowed)) == allowed for allowed in map(self.resolve, folders))

    @storage_call
    def is_own_folder(self, path: str) -> bool:
        """Whether it is a directory, not a link, in which only this user and root may change names."""
        about = os.lstat(path)
        owned = about.st_uid in (0, os.geteuid()) and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return stat.S_ISDIR(about.st_mode) and owned

    @storage_call
    def free_space(self, path: str) -> FreeSpace:
        """The size and the free space of the file system that holds a path."""
        info = os.statvfs(path)
        return FreeSpace(info.f_blocks * info.f_frsize, info.f_bavail * info.f_frsize)
