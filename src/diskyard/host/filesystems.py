"""What a file system can do, found without changing anything on it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from diskyard.host.calls import storage_call
from diskyard.host.names import open_again
from diskyard.host.reading import ReadingFiles


class FileSystems(ReadingFiles):
    """Finds out what file systems can do. Raises the system's own :class:`OSError`."""

    @storage_call
    def reads_past_cache(self, where: str | int, piece_bytes: int) -> bool:
        """Whether a file can be read past the page cache (O_DIRECT), in pieces of this size at any offset.

        False if the file system has no such reads, or if its blocks are smaller than a piece: then data and
        holes can meet inside a piece. True for an absent file, since nothing is known to prevent it.

        :param where: a path, or a descriptor that is open on the file.
        """
        try:
            if isinstance(where, int):
                fd = open_again(where, os.O_RDONLY | os.O_DIRECT, f"descriptor {where}")
            else:
                fd = self._open_name(where, os.O_RDONLY | os.O_DIRECT | os.O_NONBLOCK)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        try:
            info = os.fstatvfs(fd)
            return min(info.f_bsize, info.f_frsize) >= piece_bytes
        finally:
            os.close(fd)

    @storage_call
    def longest_file_bytes(self, path: str, most_bytes: int) -> int:
        """How long a file may be on the file system that holds a regular file; at most ``most_bytes``.

        This makes no file so long: the kernel refuses to seek (lseek(2)) where it would refuse to write.
        """
        fd = self._open_name(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if _can_seek(fd, most_bytes):
                return most_bytes
            possible, impossible = 0, most_bytes
            while impossible - possible > 1:
                middle = (possible + impossible) // 2
                if _can_seek(fd, middle):
                    possible = middle
                else:
                    impossible = middle
            return possible
        finally:
            os.close(fd)

    @storage_call
    def is_read_only(self, path: str) -> bool:
        """Whether the file system of a path is mounted so that nothing on it can be changed."""
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)

    @storage_call
    def may_write(self, path: str) -> bool:
        """Whether this process may change a file, or the names in a directory, by its permissions."""
        return os.access(path, os.W_OK, effective_ids=True)

    @storage_call
    def file_system(self, path: str) -> str:
        """The kind of file system that holds a path, as the kernel names it: ``ext4``, ``fuse.sshfs``.

        For an overlay it is the kind of the layer that is written to, if this process can find that out.
        Empty if the kernel does not say. The mount through which the path is opened decides: device numbers
        do not, because some, such as those of btrfs's subvolumes, are in no table of mounts.
        """
        for _ in range(_OVERLAYS_MOST):
            kind, options = _mount_of(path)
            upper = options.get("upperdir", "")
            if kind != "overlay" or not os.path.isdir(upper):
                return kind
            path = upper
        return ""


_OVERLAYS_MOST = 3  # the kernel stacks at most two


def _can_seek(fd: int, offset_bytes: int) -> bool:
    try:
        os.lseek(fd, offset_bytes, os.SEEK_SET)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOVERFLOW):
            raise
        return False
    return True


def _mount_of(path: str) -> tuple[str, dict[str, str]]:
    """The kind of the mount that holds a path, and the options of its file system."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        told = dict(
            line.split(":", 1)
            for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
            if ":" in line
        )
    finally:
        os.close(fd)
    mount = told.get("mnt_id", "").strip()
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        fields, _, tail = line.partition(" - ")
        if fields.split(" ", 1)[0] == mount:
            kind, _, options = tail.split(" ", 2)
            pairs = (option.partition("=") for option in options.split(","))
            return kind, {name: value for name, _, value in pairs}
    return "", {}
