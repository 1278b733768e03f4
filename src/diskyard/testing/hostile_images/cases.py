"""A hostile or odd image file, and the expected result of importing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from diskyard.mover.interface import ImportFormat
from diskyard.testing.hostile_images.picture import Picture
from diskyard.testing.hostile_images.site import Site

_BLOCK_BYTES = 4096
_ZEROS = bytes(_BLOCK_BYTES)

#: The contents of the corpus' honest images: a beginning, a middle, a short end.
STRETCHES = {
    0: b"first" * 1000,
    192 << 10: bytes(range(256)) * 8,
    (1 << 20) - 512: b"last" * 128,
}
SIZE_BYTES = 1 << 20
HONEST = Picture.of(SIZE_BYTES, STRETCHES)


@dataclass(frozen=True)
class Case:
    """One file that is imported.

    :param make: makes the file at a path.
    :param holds: the disk that the image must be, if it is imported; None if it must be refused.
    :param may_be_refused: refusing it is right as well.
    :param codes: the errors with which it may be refused.
    :param is_slow: it is honest, but so large that it takes long.
    """

    name: str
    format: ImportFormat
    make: Callable[[Site, Path], None] = field(repr=False)
    holds: Picture | None = None
    may_be_refused: bool = False
    codes: tuple[str, ...] = ("UnsafeImage",)
    is_slow: bool = False


def blocks_of(data: bytes | bytearray) -> dict[int, bytes]:
    """The blocks of a file that are not zero, by offset: a corpus of whole files would fill the memory."""
    blocks = {at: bytes(data[at : at + _BLOCK_BYTES]) for at in range(0, len(data), _BLOCK_BYTES)}
    return {at: block for at, block in blocks.items() if block != _ZEROS[: len(block)]}


def _write(path: Path, blocks: dict[int, bytes], length_bytes: int) -> None:
    with path.open("xb") as file:
        for at, block in blocks.items():
            file.seek(at)
            file.write(block)
        file.truncate(length_bytes)


def case(
    name: str,
    format: ImportFormat,
    data: bytes | bytearray | Callable[[Site], bytes | bytearray],
    holds: Picture | None = None,
    *,
    length_bytes: int | None = None,
    may_be_refused: bool = False,
) -> Case:
    """A case made from a file's bytes, which may depend on where the bait is."""
    if callable(data):
        of_site = data
    else:
        blocks, known_bytes = blocks_of(data), len(data)

        def of_site(_: Site) -> bytearray:
            made = bytearray(known_bytes)
            for at, block in blocks.items():
                made[at : at + len(block)] = block
            return made

    def make(site: Site, path: Path) -> None:
        made = of_site(site)
        _write(path, blocks_of(made), len(made) if length_bytes is None else length_bytes)

    return Case(f"{format}: {name}", format, make, holds, may_be_refused)


def poked(data: bytes | bytearray, offset_bytes: int, value: bytes) -> bytearray:
    """The same bytes with some of them replaced."""
    changed = bytearray(data)
    changed[offset_bytes : offset_bytes + len(value)] = value
    return changed


def boundaries(width_bytes: int, honest: int, *special: int) -> list[int]:
    """Values of a field with which programs often go wrong, without the honest one."""
    bits = 8 * width_bytes
    values = {0, 1, 2, honest - 1, honest + 1, honest * 2, (1 << bits) - 1, 1 << (bits - 1), *special}
    if width_bytes == 8:
        values |= {1 << 31, (1 << 32) - 1, 1 << 32, 1 << 60, (1 << 63) - 1, (1 << 63) - 512, 1 << 62}
    else:
        values |= {1 << (bits // 2), (1 << (bits - 1)) - 1}
    return sorted({value & ((1 << bits) - 1) for value in values} - {honest})
