"""Faults on purpose: a door to the files that fails or crashes, and a repository that is watched.

``files`` of a :class:`~diskyard.host.Host` may be one of the doors here; a
:class:`WatchedStorage` stands in front of any other one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from diskyard.host import Files, Host
from diskyard.host.container import Container
from diskyard.log.store import Copies, LogKind
from diskyard.model.identity import HostIdentity
from diskyard.model.transaction import Frees
from diskyard.model.volume_name import VolumeName
from diskyard.storage.interface import (
    Capacity,
    Foreign,
    Leftover,
    Located,
    Storage,
    StoredVolume,
)

STEPS = (
    "create",
    "write",
    "truncate",
    "preallocate",
    "keep_room",
    "drop_room",
    "clone",
    "sync",
    "sync_folder",
    "make_folder",
    "link",
    "rename",
    "rename_to_new",
    "unlink",
    "remove_folder",
)
"""The primitives of the door to the files that change something."""


class Crash(BaseException):
    """The process counts as dead from here on. Only tests catch this."""


class SteppedFiles(Files):
    """A door that calls hooks before and after each change of the file system.

    :ivar steps: how many changes there were.
    """

    def __init__(self, host: HostIdentity) -> None:
        super().__init__(host)
        self.steps = 0

    def before(self, step: str, words: Sequence[object]) -> None:
        """The test's hook before a step; it may raise an error instead of the step."""

    def after(self, step: str, words: Sequence[object]) -> None:
        """The test's hook after a step; it may raise an error, as if the answer were lost."""


def _stepped(name: str) -> Callable[..., Any]:
    primitive = getattr(Files, name)

    def method(self: SteppedFiles, *words: Any, **named: Any) -> Any:
        self.steps += 1
        self.before(name, words)
        value = primitive(self, *words, **named)
        try:
            self.after(name, words)
        except BaseException:
            if name == "create":
                os.close(value)
            raise
        return value

    return method


for _name in STEPS:
    setattr(SteppedFiles, _name, _stepped(_name))


class CrashingFiles(SteppedFiles):
    """Crashes before the n-th step, counted from 1. Nothing is changed from then on."""

    def __init__(self, host: HostIdentity, crash_at: int) -> None:
        super().__init__(host)
        self._crash_at = crash_at

    def before(self, step: str, words: Sequence[object]) -> None:
        """Crash."""
        if self.steps >= self._crash_at:
            raise Crash(f"before step {self._crash_at}, {step}")


class FailingFiles(SteppedFiles):
    """Makes chosen steps fail with an error of the system.

    :param fails: gets a step and its arguments, and returns the errno to fail with, or None.
    :param afterwards: the step is made, and fails all the same.
    """

    def __init__(
        self,
        host: HostIdentity,
        fails: Callable[[str, Sequence[object]], int | None],
        *,
        afterwards: bool = False,
    ) -> None:
        super().__init__(host)
        self._fails = fails
        self._afterwards = afterwards

    def _fail(self, step: str, words: Sequence[object]) -> None:
        number = self._fails(step, words)
        if number is not None:
            raise OSError(number, os.strerror(number), *[str(word) for word in words[:1]])

    def before(self, step: str, words: Sequence[object]) -> None:
        """Fail instead of the step."""
        if not self._afterwards:
            self._fail(step, words)

    def after(self, step: str, words: Sequence[object]) -> None:
        """Fail although the step was made."""
        if self._afterwards:
            self._fail(step, words)


def no_space(step: str, words: Sequence[object]) -> int | None:
    """Let everything that needs space fail, as on a full storage."""
    return errno.ENOSPC if step in ("create", "write", "preallocate", "clone", "make_folder") else None


def with_files(host: Host, files: Files) -> Host:
    """The host with another door to its files."""
    return replace(host, files=files)


Hook = Callable[[str, Sequence[object]], None]
"""What a test runs around the calls of a repository, given method and words; it may raise."""


def nothing(method: str, words: Sequence[object]) -> None:
    """The hook that does nothing."""


