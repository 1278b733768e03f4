"""Copies that share blocks, and how fragmented a file is."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct

from diskyard import errors
from diskyard.host import Host
from diskyard.mover.durable import os_errors

_FS_IOC_FSGETXATTR = 0x801C581F  # linux/fs.h: _IOR('X', 31, struct fsxattr)
_FSXATTR = struct.Struct("IIIII8x")  # flags, extent size, extents, project, copy-on-write extent size
_CANNOT = frozenset((errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS))


def clone_file(host: Host, source_path: str, target_path: str) -> bool:
    """Make a file hold a source's bytes by sharing its blocks; whether that was possible.

    :param target_path: an existing file, whose contents go, or a new one.
    :return: True: the target's data is durable (the caller makes a new name durable).
        False: this file system cannot; a new target is gone, an existing one is unchanged.
    :raises diskyard.errors.StorageError: the storage failed.
    :raises diskyard.errors.NoSpace: it is full.
    """
    with os_errors("cloning a volume"):
        source_fd = host.files.open_to_read(source_path)
        try:
            return clone_into(host, source_fd, target_path)
        finally:
            os.close(source_fd)


def clone_into(host: Host, source_fd: int, target_path: str) -> bool:
    """:func:`clone_file` from an open source; errors are the system's own."""
    is_new = not host.files.exists(target_path)
    target_fd = host.files.create(target_path) if is_new else host.files.open_for_writing(target_path)
    try:
        host.files.clone(source_fd, target_fd)
        # A clone leaves what a longer target holds beyond the source's end.
        host.files.truncate(target_fd, host.files.size_bytes_of(source_fd))
        host.files.sync(target_fd)
    except OSError as error:
        if is_new:
            host.files.discard(target_path)
        if error.errno in _CANNOT:
            return False
        raise
    finally:
        os.close(target_fd)
    return True


def supports_reflink(host: Host, folder: str) -> bool:
    """Whether files in a folder can share blocks, found by trying it with temporary files.

    :raises diskyard.errors.StorageError: the folder cannot be written.
    """
    with os_errors("trying whether files can share blocks"), contextlib.ExitStack() as cleanup:
        paths = []
        for _ in range(2):
            # One block: XFS refuses nothing shorter, btrfs clones whole blocks only.
            paths.append(host.files.write_temporary(folder, bytes(4096)))
            cleanup.callback(host.files.discard, paths[-1])
        return clone_file(host, paths[0], paths[1])


def extent_count(host: Host, path: str) -> int:
    """How many extents a file has; a clone stalls its writers 17 ms per 1,000 (XFS).

    :raises diskyard.errors.Unsupported: the file system does not tell.
    :raises diskyard.errors.StorageError: the file cannot be opened.
    """
    with os_errors("counting a volume's extents"):
        fd = host.files.open_to_read(path)
    try:
        answer = fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size))
        count, blocks = int(_FSXATTR.unpack(answer)[2]), os.fstat(fd).st_blocks
    except OSError as error:
        raise errors.Unsupported("The file system does not tell how many extents a file has.") from error
    finally:
        os.close(fd)
    if count == 0 and blocks > 0:
        # ext4 and btrfs answer, but leave the field empty; XFS fills it.
        raise errors.Unsupported("The file system does not tell how many extents a file has.")
    return count
