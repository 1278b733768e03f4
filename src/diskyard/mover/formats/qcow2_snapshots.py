"""What other programs add to qcow2 files: internal snapshots in our volumes, and overlays of them.

Both are read here without QEMU, within limits, and nothing that they name is opened.
"""

from __future__ import annotations

import struct

from diskyard.mover.formats.qcow2_header import CLUSTER_BYTES, L1_MAX_BYTES, MAGIC, ReadAt

#: More than any tool makes, and few enough to be checked with every header.
_SNAPSHOTS_MOST = 4096
_TABLE_MOST_BYTES = 1 << 20
_EXTRA_MOST_BYTES = 1024  # QEMU's own limit
_COUNT = struct.Struct(">IQ")
_COUNT_OFFSET_BYTES = 60
_ENTRY = struct.Struct(">QIHHIIQII")
_BACKING = struct.Struct(">QI")
_BACKING_OFFSET_BYTES = 8
_BACKING_NAME_MOST_BYTES = 1023
_L1_ENTRY_BYTES = 8


def snapshot_count(read: ReadAt) -> int:
    """How many internal snapshots one of our volumes has. Its header must have been found sound."""
    count: int = _COUNT.unpack(read(_COUNT_OFFSET_BYTES, _COUNT.size))[0]
    return count


def snapshots_flaw(read: ReadAt, file_size_bytes: int) -> str | None:
    """What is wrong with the table of internal snapshots, which QEMU reads when it opens a file.

    :return: for people; None if nothing is wrong, or there is no snapshot.
    """
    count, offset = _COUNT.unpack(read(_COUNT_OFFSET_BYTES, _COUNT.size))
    if count == 0:
        return None
    if count > _SNAPSHOTS_MOST:
        return f"it has {count} internal snapshots"
    if offset % CLUSTER_BYTES or not CLUSTER_BYTES <= offset < file_size_bytes:
        return "its table of internal snapshots is misplaced"
    table = read(offset, min(_TABLE_MOST_BYTES, file_size_bytes - offset))
    at = end = 0
    for _ in range(count):
        if at + _ENTRY.size > len(table):
            return "its table of internal snapshots is not in its file, or too large"
        l1_offset, l1_entries, id_bytes, name_bytes, *_, extra_bytes = _ENTRY.unpack_from(table, at)
        l1_bytes = l1_entries * _L1_ENTRY_BYTES
        if extra_bytes > _EXTRA_MOST_BYTES or l1_bytes > L1_MAX_BYTES:
            return "an internal snapshot is impossible"
        if l1_offset % CLUSTER_BYTES or l1_offset < CLUSTER_BYTES or l1_offset + l1_bytes > file_size_bytes:
            return "the table of an internal snapshot is not in its file"
        end = at + _ENTRY.size + extra_bytes + id_bytes + name_bytes
        at = -(-end // 8) * 8
    return None if end <= len(table) else "its table of internal snapshots is not in its file, or too large"


def backing_name(read: ReadAt) -> str | None:
    """The backing name in the header of a qcow2 file that is not ours; None if there is none.

    It is only read. Nothing in the file is trusted or followed.
    """
    head = read(0, _BACKING_OFFSET_BYTES + _BACKING.size)
    if len(head) < _BACKING_OFFSET_BYTES + _BACKING.size or head[:4] != MAGIC:
        return None
    offset, length = _BACKING.unpack_from(head, _BACKING_OFFSET_BYTES)
    if offset == 0 or not 0 < length <= _BACKING_NAME_MOST_BYTES or offset > 1 << 21:  # the largest cluster
        return None
    return read(offset, length).decode(errors="replace")
