"""Writing another marker into the record of a localfs repository."""

from __future__ import annotations

from diskyard.host import Host
from diskyard.log.codec import RepositoryRecord, encode
from diskyard.storage.localfs import layout
from diskyard.storage.localfs.access import Follower
from diskyard.storage.localfs.connect import FORMAT
from diskyard.storage.localfs.storage import LocalStorage


def set_marker(repository: LocalStorage, marker: str, place: str, host: Host) -> None:
    """Replace both replicas of the record by renaming, first the one that is read first.

    The caller holds the lease of creation. A crash leaves the old marker or the new one.

    :param place: the digest of the location that the marker was given to. If the repository is a copy of
        that location, its own digest is another.
    """
    record = encode(RepositoryRecord(marker=marker, format=FORMAT, place=place, given=True))
    follower = Follower(host, repository.place)
    for path in layout.record_paths(repository.place):
        host.files.replace(path, record, make=follower.making(path, record))
