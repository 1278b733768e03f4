"""The headers of VMDK, VDI and VHDX files, as far as they decide what QEMU would open."""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from diskyard import errors
from diskyard.mover import advice
from diskyard.mover.formats.qcow2_header import ReadAt

_SECTOR_BYTES = 512
_MIB = 1 << 20
_SIZE_MAX_BYTES = 64 << 40  # VHDX's own limit; more than any of these formats is used for

_VMDK = struct.Struct("<4sIIQQQQIQQQB4sH")
_VMDK_AT_END = (1 << 64) - 1  # the grain directory is in a second header, at the end of the file
_VMDK_DESCRIPTOR_MOST_BYTES = 64 << 10
_VMDK_TEXT = b"# Disk DescriptorFile"
_VMDK_TYPES = (b"monolithicsparse", b"streamoptimized")

_VDI = struct.Struct("<IIIII256sIIIIIIIQIIII16s16s16s16s")
_VDI_OFFSET = 0x40
_VDI_FREE, _VDI_ZERO = 0xFFFFFFFF, 0xFFFFFFFE
_PIECE_BYTES = 1 << 20

_VHDX_HEADERS = (64 << 10, 128 << 10)
_VHDX_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
_VHDX_HEADER_BYTES = 4096
_VHDX_LOG_SECTOR_BYTES, _VHDX_LOG_GUID = 4096, 32  # where an entry may begin; the log's GUID in it
_VHDX_LOG_MOST_BYTES = 1 << 30
_VHDX_RESERVED = 0xFFFF8  # bits of an entry in the block table
_VHDX_CHUNK_BYTES = 1 << 32  # with sectors of 512 bytes
_VHDX_ZEROS = (0, 1, 2, 3, 5)  # block states that read as zeros; QEMU reads or refuses all others
_VHDX_HELD = bytes(entry & 7 not in _VHDX_ZEROS for entry in range(256))  # by an entry's lowest byte
_VHDX_REGIONS_OFFSET = 192 << 10
_VHDX_ENTRIES_MOST = 2047
_VHDX_REGION = struct.Struct("<16sQII")
_VHDX_METADATA = struct.Struct("<16sIII4x")
_GUID_BAT = bytes.fromhex("6677c22d23f600429d64115e9bfd4a08")
_GUID_METADATA = bytes.fromhex("06a27c8b90479a4bb8fe575f050f886e")
_GUID_FILE_PARAMETERS = bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b")
_GUID_VIRTUAL_SIZE = bytes.fromhex("2442a52f1bcd7648b2115dbed83bf4b8")
_GUID_LOGICAL_SECTOR = bytes.fromhex("1dbf41816fa90947ba47f233a8faab5f")
_GUID_PARENT_LOCATOR = bytes.fromhex("2d5fd3a80bb34d45abf7d3d84834ab0c")


def _require(condition: bool, words: str, cure: str = advice.LIES) -> None:
    if not condition:
        raise errors.UnsafeImage(f"The image cannot be read safely: {words}.", advice=cure)


def _whole(read: ReadAt, offset_bytes: int, count_bytes: int) -> bytes:
    """Read a part of a file that may now be shorter than it was, or was never that long."""
    data = read(offset_bytes, count_bytes)
    _require(len(data) == count_bytes, "its tables are not inside it", advice.NOT_WHOLE)
    return data


