"""Serving attached images over NBD on Unix sockets, while this process lives."""

from __future__ import annotations

import hashlib
import os
import threading

from msgspec.structs import replace

from diskyard import errors
from diskyard.host import Host
from diskyard.model.results import Attached
from diskyard.mover.blockgraph import StorageDaemon
from diskyard.mover.interface import Chain

_SOCKET_PATH_LIMIT_BYTES = 107  # unix(7)


class Servers:
    """The NBD servers of this process: one for each image and owner.

    :param folder: where each image's socket has its name, ``<image id>.<owner>``'s hash;
        made when it is needed.
    """

    def __init__(self, host: Host, folder: str) -> None:
        self._host = host
        self._folder = folder
        self._lock = threading.Lock()
        self._running: dict[tuple[str, str], tuple[StorageDaemon, str]] = {}

    def serve(self, attached: Attached, chain: Chain) -> Attached:
        """Serve an image until :meth:`stop`; the attachment with the URI filled in.

        :raises diskyard.errors.StorageError: the server does not start.
        """
        key = (attached.image_id, attached.owner)
        with self._lock:
            if key not in self._running:
                self._running[key] = self._start(attached, chain)
            socket = self._running[key][1]
        return replace(attached, nbd_uri=f"nbd+unix:///{attached.image_id}?socket={socket}")

    def _start(self, attached: Attached, chain: Chain) -> tuple[StorageDaemon, str]:
        daemon = StorageDaemon(self._host)
        daemon.__enter__()
        try:
            writes = attached.mode == "read_write"
            node = daemon.open_chain(chain, writable=(chain[0].name,) if writes else ())
            daemon.export_nbd(node, writable=writes, name=attached.image_id)
            return daemon, self._name_socket(attached, daemon.socket_path)
        except BaseException:
            daemon.close()
            raise

    def _name_socket(self, attached: Attached, socket_path: str) -> str:
        """A name that the socket keeps whenever the image is served again to this owner."""
        if not self._host.files.exists(self._folder):
            self._host.files.make_folder(self._folder)
        owner = hashlib.blake2b(attached.owner.encode(), digest_size=4).hexdigest()
        path = os.path.join(self._folder, f"{attached.image_id}.{owner}")
        if len(path.encode()) > _SOCKET_PATH_LIMIT_BYTES:
            raise errors.Unsupported(
                f"The name of the socket, {path}, is longer than {_SOCKET_PATH_LIMIT_BYTES} bytes.",
                advice="Use a state folder with a shorter name ($DISKYARD_STATE_DIR).",
            )
        self._host.files.discard(path)
        self._host.files.symlink(socket_path, path)
        return path

    def stop(self, image_id: str, owner: str) -> None:
        """Stop serving an image to an owner, if this process does."""
        with self._lock:
            found = self._running.pop((image_id, owner), None)
        if found is not None:
            found[0].close()
            self._host.files.discard(found[1])

    def close(self) -> None:
        """Stop all servers."""
        for image_id, owner in list(self._running):
            self.stop(image_id, owner)
