"""The record of what a writing guest has had acknowledged: a file of lines, written by the guest.

====================  =====================================================================================
``A number us``       the write was acknowledged as durable by every disk; the turn took so long
``S disk bytes``      the size of a disk, when the guest first sees it and whenever it changes
``E words``           the guest was told of an I/O error, and tries the same write again
``B words``           the guest has read something else than it had written (or zeros) before
``G``                 the disks are gone: whoever served them has ended
====================  =====================================================================================

A line is written before the next write begins. The file may end within a line.
"""

from __future__ import annotations

import threading
from array import array
from pathlib import Path


class Acknowledged:
    """What a guest has recorded so far; any thread may ask.

    :param path: of the record, which need not be there yet.
    :param after: the number before the guest's first.
    """

    def __init__(self, path: Path, after: int = 0) -> None:
        self._path, self._after = path, after
        self._read_bytes = 0
        self._turns_us = array("Q")
        self._errors: list[str] = []
        self._sizes_bytes: dict[int, int] = {}
        self._lock = threading.Lock()

    def last(self) -> int:
        """The number of the last write that was acknowledged; ``after`` if none was."""
        with self._lock:
            self._read_on()
            return self._after + len(self._turns_us)

    def pause_longest_ms(self, since: int) -> float:
        """How long the longest turn took of those that were acknowledged after write ``since``.

        A turn is everything that the guest waits for: reading, writing and flushing on every disk.
        """
        with self._lock:
            self._read_on()
            return max(self._turns_us[max(0, since - self._after) :], default=0) / 1000

    def errors(self) -> list[str]:
        """I/O errors that the guest was told of, and wrong data that it has read."""
        with self._lock:
            self._read_on()
            return list(self._errors)

    def sizes_bytes(self) -> list[int]:
        """The sizes of the disks, as the guest has last seen them."""
        with self._lock:
            self._read_on()
            return [self._sizes_bytes[disk] for disk in sorted(self._sizes_bytes)]

    def _read_on(self) -> None:
        try:
            with self._path.open("rb") as file:
                file.seek(self._read_bytes)
                new = file.read()
        except FileNotFoundError:
            return
        whole, _, _ = new.rpartition(b"\n")
        if not whole:
            return
        self._read_bytes += len(whole) + 1
        for line in whole.decode().split("\n"):
            kind, *words = line.split()
            if kind == "A":
                wanted = self._after + len(self._turns_us) + 1
                assert int(words[0]) == wanted, f"after write {wanted - 1} the guest has recorded: {line}"
                self._turns_us.append(int(words[1]))
            elif kind == "S":
                self._sizes_bytes[int(words[0])] = int(words[1])
            elif kind in ("E", "B"):
                self._errors.append(line[2:])
            else:
                assert line == "G", f"the guest has recorded: {line}"
