"""Writing another marker into the record of a localfs repository."""

from __future__ import annotations

from diskyard.host import Host
from diskyard.log.codec import RepositoryRecord, encode
from diskyard.storage.localfs import layout
from diskyard.storage.localfs.access import Follower
from diskyard.storage.localfs.connect import FORMAT
from diskyard.storage.localfs.storage import LocalStorage


def set_marker(repository: LocalStorage, marker: str, place: str, host: Host) -> None:
    """Rename both copies of the record over, the one that is read first before the other.

    The caller has the lease of creation. A crash leaves the old marker, or the new one.

    :param place: the digest of the place that the marker was given to: another, if the place of the
        repository is a copy of that one.
    """
    record = encode(RepositoryRecord(marker=marker, format=FORMAT, place=place, given=True))
    follower = Follower(host, repository.place)
    for path in layout.record_paths(repository.place):
        host.files.replace(path, record, make=follower.making(path, record))
