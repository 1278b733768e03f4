"""What a disk can hold after a power cut, at any moment of an operation that was recorded.

The operation runs once, on a simulated disk. Its journal alone yields every state that the disk can be
in when the power fails. What was synced is there; of the rest any part may be, as a file system with a
journal allows. Syncing a file makes its bytes and length durable, but not its name. Syncing a directory
makes its names durable; otherwise some first part of the changes to them is. Nothing else is promised.
"""

from __future__ import annotations

import copy
import hashlib
import os
import random
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diskyard.testing.copying import write_sparse
from diskyard.testing.simulated_files import (
    BLOCK_BYTES,
    ROOT,
    Change,
    Marked,
    Named,
    Record,
    Removed,
    Renamed,
    Resized,
    SimulatedFiles,
    Synced,
    Written,
    Zeroed,
    apply_change,
)

BEGIN, ANSWERED = "begin", "answered"
_SECTOR_BYTES = 512
NameChange = Named | Removed | Renamed
FIXED_VARIANTS = ("all lost", "all kept", "names kept", "data kept")
RANDOM_VARIANTS = ("data torn", "names cut", "folders cut")
"""Of what was not synced: all names and parts of the data; the names up to a moment before the cut,
and parts of the data; in each folder the names up to a moment of its own, and parts of the data."""

_FOLDER = b"folder"


@dataclass(slots=True)
class _History:
    """The changes to one file or directory, each with its place in the journal."""

    places: list[int] = field(default_factory=list)
    changes: list[Change | NameChange] = field(default_factory=list)
    synced: list[int] = field(default_factory=list)

    def until(self, place: int) -> int:
        """How many changes come before a place in the journal."""
        return bisect_left(self.places, place)

    def durable(self, cut: int) -> int:
        """How many changes a sync before the cut has made durable."""
        syncs = bisect_left(self.synced, cut)
        return self.until(self.synced[syncs - 1]) if syncs else 0


@dataclass(frozen=True, slots=True)
class Cut:
    """One way in which the power fails.

    :param place: how many records of the journal come before it.
    :param variant: what happens to changes that were not synced.
    """

    place: int
    variant: str


@dataclass(frozen=True, slots=True)
class CutState:
    """What the disk holds after a cut.

    :param answered: the operation had been answered by then.
    :param digest: equal contents have equal digests.
    """

    cut: Cut
    answered: bool
    digest: str


class _Kept:
    """What a variant keeps at a cut: how many changes of each directory and file."""

    def __init__(self, histories: Mapping[int, _History], cut: Cut, chance: random.Random) -> None:
        self._histories = histories
        self._cut = cut
        self.chance = chance
        self._moment = chance.randint(0, cut.place)

    def names(self, number: int) -> int:
        """How many changes of a directory are kept."""
        history = self._histories.get(number) or _History()
        durable, all_done = history.durable(self._cut.place), history.until(self._cut.place)
        variant = self._cut.variant
        if variant.startswith("names cut"):
            return max(durable, history.until(self._moment))
        if variant.startswith("folders cut"):
            return self.chance.randint(durable, all_done)
        return durable if variant in ("all lost", "data kept") else all_done

    def data(self, number: int) -> int | None:
        """How many changes of a file are kept; None for any part of them."""
        history = self._histories.get(number) or _History()
        if self._cut.variant not in FIXED_VARIANTS:
            return None
        is_lost = self._cut.variant in ("all lost", "names kept")
        return history.durable(self._cut.place) if is_lost else history.until(self._cut.place)


