"""What each thread asks of storage just now, so that a call that never returns can be told."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Concatenate, ParamSpec, Protocol, Self, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

#: Calls that take as long as the storage has work to do, which may be much; so does what QEMU is
#: asked ("qmp …", with a time-out of its own, and "nbd …").
_LONG_CALLS = frozenset(("clone", "preallocate", "sync", "sync_folder"))


@dataclass(frozen=True, slots=True)
class StorageCall:
    """One call that has not returned.

    :param where: the path or volume, for people; empty if there is none to tell.
    """

    name: str
    where: str
    since_s: float

    @property
    def is_long(self) -> bool:
        """Whether it may well take much longer than others."""
        return self.name in _LONG_CALLS or self.name.startswith(("qmp ", "nbd "))

    def lasts_s(self) -> float:
        """How long it has taken so far."""
        return time.monotonic() - self.since_s


class ThreadCalls:
    """The call that one thread is in; read by others.

    :ivar current: None while the thread asks nothing of storage.
    """

    __slots__ = ("current",)

    def __init__(self) -> None:
        self.current: StorageCall | None = None


_threads = threading.local()


def calls_of_this_thread() -> ThreadCalls:
    """What notes the calling thread's calls; it lasts as long as the thread."""
    try:
        found: ThreadCalls = _threads.calls
    except AttributeError:
        found = _threads.calls = ThreadCalls()
    return found


class noted:  # noqa: N801 - a context manager, used like a function
    """The calling thread is in a storage call within."""

    __slots__ = ("_calls", "_name", "_outer", "_where")

    def __init__(self, name: str, where: str = "") -> None:
        self._name, self._where = name, where

    def __enter__(self) -> Self:
        self._calls = calls_of_this_thread()
        self._outer = self._calls.current
        self._calls.current = StorageCall(self._name, self._where, time.monotonic())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls.current = self._outer


class Door(Protocol):
    """Something whose storage calls pass one place."""

    def passing(self, name: str, words: tuple[object, ...], do: Callable[[], R]) -> R:
        """Make a call; simulators of faults override it."""


D = TypeVar("D", bound=Door)


def storage_call(method: Callable[Concatenate[D, P], R]) -> Callable[Concatenate[D, P], R]:
    """A method of a door that touches storage."""
    name = method.__name__

    @functools.wraps(method)
    def call(self: D, /, *words: P.args, **named: P.kwargs) -> R:
        return self.passing(name, words, lambda: method(self, *words, **named))

    return call
