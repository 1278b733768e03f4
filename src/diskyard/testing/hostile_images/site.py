"""Where hostile images are made, with files beside them that nobody may open."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

SECRET = b"the secret that no image may hold. "
_IN_ACCESS, _IN_MODIFY, _IN_OPEN, _IN_ISDIR = 0x1, 0x2, 0x20, 0x4000_0000
_EVENT = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Site:
    """A directory for the image, and a directory of bait: a secret, a FIFO, and a listening port.

    Only the image may be opened during its import. The kernel reports (inotify(7)) every open of the bait by
    any process, and the port sees every connection.

    :ivar secret: a readable file with bytes of its own, in place of ``/etc/shadow``.
    :ivar fifo: a reader of it would wait for ever.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "images"
        self.bait = folder / "bait"
        for path in (folder, self.folder, self.bait):
            path.mkdir()
        self.secret = self.bait / "secret"
        self.secret.write_bytes(SECRET * (1 << 20 >> 5))
        self.fifo = self.bait / "fifo"
        os.mkfifo(self.fifo)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._watch = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        mask = _IN_ACCESS | _IN_MODIFY | _IN_OPEN
        if self._watch < 0 or _libc.inotify_add_watch(self._watch, os.fsencode(self.bait), mask) < 0:
            raise OSError(ctypes.get_errno(), "inotify cannot watch the bait")

    def new(self, name: str) -> Path:
        """The path of a new file for an image."""
        return self.folder / name

    def touched(self) -> list[str]:
        """The bait that was opened, read, written or connected to since the last call."""
        found = {name for name, mask in self._events() if not mask & _IN_ISDIR}
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return sorted(found)
        connection.close()
        return [*sorted(found), f"port {self.port}"]

    def _events(self) -> Iterator[tuple[str, int]]:
        while True:
            try:
                data = os.read(self._watch, 1 << 16)
            except BlockingIOError:
                return
            position = 0
            while position < len(data):
                _, mask, _, length = _EVENT.unpack_from(data, position)
                position += _EVENT.size
                yield data[position : position + length].rstrip(b"\0").decode(), mask
                position += length

    def close(self) -> None:
        """Stop watching and listening."""
        os.close(self._watch)
        self._listener.close()
