"""VMDK files: sparse and stream-optimised ones, and descriptors that name other files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from diskyard.testing.hostile_images.cases import HONEST, SIZE_BYTES, STRETCHES, Case, boundaries, case, poked
from diskyard.testing.hostile_images.picture import Picture
from diskyard.testing.hostile_images.site import Site

_SECTOR = 512
_GRAIN_SECTORS = 128
_GRAINS = SIZE_BYTES // (_GRAIN_SECTORS * _SECTOR)
_DESCRIPTOR_SECTORS = 20
_DIRECTORY, _TABLE, _DATA = 21, 22, 128  # sectors
_AT_END = (1 << 64) - 1
_GRAIN_BYTES = _GRAIN_SECTORS * _SECTOR

#: Offset and width in bytes of every field of the header of a sparse extent.
FIELDS = {
    "magic": (0, 4),
    "version": (4, 4),
    "flags": (8, 4),
    "capacity": (12, 8),
    "grain": (20, 8),
    "descriptor": (28, 8),
    "descriptor_size": (36, 8),
    "table_entries": (44, 4),
    "second_directory": (48, 8),
    "directory": (56, 8),
    "overhead": (64, 8),
    "compression": (77, 2),
}
_MAY_STAY = {
    "flags",
    "second_directory",
    "overhead",
    "version",
    "compression",
    "descriptor",
    "descriptor_size",
}


def _descriptor(create_type: str = "monolithicSparse", extent: str = "", more: str = "") -> bytes:
    extent = extent or f'RW {SIZE_BYTES // _SECTOR} SPARSE "itself"'
    return (
        f"# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
        f'createType="{create_type}"\n{more}\n# Extent description\n{extent}\n\n'
        f'ddb.adapterType = "ide"\nddb.virtualHWVersion = "4"\n'
    ).encode()


def _header(directory: int, flags: int, compression: int, capacity: int, version: int = 1) -> bytes:
    return struct.pack(
        "<4sIIQQQQIQQQB4sH", b"KDMV", version, flags, capacity, _GRAIN_SECTORS, 1, _DESCRIPTOR_SECTORS,
        512, 0, directory, _DATA, 0, b"\n \r\n", compression,
    ).ljust(_SECTOR, b"\0")  # fmt: skip


def _disk_grains() -> dict[int, bytes]:
    disk = bytearray(SIZE_BYTES)
    for offset, data in STRETCHES.items():
        disk[offset : offset + len(data)] = data
    grains = {n: bytes(disk[n * _GRAIN_BYTES : (n + 1) * _GRAIN_BYTES]) for n in range(_GRAINS)}
    return {number: grain for number, grain in grains.items() if any(grain)}


def sparse(descriptor: bytes | None = None, capacity: int = SIZE_BYTES // _SECTOR) -> bytearray:
    """A monolithicSparse file."""
    grains = _disk_grains()
    image = bytearray(_DATA * _SECTOR + len(grains) * _GRAIN_BYTES)
    image[:_SECTOR] = _header(_DIRECTORY, 1, 0, capacity)
    text = _descriptor() if descriptor is None else descriptor
    image[_SECTOR : _SECTOR + len(text)] = text
    struct.pack_into("<I", image, _DIRECTORY * _SECTOR, _TABLE)
    for place, (number, grain) in enumerate(grains.items()):
        sector = _DATA + place * _GRAIN_SECTORS
        struct.pack_into("<I", image, _TABLE * _SECTOR + 4 * number, sector)
        image[sector * _SECTOR : sector * _SECTOR + _GRAIN_BYTES] = grain
    return image


def streamed(marker_bytes: int | None = None, footer_capacity: int = SIZE_BYTES // _SECTOR) -> bytearray:
    """A streamOptimized file, whose footer names its directory.

    :param marker_bytes: the length in each grain's marker, if it is to lie.
    """
    capacity = SIZE_BYTES // _SECTOR
    image = bytearray(_header(_AT_END, 0x30001, 1, capacity, 3))
    image += _descriptor("streamOptimized").ljust(_DESCRIPTOR_SECTORS * _SECTOR, b"\0")
    image = image.ljust(_DATA * _SECTOR, b"\0")
    table = bytearray(4 * 512)
    for number, grain in _disk_grains().items():
        struct.pack_into("<I", table, 4 * number, len(image) // _SECTOR)
        packed = zlib.compress(grain)
        length = len(packed) if marker_bytes is None else marker_bytes
        image += struct.pack("<QI", number * _GRAIN_SECTORS, length) + packed
        image += bytes(-len(image) % _SECTOR)
    at = len(image) // _SECTOR + 1
    image += struct.pack("<QII", 4, 0, 1).ljust(_SECTOR, b"\0") + table
    directory = len(image) // _SECTOR + 1
    image += struct.pack("<QII", 1, 0, 2).ljust(_SECTOR, b"\0") + struct.pack("<I", at).ljust(_SECTOR, b"\0")
    image += struct.pack("<QII", 1, 0, 3).ljust(_SECTOR, b"\0")
    return image + _header(directory, 0x30001, 1, footer_capacity, 3) + bytes(_SECTOR)


def vmdk_cases() -> Iterator[Case]:
    """All cases."""
    yield _vmdk("monolithicSparse", sparse(), HONEST)
    yield _vmdk("streamOptimized", streamed(), HONEST)
    yield from _fields()
    yield from _descriptors()
    yield from _tables()
    yield from _streams()
    yield from _truncated()


def _vmdk(
    name: str, data: bytes | bytearray, holds: Picture | None = None, *, may_be_refused: bool = False
) -> Case:
    return case(name, "vmdk", data, holds, may_be_refused=may_be_refused)


def _fields() -> Iterator[Case]:
    honest = sparse()
    for name, (offset, width) in FIELDS.items():
        is_value = int.from_bytes(honest[offset : offset + width], "little")
        for value in boundaries(width, is_value, 8, 64, 256, 4096, len(honest) // _SECTOR):
            changed = poked(honest, offset, value.to_bytes(width, "little"))
            holds = HONEST if name in _MAY_STAY else None
            if name == "capacity" and 0 < value < 65536:
                holds = HONEST.resized(value * _SECTOR)
            if name in ("grain", "table_entries", "directory"):
                holds = _as_it_says(changed)
            yield _vmdk(f"{name} {value:#x}", changed, holds, may_be_refused=True)


def _as_it_says(image: bytearray) -> Picture | None:
    """The disk in a file whose header or tables were changed; None if it names what does not exist."""
    fields = struct.unpack_from("<4sIIQQQQIQQ", image)
    grain, entries, directory = fields[4], fields[7], fields[9]
    if not (0 < grain <= 4096 and 0 < entries <= 512 and 0 < directory < len(image) // _SECTOR):
        return None
    end, stretches = len(image) // _SECTOR, {}
    for number in range(-(-(SIZE_BYTES // _SECTOR) // grain)):
        at = directory * _SECTOR + number // entries * 4
        table = int.from_bytes(image[at : at + 4], "little")
        at = table * _SECTOR + number % entries * 4
        sector = int.from_bytes(image[at : at + 4], "little") if table else 0
        if sector:
            stretches[number * grain * _SECTOR] = bytes(image[sector * _SECTOR : (sector + grain) * _SECTOR])
        if max(table, sector + grain) > end:
            return None
    return Picture.of(SIZE_BYTES, stretches)


def _descriptors() -> Iterator[Case]:
    extents = {
        "FLAT": 'RW 2048 FLAT "{secret}" 0', "relative FLAT": 'RW 2048 FLAT "../bait/secret" 0',
        "VMFS": 'RW 2048 VMFS "{secret}"', "VMFSSPARSE": 'RW 2048 VMFSSPARSE "{secret}"',
        "SESPARSE": 'RW 2048 SESPARSE "{secret}"', "SPARSE": 'RW 2048 SPARSE "{secret}"',
        "FIFO": 'RW 2048 FLAT "{fifo}" 0', "device": 'RW 2048 FLAT "/dev/zero" 0', "two":
        'RW 1024 SPARSE "itself"\nRW 1024 FLAT "{secret}" 0', "json:":
        'RW 2048 FLAT "json:{{\\"driver\\":\\"file\\",\\"filename\\":\\"{secret}\\"}}" 0',
        "nbd:": 'RW 2048 FLAT "nbd://127.0.0.1:{port}/x" 0', "RDONLY": 'RDONLY 2048 FLAT "{secret}" 0',
        "NOACCESS": 'NOACCESS 2048 ZERO', "a tab": 'RW\t2048\tFLAT\t"{secret}"\t0',
    }  # fmt: skip
    kinds = ("monolithicFlat", "twoGbMaxExtentFlat", "twoGbMaxExtentSparse", "monolithicSparse", "fullDevice")
    for name, extent in extents.items():
        for kind in kinds if name in ("FLAT", "SPARSE") else ("monolithicFlat",):

            def text(site: Site, kind: str = kind, extent: str = extent) -> bytes:
                line = extent.format(secret=site.secret, fifo=site.fifo, port=site.port)
                return _descriptor(kind, line)

            def embedded(site: Site, kind: str = kind, extent: str = extent) -> bytes:
                line = extent.format(secret=site.secret, fifo=site.fifo, port=site.port)
                return bytes(sparse(_descriptor(kind, line)))

            def without_capacity(site: Site, kind: str = kind, extent: str = extent) -> bytes:
                line = extent.format(secret=site.secret, fifo=site.fifo, port=site.port)
                return bytes(sparse(_descriptor(kind, line), capacity=0))

            yield case(f"text: {kind} {name}", "vmdk", text)
            yield case(f"capacity 0: {kind} {name}", "vmdk", without_capacity)
            if name != "SPARSE" or kind != "monolithicSparse":
                yield case(f"embedded: {kind} {name}", "vmdk", embedded)
    parent = 'parentFileNameHint="/etc/shadow"'
    for name, more in (("a parent's name", parent), ("a parent's CID", "parentCID=12345679")):
        yield _vmdk(name, sparse(_descriptor(more=more)))
    elsewhere = poked(sparse(_descriptor(more=parent)), 28, struct.pack("<Q", 64))
    elsewhere[64 * _SECTOR : 65 * _SECTOR] = _descriptor().ljust(_SECTOR, b"\0")
    yield _vmdk("a parent's name where QEMU looks, and none where the header says", elsewhere)
    yield _vmdk("no descriptor", sparse(b""))
    yield _vmdk("a descriptor without an end", sparse(b"x" * (_DESCRIPTOR_SECTORS * _SECTOR)))
    yield _vmdk("two types", sparse(_descriptor(more='createType="monolithicFlat"')))
    cowd = b"COWD" + struct.pack("<IIIIIII", 1, 3, 2048, 128, 4, 1, 0)
    yield _vmdk("VMware 3", cowd.ljust(1 << 20, b"\0"))


def _tables() -> Iterator[Case]:
    image = sparse()
    end = len(image) // _SECTOR
    first, middle = (sector * _SECTOR + 4 * index for sector, index in ((_TABLE, 0), (_TABLE, 3)))
    for sector in (end, end + 1, 1 << 31, (1 << 32) - 1):
        value = struct.pack("<I", sector)
        yield _vmdk(f"table at sector {sector}", poked(image, _DIRECTORY * _SECTOR, value))
        yield _vmdk(f"grain at sector {sector}", poked(image, first, value))
    rest = {offset: data for offset, data in STRETCHES.items() if offset}
    yield _vmdk("grain 0", poked(image, first, bytes(4)), Picture.of(SIZE_BYTES, rest))
    nothing = poked(image, _DIRECTORY * _SECTOR, bytes(4))
    yield _vmdk("no table", nothing, Picture(SIZE_BYTES, {}), may_be_refused=True)
    itself = poked(image, _DIRECTORY * _SECTOR, struct.pack("<I", _DIRECTORY))
    yield _vmdk("the directory as its table", itself, _as_it_says(itself), may_be_refused=True)
    twice = {**STRETCHES, 0: STRETCHES[192 << 10].ljust(_GRAIN_BYTES, b"\0")}
    shared = poked(image, first, bytes(image[middle : middle + 4]))
    yield _vmdk("a grain twice", shared, Picture.of(SIZE_BYTES, twice), may_be_refused=True)


def _streams() -> Iterator[Case]:
    image = streamed()
    for length in (0, 1, 12, 1 << 16, 1 << 20, 1 << 31, (1 << 32) - 1):
        # Compressed data marks its own end: a length that is too large changes nothing.
        holds = HONEST if length > 12 else None
        yield _vmdk(f"compressed grains of {length} bytes", streamed(length), holds, may_be_refused=True)
    yield _vmdk("grains that are not compressed", poked(image, _DATA * _SECTOR + 12, b"\xff" * 64))
    for capacity in (0, 1, 4096, 1 << 40, 1 << 62):
        yield _vmdk(f"a footer of {capacity} sectors", streamed(footer_capacity=capacity))
    yield _vmdk("no footer", image[: -2 * _SECTOR])
    evil = streamed() + b"x"
    yield _vmdk("a footer that is not at the end's sector", evil, HONEST, may_be_refused=True)
    yield _vmdk("a footer within the footer", poked(image, len(image) - 1024 + 56, b"\xff" * 8))
    for sector in (0, 1 << 31, 1 << 60):
        value = struct.pack("<Q", sector)
        yield _vmdk(f"a footer whose directory is at {sector}", poked(image, len(image) - 1024 + 56, value))


def _truncated() -> Iterator[Case]:
    image = sparse()
    for edge in (
        0,
        3,
        4,
        79,
        511,
        512,
        1024,
        _DIRECTORY * 512,
        _TABLE * 512 + 4,
        _DATA * 512,
        _DATA * 512 + 512,
    ):
        yield _vmdk(f"cut after {edge} bytes", image[:edge])
    yield _vmdk("without its last grain", image[:-_GRAIN_BYTES])
    yield _vmdk("without its last sector", image[:-_SECTOR])
    stream = streamed()
    for edge in (_DATA * 512, len(stream) // 2, len(stream) - 512):
        yield _vmdk(f"streamOptimized, cut after {edge} bytes", stream[:edge])
