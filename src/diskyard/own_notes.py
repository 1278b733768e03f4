"""What this host alone keeps of its repositories' records, where nobody else can write.

Anyone who may write to a repository's storage can write a record. What a record makes this host do beyond the
repository counts only if this host's own state directory says the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import os

from diskyard import errors
from diskyard.host import Host
from diskyard.host.files import PRIVATE_BITS
from diskyard.repository.repository import Repository
from diskyard.settings import Settings

_LIMIT_BYTES = 64 << 10


class OwnNotes:
    """Notes of one kind, each about a record of a repository. Several processes may use them.

    :param settings: of the state directory that keeps them.
    :param kind: the name of their directory there; for people: what they are.
    """

    def __init__(self, host: Host, settings: Settings, kind: str) -> None:
        self._host = host
        self._kind = kind
        self._state_folder = settings.folder
        self._folder = os.path.join(settings.folder, kind)

    def put(self, repo: Repository, key: str, data: bytes) -> None:
        """Keep a note; durable on return.

        :param key: the id of the record.
        :raises diskyard.errors.StorageError: others may write to the state directory, or it fails.
        """
        try:
            self._host.files.ensure_folder(self._folder)
            if not self._is_private():
                raise errors.StorageError(
                    f"Other users may write to {self._state_folder}, or to {self._kind} in it: they could "
                    "forge what this user has asked for.",
                    advice=f"Let only its owner, who runs Diskyard, write to it (chmod go-w {self._folder} "
                    f"{self._state_folder}), or use another state directory.",
                )
            self._host.files.replace(self._path(repo, key), data, mode_bits=PRIVATE_BITS)
            self._host.files.sync_folder(self._state_folder)
        except OSError as error:
            raise errors.from_os_error(error, f"keeping a note in {self._folder}") from error

    def get(self, repo: Repository, key: str) -> bytes | None:
        """A note; None if there is none that can be read and trusted: the caller can make it again."""
        try:
            data = self._host.files.read(self._path(repo, key), _LIMIT_BYTES)
            return data if data is not None and self._is_private() else None
        except OSError:
            return None

    def drop(self, repo: Repository, key: str) -> None:
        """Remove a note, if there is one. If that fails now, it stays until it is dropped again."""
        with contextlib.suppress(OSError):
            self._host.files.discard(self._path(repo, key))

    def keys(self, repo: Repository) -> list[str]:
        """The ids of the records that there are notes about; none if the directory does not answer."""
        try:
            names = [item.name for item in self._host.files.list(self._folder)]
        except OSError:
            return []
        ending = _ending(repo)
        return [name.removesuffix(ending) for name in names if name.endswith(ending)]

    def _path(self, repo: Repository, key: str) -> str:
        return os.path.join(self._folder, key + _ending(repo))

    def _is_private(self) -> bool:
        files = self._host.files
        return all(
            files.is_own_folder(folder) for folder in (files.resolve(self._state_folder), self._folder)
        )


def place_of(repo: Repository) -> str:
    """The repository and its location: a copy, or a repository with the same marker elsewhere, differs."""
    return f"{repo.marker}/{repo.storage.place_identity}"


def _ending(repo: Repository) -> str:
    return f".{hashlib.blake2b(place_of(repo).encode(), digest_size=8).hexdigest()}.json"
