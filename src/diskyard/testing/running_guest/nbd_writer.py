"""A process that writes numbered blocks to the exports of a storage daemon, as the software in a guest does.

It ends when its standard input says so or is closed, or when the storage daemon has ended.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import nbd
from diskyard.testing.running_guest.blocks import (
    BLOCK_BYTES,
    block_of,
    numbers_at,
    slot_of,
    stride_bytes,
)

_RETRY_S = 0.1


class _Gone(Exception):
    """The storage daemon has ended, or has closed the connection."""


class _Disk:
    """One connection to an export.

    :param first_size_bytes: the size by which the slots are laid out; 0 for the size that it has now.
    """

    def __init__(self, index: int, uri: str, first_size_bytes: int) -> None:
        self.index = index
        self._handle = nbd.NBD()
        self._handle.connect_uri(uri)
        self.size_bytes = self._handle.get_size()
        self._stride = stride_bytes(first_size_bytes or self.size_bytes)

    def read(self, slot: int) -> bytes:
        return bytes(self._handle.pread(BLOCK_BYTES, slot * self._stride))

    def write(self, slot: int, block: bytes) -> None:
        self._handle.pwrite(block, slot * self._stride)
        self._handle.flush()

    @property
    def is_gone(self) -> bool:
        return self._handle.aio_is_dead() or self._handle.aio_is_closed()


class _Writer:
    def __init__(self, record: Path, disks: Sequence[_Disk], after: int) -> None:
        self._disks, self._after = disks, after
        self._expected = numbers_at(after)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._record = os.open(record, flags, 0o644)
        for disk in disks:
            self.say(f"S {disk.index} {disk.size_bytes}")

    def say(self, line: str) -> None:
        os.write(self._record, line.encode() + b"\n")

    def run(self, gap_s: float) -> None:
        for number in count(self._after + 1):
            begun = time.monotonic()
            while not self._turn(number):
                if _is_told_to_end(_RETRY_S):
                    return
            self.say(f"A {number} {(time.monotonic() - begun) * 1e6:.0f}")
            if _is_told_to_end(gap_s):
                return

    def _turn(self, number: int) -> bool:
        """Look at the slot of a write and write it, disk after disk. Return whether that worked."""
        slot = slot_of(number)
        for disk in self._disks:
            try:
                self._look(disk, slot, number)
                disk.write(slot, block_of(number, disk.index))
            except nbd.Error as error:
                if disk.is_gone:
                    raise _Gone from error
                self.say(f"E write {number} on disk {disk.index}: {error.errno}: {error.string}")
                return False
        self._expected[slot] = number
        return True

    def _look(self, disk: _Disk, slot: int, number: int) -> None:
        found, wanted = disk.read(slot), block_of(self._expected[slot], disk.index)
        # A write that failed, or was under way when this guest's predecessor died, may have arrived.
        if found not in (wanted, block_of(number, disk.index)):
            what = f"slot {slot} of disk {disk.index} instead of write {self._expected[slot]}"
            self.say(f"B read {found[:64]!r} in {what}")


def _is_told_to_end(timeout_s: float) -> bool:
    ready, _, _ = select.select([sys.stdin], [], [], timeout_s)
    return bool(ready)


def main(words: Sequence[str] | None = None) -> None:
    """Write until told to end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--after", type=int, required=True)
    parser.add_argument("--gap-s", type=float, required=True)
    parser.add_argument("--first-size-bytes", type=int, action="append", required=True)
    parser.add_argument("uris", nargs="+")
    given = parser.parse_args(words)
    disks = [
        _Disk(index, uri, size)
        for index, (uri, size) in enumerate(zip(given.uris, given.first_size_bytes, strict=True))
    ]
    writer = _Writer(given.record, disks, given.after)
    try:
        writer.run(given.gap_s)
    except _Gone:
        writer.say("G")


if __name__ == "__main__":
    main()
