"""A repository whose volumes are reached only over NBD. Its log and leases are those of a localfs one."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import quote

from diskyard import errors
from diskyard.host import Host
from diskyard.host.container import Container
from diskyard.model.volume_name import VolumeName
from diskyard.mover.qemu.nbdclient import NbdClient
from diskyard.storage.interface import Foreign, Located, Storage
from diskyard.testing.faults import WatchedStorage

_PIECE_BYTES = 16 << 20


@contextmanager
def _system_errors() -> Iterator[None]:
    """Raise the errors that the interface promises."""
    try:
        yield
    except errors.StorageError as error:
        raise OSError(errno.EIO, error.message) from error


class _Served:
    """A volume that is open over NBD, as :class:`~diskyard.host.container.Container`."""

    fd = None

    def __init__(self, storage: Storage, name: VolumeName, client: NbdClient) -> None:
        self._storage, self._name, self._client = storage, name, client

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """Read over NBD, up to the container's end: the server shows space beyond it."""
        end_bytes = min(offset_bytes + size_bytes, self.length_bytes())
        with _system_errors():
            return b"".join(
                self._client.read(start, min(_PIECE_BYTES, end_bytes - start))
                for start in range(offset_bytes, end_bytes, _PIECE_BYTES)
            )

    def length_bytes(self) -> int:
        """The length that the storage knows."""
        stored = self._storage.stored_volume(self._name)
        if stored is None:
            raise FileNotFoundError(errno.ENOENT, "There is no such volume", str(self._name))
        return stored.length_bytes

    def set_length(self, length_bytes: int) -> None:
        """Let the storage set the length, which is durable at once."""
        with self._storage.open_volume(self._name) as file:
            file.set_length(length_bytes)
            file.sync()

    def reserve(self, length_bytes: int) -> None:
        """Let the storage allocate blocks."""
        self._storage.grow_volume(self._name, length_bytes=length_bytes, preallocate=True)

    def sync(self) -> None:
        """Have the server flush."""
        with _system_errors():
            self._client.flush()


class PathlessStorage(WatchedStorage):
    """One connection to a repository.

    :param inner: keeps everything except the volumes' bytes.
    :param socket: of the server that has these bytes.
    """

    def __init__(self, inner: Storage, host: Host, socket: str) -> None:
        super().__init__(inner)
        self._host, self._socket = host, socket
        self.capabilities = replace(inner.capabilities, reflink=False)

    def locate_volume(self, name: VolumeName) -> Located:
        """The export of the volume."""
        server = {"type": "unix", "path": self._socket}
        return Located({"driver": "nbd", "server": server, "export": self._export(name)}, None)

    def _export(self, name: VolumeName) -> str:
        return str(self.inner.locate_volume(name).path)

    @contextmanager
    def open_volume(self, name: VolumeName) -> Iterator[Container]:
        """An NBD connection."""
        if self.inner.stored_volume(name) is None:
            raise FileNotFoundError(errno.ENOENT, "There is no such volume", str(name))
        uri = f"nbd+unix:///{quote(self._export(name), safe='')}?socket={quote(self._socket)}"
        with _system_errors():
            client = NbdClient(self._host, uri)
        with client:
            yield _Served(self.inner, name, client)

    def read_volume(self, name: VolumeName, offset_bytes: int, size_bytes: int) -> bytes:
        """Read over a connection of its own."""
        with self.open_volume(name) as container:
            return container.read(offset_bytes, size_bytes)

    def clone_volume(self, source: VolumeName, target: VolumeName) -> bool:
        """Never possible: the format does not have the capability."""
        return False

    def private_path(self) -> None:
        """None: it has no files."""

    def list_foreign(self) -> list[Foreign]:
        """None: nobody else can put anything there."""
        return []
