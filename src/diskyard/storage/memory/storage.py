"""The interface's methods over dictionaries; volumes are files, so that QEMU can open them."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory

from diskyard.host import Host
from diskyard.host.container import Container, open_file
from diskyard.log.store import Copies, LogKind
from diskyard.model.capabilities import Capabilities
from diskyard.model.transaction import Frees
from diskyard.model.volume_name import VolumeName
from diskyard.storage.interface import (
    Capacity,
    Foreign,
    Leftover,
    Located,
    MarkerOrigin,
    StoredVolume,
)


@dataclass(slots=True)
class MemoryStore:
    """The contents of a repository, which all connections with the same name share."""

    name: str
    marker: str
    folder: TemporaryDirectory[str]
    lock: threading.Lock = field(default_factory=threading.Lock)
    objects: dict[tuple[LogKind, int], list[bytes | None]] = field(default_factory=dict)
    written_s: dict[tuple[LogKind, int], float] = field(default_factory=dict)
    progress: dict[str, bytes] = field(default_factory=dict)
    leases: set[str] = field(default_factory=set)


class MemoryLease:
    """A name in the store's set of leases."""

    def __init__(self, store: MemoryStore, name: str) -> None:
        self._store = store
        self._name: str | None = name

    def descriptors(self) -> Sequence[int]:
        """None: a child of this process dies with the thread that waits for it."""
        return ()

    def release(self) -> None:
        """Release the lease. A second call does nothing."""
        if self._name is not None:
            with self._store.lock:
                self._store.leases.discard(self._name)
            self._name = None