class WatchedStorage(Storage):
    """A repository that calls a test's hooks before and after every call.

    :ivar before: called first; what it raises is raised instead of the call.
    :ivar after: called after the call; what it raises is raised as if the answer were lost.
    :ivar calls: the names of the methods called.
    """

    def __init__(self, inner: Storage) -> None:
        self.inner = inner
        self.marker, self.marker_origin = inner.marker, inner.marker_origin
        self.place, self.made_s = inner.place, inner.made_s
        self.identity, self.place_identity = inner.identity, inner.place_identity
        self.capabilities = inner.capabilities
        self.before: Hook = nothing
        self.after: Hook = nothing
        self.calls: list[str] = []

    def _call(self, method: str, *words: Any, **named: Any) -> Any:
        self.calls.append(method)
        self.before(method, words)
        value = getattr(self.inner, method)(*words, **named)
        self.after(method, words)
        return value

    def read_only_because(self) -> str | None:
        """The inner storage's answer. It is not watched, since it is needed before every change."""
        return self.inner.read_only_because()

    def put(self, kind: LogKind, number: int, data: bytes, *, frees: Frees = Frees.NOTHING) -> bool:
        """Watched."""
        return bool(self._call("put", kind, number, data, frees=frees))

    def get(self, kind: LogKind, number: int) -> Copies:
        """Watched."""
        copies: Copies = self._call("get", kind, number)
        return copies

    def has(self, kind: LogKind, number: int) -> bool:
        """Watched."""
        return bool(self._call("has", kind, number))

    def numbers(self, kind: LogKind) -> dict[int, float]:
        """Watched."""
        found: dict[int, float] = self._call("numbers", kind)
        return found

    def newest_number(self, kind: LogKind) -> int:
        """Watched."""
        found: int = self._call("newest_number", kind)
        return found

    def rewrite(self, kind: LogKind, number: int, copy: int, data: bytes) -> None:
        """Watched."""
        self._call("rewrite", kind, number, copy, data)

    def delete(self, kind: LogKind, number: int) -> None:
        """Watched."""
        self._call("delete", kind, number)

    def sync_log(self) -> None:
        """Watched."""
        self._call("sync_log")

    def create_volume(
        self, name: VolumeName, *, length_bytes: int, initial: bytes = b"", preallocate: bool = False
    ) -> None:
        """Watched."""
        self._call("create_volume", name, length_bytes=length_bytes, initial=initial, preallocate=preallocate)

    def clone_volume(self, source: VolumeName, target: VolumeName) -> bool:
        """Watched."""
        return bool(self._call("clone_volume", source, target))

    def grow_volume(self, name: VolumeName, *, length_bytes: int, preallocate: bool = False) -> None:
        """Watched."""
        self._call("grow_volume", name, length_bytes=length_bytes, preallocate=preallocate)

    def share_access(self, source: VolumeName, target: VolumeName) -> None:
        """Watched."""
        self._call("share_access", source, target)

    def delete_volume(self, name: VolumeName) -> bool:
        """Watched."""
        return bool(self._call("delete_volume", name))

    def list_volumes(self) -> list[StoredVolume]:
        """Watched."""
        found: list[StoredVolume] = self._call("list_volumes")
        return found

    def stored_volume(self, name: VolumeName) -> StoredVolume | None:
        """Watched."""
        found: StoredVolume | None = self._call("stored_volume", name)
        return found

    def stored_volumes(self, names: Sequence[VolumeName]) -> list[StoredVolume | None]:
        """Watched."""
        found: list[StoredVolume | None] = self._call("stored_volumes", names)
        return found

    def locate_volume(self, name: VolumeName) -> Located:
        """Watched."""
        found: Located = self._call("locate_volume", name)
        return found

    def open_volume(self, name: VolumeName) -> AbstractContextManager[Container]:
        """Watched."""
        found: AbstractContextManager[Container] = self._call("open_volume", name)
        return found

    def read_volume(self, name: VolumeName, offset_bytes: int, size_bytes: int) -> bytes:
        """Watched."""
        return bytes(self._call("read_volume", name, offset_bytes, size_bytes))

    def volume_is_written(self, name: VolumeName) -> bool:
        """Watched."""
        return bool(self._call("volume_is_written", name))

    def put_progress(self, image_id: str, data: bytes) -> None:
        """Watched."""
        self._call("put_progress", image_id, data)

    def get_progress(self, image_id: str) -> bytes | None:
        """Watched."""
        found: bytes | None = self._call("get_progress", image_id)
        return found

    def remove_progress(self, image_id: str) -> None:
        """Watched."""
        self._call("remove_progress", image_id)

    def progress_image_ids(self) -> list[str]:
        """Watched."""
        found: list[str] = self._call("progress_image_ids")
        return found

    def list_leftovers(self) -> list[Leftover]:
        """Watched."""
        found: list[Leftover] = self._call("list_leftovers")
        return found

    def list_foreign(self) -> list[Foreign]:
        """Watched."""
        found: list[Foreign] = self._call("list_foreign")
        return found

    def delete_leftover(self, name: str) -> bool:
        """Watched."""
        return bool(self._call("delete_leftover", name))

    def private_path(self) -> str | None:
        """Watched."""
        found: str | None = self._call("private_path")
        return found

    def try_lock(self, name: str) -> Any:
        """Watched."""
        return self._call("try_lock", name)

    def is_locked(self, name: str) -> bool:
        """Watched."""
        return bool(self._call("is_locked", name))

    def locked_among(self, names: Collection[str]) -> set[str]:
        """Watched."""
        found: set[str] = self._call("locked_among", names)
        return found

    def capacity(self) -> Capacity:
        """Watched."""
        found: Capacity = self._call("capacity")
        return found

    def close(self) -> None:
        """Watched."""
        self._call("close")


def done_to_inner(do: Callable[..., None] | None) -> Callable[..., None]:
    """What is done to a repository of some format, done to the one that a watched one stands before."""
    assert do is not None
    return lambda repository, *words: do(repository.inner, *words)
