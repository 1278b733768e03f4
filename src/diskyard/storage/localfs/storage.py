"""One localfs repository: the interface's methods as files in a directory."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager

from diskyard.host import FileEntry, Files, Host, made_s, provably_gone
from diskyard.host.container import Container, open_file
from diskyard.host.temporary import temporary_owner
from diskyard.log.codec import RepositoryRecord
from diskyard.model.volume_name import VolumeName
from diskyard.storage.interface import (
    Capacity,
    Foreign,
    Leftover,
    Located,
    StoredVolume,
)
from diskyard.storage.leases import LocalLease, LocalLeases
from diskyard.storage.localfs import layout
from diskyard.storage.localfs.foreign import list_foreign
from diskyard.storage.localfs.log_store import LocalLogStore
from diskyard.storage.localfs.place import capabilities_of
from diskyard.storage.localfs.record import origin_of

_PROGRESS_LIMIT_BYTES = 64 << 10
_LOOKED_AT_ONCE = 256
_CANNOT_CLONE = frozenset((errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS))


def _stored(name: VolumeName, item: FileEntry) -> StoredVolume:
    return StoredVolume(name, item.size_bytes, item.allocated_bytes, item.stamp)


def _identities(files: Files, root: str) -> tuple[str, str]:
    """The identities of the lock file, which is never replaced or removed. If it was lost, the directory's.

    No other location has these, so this one is neither taken for another, nor for what it was before. Its
    contents can still be read; callers that need a lease get an error that names the missing file.
    """
    try:
        return files.identities_of(os.path.join(root, layout.LOCKS))
    except FileNotFoundError:
        return files.identities_of(root)


class LocalStorage(LocalLogStore):
    """Files below one directory; the layout is in ``docs/format.md``.

    :param root: the directory, absolute and without links.
    """

    def __init__(self, host: Host, root: str, record: RepositoryRecord) -> None:
        super().__init__(host, root, record.marker)
        self.identity, self.place_identity = _identities(self._files, root)
        self.made_s = made_s(self.place_identity)
        self.marker_origin = origin_of(record, self.place_identity)
        self._volumes = os.path.join(root, layout.VOLUMES)
        self._leases = LocalLeases(host, os.path.join(root, layout.LOCKS))
        self.capabilities = capabilities_of(host, root)

    # -- volumes -----------------------------------------------------------------------------

    def _volume_path(self, name: VolumeName) -> str:
        return f"{self._volumes}/{name}"

    def _new_file(self, path: str, length_bytes: int, initial: bytes, *, preallocate: bool) -> None:
        fd = self._files.create(path, grant=self._follower.of_volume())
        try:
            if length_bytes > len(initial):
                self._files.truncate(fd, length_bytes)
            if preallocate and length_bytes:
                self._files.preallocate(fd, length_bytes)
            if initial:
                self._files.write(fd, initial)
            self._files.sync(fd)
        finally:
            os.close(fd)

    def create_volume(
        self, name: VolumeName, *, length_bytes: int, initial: bytes = b"", preallocate: bool = False
    ) -> None:
        """Make the file. A crash leaves it absent or incomplete, under the name that the log has."""
        self._new_file(self._volume_path(name), length_bytes, initial, preallocate=preallocate)
        self._files.sync_folder(self._volumes)

    def clone_volume(self, source: VolumeName, target: VolumeName) -> bool:
        """Share the source's blocks (FICLONE) with a new file."""
        if not self._clone(self._volume_path(source), self._volume_path(target)):
            return False
        self._files.sync_folder(self._volumes)
        return True

    def _clone(self, source: str, target: str) -> bool:
        source_fd = self._files.open_alone(source, writable=True)
        try:
            target_fd = self._files.create(target, grant=self._follower.of_volume())
            try:
                self._files.clone(source_fd, target_fd)
                self._files.sync(target_fd)
            except OSError as error:
                if error.errno not in _CANNOT_CLONE:
                    raise
                self._files.unlink(target)
                return False
            finally:
                os.close(target_fd)
        finally:
            os.close(source_fd)
        return True

    def grow_volume(self, name: VolumeName, *, length_bytes: int, preallocate: bool = False) -> None:
        """Make the file longer. It is never made shorter."""
        fd = self._files.open_alone(self._volume_path(name), writable=True)
        try:
            if self._files.size_bytes_of(fd) < length_bytes:
                self._files.truncate(fd, length_bytes)
            if preallocate:
                self._files.preallocate(fd, length_bytes)
            self._files.sync(fd)
        finally:
            os.close(fd)

    def share_access(self, source: VolumeName, target: VolumeName) -> None:
        """Copy the file's owner, group, mode, access list and label."""
        source_fd = self._files.open_alone(self._volume_path(source))
        try:
            target_fd = self._files.open_alone(self._volume_path(target), writable=True)
            try:
                self._files.copy_access(source_fd, target_fd)
                self._files.sync(target_fd)
            finally:
                os.close(target_fd)
        finally:
            os.close(source_fd)

    def delete_volume(self, name: VolumeName) -> bool:
        """Unlink the file. Its blocks are free once the last process closes it.

        A directory that somebody put in its place is not ours, and stays.
        """
        try:
            self._files.unlink(self._volume_path(name))
        except (FileNotFoundError, IsADirectoryError):
            return False
        self._files.sync_folder(self._volumes)
        self._reserve.refill()
        return True

    def list_volumes(self) -> list[StoredVolume]:
        """One pass over the directory. Names of another form are not ours, and are left out."""
        names: dict[str, VolumeName] = {}

        def parse(text: str) -> VolumeName | None:
            name = VolumeName.parse(text)
            if name is not None:
                names[text] = name
            return name

        return [
            _stored(names[item.name], item) for item in self._files.list(self._volumes, parse) if item.is_file
        ]

    def stored_volume(self, name: VolumeName) -> StoredVolume | None:
        """The size and stamp of one file."""
        item = self._files.look(self._volume_path(name))
        return None if item is None or not item.is_file else _stored(name, item)

    def stored_volumes(self, names: Sequence[VolumeName]) -> list[StoredVolume | None]:
        """The sizes and stamps of the files, some hundreds per call, so that waiting callers see progress.

        It takes 2.7 µs to examine a file by its name, and 3.4 µs by listing the directory. So a page of
        images never lists it.
        """
        found: list[StoredVolume | None] = []
        for begin in range(0, len(names), _LOOKED_AT_ONCE):
            some = names[begin : begin + _LOOKED_AT_ONCE]
            items = self._files.look_at(self._volumes, [str(name) for name in some])
            found += [
                None if item is None or not item.is_file else _stored(name, item)
                for name, item in zip(some, items, strict=True)
            ]
        return found

    def locate_volume(self, name: VolumeName) -> Located:
        """The file's path."""
        path = self._volume_path(name)
        return Located({"driver": "file", "filename": path}, path)

    def open_volume(self, name: VolumeName) -> AbstractContextManager[Container]:
        """Open the file."""
        return open_file(self._files, self._volume_path(name))

    def read_volume(self, name: VolumeName, offset_bytes: int, size_bytes: int) -> bytes:
        """Read from the file; at offset 0 this takes half the time."""
        if offset_bytes == 0:
            return self._files.read_beginning(self._volume_path(name), size_bytes)
        return self._files.read_at(self._volume_path(name), offset_bytes, size_bytes)

    def volume_is_written(self, name: VolumeName) -> bool:
        """Whether QEMU's own locks on the file say so."""
        return self._files.name_is_written_by_qemu(self._volume_path(name))

    # -- small things beside the log -----------------------------------------------------------

    def _progress_path(self, image_id: str) -> str:
        return os.path.join(self._folder(layout.PROGRESS), image_id)

    def put_progress(self, image_id: str, data: bytes) -> None:
        """Replace the image's progress file."""
        path = self._progress_path(image_id)
        self._files.replace(path, data, make=self._follower.making(path, data))

    def get_progress(self, image_id: str) -> bytes | None:
        """The image's progress file."""
        return self._files.read(self._progress_path(image_id), _PROGRESS_LIMIT_BYTES)

    def remove_progress(self, image_id: str) -> None:
        """Unlink the image's progress file."""
        with contextlib.suppress(FileNotFoundError):
            self._files.unlink(self._progress_path(image_id))

    def progress_image_ids(self) -> list[str]:
        """The names in the progress directory that are image ids. Others are not ours."""
        return [item.name for item in self._files.list(self._folder(layout.PROGRESS), layout.image_id)]

    def _temporaries(self) -> Iterator[tuple[str, FileEntry]]:
        # The temporary files of the repository's own record are in the root.
        reserve = [layout.RESERVE] if self._files.is_folder(self._reserve.folder) else []
        for folder in ("", *layout.FOLDERS, *reserve):
            for item in self._files.list(self._folder(folder), temporary_owner):
                owner = temporary_owner(item.name) if item.is_file else None
                if owner is not None and provably_gone(owner, self._host.identity):
                    yield os.path.join(folder, item.name), item

    def list_leftovers(self) -> list[Leftover]:
        """Temporary files whose process has ended."""
        return [Leftover(name, item.allocated_bytes) for name, item in self._temporaries()]

    def list_foreign(self) -> list[Foreign]:
        """Foreign files in the repository's own directory, or among its volumes."""
        return list_foreign(self._files, self.place)

    def delete_leftover(self, name: str) -> bool:
        """Unlink one of these files."""
        if name not in {found for found, _ in self._temporaries()}:
            return False
        with contextlib.suppress(FileNotFoundError):
            self._files.unlink(self._folder(name))
        self._reserve.refill_if_used()
        return True

    def private_path(self) -> str | None:
        """A fresh name in the temporary directory."""
        return self._files.temporary_path(self._folder(layout.TEMPORARY))

    # -- leases, space, end ------------------------------------------------------------------------

    def try_lock(self, name: str) -> LocalLease | None:
        """Take an OFD lock on the byte of the lock file that stands for the name."""
        return self._leases.try_lock(name)

    def is_locked(self, name: str) -> bool:
        """Whether that byte is locked."""
        return self._leases.is_locked(name)

    def locked_among(self, names: Collection[str]) -> set[str]:
        """The names whose bytes are locked. The kernel lists all locks."""
        return self._leases.locked_among(names)

    def capacity(self) -> Capacity:
        """The file system's, as an unprivileged user sees it."""
        space = self._files.free_space(self.place)
        return Capacity(space.total_bytes, space.free_bytes)

    def close(self) -> None:
        """Nothing is open between calls. Leases stay with those that took them."""
