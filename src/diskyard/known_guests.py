"""Where the running guests of this host can be talked to, and which processes they are.

A record says only that a guest is live. Its address is what this host was told by whoever prepared the image
here: no record, which anyone who may write to the storage could forge, makes Diskyard talk to a program
(docs/decisions/0045-the-log-before-the-guest.md).
"""

from __future__ import annotations

import msgspec

from diskyard.host import Host
from diskyard.live.process import Process
from diskyard.own_notes import OwnNotes, place_of
from diskyard.repository.repository import Repository
from diskyard.settings import Settings


class KnownGuest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One guest.

    :param place: the repository's marker and location, which no program can forge.
    :param address: the path of the socket on which its QEMU's monitor listens.
    :param pid: of its QEMU; ``started``: when that process began, as the kernel counts.
    """

    place: str
    attachment_id: str
    address: str
    pid: int
    started: str

    @property
    def process(self) -> Process:
        """The guest's QEMU."""
        return Process(self.pid, self.started)


class KnownGuests:
    """The guests that were made known on this host. Several processes may use it.

    :param settings: of the state directory that keeps them.
    """

    def __init__(self, host: Host, settings: Settings) -> None:
        self._notes = OwnNotes(host, settings, "guests")

    def remember(self, repo: Repository, attachment_id: str, address: str, process: Process) -> None:
        """Keep where the guest of an attachment answers, durably. This comes before the attachment is live.

        :raises diskyard.errors.StorageError: others may write to the state directory, or it fails.
        """
        known = KnownGuest(place_of(repo), attachment_id, address, process.pid, process.started)
        self._notes.put(repo, attachment_id, msgspec.json.encode(known))

    def recall(self, repo: Repository, attachment_id: str) -> KnownGuest | None:
        """Where a guest answers; None if this host was not told, or cannot read that now."""
        data = self._notes.get(repo, attachment_id)
        if data is None:
            return None
        try:
            known = msgspec.json.decode(data, type=KnownGuest)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return known if (known.place, known.attachment_id) == (place_of(repo), attachment_id) else None

    def forget_ended(self, repo: Repository) -> None:
        """Drop what is kept of attachments that have ended."""
        for attachment_id in self._notes.keys(repo):
            if attachment_id not in repo.state().attachments:
                self._notes.drop(repo, attachment_id)
