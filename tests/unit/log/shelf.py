"""A log in memory whose storage a test can watch, damage and age."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from diskyard.host import Clock, Host
from diskyard.host.identity import new_nonce, new_uuid
from diskyard.log.log import Author, Log
from diskyard.log.store import LogKind
from diskyard.model.state import State
from diskyard.model.transaction import Changes, Part
from diskyard.storage.memory import connect as memory
from diskyard.storage.memory.storage import MemoryStorage
from diskyard.testing.faults import WatchedStorage, nothing
from tests.unit.records import uid, volume

DAY_S = 24 * 3600.0


class FakeClock(Clock):
    """A wall clock that a test moves."""

    def __init__(self) -> None:
        self.time_s = 1e9

    def wall_s(self) -> float:
        return self.time_s


class Shelf:
    """One repository, and as many readers and writers of its log as a test asks for."""

    def __init__(self, *, entry_age_kept_s: float = 0.0) -> None:
        self.clock = FakeClock()
        self.host = replace(Host.real(), clock=self.clock)
        self.entry_age_kept_s = entry_age_kept_s
        self._parameters = {"name": new_uuid()}
        memory.create(self._parameters, self.host)

    def storage(self) -> MemoryStorage:
        return memory.connect(self._parameters, self.host)

    def open(self) -> tuple[Log, WatchedStorage]:
        """A log of its own, and the storage it sees."""
        watched = WatchedStorage(self.storage())
        return Log(watched, self.host, entry_age_kept_s=self.entry_age_kept_s), watched

    def log(self) -> Log:
        return self.open()[0]

    def spoil(self, kind: LogKind, number: int, *copies: int, data: bytes | None = b"") -> None:
        for copy in copies or (0, 1):
            self.storage().store.objects[kind, number][copy] = data

    def numbers(self, kind: LogKind) -> list[int]:
        return sorted(self.storage().numbers(kind))


def write(log: Log, name: str) -> State | None:
    """Publish one volume record."""
    return log.publish([part(name)], log.refresh(), new_nonce())


def part(name: str) -> Part:
    """What an author changes who puts a volume record."""
    return Author("test", "").part(Changes(put_volumes=(volume(uid(name)),)))


def write_many(log: Log, count: int) -> None:
    for _ in range(count):
        assert write(log, new_uuid()) is not None


def once(method: str, run: Callable[[], None], watched: WatchedStorage) -> Callable[..., None]:
    """A hook that runs something at the first call of a method, and is off from then on."""

    def hook(name: str, words: Sequence[object]) -> None:
        if name == method:
            watched.before = watched.after = nothing
            run()

    return hook
