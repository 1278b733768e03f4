"""What a copy writes into: a raw file, or the top volume of a chain through QEMU's NBD server."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Protocol

from diskyard.host import Host
from diskyard.mover.durable import os_errors
from diskyard.mover.qemu.nbdclient import NbdClient

_SPAN_BYTES = 1 << 20  # written before the storage is told to write it out
_SPANS_BEHIND = 32  # written out together at most; measured, as the pieces are (docs/performance.md)


Part = tuple[int, memoryview]
"""An offset, and what is written there."""


class Writer(Protocol):
    """Writes into a target; for one thread."""

    def write(self, parts: Sequence[Part]) -> None:
        """Write each part; not durable before :meth:`Target.flush`."""

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        """Make a range read as zeros; not durable before :meth:`Target.flush`."""

    def write_out(self) -> None:
        """Have the storage write out what was written, if it is much. This may have to wait."""


class Target(Protocol):
    """What a copy writes into."""

    def writer(self, stack: ExitStack) -> Writer:
        """A writer for one more thread, closed with ``stack``."""

    def flush(self) -> None:
        """Make everything durable that was written and answered before this call."""


class FileTarget:
    """A raw volume in a file that reads as zeros wherever no earlier run has written.

    :param file_fd: the file, which already has its full length; it is opened again.
    """

    def __init__(self, stack: ExitStack, host: Host, file_fd: int) -> None:
        self._files = host.files
        with os_errors("opening a volume to write it"):
            self._fd = host.files.open_for_writing(file_fd)
        stack.callback(os.close, self._fd)
        self._behind = _WriteBehind(host, self._fd)

    def writer(self, stack: ExitStack) -> Writer:
        """See :class:`Target`."""
        return self

    def write(self, parts: Sequence[Part]) -> None:
        """See :class:`Writer`; any number of threads may call this."""
        if not parts:
            return
        with os_errors("writing a volume"):
            for offset_bytes, memory in parts:
                self._files.write(self._fd, memory, offset_bytes)
            self._behind.wrote(parts)

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        """See :class:`Writer`: the range is zeros already."""

    def write_out(self) -> None:
        """See :class:`Writer`."""
        with os_errors("writing a volume"):
            self._behind.catch_up()

    def flush(self) -> None:
        """See :class:`Target`."""
        with os_errors("making a volume durable"):
            self._files.sync(self._fd)


class _WriteBehind:
    """Starts writing data out soon after it is written, and then frees its page cache.

    So the storage is not idle until the end, little is left to wait for then, and other data stays in
    the page cache.
    """

    def __init__(self, host: Host, fd: int) -> None:
        self._files, self._fd = host.files, fd
        self._lock = threading.Lock()
        self._written_bytes = 0
        self._start_bytes, self._end_bytes = 1 << 63, 0
        self._spans: deque[tuple[int, int]] = deque()

    def wrote(self, parts: Sequence[Part]) -> None:
        """Record that parts, in order, were written; any thread may call this."""
        last_bytes, last = parts[-1]
        with self._lock:
            self._start_bytes = min(self._start_bytes, parts[0][0])
            self._end_bytes = max(self._end_bytes, last_bytes + len(last))
            self._written_bytes += sum(len(memory) for _, memory in parts)

    def catch_up(self) -> None:
        """Begin to write out what is new, and wait for what was begun long before."""
        with self._lock:
            if self._written_bytes < _SPAN_BYTES:
                return
            begun = (self._start_bytes, self._end_bytes - self._start_bytes)
            self._written_bytes = 0
            self._start_bytes, self._end_bytes = 1 << 63, 0
            self._spans.append(begun)
            ended = self._spans.popleft() if len(self._spans) > _SPANS_BEHIND else None
        self._files.begin_write_out(self._fd, *begun)
        if ended is not None:
            self._files.end_write_out(self._fd, *ended)


class ServedTarget:
    """A volume behind an NBD server that can write to it."""

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

    def write(self, parts: Sequence[Part]) -> None:
        """See :class:`Writer`."""
        for offset_bytes, memory in parts:
            self._client.write(memory, offset_bytes)

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        """See :class:`Writer`."""
        self._client.zero(offset_bytes, length_bytes)

    def write_out(self) -> None:
        """See :class:`Writer`: the server writes out by itself."""
