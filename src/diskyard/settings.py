"""Where this host keeps its connections and tasks."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from diskyard import errors
from diskyard.host import Host
from diskyard.state_folder import default_state_folder

__all__ = ["Remembered", "Settings", "default_state_folder"]

_LIMIT_BYTES = 16 << 20


class Remembered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One connection."""

    format: str
    parameters: dict[str, Any]


class Settings:
    """The state directory of this host; made if it does not exist.

    :raises diskyard.errors.StorageError: it cannot be made or read.
    """

    def __init__(self, host: Host, folder: str) -> None:
        self._host = host
        self.folder = folder
        self._path = os.path.join(folder, "connections.json")
        try:
            self._make(folder)
        except OSError as error:
            raise errors.from_os_error(error, f"making the state directory {folder}") from error

    def _make(self, folder: str) -> None:
        if not self._host.files.exists(folder):
            parent = os.path.dirname(folder)
            if not self._host.files.exists(parent):
                self._make(parent)
            self._host.files.ensure_folder(folder)
        elif not os.path.isdir(folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from changing the file between reading and writing it."""
        fd = self._host.files.lock_folder(self.folder)
        try:
            yield
        finally:
            os.close(fd)

    def connections(self) -> dict[str, Remembered]:
        """The kept connections, in the order in which they were made."""
        try:
            data = self._host.files.read(self._path, _LIMIT_BYTES)
            if data is None:
                return {}
            return msgspec.json.decode(data, type=dict[str, Remembered])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise errors.StorageError(
                f"{self._path} cannot be read: {error}.",
                advice="Remove the file and connect the repositories again.",
            ) from error

    def remember(self, repo_id: str, format_name: str, parameters: dict[str, Any]) -> None:
        """Keep a connection, durably."""
        with self.locked():
            known = self.connections()
            known[repo_id] = Remembered(format_name, parameters)
            self._host.files.replace(self._path, msgspec.json.encode(known))

    def forget(self, repo_id: str) -> None:
        """Forget a connection, durably."""
        with self.locked():
            known = self.connections()
            if known.pop(repo_id, None) is not None:
                self._host.files.replace(self._path, msgspec.json.encode(known))
