"""Reading the repository's own record, which has two replicas; if they differ, the log decides."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Iterator, Mapping

from diskyard import errors
from diskyard.host import Host
from diskyard.log.codec import ENTRY_LIMIT_BYTES, Damaged, NewerMajor, RepositoryRecord, decode
from diskyard.log.entries import NEW_MARKER, place_digest
from diskyard.model.transaction import Entry
from diskyard.storage.interface import MarkerOrigin
from diskyard.storage.leases import LocalLeases
from diskyard.storage.localfs import layout
from diskyard.storage.localfs.access import Follower

_RECORD_LIMIT_BYTES = 4096
_NO_ANSWER = frozenset((errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN))
_NO_PATH = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP))
_ENTRIES_ASKED = 16  # of the newest: some of them may be damaged


def read_record(host: Host, root: str, format: str) -> RepositoryRecord:
    """The record, from whichever copy holds it; the other is written again where that is possible.

    A copy may be whole and not this repository's: of two that are not the same, that one counts of
    which the newest entry of the log is.

    :raises diskyard.errors.NotARepository: there is none, or one of another format or a newer version.
    :raises diskyard.errors.CorruptRecord: neither copy can be read.
    """
    found: dict[str, tuple[RepositoryRecord, bytes]] = {}
    wrong: Exception | None = None
    for path in layout.record_paths(root):
        try:
            data = host.files.read(path, _RECORD_LIMIT_BYTES)
            if data is None:
                continue
            record, _ = decode(data, RepositoryRecord)
        except NewerMajor as error:
            wrong = errors.NotARepository(f"{root} was written by a newer Diskyard (format {error}).")
            continue
        except (Damaged, OSError) as error:
            wrong = error
            continue
        if record.format == format:
            found[path] = (record, data)
        else:
            wrong = errors.NotARepository(f"{root} is a {record.format} repository, not {format}.")
    if not found:
        raise wrong if isinstance(wrong, errors.NotARepository) else _unreadable(root, format, wrong)
    record, whole = _of_the_log(host, root, found)
    for path in layout.record_paths(root):
        if path not in found or found[path][1] != whole:
            _rewrite_record(host, root, path, whole)
    return record


def _of_the_log(
    host: Host, root: str, found: Mapping[str, tuple[RepositoryRecord, bytes]]
) -> tuple[RepositoryRecord, bytes]:
    """That one of the records found of whose repository the newest entry is."""
    first, *others = found.values()
    if not others or all(other == first for other in others):
        return first
    marker = _marker_in_log(host, root, {record.marker for record, _ in found.values()})
    ours = [pair for pair in found.values() if marker in (None, pair[0].marker)]
    return next((pair for pair in ours if _is_of_place(host, root, pair[0])), ours[0])


def _is_of_place(host: Host, root: str, record: RepositoryRecord) -> bool:
    with contextlib.suppress(OSError):  # who needs the lock file will say what is wrong
        _, place_identity = host.files.identities_of(os.path.join(root, layout.LOCKS))
        return record.place == place_digest(place_identity)
    return False


def _marker_in_log(host: Host, root: str, known: Collection[str]) -> str | None:
    """The marker of the newest entry that is of one of two repositories; None if none can be read.

    An entry that gives the place a marker is the newest of the one, and follows the newest of the
    other: it says which of the two is over.

    :raises diskyard.errors.CorruptRecord: there are entries, and all of them are of others.
    """
    numbers = set[int]()
    with contextlib.suppress(OSError):  # that there is none is for others to say
        names = host.files.names(layout.log_folder(root, "entry"))
        numbers = {number for name in names if (number := layout.log_number(name)) is not None}
    read_any = False
    for number in sorted(numbers, reverse=True)[:_ENTRIES_ASKED]:
        entries = list(_entries(host, root, number))
        read_any = read_any or bool(entries)
        for wanted in (
            {entry.marker for entry in entries if entry.verb == NEW_MARKER},
            {entry.marker for entry in entries},
        ):
            if len(found := wanted.intersection(known)) == 1:
                return found.pop()
    if read_any:
        raise errors.CorruptRecord(f"The record in {root} belongs to another repository than its log.")
    return None


def _entries(host: Host, root: str, number: int) -> Iterator[Entry]:
    """The copies of an entry that can be read, and were written for this number."""
    for path in layout.log_paths(root, "entry", number):
        with contextlib.suppress(Damaged, NewerMajor, OSError):
            entry, _ = decode(host.files.read(path, ENTRY_LIMIT_BYTES) or b"", Entry)
            if entry.number == number:
                yield entry


def _unreadable(root: str, format: str, damage: Exception | None) -> Exception:
    if damage is None or (isinstance(damage, OSError) and damage.errno in _NO_PATH):
        return errors.NotARepository(f"{root} is not a {format} repository.")
    if isinstance(damage, OSError) and damage.errno in (*_NO_ANSWER, errno.EACCES, errno.EPERM):
        return damage
    return errors.CorruptRecord(f"The record of the repository in {root} cannot be read: {damage}.")


def _rewrite_record(host: Host, root: str, path: str, whole: bytes) -> None:
    """Rename a whole copy of the record over a bad one; at no moment are both away.

    Under the lease of creation and removal: a copy that is absent may be about to come, or
    to have gone for good, and what was read before the lease may be of another repository.
    """
    files = host.files
    # Storage that is read-only, full or sick: one whole copy is enough to work with.
    with contextlib.suppress(OSError):
        lease = LocalLeases(host, os.path.join(root, layout.LOCKS)).try_lock("create")
        if lease is None:
            return
        try:
            copies = [
                files.read(other, _RECORD_LIMIT_BYTES) for other in layout.record_paths(root) if other != path
            ]
            if copies == [whole]:
                if files.is_folder(path):
                    files.remove_folder(path)  # only an empty one
                files.replace(path, whole, make=Follower(host, root).making(path, whole))
        finally:
            lease.release()


def origin_of(record: RepositoryRecord, place_identity: str) -> MarkerOrigin:
    """How the place came by the marker that its record has."""
    if not record.place:
        return "unknown"
    if record.place != place_digest(place_identity):
        return "copied"
    return "given" if record.given else "created"
