"""Who may open a file or a directory: its owner, its group, and its mode."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass

_PERMISSIONS = 0o7777
_ACCESS_ATTRIBUTES = ("system.posix_acl_access", "security.selinux")  # acl(5), selinux(8)
_NO_ATTRIBUTE = frozenset((errno.ENODATA, errno.EOPNOTSUPP))


@dataclass(frozen=True, slots=True)
class Ownership:
    """The owner of a file, and who may do what with it."""

    user_id: int
    group_id: int
    mode_bits: int


def ownership_of(path: str) -> Ownership:
    """The owner and mode of a file or directory; a link is not followed."""
    info = os.lstat(path)
    return Ownership(info.st_uid, info.st_gid, info.st_mode & _PERMISSIONS)


@dataclass(frozen=True, slots=True)
class Grant:
    """The intended owner and mode of something new.

    They are set through a descriptor: others may be able to make the name lead to another file meanwhile.

    :param group_id: None leaves the group as it is; the same holds for ``user_id``.
    """

    mode_bits: int
    group_id: int | None = None
    user_id: int | None = None

    @property
    def gives_away(self) -> bool:
        """Whether it changes the owner or the group."""
        return not (self.user_id is self.group_id is None)

    def apply(self, fd: int) -> None:
        """Set the owner and mode of what a descriptor is open on."""
        if self.gives_away:
            user_id, group_id = (-1 if number is None else number for number in (self.user_id, self.group_id))
            os.fchown(fd, user_id, group_id)
        os.fchmod(fd, self.mode_bits)

    def apply_to_new_folder(self, fd: int, path: str) -> None:
        """Set the owner and mode of a directory that this process has just made.

        :raises PermissionError: its owner or its contents show that it is another directory.
        """
        is_ours = os.fstat(fd).st_uid == os.geteuid() or not self.gives_away
        if not is_ours or os.listdir(fd):
            raise PermissionError(errno.EACCES, "Another folder came in its place", path)
        self.apply(fd)


def copy_access(source_fd: int, target_fd: int) -> None:
    """Give an open file the owner, mode, access list and security label of another.

    Another owner is something that only root can give. A user who cannot leaves it at what there is.
    """
    source, target = os.fstat(source_fd), os.fstat(target_fd)
    if (source.st_uid, source.st_gid) != (target.st_uid, target.st_gid):
        with contextlib.suppress(PermissionError):
            os.fchown(target_fd, source.st_uid, source.st_gid)
    os.fchmod(target_fd, source.st_mode & _PERMISSIONS)
    for name in _ACCESS_ATTRIBUTES:
        try:
            value = os.getxattr(source_fd, name)
        except OSError as error:
            if error.errno not in _NO_ATTRIBUTE:
                raise
            continue
        with contextlib.suppress(PermissionError):
            os.setxattr(target_fd, name, value)


def set_access_of_socket(handle: int, path: str, mode: int, group_id: int | None) -> None:
    """Set the mode and group of the socket whose name a descriptor is open on (O_PATH, O_NOFOLLOW).

    :param group_id: None leaves the group as it is.
    :raises OSError: a system call failed; ENOTSOCK if the name is not that of a socket.
    """
    if not stat.S_ISSOCK(os.fstat(handle).st_mode):
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK), path)
    again = f"/proc/self/fd/{handle}"
    if group_id is not None:
        os.chown(again, -1, group_id)
    os.chmod(again, mode)
