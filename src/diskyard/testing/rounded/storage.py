"""A repository whose containers have lengths in units, and begin with what was there before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from diskyard.host import Files, Host
from diskyard.host.container import Container
from diskyard.model.volume_name import VolumeName
from diskyard.storage.interface import Storage
from diskyard.testing.faults import WatchedStorage

UNIT_BYTES = 4 << 20
_PATTERN_BYTES = 64 << 10
_ENDS_BYTES = 4 * UNIT_BYTES


def _leave_garbage(files: Files, fd: int, start_bytes: int, end_bytes: int) -> None:
    """Fill a part of a file with bytes of which none is zero, others each time; durable on return.

    Of a part that is very long only the two ends are filled.
    """
    garbage = os.urandom(_PATTERN_BYTES).replace(b"\0", b"\1") * (UNIT_BYTES // _PATTERN_BYTES)
    second_bytes = max(start_bytes + _ENDS_BYTES, end_bytes - _ENDS_BYTES)
    parts = ((start_bytes, min(end_bytes, start_bytes + _ENDS_BYTES)), (second_bytes, end_bytes))
    writable = files.open_for_writing(fd)
    try:
        for begin, end in parts:
            for offset in range(begin, end, UNIT_BYTES):
                files.write(writable, garbage[: end - offset], offset)
        files.sync(writable)
    finally:
        os.close(writable)


class _Rounded:
    """A file whose length is set in units, as :class:`~diskyard.host.container.Container`."""

    def __init__(self, files: Files, file: Container) -> None:
        self._files, self._file = files, file
        assert file.fd is not None
        self.fd = file.fd
        self.read, self.length_bytes = file.read, file.length_bytes
        self.reserve, self.sync = file.reserve, file.sync

    def set_length(self, length_bytes: int) -> None:
        """Where a unit ends; what is new is garbage."""
        before_bytes, after_bytes = self.length_bytes(), -(-length_bytes // UNIT_BYTES) * UNIT_BYTES
        self._file.set_length(after_bytes)
        if after_bytes > before_bytes:
            _leave_garbage(self._files, self.fd, before_bytes, after_bytes)


class RoundedStorage(WatchedStorage):
    """One connection to a place.

    :param inner: of files.
    """

    def __init__(self, inner: Storage, host: Host) -> None:
        super().__init__(inner)
        self._files = host.files
        self.capabilities = replace(
            inner.capabilities, zeroed=False, reflink=False, length_unit_bytes=UNIT_BYTES
        )

    def create_volume(
        self, name: VolumeName, *, length_bytes: int, initial: bytes = b"", preallocate: bool = False
    ) -> None:
        """The file, with garbage behind its first bytes."""
        whole_bytes = self.capabilities.container_bytes(max(length_bytes, len(initial)))
        super().create_volume(name, length_bytes=whole_bytes, initial=initial, preallocate=preallocate)
        with self.inner.open_volume(name) as file:
            assert file.fd is not None
            _leave_garbage(self._files, file.fd, len(initial), whole_bytes)

    def clone_volume(self, source: VolumeName, target: VolumeName) -> bool:
        """Never: the capability is not there."""
        return False

    def grow_volume(self, name: VolumeName, *, length_bytes: int, preallocate: bool = False) -> None:
        """The file, by whole units; never shortens it."""
        with self.open_volume(name) as container:
            if container.length_bytes() < length_bytes:
                container.set_length(length_bytes)
            if preallocate:
                container.reserve(length_bytes)
            container.sync()

    @contextmanager
    def open_volume(self, name: VolumeName) -> Iterator[Container]:
        """The file."""
        with self.inner.open_volume(name) as file:
            yield _Rounded(self._files, file)
