"""Copies that share blocks."""

from __future__ import annotations

import errno
import os

from diskyard.host import Host
from diskyard.mover.durable import os_errors
from diskyard.mover.interface import Layer
from diskyard.mover.opening import file_of

_CANNOT = frozenset((errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS))


def clone_layer(host: Host, source: Layer, target: Layer) -> bool:
    """Make an open raw layer hold another's bytes by sharing its blocks.

    :param target: its contents are replaced.
    :return: True: the target's data is durable. False: this file system cannot share blocks, and the
        target is unchanged.
    :raises diskyard.errors.StorageError: the storage failed.
    :raises diskyard.errors.NoSpace: it is full.
    """
    with os_errors("cloning a volume"):
        target_fd = host.files.open_for_writing(file_of(target))
        try:
            return clone_into(host, file_of(source), target_fd)
        finally:
            os.close(target_fd)


def clone_into(host: Host, source_fd: int, target_fd: int) -> bool:
    """:func:`clone_layer` for open files, the target for writing. Raises the system's own errors."""
    try:
        host.files.clone(source_fd, target_fd)
        # A clone leaves the part of a longer target that is beyond the source's end.
        host.files.truncate(target_fd, host.files.size_bytes_of(source_fd))
        host.files.sync(target_fd)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True
