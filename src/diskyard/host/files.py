"""The only door to the file system's contents: every durable step is one method here.

A simulator of crashes, power cuts and faults replaces :class:`Files` by a subclass that overrides the
primitives. The protocol for durable files, :meth:`Files.replace`, is written once, below them, and
nowhere else. The protocols for a new name are in :mod:`diskyard.host.publishing` and
:mod:`diskyard.host.renaming`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import stat
from collections.abc import Callable

from diskyard import errors
from diskyard.host import private
from diskyard.host.calls import storage_call
from diskyard.host.identity import this_process
from diskyard.host.locking import LockingFiles
from diskyard.host.names import require_one_name
from diskyard.host.ownership import Grant, copy_access, set_access_of_socket
from diskyard.host.renaming import rename_exclusively
from diskyard.host.temporary import temporary_name, temporary_owner
from diskyard.model.identity import HostIdentity

FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_DISCARD_ATTEMPTS = 2
_MODE_BITS = 0o640
PRIVATE_BITS = 0o600
_counter = itertools.count()  # for the whole process: several doors may write into one directory


class Files(LockingFiles):
    """Files of this host. Raises the system's own :class:`OSError`."""

    def __init__(self, host: HostIdentity) -> None:
        super().__init__()
        self._host = host
        self._undiscarded: dict[str, None] = {}  # ordered, and changed from any thread
        self._private: dict[str, int] = {}  # directories for sockets, with the locks on them

    # -- primitives: each changes one thing, and each is a step for the simulators ---

    @storage_call
    def create(self, path: str, *, mode_bits: int = _MODE_BITS, grant: Grant | None = None) -> int:
        """Make an empty file, which must not exist yet. Return a descriptor for writing.

        :param grant: the file's owner and mode; if they cannot be set, no file is left.
        """
        fd = self._open_name(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode_bits)
        try:
            if grant is not None:
                grant.apply(fd)
        except BaseException:
            os.close(fd)
            with self._holder(path) as (folder, name):
                os.unlink(name, dir_fd=folder)
            raise
        return fd

    @storage_call
    def open_to_append(self, path: str) -> int:
        """Open a regular file, made if absent, so that every write goes to its end; the descriptor."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(path, flags, _MODE_BITS)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "Not a regular file", path)
        return fd

    @storage_call
    def append(self, fd: int, data: bytes) -> None:
        """Add to the end of a file. What others add at the same time comes before it or after it."""
        written = os.write(fd, data)
        if written < len(data):
            raise OSError(errno.ENOSPC, "Only a part was written")

    @storage_call
    def open_for_writing(self, where: str | int) -> int:
        """Open an existing regular file for writing; the descriptor. Nothing else is opened.

        :param where: a path, or a descriptor that is open on the file.
        """
        return self._open_regular(where, os.O_RDWR)

    def open_alone(self, path: str, *, writable: bool = False, block_device: bool = False) -> int:
        """Open a regular file, or a block device if allowed, that has this name and no other; the descriptor.

        :raises diskyard.errors.UnsafeImage: it has another name, and may be anybody's file.
        """
        fd = self.open_for_writing(path) if writable else self.open_to_read(path, block_device=block_device)
        try:
            require_one_name(fd, path)
        except BaseException:
            os.close(fd)
            raise
        return fd

    @storage_call
    def write(self, fd: int, data: bytes | memoryview, offset_bytes: int = 0) -> None:
        """Write all of ``data`` at an offset; not durable before :meth:`sync`."""
        view = memoryview(data)
        while view:
            written = os.pwrite(fd, view, offset_bytes)
            view = view[written:]
            offset_bytes += written

    @storage_call
    def truncate(self, fd: int, size_bytes: int) -> None:
        """Set a file's length; not durable before :meth:`sync`."""
        os.ftruncate(fd, size_bytes)

    @storage_call
    def preallocate(self, fd: int, size_bytes: int) -> None:
        """Reserve blocks for the first ``size_bytes``. The contents stay; new bytes read as zeros."""
        os.posix_fallocate(fd, 0, size_bytes)

    @storage_call
    def clone(self, source_fd: int, target_fd: int) -> None:
        """Make the target share all of the source's blocks (FICLONE); not durable before :meth:`sync`."""
        fcntl.ioctl(target_fd, FICLONE, source_fd)

    @storage_call
    def sync(self, fd: int) -> None:
        """Make a file's data and length durable."""
        os.fsync(fd)

    @storage_call
    def sync_folder(self, folder: str) -> None:
        """Make the names in a directory durable."""
        fd = self._enter(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    @storage_call
    def make_folder(self, path: str, grant: Grant | None = None) -> None:
        """Make a directory, which must not exist yet; its name is durable after its parent's sync.

        :param grant: the directory's owner and mode.
        :raises PermissionError: another directory came in its place; that one keeps its owner.
        """
        with self._holder(path) as (folder, name):
            if grant is None:
                os.mkdir(name, 0o750, dir_fd=folder)
            else:
                os.mkdir(name, 0o700 if grant.gives_away else grant.mode_bits, dir_fd=folder)
                with self._entered(name, folder) as fd:
                    grant.apply_to_new_folder(fd, path)

    @storage_call
    def give_folder(self, path: str, grant: Grant, may_hold: Callable[[str], bool]) -> None:
        """Set the owner and mode of an existing directory.

        :param may_hold: whether the directory may hold something of this name.
        :raises diskyard.errors.NotEmpty: it holds something else; nothing is changed.
        """
        with self._holder(path) as (folder, name), self._entered(name, folder) as fd:
            if others := sorted(found for found in os.listdir(fd) if not may_hold(found)):
                raise errors.NotEmpty(f"{path} is not empty: it holds {others[0]!r:.200}.")
            grant.apply(fd)

    def ensure_folder(self, path: str) -> None:
        """Make a directory unless something has its name, or gets it meanwhile."""
        if not self.exists(path):
            with contextlib.suppress(FileExistsError):
                self.make_folder(path)

    @storage_call
    def make_private_folder(self) -> str:
        """Make a directory for sockets, outside any storage, that only this user can enter; its path."""
        path, lock = private.make_locked()
        self._private[path] = lock
        return path

    @storage_call
    def remove_dead_private_folders(self) -> list[str]:
        """Remove those that this user's processes left when they ended; their paths."""
        return private.remove_dead()

    def sees_private(self, folder: str) -> bool:
        """Whether this process would see a private directory, made by any process, where this one is."""
        return private.is_seen(folder)

    @storage_call
    def link(self, source: str, target: str) -> None:
        """Give a file a second name, which must not exist: the file system's compare-and-swap."""
        with self._holder(source) as (old_folder, old), self._holder(target) as (new_folder, new):
            os.link(old, new, src_dir_fd=old_folder, dst_dir_fd=new_folder, follow_symlinks=False)

    @storage_call
    def symlink(self, target: str, path: str) -> None:
        """Make a link to ``target``; its name must not exist yet."""
        with self._holder(path) as (folder, name):
            os.symlink(target, name, dir_fd=folder)

    @storage_call
    def rename(self, source: str, target: str) -> None:
        """Move a file to a name, atomically, in place of what has the name."""
        with self._holder(source) as (old_folder, old), self._holder(target) as (new_folder, new):
            os.rename(old, new, src_dir_fd=old_folder, dst_dir_fd=new_folder)

    @storage_call
    def rename_to_new(self, source: str, target: str) -> None:
        """Move a file to a name that must not exist, atomically; not every file system can (EINVAL)."""
        with self._holder(source) as old, self._holder(target) as new:
            rename_exclusively(old, new, source, target)

    @storage_call
    def unlink(self, path: str) -> None:
        """Remove a name, which must exist."""
        with self._holder(path) as (folder, name):
            os.unlink(name, dir_fd=folder)

    @storage_call
    def remove_folder(self, path: str) -> None:
        """Remove an empty directory."""
        with self._holder(path) as (folder, name):
            os.rmdir(name, dir_fd=folder)

    # -- protocols -------------------------------------------------------------------

    def write_temporary(
        self, folder: str, data: bytes, *, mode_bits: int = _MODE_BITS, grant: Grant | None = None
    ) -> str:
        """Write a new temporary file in ``folder``, with durable contents; its path.

        A crash leaves a file that :func:`temporary_owner` recognises.
        """
        path = os.path.join(folder, temporary_name(this_process(self._host), next(_counter)))
        try:
            fd = self.create(path, mode_bits=mode_bits, grant=grant)
            try:
                self.write(fd, data)
                self.sync(fd)
            finally:
                os.close(fd)
        except BaseException:
            self.discard(path)
            raise
        return path

    def temporary_path(self, folder: str) -> str:
        """A fresh path for a temporary file of this process; no file is made."""
        return os.path.join(folder, temporary_name(this_process(self._host), next(_counter)))

    def replace(
        self, path: str, data: bytes, *, mode_bits: int = _MODE_BITS, make: Callable[[], str] | None = None
    ) -> None:
        """Make ``path`` hold ``data``, durably. A crash leaves the old contents or the new.

        :param make: makes a temporary file in the same directory, with durable contents; by default one is
            made here.
        """
        folder = os.path.dirname(path)
        temporary = make() if make else self.write_temporary(folder, data, mode_bits=mode_bits)
        try:
            self.rename(temporary, path)
        except BaseException:
            self.discard(temporary)
            raise
        self.sync_folder(folder)

    def discard(self, path: str) -> None:
        """Remove a temporary file if it is there.

        If the storage fails, the next call tries again to remove the file. This process may live for long,
        and to other processes its files look as if they were in use. What this process still
        leaves at its end is a leftover, which check lists.
        """
        for left in (path, *self._undiscarded):
            if any(self._try_unlink(left) for _ in range(_DISCARD_ATTEMPTS)):
                self._undiscarded.pop(left, None)
            elif temporary_owner(os.path.basename(left)):  # another program may use any other name later
                self._undiscarded[left] = None

    def _try_unlink(self, path: str) -> bool:
        try:
            self.unlink(path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def discard_private_folder(self, folder: str) -> None:
        """Remove a directory that :meth:`make_private_folder` made, and the names in it.

        If that fails, the directory stays: the work done must not count as failed for that.
        """
        for _ in range(_DISCARD_ATTEMPTS):
            with contextlib.suppress(OSError):
                for item in self.list(folder):
                    self.unlink(os.path.join(folder, item.name))
                self.remove_folder(folder)
                break
        os.close(self._private.pop(folder))

    @storage_call
    def give(self, fd: int, grant: Grant) -> None:
        """Set the owner and mode of an open file."""
        grant.apply(fd)

    @storage_call
    def copy_access(self, source_fd: int, target_fd: int) -> None:
        """Let whoever may open one file open another, as far as this user may say so; not durable yet."""
        copy_access(source_fd, target_fd)

    @storage_call
    def set_access(self, path: str, mode: int, group_id: int | None) -> None:
        """Set who may connect to a socket that does not listen yet; with None it keeps its group."""
        handle = self._open_name(path, os.O_PATH)
        try:
            set_access_of_socket(handle, path, mode, group_id)
        finally:
            os.close(handle)
