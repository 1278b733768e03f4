"""Which bytes of two files are the very same blocks of one file system (reflinks)."""

from __future__ import annotations

import bisect
from collections.abc import Iterator

from diskyard.host import Host
from diskyard.host.bulk import PhysicalExtent
from diskyard.mover.copying.views import FileView, Run
from diskyard.mover.durable import os_errors

# linux/fiemap.h: the bytes are elsewhere (UNKNOWN, DELALLOC), are stored in another form (ENCODED,
# ENCRYPTED, NOT_ALIGNED, INLINE, TAIL), or are not read at all (UNWRITTEN).
_NOT_THE_BYTES = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
_SHARED = 0x2000
_REST_BYTES = 1 << 62
_TRUE_FOR_S = 5.0  # later, the file system may have moved blocks, and reused their addresses


class _File:
    """Where an open file's bytes are, asked of the file system only as far as needed."""

    def __init__(self, host: Host, fd: int) -> None:
        self._host, self._fd = host, fd
        self.device = host.files.look_open(fd).stamp[0]
        self._extents: list[PhysicalExtent] = []
        self._starts: list[int] = []
        self._known = (0, 0)
        self._asked_s = 0.0
        self.tells = True

    def place(self, offset_bytes: int, most_bytes: int) -> tuple[int, int | None]:
        """The length of a range from an offset that is in one piece, and its physical address.

        None instead of an address: no other file can share these blocks.
        """
        is_old = self._host.clock.monotonic_s() - self._asked_s > _TRUE_FOR_S
        if is_old or not self._known[0] <= offset_bytes < self._known[1]:
            self._ask(offset_bytes)
        index = bisect.bisect_right(self._starts, offset_bytes) - 1
        if index >= 0:
            extent = self._extents[index]
            inside = offset_bytes - extent.offset_bytes
            if inside < extent.length_bytes:
                usable = extent.flags & _SHARED and not extent.flags & _NOT_THE_BYTES
                length = min(most_bytes, extent.length_bytes - inside)
                return length, extent.physical_bytes + inside if usable else None
        following = self._starts[index + 1] if index + 1 < len(self._starts) else self._known[1]
        return min(most_bytes, following - offset_bytes), None

    def _ask(self, offset_bytes: int) -> None:
        self._asked_s = self._host.clock.monotonic_s()
        with os_errors("asking which blocks a volume shares"):
            found = self._host.files.physical_extents(self._fd, offset_bytes, _REST_BYTES)
        self.tells = found is not None
        self._extents = found or []
        self._starts = [extent.offset_bytes for extent in self._extents]
        last = self._extents[-1] if self._extents else None
        end_bytes = _REST_BYTES * 2 if last is None else last.offset_bytes + last.length_bytes
        self._known = (offset_bytes, max(end_bytes, offset_bytes + 1))


class Sharing:
    """Which bytes of two views are the same blocks.

    A file system never changes shared blocks in place. What was found to be equal stays equal, because
    neither view changes.
    """

    def __init__(self, host: Host, source: FileView, base: FileView) -> None:
        self._sources = [_File(host, fd) for fd in source.fds]
        self._bases = [_File(host, fd) for fd in base.fds]

    def parts(self, source: Run, base: Run) -> Iterator[tuple[int, int, bool]]:
        """The start and end of each part of two runs in one range, and whether its blocks are shared."""
        offset, end = source.offset_bytes, source.end_bytes
        one, other = self._sources[source.layer], self._bases[base.layer]
        if one.device != other.device or not (one.tells and other.tells):
            yield offset, end, False
            return
        assert source.file_offset_bytes is not None
        assert base.file_offset_bytes is not None
        one_moved, other_moved = source.file_offset_bytes - offset, base.file_offset_bytes - offset
        while offset < end:
            length, place = one.place(offset + one_moved, end - offset)
            length, other_place = other.place(offset + other_moved, length)
            yield offset, offset + length, place is not None and place == other_place
            offset += length
