"""Copies of folders, by this process itself: a program costs five times that for all the files of a place."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

_BLOCK_BYTES = 4096
_ZEROS = bytes(_BLOCK_BYTES)


def copy_tree(source: str, target: str) -> None:
    """Copy a folder with all that is in it, as ``cp --archive --sparse=always`` does.

    Files that have all their blocks and no data in them, as those of a reserve, have all their blocks
    again: of such a copy every first entry would have to reserve them anew.

    :raises ValueError: there is something in it that is neither a file, nor a folder, nor a link.
    """
    _copy_folder(source, target, {})


def write_sparse(fd: int, data: bytes) -> None:
    """Make an empty file hold these bytes, with blocks only where they are not all zeros."""
    _write_blocks(fd, data, 0)
    os.ftruncate(fd, len(data))


def _copy_folder(source: str, target: str, linked: dict[int, str]) -> None:
    os.mkdir(target)
    with os.scandir(source) as entries:
        for entry in entries:
            path = f"{target}/{entry.name}"
            found = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                _copy_folder(entry.path, path, linked)
            elif stat.S_ISLNK(found.st_mode):
                os.symlink(os.readlink(entry.path), path)
            elif not stat.S_ISREG(found.st_mode):
                raise ValueError(f"{entry.path} is no file, folder or link")
            elif found.st_ino in linked:  # one file under two names stays one
                os.link(linked[found.st_ino], path)
            else:
                _copy_file(entry.path, path, found)
                if found.st_nlink > 1:
                    linked[found.st_ino] = path
    _keep_attributes(target, os.stat(source))


def _copy_file(source: str, target: str, found: os.stat_result) -> None:
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
    try:
        if found.st_blocks:
            has_data = _copy_data(source, fd)
            if not has_data and 0 < found.st_size <= found.st_blocks * 512:
                os.posix_fallocate(fd, 0, found.st_size)
        if os.fstat(fd).st_size != found.st_size:
            os.ftruncate(fd, found.st_size)
        _keep_attributes(fd, found)
    finally:
        os.close(fd)


def _copy_data(source: str, target_fd: int) -> bool:
    """Write what is not zeros; whether there was any."""
    has_data = False
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for start, end in _data_of(fd):
            has_data |= _write_blocks(target_fd, os.pread(fd, end - start, start), start)
    finally:
        os.close(fd)
    return has_data


def _write_blocks(fd: int, data: bytes, offset: int) -> bool:
    has_data = False
    for at in range(0, len(data), _BLOCK_BYTES):
        block = data[at : at + _BLOCK_BYTES]
        if block != _ZEROS[: len(block)]:
            os.pwrite(fd, block, offset + at)
            has_data = True
    return has_data


def _data_of(fd: int) -> Iterator[tuple[int, int]]:
    """Where a file has data, as far as its file system tells."""
    end = 0
    while (start := _next_data(fd, end)) is not None:
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def _next_data(fd: int, offset: int) -> int | None:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None


def _keep_attributes(what: str | int, found: os.stat_result) -> None:
    os.chmod(what, stat.S_IMODE(found.st_mode))
    os.utime(what, ns=(found.st_atime_ns, found.st_mtime_ns))
    if (found.st_uid, found.st_gid) != (os.geteuid(), os.getegid()):
        os.chown(what, found.st_uid, found.st_gid)
