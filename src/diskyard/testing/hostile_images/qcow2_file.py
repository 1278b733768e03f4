"""A writer of small qcow2 files that is not QEMU: it can put any value into every field.

The layout is in QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from diskyard.testing.hostile_images.cases import SIZE_BYTES, STRETCHES

COPIED, COMPRESSED = 1 << 63, 1 << 62

#: Offset and width in bytes of every field of the header of version 3.
FIELDS = {
    "magic": (0, 4),
    "version": (4, 4),
    "backing_offset": (8, 8),
    "backing_size": (16, 4),
    "cluster_bits": (20, 4),
    "size": (24, 8),
    "crypt": (32, 4),
    "l1_size": (36, 4),
    "l1_offset": (40, 8),
    "refcount_offset": (48, 8),
    "refcount_clusters": (56, 4),
    "snapshots": (60, 4),
    "snapshots_offset": (64, 8),
    "incompatible": (72, 8),
    "compatible": (80, 8),
    "autoclear": (88, 8),
    "refcount_order": (96, 4),
    "header_length": (100, 4),
}


@dataclass(frozen=True)
class Qcow2:
    """A qcow2 file, and where its parts are, in bytes.

    :ivar l2_entries: by guest cluster, the offset of its entry.
    :ivar clusters: by guest cluster, the offset of its data.
    """

    data: bytearray
    cluster_bytes: int
    l1_offset: int
    refcount_offset: int
    refcount_block_offset: int
    l2_entries: dict[int, int]
    clusters: dict[int, int]

    def with_field(self, name: str, value: int) -> bytearray:
        """The file with another value in a field of its header."""
        offset, width = FIELDS[name]
        return self.with_bytes(offset, value.to_bytes(width, "big"))

    def with_bytes(self, offset_bytes: int, value: bytes) -> bytearray:
        """The file with other bytes at an offset, made longer if they lie beyond its end."""
        changed = self.data.ljust(offset_bytes, b"\0")
        changed[offset_bytes : offset_bytes + len(value)] = value
        return changed

    def with_entry(self, offset_bytes: int, value: int) -> bytearray:
        """The file with another entry of eight bytes in a table."""
        return self.with_bytes(offset_bytes, value.to_bytes(8, "big"))


def deflated(cluster: bytes) -> bytes:
    """A cluster as QEMU compresses it with zlib: no header, a window of 4 KiB."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -12)
    return compressor.compress(cluster) + compressor.flush()


def zstandard(cluster: bytes) -> bytes:
    """A cluster as a Zstandard frame of one raw block (RFC 8878)."""
    header = struct.pack("<IBI", 0xFD2FB528, 0xA0, len(cluster))
    return header + (len(cluster) << 3 | 1).to_bytes(3, "little") + cluster


