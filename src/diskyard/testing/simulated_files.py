"""Files in memory, and a journal of all changes to them, for a disk that loses power.

The journal has one record for every operation of every process, in their order. From the records, and the
files as they were before, the disk's possible contents after a power cut at any moment can be derived
(:mod:`diskyard.testing.power_cut`).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

ROOT = 1
BLOCK_BYTES = 4096
MARK, SYNC_MARK, OTHERS_MARK = "user.mark", "user.sync", "user.others"
"""Extended attributes that are no attributes: setting one writes its value into the journal, or
says what the next sync of that very file or folder is for, or what all others are from now on."""


class Named(msgspec.Struct, frozen=True, tag=True):
    """A directory's name leads to a node from now on: a new one, another link to it, or a renamed one."""

    folder: int
    name: str
    node: int
    is_folder: bool = False


class Removed(msgspec.Struct, frozen=True, tag=True):
    """A directory's name is gone."""

    folder: int
    name: str


class Renamed(msgspec.Struct, frozen=True, tag=True):
    """A name in a directory replaces another name in the same directory, atomically."""

    folder: int
    old: str
    new: str


class Written(msgspec.Struct, frozen=True, tag=True):
    """Bytes were written to a file."""

    node: int
    offset: int
    data: bytes


class Zeroed(msgspec.Struct, frozen=True, tag=True):
    """A range of a file reads as zeros, up to the file's end."""

    node: int
    offset: int
    size_bytes: int


class Resized(msgspec.Struct, frozen=True, tag=True):
    """A file has a new length."""

    node: int
    size_bytes: int


class Synced(msgspec.Struct, frozen=True, tag=True):
    """A file's bytes and length, or a directory's names, are durable.

    :param kind: who synced, and what for.
    """

    node: int
    kind: str


class Marked(msgspec.Struct, frozen=True, tag=True):
    """The test has announced something."""

    text: str


Record = Named | Removed | Renamed | Written | Zeroed | Resized | Synced | Marked
Change = Written | Zeroed | Resized


@dataclass(slots=True)
class Node:
    """A file or directory."""

    number: int
    mode: int
    data: bytearray = field(default_factory=bytearray)
    names: dict[str, int] = field(default_factory=dict)
    blocks: set[int] = field(default_factory=set)
    modified_ns: int = field(default_factory=time.time_ns)

    @property
    def is_folder(self) -> bool:
        """Whether it holds names."""
        return stat.S_ISDIR(self.mode)


