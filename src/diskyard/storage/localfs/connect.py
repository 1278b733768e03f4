"""Creating and connecting a localfs repository."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

from diskyard import errors
from diskyard.host import FileEntry, Host
from diskyard.host.identity import new_nonce
from diskyard.host.ownership import Grant
from diskyard.host.publishing import publish
from diskyard.host.temporary import temporary_owner
from diskyard.log.codec import (
    ENTRY_LIMIT_BYTES,
    Damaged,
    NewerMajor,
    RepositoryRecord,
    decode,
    encode,
)
from diskyard.log.entries import place_digest
from diskyard.log.genesis import genesis
from diskyard.model.transaction import Entry
from diskyard.storage.leases import LocalLeases
from diskyard.storage.localfs import layout
from diskyard.storage.localfs.access import ASKED_ONCE, Access, Follower, access_asked
from diskyard.storage.localfs.place import (
    SHARED_BY_ONE_HOST,
    require_able,
    require_folders,
    require_local,
    sync_folder,
)
from diskyard.storage.localfs.record import read_record
from diskyard.storage.localfs.remove import empty_folders, is_ours
from diskyard.storage.localfs.reserve import Reserve
from diskyard.storage.localfs.storage import LocalStorage

FORMAT = "localfs-1.0"
_NO_PATH = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP))


def _root(parameters: Mapping[str, Any], host: Host, others: Collection[str] = ()) -> tuple[str, bool]:
    """The directory of the parameter ``path``, with links resolved, and ``sharedByOneHost``.

    :param others: other parameters that are allowed.
    :raises diskyard.errors.InvalidParameter: a parameter does not have its form, or is not allowed.
    """
    path, shared = parameters.get("path"), parameters.get(SHARED_BY_ONE_HOST, False)
    if not {"path"} <= set(parameters) <= {"path", SHARED_BY_ONE_HOST, *others} or not isinstance(path, str):
        raise errors.InvalidParameter(
            f"{FORMAT} takes the connection parameter path, and may be given {SHARED_BY_ONE_HOST}; when it "
            f"is created also {', '.join(ASKED_ONCE)}."
        )
    if not isinstance(shared, bool):
        raise errors.InvalidParameter(f"{SHARED_BY_ONE_HOST} must be true or false.")
    if not os.path.isabs(path) or "\0" in path or len(path.encode(errors="replace")) > 3072:
        raise errors.InvalidParameter("path must be an absolute path of at most 3,072 bytes.")
    try:
        root = host.files.resolve(path)
    except (OSError, ValueError) as error:
        raise errors.InvalidParameter(f"path cannot be resolved: {error}.") from error
    return root, shared


def folder_of(parameters: Mapping[str, Any], host: Host) -> str:
    """The directory of a repository, with links resolved; it need not exist.

    :param parameters: those of :func:`connect` or of :func:`create`.
    :raises diskyard.errors.InvalidParameter: the parameters do not have their form.
    """
    return _root(parameters, host, ASKED_ONCE)[0]


def create(parameters: Mapping[str, Any], host: Host) -> None:
    """Call :func:`create_in` for the directory that the parameters lead to now."""
    create_in(folder_of(parameters, host), parameters, host)


def create_in(root: str, parameters: Mapping[str, Any], host: Host) -> None:
    """Make an empty repository in a directory that is empty or does not exist, durably.

    The last step publishes the repository's own record. A crash before it leaves directories
    that are not a repository yet; creating it again completes them.

    :param root: the directory that :func:`folder_of` returned. A link put on the way since is refused.
    :param parameters: those of :func:`connect`, and who may use the repository (:mod:`.access`): ``owner``,
        ``group`` and ``mode``.
    :raises diskyard.errors.NotEmpty: the directory holds something.
    :raises diskyard.errors.InvalidParameter: the directory cannot be made, as the one above does not exist.
    """
    shared = bool(parameters.get(SHARED_BY_ONE_HOST, False))
    access = access_asked(parameters)
    try:
        with host.files.no_links_to(root):
            _create(root, access, host, shared_by_one_host=shared)
    except OSError as error:
        raise errors.from_os_error(error, f"creating a repository in {root}") from error


def _create(root: str, access: Access, host: Host, *, shared_by_one_host: bool) -> None:
    is_new = _make_root(host, root, access)
    require_local(host, root, shared_by_one_host=shared_by_one_host)
    was_begun = bool(_require_empty(host, root))
    require_able(host, root, root)
    with _may_give(access):
        if was_begun or (access.is_given and not is_new):
            host.files.give_folder(root, access.of_folder(""), layout.is_of_root)
        _make_folders(host, root, access)
    lease = LocalLeases(host, os.path.join(root, layout.LOCKS)).try_lock("create")
    if lease is None:
        raise errors.NotEmpty(f"Another process is creating a repository in {root}.")
    try:
        _seed(host, root)
    finally:
        lease.release()


def _require_empty(host: Host, root: str) -> set[str]:
    """Refuse a directory that holds foreign files, before anything in it is touched.

    :returns: the names in it, which an interrupted creation or removal left.
    """
    _refuse_repository(host, root)
    items = [item for item in host.files.list(root) if temporary_owner(item.name) is None]
    if others := [item.name for item in items if not _may_be_ours(host, root, item)]:
        raise errors.NotEmpty(f"{root} is not empty: it holds {min(others)}.")
    return {item.name for item in items}


def _may_be_ours(host: Host, root: str, item: FileEntry) -> bool:
    """Whether a creation may have made this. A link with such a name may lead anywhere."""
    if item.name == layout.MADE_WITH_EXT:
        return True
    if item.is_file:
        return item.name in (layout.LOCKS, layout.RESERVE)  # an earlier version's reserve was a file
    is_named = item.name in (*layout.FOLDERS, layout.RESERVE)
    return is_named and host.files.is_folder(os.path.join(root, item.name))


@contextlib.contextmanager
def _may_give(access: Access) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        if error.errno != errno.EPERM or access.user_id is access.group_id is None:
            raise
        raise errors.InvalidParameter(
            f"This user may not give the repository to that {ASKED_ONCE[access.user_id is None]}.",
            advice="Only root may give it to another user; all others may give it to a group of theirs.",
        ) from error


def _make_folders(host: Host, root: str, access: Access) -> None:
    files = host.files
    names = _require_empty(host, root)
    for folder in layout.FOLDERS:
        path, grant = os.path.join(root, folder), access.of_folder(folder)
        if folder in names:
            files.give_folder(path, grant, partial(is_ours, folder))
        else:
            files.make_folder(path, grant)
    locks_grant = access.of_locks() if access.is_given else None
    locks = os.path.join(root, layout.LOCKS)
    if layout.LOCKS in names:
        _give_empty(host, locks, locks_grant)
    else:
        fd = files.create(locks, grant=locks_grant)
        try:
            files.sync(fd)
        finally:
            os.close(fd)
    Reserve(files, root, Follower(host, root)).fill()
    files.sync_folder(root)


def _give_empty(host: Host, locks: str, grant: Grant | None) -> None:
    """Set the owner and mode of a lock file that an interrupted creation left.

    :raises diskyard.errors.NotEmpty: it is not empty, or has another name too, and so may be any file.
    """
    try:
        fd = host.files.open_alone(locks, writable=True)
    except errors.UnsafeImage as error:
        raise errors.NotEmpty(error.message, advice=error.advice) from error
    try:
        if host.files.size_bytes_of(fd):
            raise errors.NotEmpty(f"{locks} is not a lock file that a creation left: it is not empty.")
        if grant is not None:
            host.files.give(fd, grant)
    finally:
        os.close(fd)


def _make_root(host: Host, root: str, access: Access) -> bool:
    """Make the repository's own directory, unless it exists. Those above it are never made.

    :returns: whether it was made.
    :raises diskyard.errors.InvalidParameter: there can be no directory with this name.
    """
    files = host.files
    try:
        if not files.exists(root):
            with _may_give(access):
                files.make_folder(root, access.of_folder(""))
            sync_folder(host, os.path.dirname(root))
            return True
        if not files.is_folder(root):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), root)
        return False
    except OSError as error:
        if error.errno not in _NO_PATH:
            raise
        raise errors.InvalidParameter(
            f"No directory can be made at {root}: {error.strerror or error}.",
            advice="Use a path in an existing directory.",
        ) from error


def _refuse_repository(host: Host, root: str) -> None:
    if any(host.files.exists(path) for path in layout.record_paths(root)):
        raise errors.NotEmpty(f"{root} is a repository already.")


def _seed(host: Host, root: str) -> None:
    """Write entry 0, checkpoint 0 and the repository's record. The caller holds the lease.

    What an interrupted creation left, temporary files included, is removed first. Nobody else can be at
    work here: the caller has the lease, and there is no record.
    """
    files = host.files
    _refuse_repository(host, root)
    if _was_being_removed(host, root):
        empty_folders(host, root)
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
    _, place_identity = files.identities_of(os.path.join(root, layout.LOCKS))
    record = RepositoryRecord(marker=new_nonce(), format=FORMAT, place=place_digest(place_identity))
    entry, checkpoint = genesis(record.marker, host)
    follower = Follower(host, root)
    for paths, data in (
        (layout.log_paths(root, "entry", 0), entry),
        (layout.log_paths(root, "checkpoint", 0), checkpoint),
        (layout.record_paths(root), encode(record)),
    ):
        publish(files, paths, data, make=follower.making(paths[0], data))


def connect(parameters: Mapping[str, Any], host: Host) -> LocalStorage:
    """Connect the repository in a directory.

    :raises diskyard.errors.NotARepository: there is none, or a newer version made it.
    """
    root, shared = _root(parameters, host)
    try:
        with host.files.no_links_to(root):
            record = read_record(host, root, FORMAT)
            require_local(host, root, shared_by_one_host=shared)
            require_folders(host, root)
            require_able(host, root, os.path.join(root, layout.TEMPORARY))
            host.files.refuse_links_in(root)
            return LocalStorage(host, root, record)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise errors.NotARepository(f"{root} is not a {FORMAT} repository.") from error
    except OSError as error:
        raise errors.from_os_error(error, f"connecting {root}") from error


def _was_being_removed(host: Host, root: str) -> bool:
    """Whether a log without a repository's record ends with the entry that closed it."""
    numbers = [layout.log_number(item.name) for item in host.files.list(os.path.join(root, layout.LOG))]
    newest = max((number for number in numbers if number is not None), default=0)
    for path in layout.log_paths(root, "entry", newest):
        with contextlib.suppress(Damaged, NewerMajor):
            entry, _ = decode(host.files.read(path, ENTRY_LIMIT_BYTES) or b"", Entry)
            if entry.number == newest and entry.changes.closes:
                return True
    return False
