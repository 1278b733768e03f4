"""What holds a volume's bytes, open: a file here; a device, or an object of a storage, elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from diskyard.host.files import Files


class Container(Protocol):
    """An open container: the bytes of one and the same, whatever has its name by now.

    Errors of the storage are :class:`OSError`.
    """

    @property
    def fd(self) -> int | None:
        """A descriptor of it, for reading, that programs inherit. None: QEMU opens it by its blockdev."""

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """A part of it; fewer bytes than asked for only at its end."""

    def length_bytes(self) -> int:
        """How long it is now."""

    def set_length(self, length_bytes: int) -> None:
        """Let it end there, or where a unit of lengths next does. Not durable before :meth:`sync`.

        What is new reads zeros where the storage's volumes are zeroed, and anything where they are not. What
        is cut off is lost, up to the rest of the last unit: that may still be there.
        """

    def reserve(self, length_bytes: int) -> None:
        """Have blocks for all of its bytes up to there, if it can. Not durable before :meth:`sync`."""

    def sync(self) -> None:
        """Make its bytes and its length durable, whoever wrote them."""


class FileContainer:
    """A file as :class:`Container`.

    :param fd: open for reading; who opened it closes it.
    """

    def __init__(self, files: Files, fd: int) -> None:
        self._files = files
        self.fd = fd

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """Of the file as it was opened."""
        return self._files.read_open(self.fd, offset_bytes, size_bytes)

    def length_bytes(self) -> int:
        """The file's."""
        return self._files.size_bytes_of(self.fd)

    def set_length(self, length_bytes: int) -> None:
        """Truncate it, or leave a hole at its end."""
        with self._writable() as fd:
            self._files.truncate(fd, length_bytes)

    def reserve(self, length_bytes: int) -> None:
        """Preallocate."""
        with self._writable() as fd:
            self._files.preallocate(fd, length_bytes)

    def sync(self) -> None:
        """The file's data and length."""
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
    """The regular file that has this name and no other, open within.

    :raises OSError: nothing is there (ENOENT), or a link (ELOOP), or what is no file (EINVAL).
    :raises diskyard.errors.UnsafeImage: it has other names too.
    """
    fd = files.open_alone(path)
    try:
        yield FileContainer(files, fd)
    finally:
        os.close(fd)
