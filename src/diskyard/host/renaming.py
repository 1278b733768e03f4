"""A new name for a whole file, where that name must not exist; on any file system."""

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
    """What of :class:`diskyard.host.files.Files` is needed."""

    def create(self, path: str) -> int: ...

    def link(self, source: str, target: str) -> None: ...

    def rename(self, source: str, target: str) -> None: ...

    def rename_to_new(self, source: str, target: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def discard(self, path: str) -> None: ...


def move_to_new(files: _Door, source: str, target: str) -> None:
    """Give a whole file another name, which must not exist; durable after the folder's sync.

    A crash leaves one of the names, or both; where the file system can neither refuse to rename
    over a name nor link, it may leave an empty file under the new one.

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
    # As exFAT by way of FUSE: who makes the name first has it.
    os.close(files.create(target))
    try:
        files.rename(source, target)
    except BaseException:
        files.discard(target)
        raise


def rename_exclusively(old: tuple[int, str], new: tuple[int, str], source: str, target: str) -> None:
    """renameat2(2) with RENAME_NOREPLACE, which Python does not have.

    :param old: a directory, open, and the name in it; and ``new``.
    :param source: the whole paths, for errors; and ``target``.
    :raises FileExistsError: the target exists.
    :raises OSError: EINVAL or ENOSYS: the file system, or the kernel, cannot.
    """
    if _libc.renameat2(old[0], os.fsencode(old[1]), new[0], os.fsencode(new[1]), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), source, None, target)
