"""The imports that were requested on this host: no record of a repository makes it read any other file.

Anyone who may write to a repository's storage can write a record saying that a file of this host is to be
imported. So the record counts only if this host's own state directory, to which nobody else can write,
has the same request (docs/decisions/0035-asked-imports.md).
"""

from __future__ import annotations

import contextlib
import hashlib
import os

import msgspec

from diskyard import errors
from diskyard.host import Host
from diskyard.host.files import PRIVATE_BITS
from diskyard.model.records import FileSource, Image
from diskyard.repository.repository import Repository
from diskyard.settings import Settings

_LIMIT_BYTES = 64 << 10


class _Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request, as the repository's record of it must be.

    :param place: the repository's marker and location, which no program can forge.
    """

    place: str
    image_id: str
    request_digest: str
    source: FileSource


class AskedImports:
    """The imports that were requested on this host and are not complete. Several processes may use it.

    :param settings: of the state directory that keeps them.
    """

    def __init__(self, host: Host, settings: Settings) -> None:
        self._host = host
        self._state_folder = settings.folder
        self._folder = os.path.join(settings.folder, "imports")

    def remember(self, repo: Repository, image_id: str, source: FileSource, request_digest: str) -> None:
        """Keep a request, durably. This comes before its entry is published, under the image's work lease.

        :raises diskyard.errors.StorageError: others may write to the state directory, or it fails.
        """
        asked = _Asked(_place(repo), image_id, request_digest, source)
        try:
            self._host.files.ensure_folder(self._folder)
            if not self._is_private():
                raise errors.StorageError(
                    f"Other users may write to {self._state_folder}, or to imports in it: they could forge "
                    "this user's requests for imports.",
                    advice=f"Let only its owner, who runs Diskyard, write to it (chmod go-w {self._folder} "
                    f"{self._state_folder}), or use another state directory.",
                )
            data = msgspec.json.encode(asked)
            self._host.files.replace(self._path(repo, image_id), data, mode_bits=PRIVATE_BITS)
            self._host.files.sync_folder(self._state_folder)
        except OSError as error:
            raise errors.from_os_error(error, f"remembering an import in {self._folder}") from error

    def remembers(self, repo: Repository, image: Image) -> bool:
        """Whether exactly what the record of a pending image says was requested on this host."""
        try:
            data = self._host.files.read(self._path(repo, image.id), _LIMIT_BYTES)
            if data is None or not self._is_private():
                return False
            asked = msgspec.json.decode(data, type=_Asked)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return False  # the caller can repeat the request, as the error says
        source = None if image.pending is None else image.pending.source
        known = (asked.place, asked.image_id, asked.request_digest, asked.source)
        return known == (_place(repo), image.id, image.request_digest, source)

    def forget(self, repo: Repository, image_id: str) -> None:
        """Drop a request whose image is complete or gone; under the image's work lease.

        If that fails now, a later check does it.
        """
        with contextlib.suppress(OSError):
            self._host.files.discard(self._path(repo, image_id))

    def forget_over(self, repo: Repository) -> None:
        """Drop a repository's requests whose images are complete or gone."""
        try:
            names = [item.name for item in self._host.files.list(self._folder)]
        except OSError:
            return  # nothing was kept, or the directory does not answer: a later check tries again
        ending = _ending(repo)
        for name in names:
            if name.endswith(ending):
                self.forget_if_over(repo, name.removesuffix(ending))

    def forget_if_over(self, repo: Repository, image_id: str) -> None:
        """The same for one image. An image that is being made or completed has its lease, and stays."""
        if repo.is_read_only or _is_pending(repo, image_id):
            return
        # A later check tries again after an error.
        with contextlib.suppress(errors.DiskyardError), repo.work_on([image_id]):
            if not _is_pending(repo, image_id):
                self.forget(repo, image_id)

    def _path(self, repo: Repository, image_id: str) -> str:
        return os.path.join(self._folder, image_id + _ending(repo))

    def _is_private(self) -> bool:
        files = self._host.files
        return all(
            files.is_own_folder(folder) for folder in (files.resolve(self._state_folder), self._folder)
        )


def _place(repo: Repository) -> str:
    """The repository and its location: a copy, or a repository with the same marker elsewhere, differs."""
    return f"{repo.marker}/{repo.storage.place_identity}"


def _ending(repo: Repository) -> str:
    return f".{hashlib.blake2b(_place(repo).encode(), digest_size=8).hexdigest()}.json"


def _is_pending(repo: Repository, image_id: str) -> bool:
    image = repo.state().images.get(image_id)
    return image is not None and image.is_strong and image.pending is not None
