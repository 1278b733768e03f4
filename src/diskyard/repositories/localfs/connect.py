"""Creating, connecting and removing a localfs repository."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diskyard import errors
from diskyard.host import Host
from diskyard.host.files import temporary_owner
from diskyard.host.identity import new_nonce
from diskyard.leases.local import LocalLeases
from diskyard.log.codec import (
    ENTRY_LIMIT_BYTES,
    Damaged,
    NewerMajor,
    RepositoryRecord,
    decode,
    encode,
)
from diskyard.log.genesis import genesis
from diskyard.model.transaction import Entry
from diskyard.repositories.localfs import layout
from diskyard.repositories.localfs.repository import LocalRepository

FORMAT = "localfs-1.0"
# As /proc/self/mountinfo names them: other machines may write to these as well, and
# would not see this one's locks.
_NETWORK_FILE_SYSTEMS = frozenset(
    (
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "ceph",
        "gfs2",
        "ocfs2",
        "9p",
        "afs",
        "beegfs",
        "lustre",
        "glusterfs",
        "fuse.glusterfs",
        "fuse.sshfs",
        "fuse.ceph",
    )
)
_RECORD_LIMIT_BYTES = 4096
_NO_ANSWER = frozenset((errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN))
_NO_PATH = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP))


def _root(parameters: Mapping[str, Any], host: Host) -> str:
    """The one connection parameter, ``path``, with links resolved.

    :raises diskyard.errors.InvalidParameter: it is not an absolute path, or not all there is.
    """
    path = parameters.get("path")
    if set(parameters) != {"path"} or not isinstance(path, str):
        raise errors.InvalidParameter(f"{FORMAT} takes exactly one connection parameter: path.")
    if not os.path.isabs(path) or "\0" in path or len(path.encode(errors="replace")) > 3072:
        raise errors.InvalidParameter("path must be an absolute path of at most 3,072 bytes.")
    try:
        return host.files.resolve(path)
    except (OSError, ValueError) as error:
        raise errors.InvalidParameter(f"path cannot be resolved: {error}.") from error


def create(parameters: Mapping[str, Any], host: Host) -> None:
    """Make an empty repository in a folder that is empty or does not exist, durably.

    The last step publishes the repository's own record; a crash before it leaves folders
    that are no repository, and that creating again completes.

    :raises diskyard.errors.NotEmpty: the folder holds something.
    :raises diskyard.errors.InvalidParameter: there can be none, as the one above it is not there.
    """
    root = _root(parameters, host)
    try:
        _make_folders(host, root)
        lease = LocalLeases(host, os.path.join(root, layout.LOCKS)).try_lock("create")
        if lease is None:
            raise errors.NotEmpty(f"Another process is creating a repository in {root}.")
        try:
            _seed(host, root)
        finally:
            lease.release()
    except OSError as error:
        raise errors.from_os_error(error, f"creating a repository in {root}") from error


def _make_folders(host: Host, root: str) -> None:
    files = host.files
    _make_root(host, root)
    _refuse_network(host, root)
    _refuse_repository(host, root)
    names = {entry.name for entry in files.list(root) if temporary_owner(entry.name) is None}
    if names - {*layout.FOLDERS, layout.LOCKS, layout.RESERVE}:
        raise errors.NotEmpty(f"{root} is not empty.")
    for folder in layout.FOLDERS:
        if folder not in names:
            files.make_folder(os.path.join(root, folder))
    for name, size_bytes in ((layout.LOCKS, 0), (layout.RESERVE, layout.RESERVE_BYTES)):
        if name not in names:
            fd = files.create(os.path.join(root, name))
            try:
                if size_bytes:
                    files.preallocate(fd, size_bytes)
                files.sync(fd)
            finally:
                os.close(fd)
    files.sync_folder(root)


def _make_root(host: Host, root: str) -> None:
    """Make the repository's own folder, if it is not there; never those above it.

    :raises diskyard.errors.InvalidParameter: there can be no folder of this name.
    """
    files = host.files
    try:
        if not files.exists(root):
            files.make_folder(root)
            files.sync_folder(os.path.dirname(root))
        elif not files.is_folder(root):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), root)
    except OSError as error:
        if error.errno not in _NO_PATH:
            raise
        raise errors.InvalidParameter(
            f"There can be no folder {root}: {error.strerror or error}.",
            advice="Use a path in a folder that is there.",
        ) from error


def _refuse_repository(host: Host, root: str) -> None:
    if any(host.files.exists(path) for path in layout.record_paths(root)):
        raise errors.NotEmpty(f"{root} is a repository already.")


def _seed(host: Host, root: str) -> None:
    """Write entry 0, checkpoint 0 and the repository's record; the caller has the lease.

    What an interrupted creation left, temporary files too, is removed first: with the lease,
    and as long as there is no record, nobody else can be at work here.
    """
    files = host.files
    _refuse_repository(host, root)
    if _was_being_removed(host, root):
        _empty_folders(host, root)
    interrupted: list[str] = []
    for folder in ("", *layout.FOLDERS):
        for item in files.list(os.path.join(root, folder)):
            in_log = folder in (layout.LOG, layout.CHECKPOINTS)
            if temporary_owner(item.name) or (in_log and layout.log_number(item.name) == 0):
                interrupted.append(os.path.join(root, folder, item.name))
            elif folder:
                raise errors.NotEmpty(f"{root} is not empty: it holds {folder}/{item.name}.")
    for path in interrupted:
        files.unlink(path)
    record = RepositoryRecord(marker=new_nonce(), format=FORMAT)
    entry, checkpoint = genesis(record.marker, host)
    files.publish(layout.log_paths(root, "entry", 0), entry)
    files.publish(layout.log_paths(root, "checkpoint", 0), checkpoint)
    files.publish(layout.record_paths(root), encode(record))


def _refuse_network(host: Host, root: str) -> None:
    device = host.files.device_of(root)
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        fields, _, tail = line.partition(" - ")
        kind = tail.split(" ")[0]
        if fields.split(" ")[2] == number and kind in _NETWORK_FILE_SYSTEMS:
            raise errors.Unsupported(
                f"{root} is on a network file system ({kind}); localfs needs a local one.",
                advice="Use a folder of a local file system.",
            )


def connect(parameters: Mapping[str, Any], host: Host) -> LocalRepository:
    """The repository in a folder.

    :raises diskyard.errors.NotARepository: there is none, or one of a newer version.
    """
    root = _root(parameters, host)
    try:
        record = _read_record(host, root)
        _refuse_network(host, root)
        _require_folders(host, root)
        return LocalRepository(host, root, record.marker)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise errors.NotARepository(f"{root} is not a {FORMAT} repository.") from error
    except OSError as error:
        raise errors.from_os_error(error, f"connecting {root}") from error


def _require_folders(host: Host, root: str) -> None:
    """Refuse a repository of which a folder leads elsewhere: what is there is not ours to change.

    :raises diskyard.errors.CorruptRecord: names what is wrong.
    """
    for folder in layout.FOLDERS:
        path = os.path.join(root, folder)
        if not host.files.is_folder(path):
            raise errors.CorruptRecord(
                f"{path} is missing, or it is no folder, so the repository cannot be used.",
                advice="Put the folder back; an empty one will do for progress and temporary.",
            )


def _read_record(host: Host, root: str) -> RepositoryRecord:
    """The record, from whichever copy holds it; the other is written again where that is possible."""
    record, whole, damage = None, b"", None
    bad: list[str] = []
    for path in layout.record_paths(root):
        try:
            data = host.files.read(path, _RECORD_LIMIT_BYTES)
            if data is None:
                bad.append(path)
                continue
            found, _ = decode(data, RepositoryRecord)
        except NewerMajor as error:
            raise errors.NotARepository(
                f"{root} was written by a newer Diskyard (format {error})."
            ) from error
        except (Damaged, OSError) as error:
            damage = error
            bad.append(path)
            continue
        if found.format != FORMAT:
            raise errors.NotARepository(f"{root} is a {found.format} repository, not {FORMAT}.")
        if record is None:
            record, whole = found, data
    if record is not None:
        for path in bad:
            _rewrite_record(host, root, path, whole)
        return record
    raise _unreadable(root, damage)


def _unreadable(root: str, damage: Exception | None) -> Exception:
    if damage is None or (isinstance(damage, OSError) and damage.errno in _NO_PATH):
        return errors.NotARepository(f"{root} is not a {FORMAT} repository.")
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
                files.replace(path, whole)
        finally:
            lease.release()


def remove(repository: LocalRepository, host: Host) -> None:
    """Remove a repository whose log is closed: all its names but that of its folder.

    While the record is there a removal that was cut short can be repeated. A crash after it
    is gone leaves a closed log that is no repository; creating one there finishes the removal.
    """
    root = repository.place
    files = host.files
    lease = repository.try_lock("create")
    if lease is None:
        raise errors.RepositoryInUse(f"Another process creates, connects or removes {root}.")
    try:
        for folder in (layout.VOLUMES, layout.PROGRESS, layout.TEMPORARY):
            _remove_all(host, os.path.join(root, folder))
        for path in layout.record_paths(root):
            if files.exists(path):
                files.unlink(path)
        files.sync_folder(root)
        _remove_rest(host, root)
    finally:
        lease.release()


def _remove_rest(host: Host, root: str) -> None:
    files = host.files
    _empty_folders(host, root)
    for folder in layout.FOLDERS:
        files.remove_folder(os.path.join(root, folder))
    interrupted = [item.name for item in files.list(root) if temporary_owner(item.name)]
    for name in (*interrupted, layout.LOCKS, layout.RESERVE):
        files.unlink(os.path.join(root, name))
    files.sync_folder(root)


def _empty_folders(host: Host, root: str) -> None:
    """Remove what is in a removed repository's folders; the entry that says so goes last."""
    for folder in layout.FOLDERS:
        if folder != layout.LOG:
            _remove_all(host, os.path.join(root, folder))
    log = os.path.join(root, layout.LOG)
    for name in sorted(item.name for item in host.files.list(log)):
        with contextlib.suppress(FileNotFoundError):
            host.files.unlink(os.path.join(log, name))
            host.files.sync_folder(log)


def _was_being_removed(host: Host, root: str) -> bool:
    """Whether a log without a repository's record ends in the entry that closed it."""
    numbers = [layout.log_number(item.name) for item in host.files.list(os.path.join(root, layout.LOG))]
    newest = max((number for number in numbers if number is not None), default=0)
    for path in layout.log_paths(root, "entry", newest):
        with contextlib.suppress(Damaged, NewerMajor):
            entry, _ = decode(host.files.read(path, ENTRY_LIMIT_BYTES) or b"", Entry)
            return entry.number == newest and entry.changes.closes
    return False


def _remove_all(host: Host, folder: str) -> None:
    """Remove every name in a folder; another process may be removing some of them."""
    for item in host.files.list(folder):
        with contextlib.suppress(FileNotFoundError):
            host.files.unlink(os.path.join(folder, item.name))
