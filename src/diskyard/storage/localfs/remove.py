"""Removing a localfs repository: only Diskyard's own files, recognised by their names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator

from diskyard import errors
from diskyard.host import FileEntry, Host
from diskyard.host.temporary import temporary_owner
from diskyard.model.volume_name import VolumeName
from diskyard.storage.localfs import layout
from diskyard.storage.localfs.foreign import list_foreign
from diskyard.storage.localfs.place import require_folders
from diskyard.storage.localfs.reserve import is_of_reserve
from diskyard.storage.localfs.storage import LocalStorage

_NAMED_MOST = 10


def _is_volume(name: str) -> bool:
    return VolumeName.parse(name) is not None


def _is_log_object(name: str) -> bool:
    return layout.log_number(name) is not None


_OURS: dict[str, Callable[[str], bool]] = {
    layout.VOLUMES: _is_volume,
    layout.PROGRESS: lambda name: layout.image_id(name) is not None,
    layout.TEMPORARY: lambda _: False,  # temporary files may be in any directory, and are checked apart
    layout.CHECKPOINTS: _is_log_object,
    layout.LOG: _is_log_object,
    layout.RESERVE: is_of_reserve,
}


def is_ours(folder: str, name: str) -> bool:
    """Whether one of Diskyard's files in this directory may have this name."""
    return _OURS[folder](name) or temporary_owner(name) is not None


def require_removable(repository: LocalStorage, host: Host) -> None:
    """Refuse to remove a repository that contains foreign files.

    :raises diskyard.errors.NotEmpty: names them.
    :raises diskyard.errors.CorruptRecord: one of its directories is missing, or a link.
    """
    root = repository.place
    require_folders(host, root)
    found = [item.name for item in list_foreign(host.files, root)]
    for folder in _OURS:
        if folder != layout.VOLUMES and host.files.is_folder(os.path.join(root, folder)):
            found += [os.path.join(folder, item.name) for item in _split(host, root, folder)[1]]
    _require_nothing(root, found)


def remove(repository: LocalStorage, host: Host) -> None:
    """Remove a repository whose log is closed: everything but its own directory.

    While the record exists, an interrupted removal can be repeated. A crash after the record is gone leaves
    a closed log that is not a repository; creating a repository there finishes the removal.

    :raises diskyard.errors.NotEmpty: it contains foreign files. They stay, and removing the repository can
        be repeated.
    """
    root = repository.place
    files = host.files
    lease = repository.try_lock("create")
    if lease is None:
        raise errors.RepositoryInUse(f"Another process creates, connects or removes {root}.")
    try:
        require_removable(repository, host)  # once more: after this it cannot be checked any more
        for folder in (layout.VOLUMES, layout.PROGRESS, layout.TEMPORARY):
            _remove_all(host, root, folder)
        for path in layout.record_paths(root):
            if files.exists(path):
                files.unlink(path)
        files.sync_folder(root)
        _remove_rest(host, root)
    finally:
        lease.release()


def _remove_rest(host: Host, root: str) -> None:
    files = host.files
    empty_folders(host, root)
    for folder in layout.FOLDERS:
        files.remove_folder(os.path.join(root, folder))
    _remove_reserve(host, root)
    interrupted = [item.name for item in files.list(root) if temporary_owner(item.name)]
    for name in (*interrupted, layout.LOCKS):
        files.unlink(os.path.join(root, name))
    files.sync_folder(root)


def _remove_reserve(host: Host, root: str) -> None:
    """Remove the reserve, which was a single file in an earlier version."""
    files = host.files
    path = os.path.join(root, layout.RESERVE)
    if files.is_folder(path):
        ours, others = _split(host, root, layout.RESERVE)
        _require_nothing(root, [os.path.join(layout.RESERVE, item.name) for item in others])
        files.drop_room(path, [item.name for item in ours])
        files.remove_folder(path)
    elif files.exists(path):
        files.unlink(path)


def empty_folders(host: Host, root: str) -> None:
    """Remove everything in a removed repository's directories. The entry that closed it goes last.

    :raises diskyard.errors.NotEmpty: there are foreign files too, which stay.
    """
    for folder in layout.FOLDERS:
        if folder != layout.LOG:
            _remove_all(host, root, folder)
    log = os.path.join(root, layout.LOG)
    ours, others = _split(host, root, layout.LOG)
    _require_nothing(root, [os.path.join(layout.LOG, item.name) for item in others])
    for name in sorted((item.name for item in ours), key=lambda name: (_is_log_object(name), name)):
        with contextlib.suppress(FileNotFoundError):
            host.files.unlink(os.path.join(log, name))
            host.files.sync_folder(log)


def _remove_all(host: Host, root: str, folder: str) -> None:
    """Remove every name in a directory that is ours. Another process may be removing some of them too.

    :raises diskyard.errors.NotEmpty: there are foreign files, which stay.
    """
    ours, others = _split(host, root, folder)
    for item in ours:
        with contextlib.suppress(FileNotFoundError):
            host.files.unlink(os.path.join(root, folder, item.name))
    _require_nothing(root, [os.path.join(folder, item.name) for item in others])


def _split(host: Host, root: str, folder: str) -> tuple[list[FileEntry], list[FileEntry]]:
    """The contents of a directory: the files with names of ours, and everything else."""
    ours: list[FileEntry] = []
    others: list[FileEntry] = []
    for item in host.files.list(os.path.join(root, folder)):
        (ours if is_ours(folder, item.name) and item.is_file else others).append(item)
    return ours, others


def _require_nothing(root: str, found: Iterable[str]) -> None:
    names = sorted(found)
    if names:
        raise errors.NotEmpty(
            f"{root} holds files that are not Diskyard's: {', '.join(_for_people(names))}.",
            advice="Only people can decide whether they are needed: move them elsewhere or delete them, then "
            "remove the repository again.",
        )


def _for_people(names: list[str]) -> Iterator[str]:
    """Some of the names, as text. On the storage they may be any bytes."""
    for name in names[:_NAMED_MOST]:
        yield os.fsencode(name).decode(errors="backslashreplace")
    if len(names) > _NAMED_MOST:
        yield f"and {len(names) - _NAMED_MOST} more"
