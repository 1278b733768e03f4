"""The qcow2 header, written and read without QEMU.

The layout is in QEMU's docs/interop/qcow2.txt. Writing the header here takes 0.4 ms, where
``qemu-img create`` takes 9 ms. Parsing it here means that no QEMU tool opens a file that is
not trusted before it is known that the file refers to no other files.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from diskyard import errors
from diskyard.mover import advice

CLUSTER_BYTES = 65536
READ_BYTES = 4096
"""What a reader of a whole header has to be able to give at once."""

MAGIC = b"QFI\xfb"
_FIXED = struct.Struct(">4sIQIIQIIQQIIQ")
_FEATURES = struct.Struct(">QQQII")
_V3_HEADER_BYTES = 104
_BACKING_FORMAT = 0xE2792ACA
_OTHER_FILES = {0x44415441: "names a data file", 0x0537BE77: "is encrypted"}  # header extensions
_EXTENSION = struct.Struct(">II")
_OWN_BACKING = b"diskyard:"
_INCOMPATIBLE_ALLOWED = (1 << 3) | (1 << 4)  # compression type; extended L2 entries
_INCOMPATIBLE_REFUSED = (
    (0, "it was not closed", advice.NOT_CLOSED),
    (1, "it is marked as damaged", advice.DAMAGED),
    (2, "it has a data file", advice.BACKING),
)
_L1_ENTRY_BYTES = 8
_L1_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
_PIECE_BYTES = 1 << 20
L1_MAX_BYTES = 32 << 20  # QEMU's own limit
_REFCOUNT_TABLE_MAX_BYTES = 8 << 20  # QEMU's own limit
_SIZE_MAX_BYTES = 1 << 61

ReadAt = Callable[[int, int], bytes]
"""``read(offset_bytes, count_bytes)``: fewer bytes than asked for only at the file's end."""


