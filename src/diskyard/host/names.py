"""Reaching a name through a descriptor of its directory, where no link may be followed."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from diskyard import errors

_LINKED_ADVICE = (
    "A write to one of the names changes them all, even a backup by hard links (cp -al). "
    "'find / -xdev -samefile FILE' lists the names. If they are yours, turn this one into a separate file "
    "while no program has it open: 'cp --reflink=auto FILE FILE.new && mv FILE.new FILE'."
)


def open_again(handle: int, mode: int, path: str) -> int:
    """Open again what a descriptor is open on, in another mode. An error names the path."""
    try:
        return os.open(f"/proc/self/fd/{handle}", mode | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _open_kind(handle: int, mode: int, path: str, *, block_device: bool) -> int:
    """The same, but only a regular file, or a block device if allowed."""
    kind = os.fstat(handle).st_mode
    if not (stat.S_ISREG(kind) or (block_device and stat.S_ISBLK(kind))):
        raise OSError(errno.EINVAL, "Not a regular file", path)
    return open_again(handle, mode, path)


def require_one_name(fd: int, path: str) -> None:
    """Refuse an open file that has other names too, even in directories that its user may not enter.

    Anyone who may write to a directory can give another user's file a name in it (link(2)); a program that
    opens that name reads or writes the other user's file.

    :raises diskyard.errors.UnsafeImage: it has other names.
    """
    links = os.fstat(fd).st_nlink
    if links > 1:
        raise errors.UnsafeImage(
            f"{path} is not opened: its file has {links} names (hard links), of which only one can be "
            "Diskyard's.",
            advice=_LINKED_ADVICE,
        )


def _walk(folder: str, flags: int) -> int:
    """Open a directory without following any link on the way to it; the descriptor."""
    fd = os.open("/", (flags if folder == "/" else os.O_PATH) | os.O_DIRECTORY | os.O_CLOEXEC)
    parts = folder.strip("/").split("/") if folder != "/" else []
    for number, name in enumerate(parts, 1):
        wanted = flags if number == len(parts) else os.O_PATH
        try:
            new = os.open(name, wanted | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        except OSError as error:
            error.filename = folder
            raise
        finally:
            os.close(fd)
        fd = new
    return fd


class Names:
    """Reaches names through their directories. Raises the system's own :class:`OSError`."""

    def __init__(self) -> None:
        self._roots: set[str] = set()
        self._judged = threading.local()

    def refuse_links_in(self, root: str) -> None:
        """From now on follow no link in place of ``root``, or of a directory in it.

        Anyone who may write to a repository can swap one of its directories for a link at any moment. If the
        directory of a name is a link, calls of this door fail (ENOTDIR), and touch nothing behind the
        link.

        :param root: an absolute path without links.
        """
        self._roots.add(root)

    @contextmanager
    def no_links_to(self, root: str) -> Iterator[None]:
        """Within this context, let this thread reach ``root``, and what is in it, only without links.

        Whether a location is allowed was judged by its path. Some directories of the path may belong to
        users who can swap them for links afterwards. Calls that would be led elsewhere fail (ENOTDIR), and
        touch nothing there.

        :param root: an absolute path without links.
        """
        before = getattr(self._judged, "root", None)
        self._judged.root = root
        try:
            yield
        finally:
            self._judged.root = before

    def _enter(self, folder: str, flags: int = os.O_PATH) -> int:
        """Open a directory; the descriptor."""
        folder = folder.rstrip("/") or "/"  # after a slash, O_NOFOLLOW has no effect
        above, root = os.path.dirname(folder), getattr(self._judged, "root", None)
        if root and (root in (folder, above) or folder == os.path.dirname(root)):
            return _walk(folder, flags)
        if folder in self._roots or above in self._roots:
            flags |= os.O_NOFOLLOW
        return os.open(folder, flags | os.O_DIRECTORY | os.O_CLOEXEC)

    @contextmanager
    def _entered(self, name: str, folder_fd: int) -> Iterator[int]:
        """Open a directory, not a link, by its name in an open directory; it can be listed."""
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder_fd)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _holder(self, path: str) -> Iterator[tuple[int, str]]:
        """Open the directory that holds a name; its descriptor and the name. Errors name the whole path."""
        folder, name = os.path.split(path)
        fd = self._enter(folder or ".")
        try:
            yield fd, name
        except OSError as error:
            if error.filename == name:
                error.filename = path
            if error.filename2 == name:
                error.filename2 = path
            raise
        finally:
            os.close(fd)

    def _open_name(self, path: str, flags: int, mode_bits: int = 0) -> int:
        """Open what has a name; the descriptor. If the name itself is a link, it is not followed."""
        folder, name = os.path.split(path)  # as in _holder, which takes twice as long
        fd = self._enter(folder or ".")
        try:
            return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode_bits, dir_fd=fd)
        except OSError as error:
            error.filename = path
            raise
        finally:
            os.close(fd)

    def _open_regular(self, where: str | int, mode: int, *, block_device: bool = False) -> int:
        """Open a regular file, or a block device if allowed; the descriptor.

        Anything else is not opened but is an OSError (EINVAL): a FIFO would hang, and opening a character
        device may have effects.

        :param where: a path, or a descriptor that is open on the file and may have another mode.
        """
        if isinstance(where, int):
            return _open_kind(where, mode, f"descriptor {where}", block_device=block_device)
        handle = self._open_name(where, os.O_PATH)
        try:
            return _open_kind(handle, mode, where, block_device=block_device)
        finally:
            os.close(handle)
