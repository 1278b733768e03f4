"""Who may open a file or a folder: its owner, its group, and its mode."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

_PERMISSIONS = 0o7777


@dataclass(frozen=True, slots=True)
class Ownership:
    """Of whom a file is, and who may do what with it."""

    user_id: int
    group_id: int
    mode_bits: int


def ownership_of(path: str) -> Ownership:
    """That of a file or folder; of a link its own."""
    info = os.lstat(path)
    return Ownership(info.st_uid, info.st_gid, info.st_mode & _PERMISSIONS)


def set_access(handle: int, path: str, mode: int, group_id: int | None, user_id: int | None) -> None:
    """Set it, of what a descriptor of a name is open on (O_PATH, O_NOFOLLOW).

    :param group_id: None leaves it as it is, and so does ``user_id``.
    :raises OSError: as of the system calls; ELOOP if the name is a link.
    """
    if stat.S_ISLNK(os.fstat(handle).st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    again = f"/proc/self/fd/{handle}"
    if group_id is not None or user_id is not None:
        os.chown(again, -1 if user_id is None else user_id, -1 if group_id is None else group_id)
    os.chmod(again, mode)
