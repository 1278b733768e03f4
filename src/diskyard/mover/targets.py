"""What a copy writes into: a raw file, or the top volume of a chain through QEMU's NBD server."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Protocol

from diskyard.host import Host
from diskyard.host.bulk import DIRECT_ALIGNMENT_BYTES
from diskyard.mover.durable import os_errors
from diskyard.mover.nbdclient import NbdClient

_DIRECT_LEAST_BYTES = 128 << 10  # less is quicker through the page cache, which gathers it


class Writer(Protocol):
    """Writes into a target; for one thread."""

    def write(self, memory: memoryview, offset_bytes: int) -> None:
        """Write; not durable before :meth:`Target.flush`."""

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        """Make a range read as zeros; not durable before :meth:`Target.flush`."""


class Target(Protocol):
    """What a copy writes into."""

    def writer(self, stack: ExitStack) -> Writer:
        """A writer for one more thread, closed with ``stack``."""

    def flush(self) -> None:
        """Make all durable that was written and answered when this is called."""


class FileTarget:
    """A raw volume that is a file which reads as zeros wherever no earlier run has written.

    :param path: an existing file of its whole length.
    """

    def __init__(self, stack: ExitStack, host: Host, path: str) -> None:
        self._files = host.files
        with os_errors("opening a volume to write it"):
            self._fd = host.files.open_for_writing(path)
            stack.callback(os.close, self._fd)
            self._direct_fd = host.files.open_direct(self._fd, writing=True)
            if self._direct_fd is not None:
                stack.callback(os.close, self._direct_fd)

    def writer(self, stack: ExitStack) -> Writer:
        """See :class:`Target`."""
        return self

    def write(self, memory: memoryview, offset_bytes: int) -> None:
        """See :class:`Writer`; any number of threads may."""
        is_aligned = not (offset_bytes | len(memory)) % DIRECT_ALIGNMENT_BYTES
        with os_errors("writing a volume"):
            if self._direct_fd is None or not is_aligned or len(memory) < _DIRECT_LEAST_BYTES:
                self._files.write(self._fd, memory, offset_bytes)
            else:
                self._files.write(self._direct_fd, memory, offset_bytes)

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        """See :class:`Writer`: it is zeros already."""

    def flush(self) -> None:
        """See :class:`Target`."""
        with os_errors("making a volume durable"):
            self._files.sync(self._fd)


class ServedTarget:
    """A volume behind an NBD server that may write it."""

    def __init__(self, stack: ExitStack, host: Host, uri: str) -> None:
        self._host, self._uri = host, uri
        self._flushing = stack.enter_context(NbdClient(host, uri))

    def writer(self, stack: ExitStack) -> Writer:
        """See :class:`Target`."""
        return _ServedWriter(stack.enter_context(NbdClient(self._host, self._uri)))

    def flush(self) -> None:
        """See :class:`Target`."""
        self._flushing.flush()


class _ServedWriter:
    def __init__(self, client: NbdClient) -> None:
        self._client = client

    def write(self, memory: memoryview, offset_bytes: int) -> None:
        """See :class:`Writer`."""
        self._client.write(memory, offset_bytes)

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        """See :class:`Writer`."""
        self._client.zero(offset_bytes, length_bytes)
