"""Reading the repository's own record, which has two replicas. If they differ, the log decides."""

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
_ENTRIES_ASKED = 16  # the newest ones, since some may be damaged


def read_record(host: Host, root: str, format: str) -> RepositoryRecord:
    """The record, from whichever replica is valid. The other is written again if that is possible.

    A replica may be whole and yet belong to another repository. If two valid ones differ, the one whose
    repository the newest entry of the log belongs to is right.

    :raises diskyard.errors.NotARepository: there is none, or one of another format or a newer version.
    :raises diskyard.errors.CorruptRecord: neither replica can be read.
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
    """The record, of those found, whose repository the newest entry of the log belongs to."""
    first, *others = found.values()
    if not others or all(other == first for other in others):
        return first
    marker = _marker_in_log(host, root, {record.marker for record, _ in found.values()})
    ours = [pair for pair in found.values() if marker in (None, pair[0].marker)]
    return next((pair for pair in ours if _is_of_place(host, root, pair[0])), ours[0])


def _is_of_place(host: Host, root: str, record: RepositoryRecord) -> bool:
    with contextlib.suppress(OSError):  # callers that need the lock file will report what is wrong
        _, place_identity = host.files.identities_of(os.path.join(root, layout.LOCKS))
        return record.place == place_digest(place_identity)
    return False


def _marker_in_log(host: Host, root: str, known: Collection[str]) -> str | None:
    """The marker of the newest entry of one of two known repositories; None if no entry can be read.

    An entry that gives the repository a new marker has that marker, and follows the newest entry with the old
    one. So it shows which marker is no longer valid.

    :raises diskyard.errors.CorruptRecord: entries can be read, but all belong to other repositories.
    """
    numbers = set[int]()
    with contextlib.suppress(OSError):  # the missing directory is reported elsewhere
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
    """The replicas of an entry that can be read, and were written for this number."""
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
    """Rename a whole replica of the record over a bad one. At least one of them always exists.

    This takes the lease of creation and removal: another process may be about to write an absent replica, or
    have removed it for good, and what was read before the lease may belong to another repository.
    """
    files = host.files
    # Storage that is read-only, full or failing does not matter: one whole replica is enough.
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
    """How the repository got the marker in its record."""
    if not record.place:
        return "unknown"
    if record.place != place_digest(place_identity):
        return "copied"
    return "given" if record.given else "created"
