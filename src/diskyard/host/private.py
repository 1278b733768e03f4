"""Directories for sockets, outside any storage, that only this user may enter.

A process holds a lock (flock(2)) on each directory that it made. The lock ends with the process, however
the process ends. So a directory without a lock belongs to a dead process, whichever container that ran in.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import tempfile

_PREFIX = "diskyard-nbd-"
_NAME = re.compile(rf"{_PREFIX}[a-z0-9_]+")
_MODE_BITS = 0o700
#: Errors that mean that a directory is not ours: it is gone, a link, another thing, or somebody else's.
_NOT_OURS = frozenset((errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EACCES))


def make_locked() -> tuple[str, int]:
    """Make a directory; its path, and the descriptor that holds the lock on it until it is closed."""
    while True:
        path = tempfile.mkdtemp(prefix=_PREFIX)
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except BaseException:
            os.close(lock)
            os.rmdir(path)
            raise
        if os.fstat(lock).st_nlink:
            return path, lock
        os.close(lock)  # a daemon that has just started took the directory for a dead process's


def is_seen(folder: str) -> bool:
    """Whether a directory is where this process makes its own.

    Nothing is known of a directory elsewhere: a service may have a /tmp of its own.
    """
    return os.path.dirname(folder) == os.path.realpath(tempfile.gettempdir())


def remove_dead() -> list[str]:
    """Remove the directories that dead processes of this user left, with their sockets; their paths.

    What is not certainly one of them stays: a link, another user's directory, and a directory that others
    may enter or have put something into.
    """
    parent = tempfile.gettempdir()
    parent_fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        names = [name for name in sorted(os.listdir(parent_fd)) if _NAME.fullmatch(name)]
        return [os.path.join(parent, name) for name in names if _removed(parent_fd, name)]
    finally:
        os.close(parent_fd)


def _removed(parent_fd: int, name: str) -> bool:
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        folder = os.open(name, flags, dir_fd=parent_fd)
    except OSError as error:
        if error.errno in _NOT_OURS:
            return False
        raise
    try:
        info = os.fstat(folder)
        if info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) != _MODE_BITS:
            return False
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        sockets = os.listdir(folder)
        if not all(_is_socket(folder, socket) for socket in sockets):
            return False
        for socket in sockets:
            os.unlink(socket, dir_fd=folder)
        os.rmdir(name, dir_fd=parent_fd)
    except BlockingIOError:
        return False  # the process lives
    except FileNotFoundError:
        return False  # another daemon removed it at the same time
    finally:
        os.close(folder)
    return True


def _is_socket(folder: int, name: str) -> bool:
    return stat.S_ISSOCK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
