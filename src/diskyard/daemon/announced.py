"""How the command line finds a daemon: a small file in the state directory, while it runs."""

from __future__ import annotations

import os

import msgspec

from diskyard import errors
from diskyard.host import Host
from diskyard.version import version

_NAME = "daemon.json"
_FOLDER = "daemon"


class Announced(msgspec.Struct, frozen=True):
    """A daemon that is running, or was.

    :param url: where it answers without a token, as ``unix:///path``.
    :param tls_url: where it answers calls with tokens; None if nowhere.
    """

    url: str
    tls_url: str | None
    pid: int
    version: str


class Announcement:
    """Marks the one daemon of a state directory.

    A lock holds the mark, and ends with the process, however the process ends.

    :raises diskyard.errors.InvalidParameter: another daemon holds the lock.
    """

    def __init__(self, host: Host, state_folder: str) -> None:
        self._files = host.files
        self._path = os.path.join(state_folder, _NAME)
        folder = os.path.join(state_folder, _FOLDER)
        self._files.ensure_folder(folder)
        lock = self._files.try_lock_folder(folder)
        if lock is None:
            raise errors.InvalidParameter(
                f"Another daemon runs with the state directory {state_folder}.",
                advice="Stop it first, or give this one another state_dir.",
            )
        self._lock = lock

    def tell(self, socket_path: str, tls_url: str | None) -> None:
        """Announce that the daemon answers."""
        announced = Announced(f"unix://{socket_path}", tls_url, os.getpid(), version())
        self._files.replace(self._path, msgspec.json.encode(announced))

    def withdraw(self) -> None:
        """Announce that it no longer answers, and release the lock."""
        self._files.discard(self._path)
        os.close(self._lock)