class RecordedDisk:
    """A simulated disk's journal, and the states that a power cut can leave.

    :param folder: what the disk held when it was mounted.
    :param seed: for every random choice.
    """

    def __init__(self, folder: Path, journal: Sequence[Record], seed: int) -> None:
        begin = next(i for i, record in enumerate(journal) if record == Marked(BEGIN))
        self.seed = seed
        self._begun = _replayed(SimulatedFiles.loaded(folder), journal[:begin])
        self._journal = list(journal[begin + 1 :])
        self._made = {r.node: r.is_folder for r in self._journal if isinstance(r, Named)}
        self._histories: dict[int, _History] = {}
        self._known: dict[tuple[int, int], tuple[bytes, bytes]] = {}
        self._known_names: dict[tuple[int, int], list[tuple[str, int]]] = {}
        self._known_states: dict[int, list[CutState]] = {}
        self._index()
        self._settled = {number for number in self._begun.nodes if self._is_settled(number)}

    def _is_settled(self, number: int) -> bool:
        """Whether nothing has changed in a node, nor in anything below it."""
        children = self._begun.node(number).names.values()
        return number not in self._histories and all(map(self._is_settled, children))

    @property
    def length(self) -> int:
        """How many records the journal has."""
        return len(self._journal)

    def kinds_of_sync(self) -> list[str]:
        """All kinds of sync: who synced, and what for. Each comes once, in the order of its first use."""
        return list(dict.fromkeys(r.kind for r in self._journal if isinstance(r, Synced)))

    def without(self, kinds: Collection[str]) -> RecordedDisk:
        """The same run by a program that makes none of the syncs of these kinds."""
        other = copy.copy(self)
        other._histories, other._known_states = {}, {}
        other._index(frozenset(kinds))
        return other

    def _index(self, without: Collection[str] = ()) -> None:
        for place, record in enumerate(self._journal):
            if isinstance(record, Marked):
                continue
            number = record.folder if isinstance(record, NameChange) else record.node
            history = self._histories.setdefault(number, _History())
            if not isinstance(record, Synced):
                history.places.append(place)
                history.changes.append(record)
            elif record.kind not in without:
                history.synced.append(place)

    # -- states -----------------------------------------------------------------------

    def states(self, torn: int) -> list[CutState]:
        """The different states of all cuts, each once.

        :param torn: how many random states of each random variant are taken at each cut.
        """
        known = self._known_states.get(torn)
        if known is None:
            known = self._known_states[torn] = self._find_states(torn)
        return list(known)

    def _find_states(self, torn: int) -> list[CutState]:
        variants = [*FIXED_VARIANTS, *(f"{name} {n}" for name in RANDOM_VARIANTS for n in range(torn))]
        found: dict[str, CutState] = {}
        answered = False
        for place in range(self.length + 1):
            answered = answered or (place > 0 and self._journal[place - 1] == Marked(ANSWERED))
            for variant in variants:
                cut = Cut(place, variant)
                digest = self._digest(cut)
                # After the answer, more must be true of the same state.
                if digest not in found or (answered and not found[digest].answered):
                    found[digest] = CutState(cut, answered, digest)
        return list(found.values())

    def _digest(self, cut: Cut) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for path, content in self._walk(cut, settled=False):  # in an order that depends only on the names
            digest.update(f"{path}\0".encode() + content[1])
        return digest.hexdigest()

    def write(self, cut: Cut, folder: Path) -> None:
        """Make a directory hold what the disk holds after a cut."""
        folder.mkdir()
        for path, (data, kind) in self._walk(cut):
            if kind == _FOLDER:
                os.mkdir(f"{folder}/{path}")
                continue
            fd = os.open(f"{folder}/{path}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                write_sparse(fd, data)
                if "/reserve/" in path and data:  # its blocks were durable long before
                    os.posix_fallocate(fd, 0, len(data))
            finally:
                os.close(fd)

    def _walk(self, cut: Cut, *, settled: bool = True) -> Iterator[tuple[str, tuple[bytes, bytes]]]:
        """Every path, with its bytes and their digest. A directory comes before its contents.

        :param settled: include the contents of directories in which nothing has changed.
        """
        kept = _Kept(self._histories, cut, random.Random(f"{self.seed} {cut.place} {cut.variant}"))
        files: dict[int, tuple[bytes, bytes]] = {}  # a file has the same bytes under all of its names
        waiting = [("", ROOT)]
        while waiting:
            folder, number = waiting.pop()
            for name, child in self._names(number, kept.names(number)):
                path = f"{folder}{name}"
                if self._is_folder(child):
                    yield path, (b"", _FOLDER)
                    if child in self._settled and not settled:
                        continue
                    waiting.append((f"{path}/", child))
                    continue
                if child not in files:
                    count = kept.data(child)
                    files[child] = (
                        self._torn(child, cut.place, kept.chance)
                        if count is None
                        else self._data(child, count)
                    )
                yield path, files[child]

    def _is_folder(self, number: int) -> bool:
        return self._made[number] if number in self._made else self._begun.node(number).is_folder

    def _history(self, number: int) -> _History:
        return self._histories.get(number) or _History()

    def _names(self, number: int, count: int) -> list[tuple[str, int]]:
        """A directory's names after its first changes, in order."""
        known = self._known_names.get((number, count))
        if known is None:
            known = self._known_names[number, count] = sorted(self._names_after(number, count).items())
        return known

    def _names_after(self, number: int, count: int) -> dict[str, int]:
        names = dict(self._begun.node(number).names) if number in self._begun.nodes else {}
        for change in self._history(number).changes[:count]:
            if isinstance(change, Named):
                names[change.name] = change.node
            elif isinstance(change, Removed):
                del names[change.name]
            elif isinstance(change, Renamed):
                names[change.new] = names.pop(change.old)
        return names

    def _data(self, number: int, count: int) -> tuple[bytes, bytes]:
        """A file's bytes after its first changes, and their digest."""
        known = self._known.get((number, count))
        if known is None:
            data = bytearray(self._begun.node(number).data if number in self._begun.nodes else b"")
            for change in self._history(number).changes[:count]:
                _apply(data, change)
            known = self._known[number, count] = _with_digest(data)
        return known

    def _torn(self, number: int, cut: int, chance: random.Random) -> tuple[bytes, bytes]:
        """A file's bytes with a part of what was not synced: any blocks, and any of its lengths.

        Lengths change in order, like everything that a file system keeps in its journal.
        """
        history = self._history(number)
        first, last = history.durable(cut), history.until(cut)
        if first == last:
            return self._data(number, first)
        data = bytearray(self._data(number, first)[0])
        lengths = chance.randint(0, last - first)
        block_bytes, share = chance.choice((_SECTOR_BYTES, BLOCK_BYTES)), chance.random()
        size_bytes = len(data)
        for index, change in enumerate(history.changes[first:last]):
            assert isinstance(change, Change)
            if isinstance(change, Resized):
                if index < lengths:
                    _apply(data, change)
                    size_bytes = len(data)
                continue
            for part in _parts(change, block_bytes):
                if chance.random() < share:
                    _apply(data, part)
            if index < lengths and isinstance(change, Written):
                size_bytes = max(size_bytes, change.offset + len(change.data))
        del data[size_bytes:]
        data.extend(bytes(size_bytes - len(data)))
        return _with_digest(data)


def _replayed(files: SimulatedFiles, journal: Sequence[Record]) -> SimulatedFiles:
    """The files after all changes in a journal, all of them durable."""
    for record in journal:
        match record:
            case Named(folder, name, node, is_folder):
                if node in files.nodes:
                    files.link(folder, name, node)
                else:
                    made = files.make(folder, name, 0o777, is_folder=is_folder)
                    assert made.number == node
            case Removed(folder, name):
                files.remove(folder, name)
            case Renamed(folder, old, new):
                files.rename(folder, old, folder, new)
            case Written() | Zeroed() | Resized():
                apply_change(files.node(record.node).data, record)
            case _:
                pass
    return files


def _apply(data: bytearray, change: Change | NameChange) -> None:
    assert isinstance(change, Change)
    apply_change(data, change)


def _parts(change: Written | Zeroed, block_bytes: int) -> Iterator[Change]:
    """A change, cut at the borders of blocks."""
    start = change.offset
    end = start + (len(change.data) if isinstance(change, Written) else change.size_bytes)
    while start < end:
        border = min(end, (start // block_bytes + 1) * block_bytes)
        if isinstance(change, Written):
            yield Written(change.node, start, change.data[start - change.offset : border - change.offset])
        else:
            yield Zeroed(change.node, start, border - start)
        start = border


def _with_digest(data: bytearray) -> tuple[bytes, bytes]:
    return bytes(data), hashlib.blake2b(data, digest_size=16).digest()
