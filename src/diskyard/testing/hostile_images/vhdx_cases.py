"""VHDX files: logs, parents, regions and metadata that overlap or lie outside, wrong checksums."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache

from diskyard.testing.hostile_images.cases import Case, boundaries, case, poked
from diskyard.testing.hostile_images.picture import Picture

_KIB, _MIB = 1 << 10, 1 << 20
_SIZE_BYTES = 4 * _MIB
_BLOCK_BYTES = 1 * _MIB
_LOG, _METADATA, _BAT, _DATA = _MIB, 2 * _MIB, 3 * _MIB, 4 * _MIB
_HEADERS = (64 * _KIB, 128 * _KIB)
_REGIONS = (192 * _KIB, 256 * _KIB)
_ITEMS = 64 * _KIB
_STRETCHES = {0: b"first" * 1000, 2 * _MIB + 4096: b"middle" * 512, 4 * _MIB - 512: b"last" * 128}
_BLOCKS = (0, 2, 3)
_HONEST = Picture.of(_SIZE_BYTES, _STRETCHES)
_PRESENT, _PARTLY = 6, 7

_BAT_REGION = bytes.fromhex("6677c22d23f600429d64115e9bfd4a08")
_METADATA_REGION = bytes.fromhex("06a27c8b90479a4bb8fe575f050f886e")
_FILE_PARAMETERS = bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b")
_VIRTUAL_SIZE = bytes.fromhex("2442a52f1bcd7648b2115dbed83bf4b8")
_PAGE83 = bytes.fromhex("ab12cabee6b22345" + "93efc309e000c746")
_LOGICAL_SECTOR = bytes.fromhex("1dbf41816fa90947ba47f233a8faab5f")
_PHYSICAL_SECTOR = bytes.fromhex("c748a3cd5d4471449cc9e9885251c556")
_PARENT_LOCATOR = bytes.fromhex("2d5fd3a80bb34d45abf7d3d84834ab0c")

_crc_table: list[int] = []


def _crc32c(data: bytes) -> int:
    """The checksum of VHDX (Castagnoli's)."""
    if not _crc_table:
        for number in range(256):
            for _ in range(8):
                number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
            _crc_table.append(number)
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _crc_table[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


@cache
def _sealed(data: bytes, length_bytes: int) -> bytes:
    data = data.ljust(length_bytes, b"\0")
    return data[:4] + struct.pack("<I", _crc32c(data[:4] + bytes(4) + data[8:])) + data[8:]


def _header(sequence: int, log_guid: bytes = bytes(16), version: int = 1) -> bytes:
    fixed = struct.pack("<4sIQ16s16s16s", b"head", 0, sequence, b"w" * 16, b"d" * 16, log_guid)
    return _sealed(fixed + struct.pack("<HHIQ", 0, version, _MIB, _LOG), 4096)


def _region_table(regions: list[tuple[bytes, int, int]], count: int | None = None) -> bytes:
    entries = b"".join(struct.pack("<16sQII", *region, 1) for region in regions)
    number = len(regions) if count is None else count
    return _sealed(struct.pack("<4sIII", b"regi", 0, number, 0) + entries, 64 * _KIB)


_REGION_LIST = [(_BAT_REGION, _BAT, _MIB), (_METADATA_REGION, _METADATA, _MIB)]


def _metadata(
    *, size_bytes: int = _SIZE_BYTES, block_bytes: int = _BLOCK_BYTES, flags: int = 0, sector: int = 512,
    more: tuple[tuple[bytes, bytes], ...] = (), count: int | None = None,
) -> bytes:  # fmt: skip
    items = [
        (_FILE_PARAMETERS, struct.pack("<II", block_bytes, flags)),
        (_VIRTUAL_SIZE, struct.pack("<Q", size_bytes)),
        (_PAGE83, bytes(range(16))),
        (_LOGICAL_SECTOR, struct.pack("<I", sector)),
        (_PHYSICAL_SECTOR, struct.pack("<I", 4096)),
        *more,
    ]
    table = struct.pack("<8sHH20x", b"metadata", 0, len(items) if count is None else count)
    values = b""
    for guid, value in items:
        is_disk = guid not in (_FILE_PARAMETERS, _PARENT_LOCATOR)
        offset = _ITEMS + len(values)
        table += struct.pack("<16sIIII", guid, offset, len(value), 4 | is_disk << 1, 0)
        values += value.ljust(-(-len(value) // 8) * 8, b"\0")
    return table.ljust(_ITEMS, b"\0") + values


def build(
    metadata: bytes | None = None, regions: bytes | None = None, headers: tuple[bytes, ...] = ()
) -> bytearray:
    """A dynamic VHDX file."""
    image = bytearray(_DATA + len(_BLOCKS) * _BLOCK_BYTES)
    image[:8] = b"vhdxfile"
    for at, header in zip(_HEADERS, headers or (_header(1), _header(2)), strict=True):
        image[at : at + len(header)] = header
    table = regions or _region_table(_REGION_LIST)
    for at in _REGIONS:
        image[at : at + len(table)] = table
    items = metadata or _metadata()
    image[_METADATA : _METADATA + len(items)] = items
    for place, block in enumerate(_BLOCKS):
        entry = (_DATA + place * _BLOCK_BYTES) | _PRESENT
        struct.pack_into("<Q", image, _BAT + 8 * block, entry)
    for offset, data in _STRETCHES.items():
        at = _DATA + _BLOCKS.index(offset // _BLOCK_BYTES) * _BLOCK_BYTES + offset % _BLOCK_BYTES
        image[at : at + len(data)] = data
    return image


def vhdx_cases() -> Iterator[Case]:
    """All cases."""
    yield _vhdx("dynamic", build(), _HONEST)
    yield from _headers()
    yield from _regions()
    yield from _items()
    yield from _tables()
    yield from _truncated()


def _vhdx(
    name: str, data: bytes | bytearray, holds: Picture | None = None, *, may_be_refused: bool = False
) -> Case:
    return case(name, "vhdx", data, holds, may_be_refused=may_be_refused)


def _headers() -> Iterator[Case]:
    wrong = bytearray(_header(3))
    wrong[4] ^= 1
    logged = _header(3, b"l" * 16)
    yield _vhdx("one header", build(headers=(_header(1), bytes(4096))), _HONEST)
    yield _vhdx(
        "one header has a wrong checksum",
        build(headers=(bytes(wrong), _header(1))),
        _HONEST,
        may_be_refused=True,
    )
    yield _vhdx("both headers have wrong checksums", build(headers=(bytes(wrong), bytes(wrong))))
    yield _vhdx("both headers are missing", build(headers=(bytes(4096), bytes(4096))))
    yield _vhdx(
        "both headers are the newest", build(headers=(_header(1), _header(1))), _HONEST, may_be_refused=True
    )
    yield _vhdx("a log without entries", build(headers=(_header(1), logged)), _HONEST)
    yield _vhdx("logs without entries", build(headers=(logged, _header(4, b"m" * 16))), _HONEST)
    entry = _sealed(struct.pack("<4sIIIQII16sQQ", b"loge", 0, 4096, 0, 1, 0, 0, b"l" * 16, 1, 1), 4096)
    image = build(headers=(_header(1), logged))
    image[_LOG : _LOG + 4096] = entry
    yield _vhdx("a log with an entry", image)
    hidden = build(headers=(bytes(wrong), logged))
    hidden[_LOG : _LOG + 4096] = entry
    yield _vhdx("a log behind a newer header with a wrong checksum", hidden)
    for version in (0, 2, 65535):
        yield _vhdx(f"version {version}", build(headers=(_header(1, version=version),) * 2))
    for signature in (b"vhdxfilf", bytes(8), b"conectix"):
        yield _vhdx(f"signature {signature!r}", poked(build(), 0, signature))


def _regions() -> Iterator[Case]:
    end = _DATA + len(_BLOCKS) * _BLOCK_BYTES
    for index, name in enumerate(("BAT", "metadata")):
        for offset in (
            0,
            1,
            64 * _KIB,
            _MIB - 1,
            _LOG,
            _METADATA,
            _BAT,
            _DATA,
            end,
            1 << 40,
            1 << 63,
            (1 << 64) - _MIB,
        ):
            regions = list(_REGION_LIST)
            if offset == regions[index][1]:
                continue
            regions[index] = (regions[index][0], offset, _MIB)
            yield _vhdx(
                f"{name} at {offset:#x}",
                build(regions=_region_table(regions)),
                _EMPTY if name == "BAT" else None,
                may_be_refused=True,
            )
        for length in (0, 1, 4096, _MIB + 1, 1 << 31, (1 << 32) - 1):
            regions = list(_REGION_LIST)
            regions[index] = (*regions[index][:2], length)
            yield _vhdx(
                f"{name} of {length:#x} bytes",
                build(regions=_region_table(regions)),
                _HONEST,
                may_be_refused=True,
            )
    for count in (0, 1, 3, 2047, 2048, 1 << 31, (1 << 32) - 1):
        yield _vhdx(f"{count} regions", build(regions=_region_table(_REGION_LIST, count)))
    yield _vhdx("a region twice", build(regions=_region_table([*_REGION_LIST, _REGION_LIST[0]])))
    yield _vhdx("an unknown region", build(regions=_region_table([*_REGION_LIST, (b"u" * 16, _LOG, _MIB)])))
    wrong = bytearray(_region_table(_REGION_LIST))
    wrong[4] ^= 1
    yield _vhdx("regions with a wrong checksum", build(regions=bytes(wrong)))


_EMPTY = Picture(_SIZE_BYTES, {})


def _items() -> Iterator[Case]:
    for value in boundaries(8, _SIZE_BYTES, 512, _SIZE_BYTES - 512, 64 << 40, (64 << 40) + 512):
        holds = _HONEST.resized(value) if 0 < value <= _SIZE_BYTES and value % 512 == 0 else None
        if _SIZE_BYTES < value <= 1 << 33 and value % 512 == 0:
            holds = _HONEST.resized(value)
        yield _vhdx(f"size {value:#x}", build(_metadata(size_bytes=value)), holds, may_be_refused=True)
    # Each of the larger blocks consists of two that follow one another in the file.
    larger = Picture.of(_SIZE_BYTES, {0: _STRETCHES[0], _MIB + 4096: b"middle" * 512})
    for value in boundaries(4, _BLOCK_BYTES, 512, 256 * _MIB, 512 * _MIB):
        yield _vhdx(
            f"blocks of {value:#x}",
            build(_metadata(block_bytes=value)),
            larger if value == 2 * _MIB else None,
        )
    for flags in (1, 2, 3):
        holds = _HONEST if flags == 1 else None
        yield _vhdx(f"flags {flags}", build(_metadata(flags=flags)), holds, may_be_refused=True)
    for sector in (0, 1, 256, 511, 4096, 1 << 31):
        yield _vhdx(f"sectors of {sector}", build(_metadata(sector=sector)))
    locator = (b"locator", "relative_path".encode("utf-16-le"), "..\\bait\\secret".encode("utf-16-le"))
    yield _vhdx("a parent locator", build(_metadata(flags=2, more=((_PARENT_LOCATOR, b"".join(locator)),))))
    yield _vhdx("a parent locator without the flag", build(_metadata(more=((_PARENT_LOCATOR, b"x" * 64),))))
    yield _vhdx("an unknown item", build(_metadata(more=((b"u" * 16, b"x"),))), _HONEST, may_be_refused=True)
    yield _vhdx("an item twice", build(_metadata(more=((_VIRTUAL_SIZE, bytes(8)),))))
    for count in (0, 1, 4, 2047, 2048, 65535):
        yield _vhdx(f"{count} items", build(_metadata(count=count)))
    for index in range(5):
        for offset in (0, 32, _ITEMS - 8, _MIB, 1 << 31, (1 << 32) - 1):
            at = _METADATA + 32 + 32 * index + 16
            holds = _HONEST if index in (2, 3, 4) else None
            yield _vhdx(
                f"item {index} at {offset:#x}",
                poked(build(), at, struct.pack("<I", offset)),
                holds,
                may_be_refused=True,
            )


def _tables() -> Iterator[Case]:
    image = build()
    end = len(image)
    rest = Picture.of(_SIZE_BYTES, {offset: data for offset, data in _STRETCHES.items() if offset})
    for state in range(8):
        holds = {_PRESENT: _HONEST}.get(state, rest)
        yield _vhdx(
            f"a block of state {state}",
            poked(image, _BAT, struct.pack("<Q", _DATA | state)),
            holds,
            may_be_refused=True,
        )
    for offset in (0, _MIB, end, end - _MIB // 2, 1 << 40, 1 << 62, (1 << 64) - _MIB):
        yield _vhdx(f"a block at {offset:#x}", poked(image, _BAT, struct.pack("<Q", offset | _PRESENT)))
    empty = poked(build(_metadata(size_bytes=30 << 40, block_bytes=256 * _MIB)), _BAT, bytes(8 * 4))
    yield _vhdx("30 TiB of nothing", empty, Picture(30 << 40, {}))
    for block in (4095, 4096, 8193):
        # After the entries of each 4 GiB there is one that is not about a block.
        entry = block + block * _BLOCK_BYTES // (1 << 32)
        size = (block + 1) * _BLOCK_BYTES
        moved = poked(build(_metadata(size_bytes=size)), _BAT, bytes(8))
        moved = poked(moved, _BAT + 8 * entry, struct.pack("<Q", _DATA | _PRESENT))
        stretches = {offset: data for offset, data in _STRETCHES.items() if offset}
        stretches[block * _BLOCK_BYTES] = _STRETCHES[0]
        yield _vhdx(f"block {block}", moved, Picture.of(size, stretches))
    often = poked(build(_metadata(size_bytes=1 << 30)), _BAT, struct.pack("<Q", _DATA | _PRESENT) * 1024)
    yield _vhdx("a block a thousand times", often)
    second = _DATA + _BLOCK_BYTES
    twice = {**_STRETCHES, 0: bytes(4096) + b"middle" * 512}
    shared = poked(image, _BAT, struct.pack("<Q", second | _PRESENT))
    yield _vhdx("a block twice", shared, Picture.of(_SIZE_BYTES, twice), may_be_refused=True)


def _truncated() -> Iterator[Case]:
    image = build()
    for edge in (
        0,
        7,
        8,
        64 * _KIB,
        68 * _KIB,
        192 * _KIB,
        256 * _KIB,
        _MIB,
        _METADATA,
        _METADATA + 32,
        _BAT,
        _BAT + 8,
        _DATA,
        _DATA + 1,
        _DATA + _MIB,
        len(image) - 512,
    ):
        yield _vhdx(f"cut after {edge} bytes", image[:edge])
