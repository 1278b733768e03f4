"""The file system below a localfs repository: whether it is suitable, and what it can do."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from diskyard import errors
from diskyard.host import Host
from diskyard.model.capabilities import Capabilities
from diskyard.model.records import IMAGE_SIZE_LIMIT_BYTES
from diskyard.storage.localfs import layout

#: As the kernel names them. The list has none that another machine could write to as well, since that would
#: not see this machine's locks. An overlay is judged by the layer that is written to. If this process cannot
#: see that layer, as in a container, it is accepted: the kernel refuses network file systems as such layers.
LOCAL_FILE_SYSTEMS = frozenset(
    (
        "bcachefs",
        "btrfs",
        "ext2",
        "ext3",
        "ext4",
        "f2fs",
        "jfs",
        "overlay",
        "reiserfs",
        "tmpfs",
        "xfs",
        "zfs",
    )
)
SHARED_BY_ONE_HOST = "sharedByOneHost"
_PROBE_BYTES = 4096  # one block; btrfs clones nothing shorter
_NEVER = frozenset((errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.ENOLCK))
_ADVICE = "Use a directory of a local file system that can, such as ext4, XFS or btrfs."


def require_local(host: Host, root: str, *, shared_by_one_host: bool) -> None:
    """Refuse a file system that other machines may write to as well, or whose kind is not known.

    :param shared_by_one_host: the caller vouches that only one host uses it.
    :raises diskyard.errors.Unsupported: names the file system.
    """
    kind = host.files.file_system(root)
    if kind in LOCAL_FILE_SYSTEMS or shared_by_one_host:
        return
    raise errors.Unsupported(
        f"{root} is on a file system of the kind {kind or 'unknown'}, which is not known to be local: "
        "another host that writes to it would not see this host's locks.",
        advice="Use a directory of a local file system, such as ext4, XFS or btrfs. If no other host ever "
        f"uses the repository, connect it with {SHARED_BY_ONE_HOST}=true.",
    )


def require_folders(host: Host, root: str) -> None:
    """Refuse a repository in which a directory is a link: it could lead to something that is not ours.

    From then on the host door refuses a link in a directory's place (:meth:`Files.refuse_links_in`).

    :raises diskyard.errors.CorruptRecord: names what is wrong.
    """
    for folder in layout.FOLDERS:
        path = os.path.join(root, folder)
        if not host.files.is_folder(path):
            raise errors.CorruptRecord(
                f"{path} is missing, or is not a directory, so the repository cannot be used.",
                advice="Put the directory back; an empty one will do for progress and temporary.",
            )


def require_able(host: Host, root: str, folder: str) -> None:
    """Refuse a file system that lacks a call which keeps a repository whole.

    :param folder: the directory for the tests, which leave nothing behind.
    :raises diskyard.errors.Unsupported: names the call that it lacks.
    """
    first, second = (host.files.temporary_path(folder) for _ in range(2))
    with contextlib.suppress(OSError):  # the storage is full or fails: a later write will report it
        sync_folder(host, root)
        if read_only_because(host, folder) is not None:
            return  # nothing will be written or locked
        try:
            fd = host.files.create(first)
            try:
                with _needed(root, "lock single bytes of a file (OFD locks)"):
                    host.files.try_lock_byte(fd, 0)
            finally:
                os.close(fd)
            with _needed(root, "give a file a second name (hard links)"):
                host.files.link(first, second)
        finally:
            host.files.discard(first)
            host.files.discard(second)


def sync_folder(host: Host, folder: str) -> None:
    """Make the names in a directory durable.

    :raises diskyard.errors.Unsupported: the file system can never do that.
    """
    with _needed(folder, "make the names in a directory durable (fsync)"):
        host.files.sync_folder(folder)


@contextlib.contextmanager
def _needed(root: str, words: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NEVER:
            raise
        raise errors.Unsupported(f"The file system of {root} cannot {words}.", advice=_ADVICE) from error


def read_only_because(host: Host, folder: str) -> str | None:
    """Why nothing in a repository's directory can be changed now, for people; None if it can."""
    try:
        if host.files.may_write(folder):
            return None
        if host.files.is_read_only(folder):
            return "its file system is mounted read-only"
    except OSError:
        return None  # a write will report it
    return "this user may not write to it"


def capabilities_of(host: Host, root: str) -> Capabilities:
    """What the location can do."""
    longest_bytes = IMAGE_SIZE_LIMIT_BYTES
    with contextlib.suppress(OSError):  # something else has the name, which is reported once a lock is needed
        longest_bytes = host.files.longest_file_bytes(os.path.join(root, layout.LOCKS), longest_bytes)
    return Capabilities(
        reflink=_can_reflink(host, os.path.join(root, layout.TEMPORARY)),
        preallocation=True,
        zeroed=True,
        enforced_leases=True,
        longest_bytes=None if longest_bytes >= IMAGE_SIZE_LIMIT_BYTES else longest_bytes,
    )


def _can_reflink(host: Host, folder: str) -> bool:
    """Whether files here can share blocks. This is found by trying."""
    files = host.files
    if read_only_because(host, folder) is not None:
        return False  # nothing will be written
    source, target = (files.temporary_path(folder) for _ in range(2))
    try:
        with contextlib.ExitStack() as opened:
            # Nothing is synced: the files exist only for this test, and syncs would make connecting slow.
            source_fd = files.create(source)
            opened.callback(os.close, source_fd)
            files.write(source_fd, b"\1" * _PROBE_BYTES)
            target_fd = files.create(target)
            opened.callback(os.close, target_fd)
            files.clone(source_fd, target_fd)
        return True
    except OSError:
        return False  # it cannot, or the storage is full, which a later write will report
    finally:
        files.discard(source)
        files.discard(target)