class MemoryStorage:
    """One connection to a store. The interface says what each method promises."""

    def __init__(self, host: Host, store: MemoryStore) -> None:
        self.store = store
        self.marker = store.marker
        self.marker_origin: MarkerOrigin = "created"
        self.made_s: float | None = None
        self.place = self.identity = self.place_identity = f"memory:{store.name}"
        self.capabilities = Capabilities(preallocation=True)
        self._host = host

    def read_only_because(self) -> None:
        """Memory can always be written to."""

    def put(self, kind: LogKind, number: int, data: bytes, *, frees: Frees = Frees.NOTHING) -> bool:
        """Add the object under the store's lock."""
        with self.store.lock:
            if (kind, number) in self.store.objects:
                return False
            self.store.objects[kind, number] = [data, data]
            self.store.written_s[kind, number] = self._host.clock.wall_s()
            return True

    def get(self, kind: LogKind, number: int) -> Copies:
        """Both copies."""
        with self.store.lock:
            first, second = self.store.objects.get((kind, number), (None, None))
            return first, second

    def has(self, kind: LogKind, number: int) -> bool:
        """Whether its key exists."""
        with self.store.lock:
            return (kind, number) in self.store.objects

    def numbers(self, kind: LogKind) -> dict[int, float]:
        """The numbers of all objects, with their ages."""
        now_s = self._host.clock.wall_s()
        with self.store.lock:
            return {
                number: now_s - self.store.written_s.get((found, number), 0.0)
                for found, number in self.store.objects
                if found == kind
            }

    def newest_number(self, kind: LogKind) -> int:
        """The highest number of an object."""
        return max(self.numbers(kind), default=0)

    def rewrite(self, kind: LogKind, number: int, copy: int, data: bytes) -> None:
        """Set one copy."""
        with self.store.lock:
            self.store.objects.setdefault((kind, number), [None, None])[copy] = data

    def delete(self, kind: LogKind, number: int) -> None:
        """Remove both copies."""
        with self.store.lock:
            self.store.objects.pop((kind, number), None)

    def sync_log(self) -> None:
        """Do nothing: the log does not outlive the process."""

    def _path(self, name: VolumeName) -> str:
        return os.path.join(self.store.folder.name, str(name))

    def create_volume(
        self, name: VolumeName, *, length_bytes: int, initial: bytes = b"", preallocate: bool = False
    ) -> None:
        """Make a sparse file in the private directory."""
        fd = self._host.files.create(self._path(name))
        try:
            self._host.files.truncate(fd, max(length_bytes, len(initial)))
            if preallocate and length_bytes:
                self._host.files.preallocate(fd, length_bytes)
            self._host.files.write(fd, initial)
        finally:
            os.close(fd)

    def clone_volume(self, source: VolumeName, target: VolumeName) -> bool:
        """Never possible: this format does not have the capability."""
        return False

    def grow_volume(self, name: VolumeName, *, length_bytes: int, preallocate: bool = False) -> None:
        """Make the file longer. It is never made shorter."""
        fd = self._host.files.open_for_writing(self._path(name))
        try:
            if self._host.files.size_bytes_of(fd) < length_bytes:
                self._host.files.truncate(fd, length_bytes)
            if preallocate:
                self._host.files.preallocate(fd, length_bytes)
        finally:
            os.close(fd)

    def share_access(self, source: VolumeName, target: VolumeName) -> None:
        """Nothing: its files are this process's own."""

    def delete_volume(self, name: VolumeName) -> bool:
        """Unlink the file."""
        try:
            self._host.files.unlink(self._path(name))
        except FileNotFoundError:
            return False
        return True

    def list_volumes(self) -> list[StoredVolume]:
        """Every volume's file."""
        found = []
        for item in self._host.files.list(self.store.folder.name):
            name = VolumeName.parse(item.name)
            if name is not None and item.is_file:
                found.append(StoredVolume(name, item.size_bytes, item.allocated_bytes, item.stamp))
        return found

    def stored_volume(self, name: VolumeName) -> StoredVolume | None:
        """One volume's file."""
        item = self._host.files.look(self._path(name))
        if item is None or not item.is_file:
            return None
        return StoredVolume(name, item.size_bytes, item.allocated_bytes, item.stamp)

    def stored_volumes(self, names: Sequence[VolumeName]) -> list[StoredVolume | None]:
        """One after the other."""
        return [self.stored_volume(name) for name in names]

    def locate_volume(self, name: VolumeName) -> Located:
        """The file's path."""
        return Located({"driver": "file", "filename": self._path(name)}, self._path(name))

    def open_volume(self, name: VolumeName) -> AbstractContextManager[Container]:
        """Open the file."""
        return open_file(self._host.files, self._path(name))

    def read_volume(self, name: VolumeName, offset_bytes: int, size_bytes: int) -> bytes:
        """Read from the file."""
        return self._host.files.read_at(self._path(name), offset_bytes, size_bytes)

    def volume_is_written(self, name: VolumeName) -> bool:
        """Whether QEMU's own locks on the file say so."""
        return self._host.files.name_is_written_by_qemu(self._path(name))

    def put_progress(self, image_id: str, data: bytes) -> None:
        """Keep it in memory."""
        self.store.progress[image_id] = data

    def get_progress(self, image_id: str) -> bytes | None:
        """What was kept, if anything."""
        return self.store.progress.get(image_id)

    def remove_progress(self, image_id: str) -> None:
        """Remove it."""
        self.store.progress.pop(image_id, None)

    def progress_image_ids(self) -> list[str]:
        """The images that have progress."""
        return list(self.store.progress)

    def list_leftovers(self) -> list[Leftover]:
        """None: private files are removed with the directory."""
        return []

    def list_foreign(self) -> list[Foreign]:
        """None: no other program knows the directory."""
        return []

    def delete_leftover(self, name: str) -> bool:
        """False: there are no leftovers."""
        return False

    def private_path(self) -> str | None:
        """A fresh name in the private directory."""
        return self._host.files.temporary_path(self.store.folder.name)

    def try_lock(self, name: str) -> MemoryLease | None:
        """Add the name to the set of leases."""
        with self.store.lock:
            if name in self.store.leases:
                return None
            self.store.leases.add(name)
        return MemoryLease(self.store, name)

    def is_locked(self, name: str) -> bool:
        """Whether the name is in the set."""
        with self.store.lock:
            return name in self.store.leases

    def locked_among(self, names: Collection[str]) -> set[str]:
        """The names that are in the set."""
        with self.store.lock:
            return self.store.leases.intersection(names)

    def capacity(self) -> Capacity:
        """The private folder's file system's."""
        space = self._host.files.free_space(self.store.folder.name)
        return Capacity(space.total_bytes, space.free_bytes)

    def close(self) -> None:
        """Do nothing: the store stays until the process ends or the repository is removed."""
