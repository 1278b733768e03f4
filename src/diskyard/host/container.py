"""What holds a volume's bytes, opened: here a file; on other storage a device or an object."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from diskyard.host.files import Files


class Container(Protocol):
    """An open container. It stays the same one, whatever has its name by now.

    Raises the storage's errors as :class:`OSError`.
    """

    @property
    def fd(self) -> int | None:
        """A descriptor for reading, which programs inherit. None if QEMU opens it by a blockdev."""

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """Read a part; fewer bytes than asked for only at the end."""

    def length_bytes(self) -> int:
        """The current length."""

    def set_length(self, length_bytes: int) -> None:
        """Let it end there, or where a unit of lengths next does. Not durable before :meth:`sync`.

        What is new reads zeros where the storage's volumes are zeroed, and anything where they are not. What
        is cut off is lost, up to the rest of the last unit: that may still be there.
        """

    def reserve(self, length_bytes: int) -> None:
        """Allocate blocks for all bytes up to a length, if possible. Not durable before :meth:`sync`."""

    def sync(self) -> None:
        """Make the bytes and the length durable, whoever wrote them."""


class FileContainer:
    """A file as :class:`Container`.

    :param fd: open for reading; the caller that opened it closes it.
    """

    def __init__(self, files: Files, fd: int) -> None:
        self._files = files
        self.fd = fd

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """Read from the open file."""
        return self._files.read_open(self.fd, offset_bytes, size_bytes)

    def length_bytes(self) -> int:
        """The file's length."""
        return self._files.size_bytes_of(self.fd)

    def set_length(self, length_bytes: int) -> None:
        """Truncate the file, or extend it with a hole."""
        with self._writable() as fd:
            self._files.truncate(fd, length_bytes)

    def reserve(self, length_bytes: int) -> None:
        """Preallocate blocks."""
        with self._writable() as fd:
            self._files.preallocate(fd, length_bytes)

    def sync(self) -> None:
        """Sync the file's data and length."""
        self._files.sync(self.fd)

    @contextmanager
    def _writable(self) -> Iterator[int]:
        fd = self._files.open_for_writing(self.fd)
        try:
            yield fd
        finally:
            os.close(fd)


@contextmanager
def open_file(files: Files, path: str) -> Iterator[FileContainer]:
    """Open a regular file that has this name and no other, for the time of the context.

    :raises OSError: nothing is there (ENOENT), or a link (ELOOP), or something else than a file (EINVAL).
    :raises diskyard.errors.UnsafeImage: the file has other names too.
    """
    fd = files.open_alone(path)
    try:
        yield FileContainer(files, fd)
    finally:
        os.close(fd)
