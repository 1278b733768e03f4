"""A state's tables in a file of blocks: how records are written as bytes and read again."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
from immutables import Map

from diskyard.log.index.blocks import BlockFile, BlockWriter
from diskyard.log.index.trees import (
    Leaf,
    Node,
    Root,
    build,
    changed,
    find_leaf,
    items_after,
    read_leaf,
    read_node,
)
from diskyard.model.records import Attachment, Image, Volume
from diskyard.model.tables import ABSENT, InMemory, Nothing, Records, Table, with_changes

V = TypeVar("V")
_NODES_KEPT, _LEAVES_KEPT = 1024, 256
_FOUND_KEPT = 512  # a call needs the same few records again and again
_FINDS_PER_SCAN = 4  # reading a record alone takes as long as this many in a scan


class Codec(NamedTuple, Generic[V]):
    """How the values of a table are written as bytes and read again."""

    encode: Callable[[V], bytes]
    decode: Callable[[bytes], V]


def _json(kind: Any) -> Codec[Any]:
    return Codec(msgspec.json.encode, msgspec.json.Decoder(kind).decode)


_members = _json(frozenset[str])
_BYTES: Codec[bytes] = Codec(bytes, bytes)
#: By the names of :meth:`diskyard.model.state.State.tables`.
CODECS: dict[str, Codec[Any]] = {
    "images": _json(Image),
    "volumes": _json(Volume),
    "attachments": _json(Attachment),
    "volumes_by_parent": _members,
    "images_by_volume": _members,
    "images_by_base": _members,
    "attachments_by_volume": _members,
    "attachments_by_image": _members,
    "held": _json(None),
    "unready": _json(None),
}


class OpenFile:
    """A file of blocks, with a cache of the nodes and leaves that were read last."""

    def __init__(self, file: BlockFile) -> None:
        self.file = file
        self.nodes: Callable[..., Node] = lru_cache(_NODES_KEPT)(partial(read_node, file))
        self.leaves: Callable[..., Leaf] = lru_cache(_LEAVES_KEPT)(partial(read_leaf, file))


class StoredTable(Generic[V]):
    """Records in a file of blocks. Safe to use from several threads.

    Every method, and every iterator that a method returns, raises
    :class:`diskyard.errors.RepositoryUnavailable` if the file is not what was written.

    After so many look-ups of single records that reading all records would have been quicker,
    it reads them all, and keeps them in memory.

    :param root: None if there are no records.
    :param count: how many records there are.
    :param whole: all records, if they are in memory.
    """

    def __init__(
        self,
        opened: OpenFile,
        root: Root | None,
        count: int,
        codec: Codec[V],
        whole: Map[str, V] | None = None,
    ) -> None:
        self.opened = opened
        self.root = root
        self._count = count
        self._codec = codec
        self._whole = whole
        self._finds = 0
        self._found: dict[str, V | Nothing] = {}

    def __len__(self) -> int:
        return self._count

    def find(self, key: str) -> V | Nothing:
        """The record with this key."""
        if self._whole is not None:
            return self._whole.get(key, ABSENT)
        found = self._found.get(key)
        if found is None:
            self._finds += 1
            if self._finds * _FINDS_PER_SCAN > self._count:
                return self.whole().get(key, ABSENT)
            found = self._read(key)
            if len(self._found) >= _FOUND_KEPT:
                self._found.clear()
            self._found[key] = found
        return found

    def _read(self, key: str) -> V | Nothing:
        if self.root is None:
            return ABSENT
        leaf = self.opened.leaves(find_leaf(self.root, key, self.opened.nodes))
        at = bisect_left(leaf.keys, key)
        there = at < len(leaf.keys) and leaf.keys[at] == key
        return self._decode(leaf.values[at]) if there else ABSENT

    def whole(self) -> Map[str, V]:
        """All records, in memory."""
        if self._whole is None:
            self._whole = Map(dict(self._read_after("")))
        return self._whole

    def after(self, key: str) -> Iterator[tuple[str, V]]:
        """The records with greater keys, in order."""
        whole = self._whole
        if whole is None:
            return self._read_after(key)
        return ((found, whole[found]) for found, _ in items_after(self.root, key, self.opened.file))

    def keys(self) -> Iterator[str]:
        """The keys only; no record is decoded."""
        if self._whole is not None:
            return iter(self._whole)
        return (key for key, _ in items_after(self.root, "", self.opened.file))

    def _read_after(self, key: str) -> Iterator[tuple[str, V]]:
        for found, value in items_after(self.root, key, self.opened.file):
            yield found, self._decode(value)

    def _decode(self, value: bytes) -> V:
        try:
            return self._codec.decode(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self.opened.file.bad(f"a record is of another form: {error}") from error

    def encoded(self) -> StoredTable[bytes]:
        """The same records as bytes."""
        return StoredTable(self.opened, self.root, self._count, _BYTES)

    def whole_with(self, changes: Map[str, V | Nothing]) -> Map[str, V] | None:
        """All records with some changes applied, if the records are in memory."""
        return None if self._whole is None else with_changes(self._whole, changes)


def stored_in(records: Records[V]) -> StoredTable[V] | None:
    """The stored table under a table's changes, if it is in a file."""
    if isinstance(records, Table) and isinstance(records.stored, StoredTable):
        return records.stored
    return None


def encoded(records: Records[V], codec: Codec[V]) -> Iterator[tuple[str, bytes]]:
    """All keys, and records as bytes, in order of the keys. A stored record is not decoded for this."""
    stored = stored_in(records)
    if stored is not None and isinstance(records, Table):
        return Table(stored.encoded(), _encoded_changes(records, codec)).after("")
    if isinstance(records, Map):
        records = Table(InMemory(records))
    return ((key, codec.encode(record)) for key, record in records.after(""))


def _encoded_changes(records: Table[V], codec: Codec[V]) -> Map[str, bytes | Nothing]:
    return Map(
        {key: ABSENT if record is ABSENT else codec.encode(record) for key, record in records.changed.items()}
    )


def write_whole(name: str, records: Records[V], writer: BlockWriter, opened: OpenFile) -> Table[V]:
    """The same records, in a file that holds none of them yet."""
    codec: Codec[V] = CODECS[name]
    root = build(encoded(records, codec), writer)
    return Table(StoredTable(opened, root, len(records), codec))


def write_changes(name: str, records: Table[V], stored: StoredTable[V], writer: BlockWriter) -> Table[V]:
    """The same records, with their changes written to the file that holds the others."""
    codec: Codec[V] = CODECS[name]
    changes = [
        (key, None if value is ABSENT else value)
        for key, value in sorted(_encoded_changes(records, codec).items())
    ]
    root = changed(stored.root, changes, writer)
    whole = stored.whole_with(records.changed)
    return Table(StoredTable(stored.opened, root, len(records), codec, whole))
