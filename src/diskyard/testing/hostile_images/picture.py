"""The contents of a disk of any size: its sectors that are not zero."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from diskyard.mover.formats.qcow2_header import empty_qcow2
from diskyard.mover.interface import Layer

SECTOR_BYTES = 512
_PIECE_BYTES = 1 << 20
_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED, _ZERO = 1 << 62, 1


@dataclass(frozen=True, slots=True)
class Picture:
    """A disk's size, and its sectors by number. A missing sector is zero."""

    size_bytes: int
    sectors: Mapping[int, bytes]

    @classmethod
    def of(cls, size_bytes: int, stretches: Mapping[int, bytes]) -> Picture:
        """A disk of zeros with some bytes at some offsets, each a multiple of 512.

        Bytes beyond the disk's end are cut off.
        """
        sectors: dict[int, bytes] = {}
        for offset_bytes, data in stretches.items():
            for start in range(0, len(data), SECTOR_BYTES):
                number = (offset_bytes + start) // SECTOR_BYTES
                sector = data[start : start + SECTOR_BYTES].ljust(SECTOR_BYTES, b"\0")
                if (number + 1) * SECTOR_BYTES > size_bytes:
                    break
                if any(sector):
                    sectors[number] = sector
                else:
                    sectors.pop(number, None)
        return cls(size_bytes, sectors)

    def resized(self, size_bytes: int) -> Picture:
        """The same disk, cut off or with zeros at its end."""
        kept = {n: data for n, data in self.sectors.items() if (n + 1) * SECTOR_BYTES <= size_bytes}
        return Picture(size_bytes, kept)

    def difference(self, other: Picture) -> str:
        """How another disk differs, in words; empty if it does not."""
        if self.size_bytes != other.size_bytes:
            return f"{other.size_bytes} bytes for {self.size_bytes}"
        numbers = sorted({*self.sectors, *other.sectors})
        wrong = [n for n in numbers if self.sectors.get(n) != other.sectors.get(n)]
        return f"{len(wrong)} sectors differ, the first is {wrong[0]}" if wrong else ""


def picture_of_file(path: Path, size_bytes: int | None = None) -> Picture:
    """The disk in a raw file, whose holes are not read. The file may end before the disk does."""
    size_bytes = path.stat().st_size if size_bytes is None else size_bytes
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return Picture.of(size_bytes, dict(_raw_stretches(fd, size_bytes)))
    finally:
        os.close(fd)


def _raw_stretches(fd: int, size_bytes: int) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset < size_bytes:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError:
            return  # ENXIO: a hole up to the end
        end = min(size_bytes, os.lseek(fd, offset, os.SEEK_HOLE))
        offset -= offset % SECTOR_BYTES
        while offset < end:
            data = os.pread(fd, min(_PIECE_BYTES, end - offset), offset)
            yield offset, data
            offset += _PIECE_BYTES
        offset = end


def picture_of_volume(layer: Layer) -> Picture:
    """The disk in a volume without a parent that Diskyard made, read by other code than Diskyard's.

    The volume's qcow2 header must be one that Diskyard writes: nothing from a foreign header may have been
    copied.
    """
    assert layer.path is not None
    path = Path(layer.path)
    if layer.format == "raw":
        return picture_of_file(path, layer.size_bytes)
    with path.open("rb") as file:
        stretches = dict(_qcow2_stretches(file.fileno(), layer.size_bytes))
    return Picture.of(layer.size_bytes, stretches)


def _qcow2_stretches(fd: int, size_bytes: int) -> Iterator[tuple[int, bytes]]:
    ours = empty_qcow2(size_bytes, None)
    header = bytearray(os.pread(fd, 65536, 0))
    l1_entries, l1_offset = struct.unpack_from(">IQ", header, 36)
    # The tables grow and move when QEMU writes; everything else is as it was made.
    header[36:60] = ours[36:60]
    assert header == ours[:65536], "the volume's header is not ours"
    table = struct.unpack(f">{l1_entries}Q", os.pread(fd, 8 * l1_entries, l1_offset))
    for number, l1_entry in enumerate(table):
        if not l1_entry & _OFFSET_MASK:
            continue
        entries = struct.unpack(">8192Q", os.pread(fd, 65536, l1_entry & _OFFSET_MASK))
        for index, entry in enumerate(entries):
            assert not entry & _COMPRESSED
            start = (number * 8192 + index) * 65536
            if entry & _ZERO or not entry & _OFFSET_MASK or start >= size_bytes:
                continue
            data = os.pread(fd, min(65536, size_bytes - start), entry & _OFFSET_MASK)
            yield start, data
