"""Records by id that are not all in memory: stored records, and the changes since.

A :class:`Table` is a value like :class:`immutables.Map`, and is used like one: changing it makes
another table, which shares what is the same. It does not know where its records are stored.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from enum import Enum
from functools import cached_property
from itertools import islice
from typing import Generic, Protocol, TypeVar, overload

from immutables import Map

V = TypeVar("V")
D = TypeVar("D")
V_co = TypeVar("V_co", covariant=True)


class Nothing(Enum):
    """The absence of a record, for a key that does not exist, or no longer does."""

    ABSENT = 0


ABSENT = Nothing.ABSENT


class Stored(Protocol[V_co]):
    """Records that never change, and are read when they are needed.

    If reading fails, the error is raised, and nothing is returned.
    """

    def find(self, key: str) -> V_co | Nothing:
        """The record with this key."""

    def after(self, key: str) -> Iterator[tuple[str, V_co]]:
        """The keys greater than ``key`` and their records, in order of the keys."""

    def keys(self) -> Iterator[str]:
        """The keys only."""

    def whole(self) -> Map[str, V_co]:
        """All records, in memory."""

    def __len__(self) -> int: ...


class InMemory(Generic[V]):
    """The records of a map."""

    def __init__(self, records: Map[str, V]) -> None:
        self._records = records

    @cached_property
    def _keys(self) -> list[str]:
        return sorted(self._records)

    def find(self, key: str) -> V | Nothing:
        """The record with this key."""
        return self._records.get(key, ABSENT)

    def after(self, key: str) -> Iterator[tuple[str, V]]:
        """The keys greater than ``key`` and their records, in order of the keys."""
        records, keys = self._records, self._keys
        return ((found, records[found]) for found in islice(keys, bisect_right(keys, key), None))

    def keys(self) -> Iterator[str]:
        """The keys only."""
        return iter(self._records)

    def whole(self) -> Map[str, V]:
        """All records."""
        return self._records

    def __len__(self) -> int:
        return len(self._records)


class Table(Mapping[str, V]):
    """Stored records, with changes on top of them.

    :param stored: the records under the changes.
    :param changed: the records that were put, and :data:`ABSENT` for those that were deleted.
    :param length: how many records there are with the changes.
    """

    __slots__ = ("_length", "changed", "stored")

    def __init__(
        self, stored: Stored[V], changed: Map[str, V | Nothing] | None = None, length: int | None = None
    ) -> None:
        self.stored = stored
        self.changed: Map[str, V | Nothing] = Map() if changed is None else changed
        self._length = len(stored) if length is None else length

    def _find(self, key: str) -> V | Nothing:
        changed = self.changed
        # A change may be to None, which is a valid value here.
        return changed[key] if key in changed else self.stored.find(key)

    def __getitem__(self, key: str) -> V:
        found = self._find(key)
        if found is ABSENT:
            raise KeyError(key)
        return found

    @overload
    def get(self, key: str, /) -> V | None: ...
    @overload
    def get(self, key: str, /, default: V | D) -> V | D: ...
    def get(self, key: str, /, default: V | D | None = None) -> V | D | None:
        """The record with this key, or ``default``; quicker than :class:`Mapping`'s, which raises first."""
        found = self._find(key)
        return default if found is ABSENT else found

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._find(key) is not ABSENT

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str]:
        changed = self.changed
        yield from (key for key in self.stored.keys() if key not in changed)  # noqa: SIM118 - no mapping
        yield from (key for key, record in changed.items() if record is not ABSENT)

    def items(self) -> ItemsView[str, V]:
        """All keys and records, read in one pass."""
        return _Items(self)

    def values(self) -> ValuesView[V]:
        """All records, read in one pass."""
        return _Values(self)

    def after(self, key: str) -> Iterator[tuple[str, V]]:
        """The keys greater than ``key`` and their records, in order of the keys, read one by one."""
        changed = self.changed
        mine = sorted(found for found in changed if found > key)
        at = 0
        for stored_key, record in self.stored.after(key):
            while at < len(mine) and mine[at] <= stored_key:
                yield from _there(mine[at], changed[mine[at]])
                at += 1
            if stored_key not in changed:
                yield stored_key, record
        for found in mine[at:]:
            yield from _there(found, changed[found])

    def set(self, key: str, record: V) -> Table[V]:
        """This table with a new or changed record."""
        length = self._length + (self._find(key) is ABSENT)
        return Table(self.stored, self.changed.set(key, record), length)

    def delete(self, key: str) -> Table[V]:
        """This table without one record.

        :raises KeyError: it has no such record.
        """
        if self._find(key) is ABSENT:
            raise KeyError(key)
        # A record that came and went leaves nothing behind: a table that is never stored would grow for ever.
        is_new = key in self.changed and self.stored.find(key) is ABSENT
        changed = self.changed.delete(key) if is_new else self.changed.set(key, ABSENT)
        return Table(self.stored, changed, self._length - 1)

    def moved_to(self, stored: Stored[V], written: Table[V]) -> Table[V]:
        """The same records on top of other stored ones.

        :param stored: holds the same records as ``written``.
        :param written: an earlier table, on top of the same stored records as this one.
        """
        before, now = written.changed, self.changed
        rest = {key: value for key, value in now.items() if before.get(key, self) is not value}
        rest.update((key, ABSENT) for key in before if key not in now)  # new then, deleted since
        return Table(stored, Map(rest), self._length)


def _there(key: str, record: V | Nothing) -> Iterator[tuple[str, V]]:
    if record is not ABSENT:
        yield key, record


class _Items(ItemsView[str, V]):
    """Read in one pass: a mapping's own view would look up each key again."""

    def __init__(self, table: Table[V]) -> None:
        super().__init__(table)
        self._table = table

    def __iter__(self) -> Iterator[tuple[str, V]]:
        return self._table.after("")


class _Values(ValuesView[V]):
    def __init__(self, table: Table[V]) -> None:
        super().__init__(table)
        self._table = table

    def __iter__(self) -> Iterator[V]:
        return (record for _, record in self._table.after(""))


#: Records by id, wherever they are stored.
Records = Map[str, V] | Table[V]


def records_after(records: Records[V], key: str) -> Iterator[V]:
    """The records with keys greater than ``key``, in order of the keys."""
    if isinstance(records, Table):
        return (record for _, record in records.after(key))
    return (record for _, record in InMemory(records).after(key))


def in_memory(records: Records[V]) -> Map[str, V]:
    """The same records, all in memory."""
    return with_changes(records.stored.whole(), records.changed) if isinstance(records, Table) else records


def with_changes(records: Map[str, V], changes: Map[str, V | Nothing]) -> Map[str, V]:
    """Records with changes applied: some records are put, and those that are :data:`ABSENT` are left out."""
    changing = records.mutate()
    for key, record in changes.items():
        if record is not ABSENT:
            changing[key] = record
        elif key in changing:
            del changing[key]
    return changing.finish()