def parse_vmdk(read: ReadAt, file_size_bytes: int) -> int:
    """The virtual size of a VMDK file that holds all its data itself; otherwise UnsafeImage.

    A descriptor makes QEMU open the files that it names. It may be text, or be behind a header with
    capacity 0. So only sparse extents with a capacity pass.
    """
    head = read(0, _SECTOR_BYTES)
    _require(
        not head.startswith(_VMDK_TEXT),
        "it is a VMDK descriptor, which only names files",
        advice.VMDK_EXTENTS,
    )
    _require(
        head[:4] == b"KDMV", "it is no VMDK file that holds its own data", advice.not_of_format(head, "vmdk")
    )
    header = _vmdk_header(head)
    capacity_bytes = header.capacity * _SECTOR_BYTES
    # QEMU reads the descriptor from that sector, whatever the header says.
    _require(header.descriptor == 1, "its descriptor is not where it belongs")
    descriptor_bytes = header.descriptor_sectors * _SECTOR_BYTES
    _require(0 < descriptor_bytes <= _VMDK_DESCRIPTOR_MOST_BYTES, "it has no descriptor of a known size")
    _require(
        _SECTOR_BYTES + descriptor_bytes <= file_size_bytes,
        "its descriptor is not inside it",
        advice.NOT_WHOLE,
    )
    _check_descriptor(read(_SECTOR_BYTES, descriptor_bytes).partition(b"\0")[0])
    if header.directory == _VMDK_AT_END:
        _require(file_size_bytes >= 3 * _SECTOR_BYTES, "it is cut short", advice.NOT_WHOLE)
        # From here on QEMU uses the header in the footer, whatever the first one said.
        end = -(-file_size_bytes // _SECTOR_BYTES)
        header = _vmdk_header(read((end - 2) * _SECTOR_BYTES, _SECTOR_BYTES))
        _require(header.capacity * _SECTOR_BYTES == capacity_bytes, "its footer gives another size")
    _check_vmdk_tables(read, file_size_bytes, header)
    return capacity_bytes


class _Vmdk(NamedTuple):
    """The header of a sparse extent; offsets and lengths are in sectors."""

    capacity: int
    grain: int
    descriptor: int
    descriptor_sectors: int
    entries: int
    directory: int
    is_compressed: bool


def _vmdk_header(head: bytes) -> _Vmdk:
    _require(len(head) >= _VMDK.size and head[:4] == b"KDMV", "it is no VMDK file that holds its own data")
    fields = _VMDK.unpack_from(head)
    (_, version, _, capacity, grain, descriptor, descriptor_sectors, entries) = fields[:8]
    _require(1 <= version <= 3, f"it is a VMDK of version {version}", advice.convert("vmdk"))
    _require(0 < capacity <= _SIZE_MAX_BYTES // _SECTOR_BYTES, "its capacity is impossible")
    _require(8 <= grain <= 4096 and grain & (grain - 1) == 0, "its grains are of no known size")
    _require(0 < entries <= 512, "its grain tables are of no known size")
    _require(descriptor < 1 << 40 and descriptor_sectors < 1 << 40, "its descriptor is not inside it")
    return _Vmdk(capacity, grain, descriptor, descriptor_sectors, entries, fields[9], fields[13] == 1)


def _check_vmdk_tables(read: ReadAt, file_size_bytes: int, header: _Vmdk) -> None:
    """Require that every named table and grain is inside the file: QEMU reads zeros beyond its end."""
    end = -(-file_size_bytes // _SECTOR_BYTES)
    tables = -(-header.capacity // (header.entries * header.grain))
    inside = header.directory * _SECTOR_BYTES + 4 * tables <= file_size_bytes
    _require(0 < header.directory <= end and inside, "its directory is not inside it", advice.NOT_WHOLE)
    table_bytes = 4 * header.entries
    grain = 1 if header.is_compressed else header.grain
    known: set[int] = set()
    for start in range(0, 4 * tables, _PIECE_BYTES):
        piece = _whole(read, header.directory * _SECTOR_BYTES + start, min(_PIECE_BYTES, 4 * tables - start))
        for sector in filter(None, array("I", piece)):
            _require(sector not in known, "it has a table twice")
            known.add(sector)
            furthest = max(array("I", _whole(read, sector * _SECTOR_BYTES, table_bytes)))
            _require(
                furthest <= 1 or furthest + grain <= end,
                "its tables name grains that are not inside it",
                advice.NOT_WHOLE,
            )


def _check_descriptor(text: bytes) -> None:
    lower = text.lower()
    _require(b"parentfilenamehint" not in lower, "it has a parent", advice.VMDK_PARENT)
    parents = re.findall(rb"^\s*parentcid\s*=\s*(\S+)", lower, re.MULTILINE)
    _require(all(parent == b"ffffffff" for parent in parents), "it has a parent", advice.VMDK_PARENT)
    types = re.findall(rb'^\s*createtype\s*=\s*"([^"]*)"', lower, re.MULTILINE)
    _require(
        len(types) == 1 and types[0] in _VMDK_TYPES,
        "it is neither monolithicSparse nor streamOptimized",
        advice.VMDK_EXTENTS,
    )
    extents = re.findall(rb"^\s*(?:rw|rdonly|noaccess)\s+\d+\s+(\S+)", lower, re.MULTILINE)
    _require(extents == [b"sparse"], "its descriptor names extents in other files", advice.VMDK_EXTENTS)


def parse_vdi(read: ReadAt, file_size_bytes: int) -> int:
    """The virtual size of a VDI file without a parent; otherwise UnsafeImage."""
    head = read(_VDI_OFFSET, _VDI.size)
    not_vdi = advice.not_of_format(read(0, _SECTOR_BYTES), "vdi")
    _require(len(head) == _VDI.size, "it is no VDI file", not_vdi)
    fields = _VDI.unpack(head)
    signature, version, _, kind = fields[:4]
    bitmap_offset, data_offset = fields[6:8]
    sector_bytes, _, size_bytes, block_bytes, extra_bytes, blocks, allocated = fields[11:18]
    _require(signature == 0xBEDA107F, "it is no VDI file", not_vdi)
    _require(version == 0x00010001, "it is no VDI file of version 1.1", advice.convert("vdi"))
    _require(kind in (1, 2), "it is neither dynamic nor fixed", advice.VDI_PARENT)
    _require(fields[20] == fields[21] == bytes(16), "it has a parent", advice.VDI_PARENT)
    _require(sector_bytes == _SECTOR_BYTES, "its sectors are not of 512 bytes", advice.convert("vdi"))
    _require(block_bytes == _MIB and extra_bytes == 0, "its blocks are not of 1 MiB", advice.convert("vdi"))
    _require(0 < size_bytes <= _SIZE_MAX_BYTES and size_bytes % _SECTOR_BYTES == 0, "its size is impossible")
    _require(blocks == -(-size_bytes // block_bytes), "its size and its number of blocks differ")
    _require(allocated <= blocks, "it has more blocks than its size")
    _require(
        bitmap_offset % _SECTOR_BYTES == 0 and data_offset % _SECTOR_BYTES == 0, "its tables are not aligned"
    )
    _require(_VDI_OFFSET + _VDI.size <= bitmap_offset, "its table lies on its header")
    _require(bitmap_offset + 4 * blocks <= min(data_offset, file_size_bytes), "its table is not inside it")
    data_end = data_offset + allocated * block_bytes
    _require(data_end <= file_size_bytes, "its data is not inside it", advice.NOT_WHOLE)
    _check_vdi_table(read, bitmap_offset, blocks, allocated)
    return int(size_bytes)


def _check_vdi_table(read: ReadAt, offset_bytes: int, blocks: int, allocated: int) -> None:
    """Require that every named block is inside the file: QEMU reads zeros beyond its end."""
    used = 0
    for start in range(0, 4 * blocks, _PIECE_BYTES):
        places = array("I", _whole(read, offset_bytes + start, min(_PIECE_BYTES, 4 * blocks - start)))
        used += len(places) - places.count(_VDI_FREE) - places.count(_VDI_ZERO)
        if (furthest := max(places)) >= allocated:
            furthest = max((place for place in places if place < _VDI_ZERO), default=-1)
        _require(furthest < allocated, "its table names blocks that are not inside it")
        _require(used <= allocated, "its table names blocks twice")


def parse_vhdx(read: ReadAt, file_size_bytes: int) -> int:
    """The virtual size of a VHDX file without a parent that was closed properly; otherwise UnsafeImage."""
    size_bytes, _ = _parse_vhdx(read, file_size_bytes)
    return size_bytes


def vhdx_blocks(read: ReadAt, file_size_bytes: int) -> BlockMap:
    """Where a VHDX file holds data, according to the file itself; otherwise UnsafeImage.

    QEMU does not report this. It would read all of a huge disk that a small file claims to be.
    """
    return _parse_vhdx(read, file_size_bytes)[1]


class BlockMap:
    """Which blocks of a disk can hold anything but zeros.

    :param held: a byte for each block, 1 or 0.
    """

    def __init__(self, block_bytes: int, held: bytearray) -> None:
        self._block_bytes = block_bytes
        self._held = held

    def runs(self, offset_bytes: int, length_bytes: int) -> Iterator[tuple[int, bool]]:
        """Lengths in bytes that cover a range, and whether each part is zeros."""
        end_bytes = offset_bytes + length_bytes
        blocks = -(-end_bytes // self._block_bytes)
        while offset_bytes < end_bytes:
            first = offset_bytes // self._block_bytes
            is_held = self._held[first]
            following = self._held.find(1 - is_held, first, blocks)
            next_bytes = min(end_bytes, (blocks if following < 0 else following) * self._block_bytes)
            yield next_bytes - offset_bytes, not is_held
            offset_bytes = next_bytes


class _Vhdx(NamedTuple):
    """The values in the metadata."""

    size_bytes: int
    block_bytes: int

    @property
    def blocks(self) -> int:
        return -(-self.size_bytes // self.block_bytes)

    @property
    def blocks_of_a_chunk(self) -> int:
        """The number of blocks in a chunk; after their entries there is one that is not about a block."""
        return _VHDX_CHUNK_BYTES // self.block_bytes

    @property
    def entries(self) -> int:
        return self.blocks + (self.blocks - 1) // self.blocks_of_a_chunk


def _parse_vhdx(read: ReadAt, file_size_bytes: int) -> tuple[int, BlockMap]:
    head = read(0, _SECTOR_BYTES)
    _require(head[:8] == b"vhdxfile", "it is no VHDX file", advice.not_of_format(head, "vhdx"))
    _check_vhdx_log(read)
    table = read(_VHDX_REGIONS_OFFSET, 64 << 10)
    _require(len(table) == 64 << 10 and table[:4] == b"regi", "it has no region table")
    (count,) = struct.unpack_from("<I", table, 8)
    _require(count <= _VHDX_ENTRIES_MOST, "its region table is too large")
    regions = {}
    for index in range(count):
        guid, offset, length, _ = _VHDX_REGION.unpack_from(table, 16 + index * _VHDX_REGION.size)
        _require(guid not in regions and guid in (_GUID_BAT, _GUID_METADATA), "it has unknown regions")
        _require(offset >= _MIB, "a region lies on its headers")
        _require(offset + length <= file_size_bytes, "a region is not inside it", advice.NOT_WHOLE)
        regions[guid] = (offset, length)
    _require(len(regions) == 2, "a region is missing")
    vhdx = _vhdx_metadata(read, *regions[_GUID_METADATA])
    bat_offset, bat_bytes = regions[_GUID_BAT]
    _require(bat_bytes >= 8 * vhdx.entries, "its block table is too small for its size")
    held = _vhdx_held(read, bat_offset, vhdx)
    # If a block could be named many times, a small file could take as long to read as a large one.
    _require(
        sum(held) * vhdx.block_bytes < file_size_bytes + vhdx.block_bytes,
        "its block table names more than is inside it",
    )
    return vhdx.size_bytes, BlockMap(vhdx.block_bytes, held)


def _check_vhdx_log(read: ReadAt) -> None:
    # The same choice as QEMU's: a header with a wrong checksum does not count, however new it claims to be.
    headers = [read(offset, _VHDX_HEADER_BYTES) for offset in _VHDX_HEADERS]
    found = [_VHDX_HEADER.unpack_from(head) for head in headers if _is_vhdx_header(head)]
    current = max(found, key=lambda fields: fields[2], default=None)
    if current is None:
        raise errors.UnsafeImage("The image cannot be read safely: it has no header.", advice=advice.DAMAGED)
    log_guid, _, _, log_bytes, log_offset = current[5:]
    if log_guid != bytes(16) and _has_log_entries(read, log_guid, log_offset, log_bytes):
        raise errors.UnsafeImage(
            "The VHDX file was not closed properly: its log has to be replayed.", advice=advice.VHDX_LOG
        )


def _has_log_entries(read: ReadAt, guid: bytes, offset_bytes: int, length_bytes: int) -> bool:
    """Whether a log may hold anything to replay, that is, any entry, whole or not.

    Programs that open a file and write nothing leave the name of a log without entries in its header.
    """
    _require(offset_bytes >= _MIB and length_bytes <= _VHDX_LOG_MOST_BYTES, "its log is not where it belongs")
    for start in range(0, length_bytes, _PIECE_BYTES):
        piece = read(offset_bytes + start, min(_PIECE_BYTES, length_bytes - start))
        for at in range(0, len(piece), _VHDX_LOG_SECTOR_BYTES):
            if (
                piece[at : at + 4] == b"loge"
                and piece[at + _VHDX_LOG_GUID : at + _VHDX_LOG_GUID + 16] == guid
            ):
                return True
    return False


def _is_vhdx_header(head: bytes) -> bool:
    if len(head) != _VHDX_HEADER_BYTES or head[:4] != b"head":
        return False
    checksum = int.from_bytes(head[4:8], "little")
    return _crc32c(head[:4] + bytes(4) + head[8:]) == checksum


def _crc32c(data: bytes) -> int:
    """Castagnoli's checksum. It takes 3 ms for a header, so a table for it is not worth its lines."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def _vhdx_held(read: ReadAt, offset_bytes: int, vhdx: _Vhdx) -> bytearray:
    """A byte for each block: whether it is in the file.

    A block that begins in the file's own headers is refused: QEMU would read it from there.
    """
    held, length_bytes = bytearray(), 8 * vhdx.entries
    for start in range(0, length_bytes, _PIECE_BYTES):
        piece = _whole(read, offset_bytes + start, min(_PIECE_BYTES, length_bytes - start))
        for entry in filter(None, array("Q", piece)):
            _require(entry & _VHDX_RESERVED == 0, "its block table has unknown bits")
            _require(entry & 7 < 6 or entry >= _MIB, "its block table names its header")
        held += piece[::8].translate(_VHDX_HELD)
    del held[vhdx.blocks_of_a_chunk :: vhdx.blocks_of_a_chunk + 1]
    return held


def _vhdx_metadata(read: ReadAt, offset_bytes: int, length_bytes: int) -> _Vhdx:
    table = read(offset_bytes, min(length_bytes, 64 << 10))
    _require(len(table) >= 32 and table[:8] == b"metadata", "it has no metadata")
    (count,) = struct.unpack_from("<H", table, 10)
    _require(count <= _VHDX_ENTRIES_MOST and 32 + count * 32 <= len(table), "its metadata is too large")
    items = {}
    for index in range(count):
        guid, item_offset, item_bytes, _ = _VHDX_METADATA.unpack_from(table, 32 + index * 32)
        _require(guid not in items, "it has a metadata item twice")
        _require(item_offset + item_bytes <= length_bytes, "its metadata is not inside it")
        items[guid] = (offset_bytes + item_offset, item_bytes)
    _require(_GUID_PARENT_LOCATOR not in items, "it has a parent", advice.VHDX_PARENT)
    block_bytes, flags = struct.unpack("<II", _vhdx_item(read, items, _GUID_FILE_PARAMETERS, 8))
    _require(flags & 2 == 0, "it has a parent", advice.VHDX_PARENT)
    _require(
        _MIB <= block_bytes <= 256 * _MIB and block_bytes & (block_bytes - 1) == 0,
        "its blocks are impossible",
    )
    (size_bytes,) = struct.unpack("<Q", _vhdx_item(read, items, _GUID_VIRTUAL_SIZE, 8))
    _require(0 < size_bytes <= _SIZE_MAX_BYTES and size_bytes % _SECTOR_BYTES == 0, "its size is impossible")
    (sector_bytes,) = struct.unpack("<I", _vhdx_item(read, items, _GUID_LOGICAL_SECTOR, 4))
    _require(sector_bytes == _SECTOR_BYTES, "its sectors are not of 512 bytes", advice.convert("vhdx"))
    return _Vhdx(size_bytes, block_bytes)


def _vhdx_item(read: ReadAt, items: dict[bytes, tuple[int, int]], guid: bytes, wanted_bytes: int) -> bytes:
    offset_bytes, length_bytes = items.get(guid, (0, 0))
    _require(length_bytes == wanted_bytes, "its metadata is not complete")
    return _whole(read, offset_bytes, wanted_bytes)
