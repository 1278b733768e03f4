"""The log of a localfs repository: each object is two files, which get their names when they are durable."""

from __future__ import annotations

import contextlib
import errno
import os

from diskyard.host import Host
from diskyard.host.publishing import UncertainError, is_full, publish
from diskyard.log.codec import CHECKPOINT_LIMIT_BYTES, ENTRY_LIMIT_BYTES, may_be_whole
from diskyard.log.entries import nonce_of
from diskyard.log.store import Copies, LogKind
from diskyard.model.transaction import Frees
from diskyard.storage.localfs import layout
from diskyard.storage.localfs.access import Follower
from diskyard.storage.localfs.place import read_only_because
from diskyard.storage.localfs.reserve import Reserve

_LIMITS_BYTES: dict[LogKind, int] = {
    "entry": ENTRY_LIMIT_BYTES,
    "checkpoint": CHECKPOINT_LIMIT_BYTES,
}
_UNREADABLE = frozenset(
    (
        errno.EIO,
        errno.EUCLEAN,
        errno.EBADMSG,
        errno.ELOOP,
        errno.EISDIR,
        errno.EINVAL,
        errno.ENXIO,
        errno.EFBIG,  # longer than any object of its kind
    )
)


class LocalLogStore:
    """The :class:`diskyard.log.store.LogStore` of a localfs repository, as files below one directory.

    :param root: the directory, absolute and without links.
    """

    def __init__(self, host: Host, root: str, marker: str) -> None:
        self._files = host.files
        self._host = host
        self.place = root
        self.marker = marker
        self._follower = Follower(host, root)
        self._reserve = Reserve(self._files, root, self._follower)

    def _folder(self, name: str) -> str:
        return os.path.join(self.place, name)

    def read_only_because(self) -> str | None:
        """Why the log's directory, or its file system, cannot be written to now; None if it can."""
        return read_only_because(self._host, self._folder(layout.LOG))

    def put(self, kind: LogKind, number: int, data: bytes, *, frees: Frees = Frees.NOTHING) -> bool:
        """Link both copies to their names; see the interface."""
        paths = layout.log_paths(self.place, kind, number)
        # Copy 0 decides. Copy 1 can exist alone if copy 0 was lost to damage.
        if self._files.exists(paths[1]):
            return False
        self._reserve.refill_if_used()

        def overruled() -> bool:  # both checkpoints of one number hold the same state
            return kind == "entry" and self._is_anothers(number, data)

        try:
            spare = self._reserve.spare() if frees else None
            make = self._follower.making(paths[0], data)
            return publish(self._files, paths, data, make=make, spare=spare, overruled=overruled)
        except UncertainError:
            raise  # it may exist: another try would take our own entry for another's
        except OSError as error:
            if not is_full(error) or not frees:
                raise
        return self._reserve.publish(paths, data, frees, overruled)

    def _is_anothers(self, number: int, data: bytes) -> bool:
        """Whether another host's entry was there first, and its copy 0 was lost after our check.

        If so, that copy, which is ours now, is replaced by the other host's: renamed over, and never absent.
        """
        path = layout.log_paths(self.place, "entry", number)[1]
        there = self._read_copy(path, ENTRY_LIMIT_BYTES)
        if not there or there == data:
            return False  # gone or damaged; or ours, written by another process that noticed it was missing
        if nonce_of(there, self.marker, number) is None:
            return False
        self.rewrite("entry", number, 0, there)
        return True

    def get(self, kind: LogKind, number: int) -> Copies:
        """Both copies. A copy is b"" if its name leads to something that cannot be read."""
        first, second = layout.log_paths(self.place, kind, number)
        limit_bytes = _LIMITS_BYTES[kind]
        return self._read_copy(first, limit_bytes), self._read_copy(second, limit_bytes)

    def _read_copy(self, path: str, limit_bytes: int) -> bytes | None:
        try:
            return self._files.read(path, limit_bytes, may_be=may_be_whole)
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise  # an error of this process or the connection says nothing about the copy
            return b""

    def has(self, kind: LogKind, number: int) -> bool:
        """Whether one of the two names exists."""
        names = [os.path.basename(path) for path in layout.log_paths(self.place, kind, number)]
        return any(self._files.look_at(layout.log_folder(self.place, kind), names))

    def numbers(self, kind: LogKind) -> dict[int, float]:
        """The numbers of all objects, each with the age of its younger copy."""
        now_s = self._host.clock.wall_s()
        ages: dict[int, float] = {}
        for item in self._files.list(layout.log_folder(self.place, kind), layout.log_number):
            number = layout.log_number(item.name)
            if number is not None:
                age_s = now_s - item.modified_s
                ages[number] = min(age_s, ages.get(number, age_s))
        return ages

    def newest_number(self, kind: LogKind) -> int:
        """The highest number in a name; no file is opened."""
        return layout.newest_number(self._files.names(layout.log_folder(self.place, kind)))

    def rewrite(self, kind: LogKind, number: int, copy: int, data: bytes) -> None:
        """Rename a new copy over the old one."""
        path = layout.log_paths(self.place, kind, number)[copy]
        if self._files.is_folder(path):
            self._files.remove_folder(path)  # only an empty one; the other copy is whole
        try:
            self._files.replace(path, data, make=self._follower.making(path, data))
        except OSError as error:
            if not is_full(error):
                raise
            # No entry can follow one that has a single copy, so nothing could ever free space.
            self._reserve.replace(path, data)

    def delete(self, kind: LogKind, number: int) -> None:
        """Unlink both copies. The directory is synced, so that lower numbers are durably gone first."""
        for path in layout.log_paths(self.place, kind, number):
            with contextlib.suppress(FileNotFoundError):
                if self._files.is_folder(path):
                    self._files.remove_folder(path)
                else:
                    self._files.unlink(path)
        self._files.sync_folder(layout.log_folder(self.place, kind))
        self._reserve.refill_if_used()

    def sync_log(self) -> None:
        """Sync the entries' directory. Their contents were durable before they had names."""
        self._files.sync_folder(self._folder(layout.LOG))
