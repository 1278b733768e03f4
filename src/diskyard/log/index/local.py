"""The index's files: a small head, which is replaced, and a file of blocks, which only grows.

``<state directory>/index/<repository>/head`` names the file of blocks and the roots of the trees in
it. Several processes may want to write: the one that holds the lock on the directory does. Once the file
of blocks has grown too large, a new one is made; readers of the old one go on, as they have it open.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from diskyard import errors
from diskyard.host import Host
from diskyard.host.files import PRIVATE_BITS
from diskyard.host.identity import new_nonce
from diskyard.host.temporary import temporary_owner
from diskyard.log.codec import MAJOR, MINOR
from diskyard.log.index.blocks import BlockFile, BlockWriter
from diskyard.log.index.stored import (
    CODECS,
    OpenFile,
    StoredTable,
    stored_in,
    write_changes,
    write_whole,
)
from diskyard.log.index.trees import Root
from diskyard.model.state import State
from diskyard.model.tables import Table

#: The layout of these files and of the records in them. Files of another layout are not read.
LAYOUT = f"{MAJOR}.{MINOR}-1"
_HEAD = "head"
_HEAD_LIMIT_BYTES = 4 << 20
_BLOCKS_NAME = re.compile(r"[0-9a-f]{32}\.blocks")
_GARBAGE_LEAST_BYTES = 8 << 20


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a table is in the file of blocks."""

    root: Root | None
    count: int


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which state the index holds, and where.

    :param layout: of the files.
    :param nonces: of the newest entries up to ``version``, as a checkpoint lists them.
    :param blocks: the name of the file of blocks.
    :param built_bytes: the length of that file when it was made.
    """

    layout: str
    marker: str
    version: int
    nonce: str
    nonces: list[str]
    blocks: str
    built_bytes: int
    tables: dict[str, Stored]


@dataclass(frozen=True, slots=True)
class Indexed:
    """A state whose records are in the index, and the nonces of the entries up to it."""

    state: State
    nonces: list[str]


class LocalIndex:
    """The index of one repository on this host. If anything about it fails, it counts as absent.

    :param folder: the directory of the indexes of all repositories, in the state directory.
    :param marker: the repository's.
    """

    def __init__(self, host: Host, folder: str, marker: str) -> None:
        self._files = host.files
        self._marker = marker
        # The marker comes from the repository, which must not choose a path here.
        self._folder = os.path.join(folder, hashlib.blake2b(marker.encode(), digest_size=16).hexdigest())

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    # -- reading ------------------------------------------------------------------------

    def load(self) -> Indexed | None:
        """The state that was saved last; None if there is none that can be read.

        The caller must check whether the log still has the state's entry.
        """
        try:
            head = self._head()
            return None if head is None else self._indexed(head)
        except (OSError, errors.DiskyardError):
            return None

    def _head(self) -> Head | None:
        data = self._files.read(self._path(_HEAD), _HEAD_LIMIT_BYTES) or b""
        checksum, _, payload = data.partition(b"\n")
        if checksum != _checksum(payload):
            return None
        try:
            head = msgspec.json.decode(payload, type=Head)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None  # another layout
        ours = head.layout == LAYOUT and head.marker == self._marker and head.tables.keys() == CODECS.keys()
        return head if ours and _BLOCKS_NAME.fullmatch(head.blocks) else None

    def _indexed(self, head: Head) -> Indexed:
        fd = self._files.open_to_read(self._path(head.blocks))
        opened = OpenFile(BlockFile(self._files, head.blocks, fd))
        tables = {}
        for name, stored in head.tables.items():
            if stored.root is not None:
                opened.file.read(stored.root.block)  # mostly this notices at once that a file was cut
            tables[name] = Table(StoredTable(opened, stored.root, stored.count, CODECS[name]))
        state = State(marker=head.marker, version=head.version, nonce=head.nonce)
        return Indexed(state.with_tables(tables), head.nonces)

    # -- writing ------------------------------------------------------------------------

    def save(self, state: State, nonces: Sequence[str]) -> State | None:
        """Write a durable state. Return the same state, with its records in the index.

        Return None if it was not written: something failed, or another process is writing, or has written
        a newer one. A crash leaves the old index or the new one. The blocks are durable before the head
        names them. Lost blocks would be noticed anyway, so this only avoids reading the log again
        after a power cut.
        """
        try:
            self._make_folder()
            lock = self._files.try_lock_folder(self._folder)
            if lock is None:
                return None
            try:
                return self._save(state, nonces)
            finally:
                os.close(lock)
        except (OSError, errors.DiskyardError):
            return None

    def _make_folder(self) -> None:
        self._files.ensure_folder(os.path.dirname(self._folder))
        self._files.ensure_folder(self._folder)
        if not self._files.is_folder(self._folder):
            raise NotADirectoryError(self._folder)

    def _save(self, state: State, nonces: Sequence[str]) -> State | None:
        head = self._head_or_none()
        if head is not None and head.version >= state.version:
            return None
        opened = _file_of(state)
        if opened is None or opened.file.is_bad or head is None or head.blocks != opened.file.name:
            return self._write_anew(state, nonces)
        try:
            fd = self._files.open_for_writing(self._path(head.blocks))
        except OSError:  # deleted, or replaced by something else; what was read of it is still open
            return self._write_anew(state, nonces)
        try:
            if self._files.size_bytes_of(fd) > 2 * head.built_bytes + _GARBAGE_LEAST_BYTES:
                return self._write_anew(state, nonces)
            writer = BlockWriter(self._files, opened.file, fd)
            return self._add(writer, head.built_bytes, state, nonces)
        finally:
            os.close(fd)

    def _head_or_none(self) -> Head | None:
        try:
            return self._head()
        except OSError:
            return None  # something else is in its place, and is replaced if possible

    def _add(self, writer: BlockWriter, built_bytes: int, state: State, nonces: Sequence[str]) -> State:
        tables: dict[str, Table[Any]] = {}
        for name, records in state.tables().items():
            stored = stored_in(records)
            assert isinstance(records, Table)
            assert stored is not None
            tables[name] = write_changes(name, records, stored, writer)
        writer.finish()
        self._put_head(state, nonces, writer.file.name, built_bytes, tables)
        return state.with_tables(tables)

    def _write_anew(self, state: State, nonces: Sequence[str]) -> State:
        name = f"{new_nonce()}.blocks"
        fd = self._files.create(self._path(name), mode_bits=PRIVATE_BITS)
        try:
            opened = OpenFile(BlockFile(self._files, name, fd))
            writer = BlockWriter(self._files, opened.file, fd)
            tables = {
                table: write_whole(table, records, writer, opened)
                for table, records in state.tables().items()
            }
            self._put_head(state, nonces, name, writer.finish(), tables)
        except BaseException:
            self._files.discard(self._path(name))
            raise
        self._remove_all_but(_HEAD, name)
        return state.with_tables(tables)

    def _put_head(
        self,
        state: State,
        nonces: Sequence[str],
        blocks: str,
        built_bytes: int,
        tables: dict[str, Table[Any]],
    ) -> None:
        stored = {name: stored_in(table) for name, table in tables.items()}
        head = Head(
            layout=LAYOUT,
            marker=self._marker,
            version=state.version,
            nonce=state.nonce,
            nonces=list(nonces),
            blocks=blocks,
            built_bytes=built_bytes,
            tables={
                name: Stored(table.root, len(table)) for name, table in stored.items() if table is not None
            },
        )
        payload = msgspec.json.encode(head)
        self._files.replace(self._path(_HEAD), _checksum(payload) + b"\n" + payload, mode_bits=PRIVATE_BITS)

    # -- removing -----------------------------------------------------------------------

    def drop(self) -> None:
        """Remove the index, as far as it can be removed."""
        self._remove_all_but()
        with contextlib.suppress(OSError):
            self._files.remove_folder(self._folder)

    def _remove_all_but(self, *names: str) -> None:
        """Remove the files with names of this form. A link in the directory's place is not followed."""
        with contextlib.suppress(OSError):
            if not self._files.is_folder(self._folder):
                return
            for item in self._files.list(self._folder):
                ours = item.name == _HEAD or _BLOCKS_NAME.fullmatch(item.name) or temporary_owner(item.name)
                if ours and item.name not in names:
                    with contextlib.suppress(OSError):
                        self._files.unlink(self._path(item.name))


def _file_of(state: State) -> OpenFile | None:
    """The file that holds all tables of a state; None if there is no such file."""
    files = {
        None if (stored := stored_in(table)) is None else stored.opened for table in state.tables().values()
    }
    return files.pop() if len(files) == 1 else None


def is_bad(state: State) -> bool:
    """Whether a state rests on a file that turned out not to be what was written."""
    opened = _file_of(state)
    return opened is not None and opened.file.is_bad


def _checksum(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=32).hexdigest().encode()
