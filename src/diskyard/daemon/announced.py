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
    """A daemon that runs, or did.

    :param url: where it answers without a token, as ``unix:///path``.
    :param tls_url: where it answers to tokens; None if it does not.
    """

    url: str
    tls_url: str | None
    pid: int
    version: str


class Announcement:
    """The place of the one daemon of a state directory.

    The place is held by a lock, which ends with the process however it ends.

    :raises diskyard.errors.InvalidParameter: another daemon has it.
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
        """Say that the daemon answers."""
        announced = Announced(f"unix://{socket_path}", tls_url, os.getpid(), version())
        self._files.replace(self._path, msgspec.json.encode(announced))

    def withdraw(self) -> None:
        """Say that it does not any more, and give up its place."""
        self._files.discard(self._path)
        os.close(self._lock)