def empty_qcow2(size_bytes: int, backing_name: str | None) -> bytes:
    """The bytes of an empty qcow2 version 3 image with clusters of 64 KiB.

    :param size_bytes: the virtual size, a multiple of 512.
    :param backing_name: stored as the name of the backing file, for people. Its format is given as raw,
        so that no tool probes anything.
    :raises diskyard.errors.InvalidParameter: qcow2 cannot hold this size or name.
    """
    if size_bytes < 0 or size_bytes % 512:
        raise errors.InvalidParameter(f"An image of {size_bytes} bytes is not a multiple of 512.")
    name = (backing_name or "").encode()
    if len(name) > 1023:
        raise errors.InvalidParameter("A backing name has at most 1,023 bytes.")
    l1_entries = max(1, _divide_up(size_bytes, CLUSTER_BYTES * CLUSTER_BYTES // _L1_ENTRY_BYTES))
    if l1_entries * _L1_ENTRY_BYTES > L1_MAX_BYTES:
        raise errors.InvalidParameter(f"qcow2 cannot hold an image of {size_bytes} bytes.")
    # The clusters are: header, refcount table, refcount block, then the L1 table.
    clusters = 3 + _divide_up(l1_entries * _L1_ENTRY_BYTES, CLUSTER_BYTES)
    extensions = b""
    if name:
        extensions = struct.pack(">II8s", _BACKING_FORMAT, len(b"raw"), b"raw")
    extensions += struct.pack(">II", 0, 0)
    fixed = _FIXED.pack(
        MAGIC,
        3,
        _V3_HEADER_BYTES + len(extensions) if name else 0,
        len(name),
        CLUSTER_BYTES.bit_length() - 1,
        size_bytes,
        0,  # encryption
        l1_entries,
        3 * CLUSTER_BYTES,
        1 * CLUSTER_BYTES,
        1,  # clusters of the refcount table
        0,  # snapshots
        0,
    )
    features = _FEATURES.pack(0, 0, 0, 4, _V3_HEADER_BYTES)  # refcounts of 1 << 4 bits
    image = bytearray(clusters * CLUSTER_BYTES)
    head = fixed + features + extensions + name
    image[: len(head)] = head
    struct.pack_into(">Q", image, CLUSTER_BYTES, 2 * CLUSTER_BYTES)
    struct.pack_into(f">{clusters}H", image, 2 * CLUSTER_BYTES, *([1] * clusters))
    return bytes(image)


def overlay_is_unwritten(read: ReadAt) -> bool:
    """Whether an image that nobody has open holds no cluster of its own: its L1 table is all zeros.

    A cluster that was written and then discarded leaves its L2 table: such an image counts as written.
    (``qemu-img check`` does not count zero clusters, so it cannot tell.)

    :param read: reads the image's file, which is trusted.
    :raises diskyard.errors.StorageError: the file is not a qcow2 image, or it is cut short.
    """
    head = read(0, _FIXED.size)
    if len(head) < _FIXED.size or head[:4] != MAGIC:
        raise errors.StorageError("A volume is not the qcow2 image that its record says.")
    fields = _FIXED.unpack(head)
    l1_bytes, l1_offset = fields[7] * _L1_ENTRY_BYTES, fields[8]
    if l1_bytes > L1_MAX_BYTES or l1_offset > _SIZE_MAX_BYTES:
        raise errors.StorageError("A volume's qcow2 header is damaged: its L1 table is impossible.")
    table = read(l1_offset, l1_bytes)
    if len(table) != l1_bytes:
        raise errors.StorageError("A volume's qcow2 image is cut short in its L1 table.")
    return table == bytes(l1_bytes)


def own_header_flaw(read: ReadAt, file_size_bytes: int, size_bytes: int) -> str | None:
    """What in the header of one of our volumes neither Diskyard nor a working QEMU would write.

    This is called before any program opens the volume: a header that was damaged, or written by somebody
    else, may make QEMU open other files (a data file, even if the graph does not name one), or show other
    bytes. It makes one read of :data:`READ_BYTES`. Tables are left to a deep check; the table
    of internal snapshots is checked by :func:`diskyard.mover.formats.qcow2_snapshots.snapshots_flaw`.

    :param size_bytes: in the record; the volume may have grown since (docs/format.md).
    :return: for people, or None if nothing is wrong.
    """
    head = read(0, READ_BYTES)
    if len(head) < _V3_HEADER_BYTES or head[:4] != MAGIC:
        return "it is not a qcow2 image"
    fields = _FIXED.unpack_from(head)
    (_, version, backing_offset, backing_bytes, cluster_bits, has_bytes, crypt) = fields[:7]
    (l1_entries, l1_offset, refcount_offset, refcount_clusters) = fields[7:11]
    incompatible, _, _, refcount_order, header_bytes = _FEATURES.unpack_from(head, _FIXED.size)
    backing = head[backing_offset : backing_offset + backing_bytes] if backing_offset else _OWN_BACKING
    l1_most = _divide_up(has_bytes, CLUSTER_BYTES * CLUSTER_BYTES // _L1_ENTRY_BYTES)
    tables = (
        (l1_offset, l1_entries * _L1_ENTRY_BYTES, L1_MAX_BYTES),
        (refcount_offset, refcount_clusters * CLUSTER_BYTES, _REFCOUNT_TABLE_MAX_BYTES),
    )
    rules = (
        (version == 3, f"its version is {version}"),
        (incompatible == 0, f"its incompatible features are {incompatible:#x}"),
        (crypt == 0, "it is encrypted"),
        (cluster_bits == CLUSTER_BYTES.bit_length() - 1, f"its clusters are of 2^{cluster_bits} bytes"),
        (refcount_order == 4, f"its refcounts are of 2^{refcount_order} bits"),
        (has_bytes % 512 == 0 and has_bytes <= _SIZE_MAX_BYTES, "its size is impossible"),
        (has_bytes >= size_bytes, f"its size is {has_bytes}, and not {size_bytes}"),
        (l1_entries >= l1_most, "its L1 table is too small for its size"),
        (refcount_clusters > 0, "it has no refcount table"),
        (all(table[1] <= table[2] for table in tables), "its tables are too large"),
        (
            all(at % CLUSTER_BYTES == 0 and at >= CLUSTER_BYTES for at, _, _ in tables),
            "its tables are misplaced",
        ),
        (
            l1_offset >= refcount_offset + tables[1][1] or refcount_offset >= l1_offset + tables[0][1],
            "its tables overlap",
        ),
        (all(at + length <= file_size_bytes for at, length, _ in tables), "its tables are not in its file"),
        (_V3_HEADER_BYTES <= header_bytes <= READ_BYTES, "its header's length is impossible"),
        # QEMU writes a header of several sectors in one go. After a power cut its offset may be there and
        # the name, in a later sector, not yet. Nothing follows the name (I7).
        (
            (backing.startswith(_OWN_BACKING) or not any(backing)) and backing_offset < READ_BYTES,
            "its backing file is not ours",
        ),
    )
    for holds, words in rules:
        if not holds:
            return words
    return _extension_flaw(head, header_bytes, backing_offset)


def _extension_flaw(head: bytes, begin: int, backing_offset: int) -> str | None:
    """A header extension that leads to another file, or a list of extensions without an end."""
    while begin + _EXTENSION.size <= (backing_offset or len(head)):
        kind, length = _EXTENSION.unpack_from(head, begin)
        if kind == 0:
            return None
        if kind in _OTHER_FILES:
            return f"it {_OTHER_FILES[kind]}"
        begin += _EXTENSION.size + _divide_up(length, 8) * 8
    return None if begin == backing_offset else "its header extensions do not end"


def parse_untrusted_qcow2(read: ReadAt, file_size_bytes: int) -> int:
    """The virtual size of a qcow2 file that is not trusted, in bytes.

    This reads only the header, at most :data:`READ_BYTES`.

    :raises diskyard.errors.UnsafeImage: it refers to another file, needs a key, has internal
        snapshots, or its tables are not inside the file: check and convert would not be safe.
    """
    head = read(0, READ_BYTES)
    if len(head) < _FIXED.size or head[:4] != MAGIC:
        raise errors.UnsafeImage("The file is not a qcow2 image.", advice=advice.not_of_format(head, "qcow2"))
    fields = _FIXED.unpack_from(head)
    (_, version, backing_offset, backing_bytes, cluster_bits, size_bytes, crypt) = fields[:7]
    (l1_entries, l1_offset, refcount_offset, refcount_clusters, snapshots, _) = fields[7:]
    _require(version in (2, 3), f"it is a qcow of version {version}", advice.convert("qcow2"))
    _require(9 <= cluster_bits <= 21, f"its clusters are of 2^{cluster_bits} bytes")
    _require(backing_offset == 0 and backing_bytes == 0, "it has a backing file", advice.BACKING)
    _require(crypt == 0, "it is encrypted", advice.ENCRYPTED)
    _require(snapshots == 0, "it has internal snapshots", advice.SNAPSHOTS)
    _require(0 <= size_bytes <= _SIZE_MAX_BYTES and size_bytes % 512 == 0, "its size is impossible")
    extended = version == 3 and _check_features(head, cluster_bits)
    cluster_bytes = 1 << cluster_bits
    l2_entries = cluster_bytes // (16 if extended else 8)
    _require(
        l1_entries >= _divide_up(size_bytes, cluster_bytes * l2_entries),
        "its L1 table is too small for its size",
    )
    tables = (
        ("L1", l1_offset, l1_entries * _L1_ENTRY_BYTES, L1_MAX_BYTES),
        ("refcount", refcount_offset, refcount_clusters * cluster_bytes, _REFCOUNT_TABLE_MAX_BYTES),
    )
    for name, offset, table_bytes, limit_bytes in tables:
        _require(table_bytes <= limit_bytes, f"its {name} table is too large")
        _require(offset % cluster_bytes == 0, f"its {name} table is not aligned")
        _require(
            offset + table_bytes <= file_size_bytes,
            f"its {name} table is not inside the file",
            advice.NOT_WHOLE,
        )
        _require(table_bytes == 0 or offset > 0, f"its {name} table lies on its header")
    _require(refcount_clusters > 0, "it has no refcount table")
    return int(size_bytes)


def require_whole_tables(read: ReadAt, file_size_bytes: int) -> None:
    """Refuse a file that ends inside an L2 table, the rest of which would read as zeros.

    QEMU's check does not notice that. (A last data cluster may be short: QEMU makes such files.)

    :param read: reads a file that :func:`parse_untrusted_qcow2` has accepted.
    """
    fields = _FIXED.unpack(read(0, _FIXED.size))
    l1_bytes, l1_offset = fields[7] * _L1_ENTRY_BYTES, fields[8]
    for start in range(0, l1_bytes, _PIECE_BYTES):
        piece = read(l1_offset + start, min(_PIECE_BYTES, l1_bytes - start))
        _require(len(piece) > 0 and len(piece) % 8 == 0, "it ends inside one of its tables", advice.NOT_WHOLE)
        furthest = max(entry[0] & _L1_OFFSET_MASK for entry in struct.iter_unpack(">Q", piece))
        _require(
            furthest + (1 << fields[4]) <= file_size_bytes,
            "it ends inside one of its tables",
            advice.NOT_WHOLE,
        )


def _check_features(head: bytes, cluster_bits: int) -> bool:
    """Check the fields that version 3 adds. Return whether L2 entries are extended."""
    _require(len(head) >= _V3_HEADER_BYTES, "its header is cut short", advice.NOT_WHOLE)
    incompatible, _, _, refcount_order, header_bytes = _FEATURES.unpack_from(head, _FIXED.size)
    for bit, words, cure in _INCOMPATIBLE_REFUSED:
        _require(not incompatible & 1 << bit, words, cure)
    unknown = incompatible & ~_INCOMPATIBLE_ALLOWED
    _require(unknown == 0, f"it uses features that are not known ({unknown:#x})", advice.convert("qcow2"))
    _require(refcount_order <= 6, "its refcounts are too wide")
    _require(
        _V3_HEADER_BYTES <= header_bytes <= READ_BYTES and header_bytes % 8 == 0,
        "its header's length is impossible",
    )
    extended = bool(incompatible & (1 << 4))
    _require(not extended or cluster_bits >= 14, "its clusters are too small for extended L2 entries")
    if incompatible & (1 << 3):
        _require(
            header_bytes > _V3_HEADER_BYTES and len(head) > _V3_HEADER_BYTES and head[104] in (0, 1),
            "its compression is not known",
            advice.convert("qcow2"),
        )
    return extended


def _require(condition: bool, words: str, cure: str = advice.LIES) -> None:
    if not condition:
        raise errors.UnsafeImage(f"The qcow2 file cannot be read safely: {words}.", advice=cure)


def _divide_up(value: int, by: int) -> int:
    return -(-value // by)
