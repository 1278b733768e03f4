"""A file of blocks, each identified by its checksum: a read returns what was written, or an error.

Blocks are only ever added. A reference to a block has its offset, its length and its checksum. So a
block that was lost, torn, or written by another program is noticed, in whatever order the bytes
reached the disk.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from typing import NamedTuple

from diskyard import errors
from diskyard.host import Files

_DIGEST_BYTES = 16
_WRITTEN_AT_ONCE_BYTES = 1 << 20
BLOCK_LIMIT_BYTES = 1 << 30


class Block(NamedTuple):
    """Where a block is, and its checksum."""

    offset_bytes: int
    length_bytes: int
    digest: bytes


class BlockFile:
    """An open file of blocks. Safe to use from several threads.

    It stays open as long as anything reads from it, even if its name now belongs to another file.

    :param fd: its descriptor, which this object takes over.
    :ivar name: its name in its directory.
    :ivar is_bad: a block could not be read, so that nothing that rests on this file may be used.
    """

    def __init__(self, files: Files, name: str, fd: int) -> None:
        self._files = files
        self._fd = fd
        self.name = name
        self.is_bad = False
        # Not when the process ends: a thread may still write, and the number may then be another file's.
        weakref.finalize(self, os.close, fd).atexit = False

    def read(self, block: Block) -> bytes:
        """A block's bytes.

        :raises diskyard.errors.RepositoryUnavailable: they are not what was written.
        """
        if block.length_bytes <= BLOCK_LIMIT_BYTES and not self.is_bad:
            try:
                data = self._files.read_open(self._fd, block.offset_bytes, block.length_bytes)
            except OSError as error:
                raise self.bad(error.strerror or str(error)) from error
            if len(data) == block.length_bytes and _digest(data) == block.digest:
                return data
        raise self.bad("its checksum does not match")

    def bad(self, why: str) -> errors.RepositoryUnavailable:
        """Mark the whole file as unusable, and return the error that says so."""
        self.is_bad = True
        return errors.RepositoryUnavailable(
            f"This host's index of the repository cannot be read: {why}. It is discarded.",
            advice="Repeat the call: the repository's log is then read again.",
        )


class BlockWriter:
    """Adds blocks to the end of a file. The caller must hold the lock on its directory.

    :param file: for reading existing blocks.
    :param fd: the same file, open for writing; the caller owns it.
    """

    def __init__(self, files: Files, file: BlockFile, fd: int) -> None:
        self.file = file
        self._files = files
        self._fd = fd
        self._begin = files.size_bytes_of(fd)
        self._unwritten = bytearray()

    def add(self, data: bytes) -> Block:
        """Add a block; it can be read after :meth:`finish`."""
        block = Block(self._begin + len(self._unwritten), len(data), _digest(data))
        self._unwritten += data
        if len(self._unwritten) >= _WRITTEN_AT_ONCE_BYTES:
            self._write()
        return block

    def _write(self) -> None:
        self._files.write(self._fd, bytes(self._unwritten), self._begin)
        self._begin += len(self._unwritten)
        self._unwritten.clear()

    def finish(self) -> int:
        """Make all added blocks durable. Return the length of the file."""
        self._write()
        self._files.sync(self._fd)
        return self._begin


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
