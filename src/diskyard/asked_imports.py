"""The imports that were requested on this host: no record of a repository makes it read any other file.

Anyone who may write to a repository's storage can write a record saying that a file of this host is to be
imported. So the record counts only if this host's own state directory, to which nobody else can write,
has the same request (docs/decisions/0035-asked-imports.md).
"""

from __future__ import annotations

import contextlib

import msgspec

from diskyard import errors
from diskyard.host import Host
from diskyard.model.records import FileSource, Image
from diskyard.own_notes import OwnNotes, place_of
from diskyard.repository.repository import Repository
from diskyard.settings import Settings


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
        self._notes = OwnNotes(host, settings, "imports")

    def remember(self, repo: Repository, image_id: str, source: FileSource, request_digest: str) -> None:
        """Keep a request, durably. This comes before its entry is published, under the image's work lease.

        :raises diskyard.errors.StorageError: others may write to the state directory, or it fails.
        """
        asked = _Asked(place_of(repo), image_id, request_digest, source)
        self._notes.put(repo, image_id, msgspec.json.encode(asked))

    def remembers(self, repo: Repository, image: Image) -> bool:
        """Whether exactly what the record of a pending image says was requested on this host."""
        data = self._notes.get(repo, image.id)
        if data is None:
            return False
        try:
            asked = msgspec.json.decode(data, type=_Asked)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return False  # the caller can repeat the request, as the error says
        source = None if image.pending is None else image.pending.source
        known = (asked.place, asked.image_id, asked.request_digest, asked.source)
        return known == (place_of(repo), image.id, image.request_digest, source)

    def forget(self, repo: Repository, image_id: str) -> None:
        """Drop a request whose image is complete or gone; under the image's work lease.

        If that fails now, a later check does it.
        """
        self._notes.drop(repo, image_id)

    def forget_over(self, repo: Repository) -> None:
        """Drop a repository's requests whose images are complete or gone."""
        for image_id in self._notes.keys(repo):
            self.forget_if_over(repo, image_id)

    def forget_if_over(self, repo: Repository, image_id: str) -> None:
        """The same for one image. An image that is being made or completed has its lease, and stays."""
        if repo.is_read_only or _is_pending(repo, image_id):
            return
        # A later check tries again after an error.
        with contextlib.suppress(errors.DiskyardError), repo.work_on([image_id]):
            if not _is_pending(repo, image_id):
                self.forget(repo, image_id)


def _is_pending(repo: Repository, image_id: str) -> bool:
    image = repo.state().images.get(image_id)
    return image is not None and image.is_strong and image.pending is not None
