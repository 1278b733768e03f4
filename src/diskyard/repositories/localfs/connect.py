"""Creating, connecting and removing a localfs repository."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diskyard import errors
from diskyard.host import Host
from diskyard.host.files import temporary_owner
from diskyard.host.identity import new_nonce
from diskyard.leases.local import LocalLeases
from diskyard.log.codec import Damaged, NewerMajor, RepositoryRecord, decode, encode
from diskyard.log.genesis import genesis
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


def _root(parameters: Mapping[str, Any]) -> str:
    """The one connection parameter, ``path``, with links resolved.

    :raises diskyard.errors.InvalidParameter: it is not an absolute path, or not all there is.
    """
    path = parameters.get("path")
    if set(parameters) != {"path"} or not isinstance(path, str):
        raise errors.InvalidParameter(f"{FORMAT} takes exactly one connection parameter: path.")
    if not os.path.isabs(path) or "\0" in path or len(path.encode(errors="replace")) > 3072:
        raise errors.InvalidParameter("path must be an absolute path of at most 3,072 bytes.")
    try:
        return os.path.realpath(path)
    except (OSError, ValueError) as error:
        raise errors.InvalidParameter(f"path cannot be resolved: {error}.") from error


def create(parameters: Mapping[str, Any], host: Host) -> None:
    """Make an empty repository in a folder that is empty or does not exist, durably.

    The last step publishes the repository's own record; a crash before it leaves folders
    that are no repository, and that creating again completes.

    :raises diskyard.errors.NotEmpty: the folder holds something.
    """
    root = _root(parameters)
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
    if not files.exists(root):
        files.make_folder(root)
        files.sync_folder(os.path.dirname(root))
    _refuse_network(root)
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


def _seed(host: Host, root: str) -> None:
    """Write entry 0, checkpoint 0 and the repository's record; the caller has the lease.

    What an interrupted creation left, temporary files too, is removed first: with the lease,
    and as long as there is no record, nobody else can be at work here.
    """
    files = host.files
    if any(files.exists(path) for path in layout.record_paths(root)):
        raise errors.NotEmpty(f"{root} is a repository already.")
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


def _refuse_network(root: str) -> None:
    device = os.stat(root).st_dev
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
    root = _root(parameters)
    try:
        record = _read_record(host, root)
        _refuse_network(root)
        return LocalRepository(host, root, record.marker)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise errors.NotARepository(f"{root} is not a {FORMAT} repository.") from error
    except OSError as error:
        raise errors.from_os_error(error, f"connecting {root}") from error


def _read_record(host: Host, root: str) -> RepositoryRecord:
    damage = None
    for path in layout.record_paths(root):
        data = host.files.read(path, _RECORD_LIMIT_BYTES)
        if data is None:
            continue
        try:
            record, _ = decode(data, RepositoryRecord)
        except Damaged as error:
            damage = f"{path}: {error}"
            continue
        except NewerMajor as error:
            raise errors.NotARepository(
                f"{root} was written by a newer Diskyard (format {error})."
            ) from error
        if record.format != FORMAT:
            raise errors.NotARepository(f"{root} is a {record.format} repository, not {FORMAT}.")
        return record
    if damage is not None:
        raise errors.CorruptRecord(f"The record of the repository cannot be read: {damage}.")
    raise errors.NotARepository(f"{root} is not a {FORMAT} repository.")


def remove(repository: LocalRepository, host: Host) -> None:
    """Remove a repository without images: all its names, and its folder unless it cannot be.

    The record goes first: a crash leaves folders that are no repository.
    """
    root = repository.place
    files = host.files
    for path in layout.record_paths(root):
        if files.exists(path):
            files.unlink(path)
    files.sync_folder(root)
    for folder in layout.FOLDERS:
        path = os.path.join(root, folder)
        for item in files.list(path):
            files.unlink(os.path.join(path, item.name))
        files.remove_folder(path)
    for name in (layout.LOCKS, layout.RESERVE):
        files.unlink(os.path.join(root, name))
    files.sync_folder(root)
