"""VDI files: dynamic and fixed ones, children, and tables that point elsewhere."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from diskyard.testing.hostile_images.cases import Case, boundaries, case, poked
from diskyard.testing.hostile_images.picture import Picture

_MIB = 1 << 20
_MAP, _DATA = 512, 1024
_FREE, _ZERO = (1 << 32) - 1, (1 << 32) - 2
_SIZE_BYTES = 4 * _MIB
_STRETCHES = {0: b"first" * 1000, 2 * _MIB + 4096: b"middle" * 512, 4 * _MIB - 512: b"last" * 128}
_BLOCKS = (0, 2, 3)
_HONEST = Picture.of(_SIZE_BYTES, _STRETCHES)

#: Offset and width in bytes of every field of the header.
FIELDS = {
    "signature": (64, 4),
    "version": (68, 4),
    "header_size": (72, 4),
    "type": (76, 4),
    "flags": (80, 4),
    "map_offset": (340, 4),
    "data_offset": (344, 4),
    "sector_size": (360, 4),
    "size": (368, 8),
    "block_size": (376, 4),
    "block_extra": (380, 4),
    "blocks": (384, 4),
    "allocated": (388, 4),
    "parent_id": (424, 8),
    "parent_snapshot_id": (440, 8),
}
_MAY_STAY = {"header_size", "type", "flags", "allocated"}


def build(size_bytes: int = _SIZE_BYTES) -> bytearray:
    """A dynamic VDI file."""
    image = bytearray(_DATA + len(_BLOCKS) * _MIB)
    image[:40] = b"<<< Oracle VM VirtualBox Disk Image >>>\n"
    blocks = -(-size_bytes // _MIB)
    struct.pack_into("<IIIII", image, 64, 0xBEDA107F, 0x10001, 0x180, 1, 0)
    struct.pack_into(
        "<IIIIIIIQIIII", image, 340, _MAP, _DATA, 0, 0, 0, 512, 0, size_bytes, _MIB, 0, blocks, len(_BLOCKS)
    )
    image[392:424] = bytes(range(1, 33))
    for block in range(blocks):
        place = _BLOCKS.index(block) if block in _BLOCKS else _FREE
        struct.pack_into("<I", image, _MAP + 4 * block, place)
    for offset, data in _STRETCHES.items():
        at = _DATA + _BLOCKS.index(offset // _MIB) * _MIB + offset % _MIB
        image[at : at + len(data)] = data
    return image


def vdi_cases() -> Iterator[Case]:
    """All cases."""
    yield _vdi("dynamic", build(), _HONEST)
    yield _vdi("a size inside a block", build(_SIZE_BYTES - 512), _HONEST.resized(_SIZE_BYTES - 512))
    yield from _fields()
    yield from _maps()
    yield from _truncated()


def _vdi(
    name: str, data: bytes | bytearray, holds: Picture | None = None, *, may_be_refused: bool = False
) -> Case:
    return case(name, "vdi", data, holds, may_be_refused=may_be_refused)


def _fields() -> Iterator[Case]:
    honest = build()
    for name, (offset, width) in FIELDS.items():
        is_value = int.from_bytes(honest[offset : offset + width], "little")
        for value in boundaries(width, is_value, 4, 512, 513, len(honest), 1 << 20):
            holds = _HONEST if name in _MAY_STAY else None
            if name == "size" and 3 * _MIB < value < 4 * _MIB and value % 512 == 0:
                holds = _HONEST.resized(value)
            changed = poked(honest, offset, value.to_bytes(width, "little"))
            yield _vdi(f"{name} {value:#x}", changed, holds, may_be_refused=True)


def _maps() -> Iterator[Case]:
    image = build()
    for place in (3, 4, 1000, 1 << 31, _FREE - 2):
        yield _vdi(f"a block at place {place}", poked(image, _MAP, struct.pack("<I", place)))
    rest = Picture.of(_SIZE_BYTES, {offset: data for offset, data in _STRETCHES.items() if offset})
    for name, place in (("free", _FREE), ("zero", _ZERO)):
        # One block fewer than the header says: an inconsistency that does no harm.
        yield _vdi(f"a {name} block", poked(image, _MAP, struct.pack("<I", place)), rest, may_be_refused=True)
    twice = {**_STRETCHES, 0: bytes(4096) + b"middle" * 512}
    shared = poked(image, _MAP, struct.pack("<I", 1))
    yield _vdi("a block twice", shared, Picture.of(_SIZE_BYTES, twice), may_be_refused=True)
    # A few bytes that call for a table of 256 MiB.
    huge = poked(poked(image, 368, struct.pack("<Q", 63 << 40)), 384, struct.pack("<I", 63 << 20))
    yield _vdi("63 TiB without its table", huge)
    yield case(
        "63 TiB and a hole for its table", "vdi", poked(huge, 344, struct.pack("<I", 1 << 29)),
        length_bytes=1 << 40,
    )  # fmt: skip


def _truncated() -> Iterator[Case]:
    image = build()
    for edge in (
        0,
        64,
        68,
        400,
        511,
        512,
        516,
        528,
        1024,
        1025,
        _DATA + _MIB,
        len(image) - _MIB,
        len(image) - 512,
    ):
        yield _vdi(f"cut after {edge} bytes", image[:edge])
