"""The only door to the file system's contents: every durable step is one method here.

A simulator of crashes, power cuts and faults replaces :class:`Files` by a subclass
that overrides the primitives; the two protocols for durable files,
:meth:`Files.publish` and :meth:`Files.replace`, are written once, below them, and
nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import re
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from diskyard.host.identity import ProcessIdentity, this_process
from diskyard.model.identity import HostIdentity

FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_OFD_GETLK, _OFD_SETLK = 36, 37  # asm-generic/fcntl.h
_TEMPORARY_PREFIX = "tmp."
_TEMPORARY_NAME = re.compile(r"tmp\.([0-9a-f]{32})\.([0-9a-f]{32})\.([0-9]+)\.([0-9]+)\.([0-9]+)\.[0-9]+")
_counter = itertools.count()  # of the process: several doors may write into one folder
_BEGINNING_BYTES = 256  # enough to tell what the file may be
_BLOCK_BYTES = 512  # the unit of st_blocks, whatever the file system's own


class UncertainError(OSError):
    """A publish failed where it may have happened all the same."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One name in a folder.

    :param links: how many names the file has, in all folders.
    """

    name: str
    is_file: bool
    size_bytes: int
    allocated_bytes: int
    modified_s: float
    links: int


def temporary_name(process: ProcessIdentity, counter: int) -> str:
    """A name for a temporary file that tells which process made it."""
    return (
        f"{_TEMPORARY_PREFIX}{process.machine_id}.{process.boot_id}"
        f".{process.pid_namespace}.{process.pid}.{process.start_ticks}.{counter}"
    )


def temporary_owner(name: str) -> ProcessIdentity | None:
    """The process that made a temporary file of this name; None if it is no such name."""
    found = _TEMPORARY_NAME.fullmatch(name)
    if found is None:
        return None
    return ProcessIdentity(
        machine_id=found[1],
        boot_id=found[2],
        pid_namespace=int(found[3]),
        pid=int(found[4]),
        start_ticks=int(found[5]),
    )


def _file_entry(name: str, info: os.stat_result) -> FileEntry:
    return FileEntry(
        name=name,
        is_file=stat.S_ISREG(info.st_mode),
        size_bytes=info.st_size,
        allocated_bytes=info.st_blocks * _BLOCK_BYTES,
        modified_s=info.st_mtime,
        links=info.st_nlink,
    )


def _open_again(handle: int, mode: int, path: str) -> int:
    """The descriptor of what a handle (O_PATH) leads to; an error names the path."""
    try:
        return os.open(f"/proc/self/fd/{handle}", mode | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _fingerprint(info: os.stat_result) -> str:
    return f"{info.st_dev}:{info.st_ino}:{info.st_size}:{info.st_mtime_ns}"


class Files:
    """Files of this host. Errors are the system's own :class:`OSError`."""

    def __init__(self, host: HostIdentity) -> None:
        self._host = host

    # -- reading ---------------------------------------------------------------

    def read(
        self, path: str, limit_bytes: int, *, may_be: Callable[[bytes, bytes, int], bool] | None = None
    ) -> bytes | None:
        """The contents of a regular file; None if absent.

        A link, FIFO, device or folder in the file's place is an OSError, at once, and so is
        a file of more than ``limit_bytes``, which is not read.

        :param may_be: whether a file with this beginning, these last two bytes and this length
            is worth reading; of one that is not, only the beginning is read.
        """
        try:
            fd = self.open_to_read(path)
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
                return file.read(limit_bytes + 1)
        finally:
            os.close(fd)

    def read_at(self, path: str, offset_bytes: int, size_bytes: int) -> bytes:
        """At most ``size_bytes`` of a regular file from an offset; less only at its end."""
        fd = self.open_to_read(path)
        try:
            return os.pread(fd, size_bytes, offset_bytes)
        finally:
            os.close(fd)

    def open_to_read(self, path: str, *, block_device: bool = False) -> int:
        """The descriptor of a regular file, or of a block device if allowed, for reading.

        Anything else is an OSError (EINVAL) and is not opened: a FIFO would hang, a character
        device may act on being opened. A link in the file's own place is not followed.
        """
        handle = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            mode = os.fstat(handle).st_mode
            if not (stat.S_ISREG(mode) or (block_device and stat.S_ISBLK(mode))):
                raise OSError(errno.EINVAL, "Not a regular file", path)
            return _open_again(handle, os.O_RDONLY, path)
        finally:
            os.close(handle)

    def list(self, folder: str, wanted: Callable[[str], object] | None = None) -> Iterator[FileEntry]:
        """Every name in ``folder``, in no order; names that vanish meanwhile are left out.

        :param wanted: names for which this is None are left out and not looked at.
        """
        with os.scandir(folder) as names:
            for name in names:
                if wanted is not None and wanted(name.name) is None:
                    continue
                try:
                    info = name.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                yield _file_entry(name.name, info)

    def look(self, path: str) -> FileEntry | None:
        """One name as :meth:`list` shows it; None if nothing has it."""
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            return None
        return _file_entry(os.path.basename(path), info)

    def fingerprint(self, path: str) -> str:
        """What changes when a file does: device, inode, size, and time of change; of a link its own."""
        return _fingerprint(os.lstat(path))

    def fingerprint_of(self, fd: int) -> str:
        """The same of an open file."""
        return _fingerprint(os.fstat(fd))

    def exists(self, path: str) -> bool:
        """Whether anything has this name."""
        try:
            os.lstat(path)
        except FileNotFoundError:
            return False
        return True

    def is_folder(self, path: str) -> bool:
        """Whether a folder itself, not a link to one, has this name."""
        try:
            return stat.S_ISDIR(os.lstat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    # -- primitives: each changes one thing, and each is a step for the simulators ---

    def create(self, path: str) -> int:
        """Make an empty file that must not exist; its descriptor, for writing."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)

    def open_for_writing(self, path: str) -> int:
        """The descriptor of an existing regular file, for writing; anything else is not opened."""
        handle = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, "Not a regular file", path)
            return _open_again(handle, os.O_RDWR, path)
        finally:
            os.close(handle)

    def write(self, fd: int, data: bytes, offset_bytes: int = 0) -> None:
        """Write all of ``data`` at an offset; not durable before :meth:`sync`."""
        view = memoryview(data)
        while view:
            written = os.pwrite(fd, view, offset_bytes)
            view = view[written:]
            offset_bytes += written

    def truncate(self, fd: int, size_bytes: int) -> None:
        """Set a file's length; not durable before :meth:`sync`."""
        os.ftruncate(fd, size_bytes)

    def preallocate(self, fd: int, size_bytes: int) -> None:
        """Reserve blocks for the first ``size_bytes``, which read as before, or as zeros."""
        os.posix_fallocate(fd, 0, size_bytes)

    def clone(self, source_fd: int, target_fd: int) -> None:
        """Make the target share all of the source's blocks (FICLONE); not durable before sync."""
        fcntl.ioctl(target_fd, FICLONE, source_fd)

    def sync(self, fd: int) -> None:
        """Make a file's data and length durable."""
        os.fsync(fd)

    def sync_folder(self, folder: str) -> None:
        """Make the names in a folder durable."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def make_folder(self, path: str) -> None:
        """Make a folder that must not exist; its name is durable after its parent's sync."""
        os.mkdir(path, 0o750)

    def ensure_folder(self, path: str) -> None:
        """Make a folder unless something has its name, be it since this moment."""
        if not self.exists(path):
            with contextlib.suppress(FileExistsError):
                self.make_folder(path)

    def make_private_folder(self) -> str:
        """The path of a new folder outside of any storage that only this user enters: for sockets."""
        return tempfile.mkdtemp(prefix="diskyard-")

    def link(self, source: str, target: str) -> None:
        """Give a file a second name, which must not exist: the file system's compare-and-swap."""
        os.link(source, target, follow_symlinks=False)

    def symlink(self, target: str, path: str) -> None:
        """Make a name that must not exist lead to ``target``."""
        os.symlink(target, path)

    def rename(self, source: str, target: str) -> None:
        """Move a name over another, atomically."""
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        """Remove a name that must exist."""
        os.unlink(path)

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder."""
        os.rmdir(path)

    # -- protocols -------------------------------------------------------------------

    def write_temporary(self, folder: str, data: bytes) -> str:
        """A new temporary file in ``folder`` with durable contents; its path.

        A crash leaves a file that :func:`temporary_owner` recognises.
        """
        path = os.path.join(folder, temporary_name(this_process(self._host), next(_counter)))
        fd = self.create(path)
        try:
            self.write(fd, data)
            self.sync(fd)
        except BaseException:
            self.discard(path)
            raise
        finally:
            os.close(fd)
        return path

    def temporary_path(self, folder: str) -> str:
        """A fresh path for a temporary file of this process; nothing is made."""
        return os.path.join(folder, temporary_name(this_process(self._host), next(_counter)))

    def publish(self, paths: Sequence[str], data: bytes) -> bool:
        """Make every one of ``paths``, all in one folder, hold ``data``, if the first is absent.

        Of several publishers of the same first path one wins, and its answer is True. A later
        path that is there already is left as it is. On return of True all is durable. A crash
        leaves none of the names, or the first ones of them, and temporary files.

        rename(2) would not do: of two writers that look and then rename, both succeed. With
        link(2) the loser gets EEXIST.

        :raises UncertainError: it failed where the name may be there; any other OSError means
            that nothing was published.
        """
        folder = os.path.dirname(paths[0])
        temporaries: list[str] = []
        try:
            for _ in paths:
                temporaries.append(self.write_temporary(folder, data))
            return self._publish_written(folder, temporaries, paths)
        finally:
            for temporary in temporaries:
                self.discard(temporary)

    def _publish_written(self, folder: str, temporaries: Sequence[str], paths: Sequence[str]) -> bool:
        try:
            self.link(temporaries[0], paths[0])
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # the folder had no room for the name: it is certainly not there
            raise UncertainError(error.errno, error.strerror, paths[0]) from error
        try:
            for temporary, path in zip(temporaries[1:], paths[1:], strict=True):
                with contextlib.suppress(FileExistsError):
                    self.link(temporary, path)
            self.sync_folder(folder)
        except OSError as error:
            raise UncertainError(error.errno, error.strerror, paths[0]) from error
        return True

    def replace(self, path: str, data: bytes) -> None:
        """Make ``path`` hold ``data``, durably; a crash leaves the old contents or the new."""
        folder = os.path.dirname(path)
        temporary = self.write_temporary(folder, data)
        try:
            self.rename(temporary, path)
        except BaseException:
            self.discard(temporary)
            raise
        self.sync_folder(folder)

    def discard(self, path: str) -> None:
        """Remove a temporary file if it is there; what cannot be removed is garbage for check."""
        try:
            self.unlink(path)
        except OSError:
            return

    def try_lock_byte(self, fd: int, offset_bytes: int) -> bool:
        """Lock one byte of an open file for its open file description; False if another has it.

        An OFD lock (fcntl(2)) lives until the last descriptor of the description is closed,
        a child's inherited one included.
        """
        request = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, offset_bytes, 1, 0)
        try:
            fcntl.fcntl(fd, _OFD_SETLK, request)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def lock_folder(self, folder: str) -> int:
        """Wait for the one lock on a folder (flock(2)); it ends when the descriptor is closed."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def byte_is_locked(self, fd: int, offset_bytes: int) -> bool:
        """Whether another open file description has a lock on this byte of an open file."""
        request = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, offset_bytes, 1, 0)
        answer = fcntl.fcntl(fd, _OFD_GETLK, request)
        lock_type: int = struct.unpack("hhqqi", answer)[0]
        return lock_type != fcntl.F_UNLCK