class SimulatedFiles:
    """The files of a simulated disk.

    :ivar journal: the changes, in order.
    """

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {ROOT: Node(ROOT, stat.S_IFDIR | 0o755)}
        self.journal: list[Record] = []
        self._sync_kinds: dict[int, str] = {}
        self._others = "others"

    @classmethod
    def loaded(cls, folder: Path) -> SimulatedFiles:
        """The files of a real directory, all of them durable.

        The same directory gives the same numbers to the same files.
        """
        files = cls()
        files._load(ROOT, folder)
        files.journal.clear()
        return files

    def _load(self, number: int, folder: Path) -> None:
        for path in sorted(folder.iterdir()):
            mode = path.lstat().st_mode
            node = self.make(number, path.name, mode, is_folder=stat.S_ISDIR(mode))
            if node.is_folder:
                self._load(node.number, path)
            else:
                node.data[:] = path.read_bytes()
                node.blocks = set(_blocks_with_data(node.data))
                if path.lstat().st_blocks * 512 >= len(node.data):  # reserved, though the bytes are zeros
                    node.blocks = set(range(-(-len(node.data) // BLOCK_BYTES)))
            node.modified_ns = path.lstat().st_mtime_ns

    # -- reading ----------------------------------------------------------------------

    def node(self, number: int) -> Node:
        """The node with a number."""
        return self.nodes[number]

    def find(self, folder: int, name: str) -> Node:
        """The node that a name leads to."""
        number = self.nodes[folder].names.get(name)
        if number is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return self.nodes[number]

    def listed(self, folder: int) -> list[tuple[str, Node]]:
        """The names of a directory."""
        return [(name, self.nodes[number]) for name, number in self.nodes[folder].names.items()]

    def links(self, number: int) -> int:
        """How many names a node has."""
        return sum(list(node.names.values()).count(number) for node in self.nodes.values())

    def seek(self, number: int, offset: int, *, data: bool) -> int:
        """The next offset of data, or of a hole: lseek(2)."""
        node = self.nodes[number]
        if offset >= len(node.data):
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        while offset < len(node.data) and (offset // BLOCK_BYTES in node.blocks) != data:
            offset = (offset // BLOCK_BYTES + 1) * BLOCK_BYTES
        if data and offset >= len(node.data):
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return min(offset, len(node.data))

    # -- names ------------------------------------------------------------------------

    def make(self, folder: int, name: str, mode: int, *, is_folder: bool) -> Node:
        """Make a new file or directory."""
        self._require_free(folder, name)
        kind = stat.S_IFDIR if is_folder else stat.S_IFREG
        node = Node(len(self.nodes) + 1, kind | (mode & 0o7777))
        self.nodes[node.number] = node
        self._name(folder, name, node.number)
        return node

    def link(self, folder: int, name: str, number: int) -> Node:
        """Give a file another name."""
        self._require_free(folder, name)
        self._name(folder, name, number)
        return self.nodes[number]

    def remove(self, folder: int, name: str) -> None:
        """Remove a name; that of a directory only if it is empty."""
        if self.find(folder, name).names:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), name)
        del self.nodes[folder].names[name]
        self.journal.append(Removed(folder, name))

    def rename(self, folder: int, old: str, new_folder: int, new: str) -> None:
        """Move a name over another in the same directory.

        Between two directories this is refused: it would have to be known what a journal may lose of it.
        """
        if folder != new_folder:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), new)
        names = self.nodes[folder].names
        names[new] = self.find(folder, old).number
        del names[old]
        self.journal.append(Renamed(folder, old, new))

    def _require_free(self, folder: int, name: str) -> None:
        if name in self.nodes[folder].names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)

    def _name(self, folder: int, name: str, number: int) -> None:
        self.nodes[folder].names[name] = number
        self.journal.append(Named(folder, name, number, self.nodes[number].is_folder))

    # -- bytes ------------------------------------------------------------------------

    def write(self, number: int, offset: int, data: bytes) -> None:
        """Write bytes to a file."""
        self._change(Written(number, offset, data))
        last = (offset + len(data) - 1) // BLOCK_BYTES
        self.nodes[number].blocks.update(range(offset // BLOCK_BYTES, last + 1))

    def resize(self, number: int, size_bytes: int) -> None:
        """Set the length of a file."""
        self._change(Resized(number, size_bytes))
        end = -(-size_bytes // BLOCK_BYTES)
        self.nodes[number].blocks = {block for block in self.nodes[number].blocks if block < end}

    def zero(self, number: int, offset: int, size_bytes: int, *, punch: bool) -> None:
        """Make a range zero, and free its blocks or keep them."""
        self._change(Zeroed(number, offset, size_bytes))
        whole = range(-(-offset // BLOCK_BYTES), (offset + size_bytes) // BLOCK_BYTES)
        if punch:
            self.nodes[number].blocks.difference_update(whole)
        else:
            self.reserve(number, offset, size_bytes)

    def reserve(self, number: int, offset: int, size_bytes: int) -> None:
        """Reserve blocks. This changes no bytes."""
        last = (offset + size_bytes - 1) // BLOCK_BYTES
        self.nodes[number].blocks.update(range(offset // BLOCK_BYTES, last + 1))

    def _change(self, change: Change) -> None:
        node = self.nodes[change.node]
        apply_change(node.data, change)
        node.modified_ns = time.time_ns()
        self.journal.append(change)

    # -- syncs and announcements ------------------------------------------------------

    def sync(self, number: int) -> None:
        """Make a file's bytes or a directory's names durable."""
        self.journal.append(Synced(number, self._sync_kinds.pop(number, self._others)))

    def mark(self, number: int, name: str, value: str) -> None:
        """Record an announcement of the test: see :data:`MARK`."""
        if name == SYNC_MARK:
            self._sync_kinds[number] = value
        elif name == OTHERS_MARK:
            self._others = value
        else:
            self.journal.append(Marked(value))


def apply_change(data: bytearray, change: Change) -> None:
    """Apply a record of the journal to a file's bytes."""
    if isinstance(change, Resized):
        del data[change.size_bytes :]
        data.extend(bytes(change.size_bytes - len(data)))
    elif isinstance(change, Written):
        end = change.offset + len(change.data)
        data.extend(bytes(max(0, end - len(data))))
        data[change.offset : end] = change.data
    else:
        end = min(len(data), change.offset + change.size_bytes)
        data[change.offset : end] = bytes(max(0, end - change.offset))


def _blocks_with_data(data: bytearray) -> Iterator[int]:
    zeros = bytes(BLOCK_BYTES)
    for start in range(0, len(data), BLOCK_BYTES):
        if data[start : start + BLOCK_BYTES] != zeros[: len(data) - start]:
            yield start // BLOCK_BYTES
