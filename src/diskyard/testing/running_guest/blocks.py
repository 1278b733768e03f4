"""What a writing guest writes, and the judge that says whether an image holds exactly a prefix of it.

The guest numbers its writes from 1. Write ``n`` is one block in one of :data:`SLOTS` slots of each disk.
The slots are spread over the whole disk and used again and again, so that two images that were frozen at
different moments differ. The block tells its number, slot and disk in plain text on each of its lines.

``writer.c`` has the same arithmetic, for the guest that is an emulated machine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

BLOCK_BYTES = 4096
SLOTS = 200
#: A prime that is larger than :data:`SLOTS`: any SLOTS consecutive numbers have a slot each.
_SPREAD = 2654435761
_LINE_BYTES = 64
_LINE = re.compile(rb"diskyard guest: write (\d{16}), slot (\d{4}), disk (\d{2}) *\n")
_NOTHING = bytes(BLOCK_BYTES)


def slot_of(number: int) -> int:
    """The slot of a write, the same on every disk."""
    return number * _SPREAD % SLOTS


def stride_bytes(size_bytes: int) -> int:
    """The distance between the slots of a disk of this size, a multiple of a block."""
    stride = size_bytes // SLOTS // BLOCK_BYTES * BLOCK_BYTES
    assert stride, f"a disk of {size_bytes} bytes is too small for {SLOTS} slots"
    return stride


def block_of(number: int, disk: int) -> bytes:
    """The bytes of a write to a disk; those of "write 0" are zeros, as no write has been there yet."""
    if not number:
        return _NOTHING
    line = f"diskyard guest: write {number:016}, slot {slot_of(number):04}, disk {disk:02}"
    return (line.ljust(_LINE_BYTES - 1).encode() + b"\n") * (BLOCK_BYTES // _LINE_BYTES)


def numbers_at(point: int) -> list[int]:
    """For each slot the number of the last write to it, once the writes up to ``point`` are done."""
    numbers = [0] * SLOTS
    for number in range(max(1, point - SLOTS + 1), point + 1):
        numbers[slot_of(number)] = number
    return numbers


def judge(
    image: bytes | bytearray | Path,
    acknowledged_before: int,
    *,
    disk: int = 0,
    first_size_bytes: int | None = None,
) -> int:
    """Require an image to be an exact prefix of a guest's writes to a disk that was empty before them.

    There is a number k so that each slot holds the last write up to k that belongs there, and everything
    else is zero. A write that was not acknowledged yet may have arrived; it is k then.

    :param image: its raw bytes, or a raw file.
    :param acknowledged_before: the last number that was acknowledged before the image was frozen, or before
        the guest was killed: k is not less.
    :param disk: which of the guest's disks it is an image of.
    :param first_size_bytes: the size that the disk had when the guest first wrote to it, if it has been
        extended since. What was added is zero.
    :returns: k.
    :raises AssertionError: a write is lost, in part or altogether, or something is there that the guest has
        not written there; the message says which.
    """
    data = image.read_bytes() if isinstance(image, Path) else image
    stride = stride_bytes(first_size_bytes or len(data))
    starts = range(0, SLOTS * stride, stride)
    found = [
        _number_in(bytes(data[start : start + BLOCK_BYTES]), slot, disk) for slot, start in enumerate(starts)
    ]
    point = max(found)
    for slot, (number, wanted) in enumerate(zip(found, numbers_at(point), strict=True)):
        assert number == wanted, (
            f"disk {disk} has write {point}, "
            f"but slot {slot} has {_name(number)} where {_name(wanted)} belongs"
        )
    assert point >= acknowledged_before, (
        f"disk {disk} has the writes up to {point}, but write {acknowledged_before} was acknowledged"
    )
    for start in starts:
        end = start + stride if start != starts[-1] else len(data)
        _require_zeros(data, start + BLOCK_BYTES, end)
    return point


def require_one_moment(points: Sequence[int]) -> None:
    """Require the points of a guest's disks, disk 0 first, to be of one moment.

    The guest has each write acknowledged by one disk before it makes it on the next: no disk is ahead of one
    before it, and the last is at most one write behind the first.

    :raises AssertionError: a write is there although another is not that was acknowledged before it was made.
    """
    in_order = all(before >= after for before, after in pairwise(points))
    assert in_order, f"a disk is ahead of one that is always written before it: {list(points)}"
    assert points[0] - points[-1] <= 1, f"a disk is more than one write behind another: {list(points)}"


def _name(number: int) -> str:
    return f"write {number}" if number else "nothing"


def _number_in(block: bytes, slot: int, disk: int) -> int:
    """The number of the write that is in a slot, 0 for none.

    :raises AssertionError: the block is none of the guest's that belongs there.
    """
    if block == _NOTHING:
        return 0
    lines = {block[start : start + _LINE_BYTES] for start in range(0, BLOCK_BYTES, _LINE_BYTES)}
    told = [_LINE.fullmatch(line) for line in sorted(lines)]
    numbers = [int(line[1]) for line in told if line]
    here = f"slot {slot} of disk {disk}"
    if len(numbers) == 1 and block == block_of(numbers[0], disk):
        assert slot_of(numbers[0]) == slot, f"{here} holds write {numbers[0]} of slot {slot_of(numbers[0])}"
        return numbers[0]
    others = {int(line[3]) for line in told if line} - {disk}
    assert not others, f"{here} holds a block of disk {others.pop()}"
    assert not numbers, f"{here} holds a torn block, parts of the writes {numbers} and {_rest(lines)}"
    raise AssertionError(f"{here} holds what the guest has never written: {block[:_LINE_BYTES]!r}…")


def _rest(lines: set[bytes]) -> str:
    foreign = [line for line in lines if not _LINE.fullmatch(line)]
    if not foreign:
        return "no other"
    return "zeros" if not any(map(any, foreign)) else f"others, as {foreign[0]!r}"


def _require_zeros(data: bytes | bytearray, start: int, end: int) -> None:
    part = bytes(data[start:end])
    if part != bytes(len(part)):
        at = next(offset for offset, byte in enumerate(part, start) if byte)
        raise AssertionError(
            f"the guest has written nothing at {at}, but there is {bytes(data[at : at + 64])!r}"
        )