def build(
    *,
    version: int = 3,
    cluster_bits: int = 16,
    size_bytes: int = SIZE_BYTES,
    stretches: Mapping[int, bytes] = STRETCHES,
    compress: Callable[[bytes], bytes] | None = None,
    compression_type: int = 0,
    extended: bool = False,
    extensions: bytes = b"",
) -> Qcow2:
    """An honest file, unless the arguments are not honest.

    :param compress: makes the bytes that are stored for a cluster.
    :param extensions: the header's extensions, without the one that ends them.
    """
    cluster_bytes = 1 << cluster_bits
    entry_bytes = 16 if extended else 8
    guest = _guest_clusters(stretches, size_bytes, cluster_bytes)
    per_table = cluster_bytes // entry_bytes
    l1_entries = -(-size_bytes // (cluster_bytes * per_table))
    l1_clusters = -(-l1_entries * 8 // cluster_bytes)
    tables = sorted({number // per_table for number in guest})
    stored = {number: compress(data) if compress else data for number, data in guest.items()}
    data_clusters = {number: -(-len(data) // cluster_bytes) for number, data in stored.items()}
    others = 1 + l1_clusters + len(tables) + sum(data_clusters.values())
    table_clusters, blocks = _refcount_clusters(others, cluster_bytes)
    blocks_offset = (1 + table_clusters) * cluster_bytes
    l1_offset = blocks_offset + blocks * cluster_bytes
    l2_offsets = {
        table: l1_offset + (l1_clusters + place) * cluster_bytes for place, table in enumerate(tables)
    }
    total = others + table_clusters + blocks
    image = bytearray(total * cluster_bytes)
    image[: 1 << 9] = _header(
        version,
        cluster_bits,
        size_bytes,
        l1_entries,
        l1_offset,
        table_clusters,
        compression_type,
        extended,
        extensions,
    )[: 1 << 9].ljust(1 << 9, b"\0")
    for block in range(blocks):
        struct.pack_into(">Q", image, cluster_bytes + 8 * block, blocks_offset + block * cluster_bytes)
    struct.pack_into(f">{total}H", image, blocks_offset, *([1] * total))
    for table, offset in l2_offsets.items():
        struct.pack_into(">Q", image, l1_offset + 8 * table, offset | COPIED)
    where = (total - sum(data_clusters.values())) * cluster_bytes
    entries, clusters = {}, {}
    for number, data in stored.items():
        clusters[number] = where
        entries[number] = l2_offsets[number // per_table] + number % per_table * entry_bytes
        image[where : where + len(data)] = data
        entry = _compressed_entry(where, len(data), cluster_bits) if compress else where | COPIED
        struct.pack_into(">Q", image, entries[number], entry)
        if extended and not compress:
            struct.pack_into(">Q", image, entries[number] + 8, (1 << 32) - 1)
        where += data_clusters[number] * cluster_bytes
    return Qcow2(image, cluster_bytes, l1_offset, cluster_bytes, blocks_offset, entries, clusters)


def _refcount_clusters(others: int, cluster_bytes: int) -> tuple[int, int]:
    """How many clusters the refcount table and its blocks take, which count themselves too."""
    table, blocks = 1, 1
    while True:
        needed = -(-(others + table + blocks) * 2 // cluster_bytes)
        if (table, blocks) == (-(-needed * 8 // cluster_bytes), needed):
            return table, blocks
        table, blocks = -(-needed * 8 // cluster_bytes), needed


def _guest_clusters(stretches: Mapping[int, bytes], size_bytes: int, cluster_bytes: int) -> dict[int, bytes]:
    disk: dict[int, bytearray] = {}
    for offset, data in stretches.items():
        for position in range(offset, min(offset + len(data), size_bytes), 512):
            cluster = disk.setdefault(position // cluster_bytes, bytearray(cluster_bytes))
            sector = data[position - offset : position - offset + 512]
            within = position % cluster_bytes
            cluster[within : within + len(sector)] = sector
    return {number: bytes(disk[number]) for number in sorted(disk)}


def _compressed_entry(offset_bytes: int, length_bytes: int, cluster_bits: int) -> int:
    last_sector = (offset_bytes + length_bytes - 1) // 512
    shift = 62 - (cluster_bits - 8)
    return COMPRESSED | (last_sector - offset_bytes // 512) << shift | offset_bytes


def _header(
    version: int,
    cluster_bits: int,
    size_bytes: int,
    l1_entries: int,
    l1_offset: int,
    refcount_clusters: int,
    compression_type: int,
    extended: bool,
    extensions: bytes,
) -> bytes:
    cluster_bytes = 1 << cluster_bits
    fixed = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", version, 0, 0, cluster_bits, size_bytes, 0, l1_entries, l1_offset,
        cluster_bytes, refcount_clusters, 0, 0,
    )  # fmt: skip
    if version == 2:
        return fixed + extensions + bytes(8)
    incompatible = (compression_type != 0) << 3 | extended << 4
    features = struct.pack(">QQQII", incompatible, 0, 0, 4, 112)
    return fixed + features + bytes((compression_type,)).ljust(8, b"\0") + extensions + bytes(8)


def extension(kind: int, data: bytes, length_bytes: int | None = None) -> bytes:
    """One extension of the header, padded; a given length may be a lie."""
    length = len(data) if length_bytes is None else length_bytes
    return struct.pack(">II", kind, length) + data + bytes(-len(data) % 8)
