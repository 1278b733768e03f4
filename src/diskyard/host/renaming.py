"""Giving a whole file a new name that must not exist yet, on any file system."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Protocol

_RENAME_NOREPLACE = 1  # linux/fs.h
_CANNOT = frozenset((errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM))  # on this file system, ever
_libc = ctypes.CDLL(None, use_errno=True)
_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


class _Door(Protocol):
    """The methods of :class:`diskyard.host.files.Files` that are needed."""

    def create(self, path: str) -> int: ...

    def link(self, source: str, target: str) -> None: ...

    def rename(self, source: str, target: str) -> None: ...

    def rename_to_new(self, source: str, target: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def discard(self, path: str) -> None: ...


def move_to_new(files: _Door, source: str, target: str) -> None:
    """Move a whole file to a name that must not exist yet; durable after the directory's sync.

    A crash leaves one of the names, or both. If the file system can neither link nor refuse to rename
    over a name, a crash may leave an empty file under the new name.

    :raises FileExistsError: something has the new name.
    """
    try:
        return files.rename_to_new(source, target)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    try:
        files.link(source, target)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    else:
        return files.unlink(source)
    # As on exFAT by way of FUSE: whoever makes the name first has it.
    os.close(files.create(target))
    try:
        files.rename(source, target)
    except BaseException:
        files.discard(target)
        raise


def rename_exclusively(old: tuple[int, str], new: tuple[int, str], source: str, target: str) -> None:
    """renameat2(2) with RENAME_NOREPLACE, which Python does not have.

    :param old: an open directory, and the name in it; ``new`` likewise.
    :param source: the whole path, for errors; ``target`` likewise.
    :raises FileExistsError: the target exists.
    :raises OSError: EINVAL or ENOSYS: the file system or the kernel cannot do it.
    """
    if _libc.renameat2(old[0], os.fsencode(old[1]), new[0], os.fsencode(new[1]), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), source, None, target)
