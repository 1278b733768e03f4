"""A guest with an attached image: it reads and writes through the graph that it was given."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from diskyard.host import Host
from diskyard.mover.qemu.blockgraph import StorageDaemon
from diskyard.mover.qemu.nbdclient import NbdClient

_READ_MOST_BYTES = 16 << 20


def through_the_page_cache(blockdev: Mapping[str, object]) -> dict[str, object]:
    """The graph without O_DIRECT: quicker on small images, and writes may have any size."""
    changed = dict(blockdev)
    for key, value in blockdev.items():
        if key == "cache":
            changed[key] = {"direct": False}
        elif isinstance(value, Mapping):
            changed[key] = through_the_page_cache(value)
    return changed


class Guest:
    """A storage daemon that opens one graph at a time, as ``prepareImage`` returned it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._daemon = StorageDaemon(host)
        self._names = (f"guest{number}" for number in itertools.count())

    def __enter__(self) -> Self:
        self._daemon.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._daemon.__exit__(kind, error, traceback)

    @contextmanager
    def _opened(self, blockdev: Mapping[str, object]) -> Iterator[NbdClient]:
        node = next(self._names)
        add = {**through_the_page_cache(blockdev), "node-name": node}
        self._daemon.command("blockdev-add", add, doing="opening a guest's disk")
        try:
            writable = not blockdev["read-only"]
            uri = self._daemon.export_nbd(node, writable=writable, allocation_depth=False)
            try:
                with NbdClient(self._host, uri) as client:
                    yield client
            finally:
                self._daemon.unexport(node)
        finally:
            self._daemon.command("blockdev-del", {"node-name": node}, doing="closing a guest's disk")

    def read(self, blockdev: Mapping[str, object]) -> bytes:
        """Read the whole image."""
        parts = []
        with self._opened(blockdev) as client:
            for offset in range(0, client.size_bytes, _READ_MOST_BYTES):
                parts.append(client.read(offset, min(_READ_MOST_BYTES, client.size_bytes - offset)))
        return b"".join(parts)

    def write(self, blockdev: Mapping[str, object], offset_bytes: int, data: bytes) -> None:
        """Write and flush."""
        with self._opened(blockdev) as client:
            if any(data):
                client.write(data, offset_bytes)
            else:
                client.zero(offset_bytes, len(data))
            client.flush()
