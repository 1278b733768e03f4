"""Creating, connecting and removing a repository that lives in this process."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from typing import Any

from diskyard import errors
from diskyard.host import Host
from diskyard.host.identity import new_nonce
from diskyard.log.genesis import genesis
from diskyard.storage.memory.storage import MemoryStorage, MemoryStore

FORMAT = "memory-1.0"
_stores: dict[str, MemoryStore] = {}
_stores_lock = threading.Lock()


def _name(parameters: Mapping[str, Any]) -> str:
    name = parameters.get("name")
    if set(parameters) != {"name"} or not isinstance(name, str) or not 1 <= len(name) <= 255:
        raise errors.InvalidParameter(f"{FORMAT} takes one connection parameter: name, 1-255 characters.")
    return name


def create(parameters: Mapping[str, Any], host: Host) -> None:
    """Make an empty repository. Volumes are in a private directory that ends with the process.

    :raises diskyard.errors.NotEmpty: the name is taken.
    """
    name = _name(parameters)
    with _stores_lock:
        if name in _stores:
            raise errors.NotEmpty(f"There is a repository named {name} already.")
        store = MemoryStore(name, new_nonce(), tempfile.TemporaryDirectory(prefix="diskyard-memory-"))
        entry, checkpoint = genesis(store.marker, host)
        store.objects["entry", 0] = [entry, entry]
        store.objects["checkpoint", 0] = [checkpoint, checkpoint]
        store.written_s = dict.fromkeys(store.objects, host.clock.wall_s())
        _stores[name] = store


def connect(parameters: Mapping[str, Any], host: Host) -> MemoryStorage:
    """Connect the repository with this name.

    :raises diskyard.errors.NotARepository: there is none in this process.
    """
    name = _name(parameters)
    with _stores_lock:
        store = _stores.get(name)
    if store is None:
        raise errors.NotARepository(f"There is no repository named {name} in this process.")
    return MemoryStorage(host, store)


def remove(repository: MemoryStorage, host: Host) -> None:
    """Remove a repository without images from this process."""
    with _stores_lock:
        _stores.pop(repository.store.name).folder.cleanup()
