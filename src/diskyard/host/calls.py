"""The storage call that each thread is in, so that a call that never returns can be reported."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Concatenate, NamedTuple, ParamSpec, Protocol, Self, TypeVar

from diskyard import errors

P = ParamSpec("P")
R = TypeVar("R")

#: Calls that last as long as the storage has work to do, which may be long. Requests to QEMU do too:
#: "qmp …", "nbd …" and "qemu-img …", which have time-outs of their own.
_LONG_CALLS = frozenset(
    ("clone", "preallocate", "keep_room", "sync", "sync_folder", "begin_write_out", "end_write_out")
)


_LONG_FACTOR = 10
_BEHIND_MOST = 4  # a writer behind a writer behind a reader, and one to spare
_POLL_S = 0.05
TIMEOUT_VARIABLE = "DISKYARD_STORAGE_TIMEOUT_S"
_TIMEOUT_S = 30.0


def default_timeout_s() -> float:
    """``$DISKYARD_STORAGE_TIMEOUT_S``, or 30 seconds.

    :raises diskyard.errors.InvalidParameter: the variable is not a number above 0.
    """
    text = os.environ.get(TIMEOUT_VARIABLE)
    if text is None:
        return _TIMEOUT_S
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = 0.0
    if not timeout_s > 0:
        raise errors.InvalidParameter(f"${TIMEOUT_VARIABLE} must be a number of seconds above 0.")
    return timeout_s


class StorageCall(NamedTuple):
    """A call that has not returned. A named tuple because one is made for every call.

    :param where: the path or volume, for people; empty if there is none.
    """

    name: str
    where: str
    since_s: float

    @property
    def is_long(self) -> bool:
        """Whether the call may well take much longer than others."""
        return self.name in _LONG_CALLS or self.name.startswith(("qmp ", "nbd ", "qemu-img "))

    def lasts_s(self) -> float:
        """How long the call has taken so far."""
        return time.monotonic() - self.since_s


class ThreadCalls:
    """The storage call that one thread is in; other threads read it.

    :ivar current: None while the thread is in no storage call.
    :ivar behind: the calls of the thread that this thread waits for, if any: they count as its own.
    :ivar timeout_s: how long a call may last before the storage counts as not answering.
    """

    __slots__ = ("behind", "current", "timeout_s")

    def __init__(self) -> None:
        self.current: StorageCall | None = None
        self.behind: ThreadCalls | None = None
        self.timeout_s = default_timeout_s()

    def overdue(self) -> StorageCall | None:
        """The call that the storage should have answered by now, if there is one."""
        thread: ThreadCalls | None = self
        # A thread that was woken a moment ago may still point to the thread that it waited for, which may
        # wait for it by now: following them must not go round in circles.
        for _ in range(_BEHIND_MOST):
            if thread is None:
                return None
            call = thread.current
            if call is not None:
                limit_s = thread.timeout_s * (_LONG_FACTOR if call.is_long else 1)
                return call if call.lasts_s() > limit_s else None
            thread = thread.behind
        return None


_threads = threading.local()


def calls_of_this_thread(noting: ThreadCalls | None = None) -> ThreadCalls:
    """The record of the calling thread's storage calls; it lasts as long as the thread.

    :param noting: the record to use from now on.
    """
    if noting is not None:
        _threads.calls = noting
    try:
        found: ThreadCalls = _threads.calls
    except AttributeError:
        found = _threads.calls = ThreadCalls()
    return found


class noted:  # noqa: N801 - a context manager, used like a function
    """A context in which the calling thread counts as being in a storage call."""

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
    """Something whose storage calls all go through one method."""

    def passing(self, name: str, words: tuple[object, ...], do: Callable[[], R]) -> R:
        """Make a call. Simulators of faults override this."""


D = TypeVar("D", bound=Door)


def storage_call(method: Callable[Concatenate[D, P], R]) -> Callable[Concatenate[D, P], R]:
    """Marks a method of a door that touches storage."""
    name = method.__name__

    @functools.wraps(method)
    def call(self: D, /, *words: P.args, **named: P.kwargs) -> R:
        return self.passing(name, words, lambda: method(self, *words, **named))

    return call


def no_answer(call: StorageCall, *, may_be_done: bool = False, **details: str) -> errors.DiskyardError:
    """The RepositoryUnavailable error for a call that does not return.

    :param may_be_done: the caller asked for a change, and the change goes on after the error.
    """
    where = f" of {call.where}" if call.where else ""
    kind: type[errors.DiskyardError] = errors.RepositoryUnavailable
    advice = kind.default_advice
    if may_be_done:
        kind = errors.unknown_outcome(kind)
        advice += " The call may still be done when the storage answers: look before repeating it."
    return kind(
        f"The storage does not answer: {call.name}{where} has taken {call.lasts_s():.3g} seconds so far.",
        advice=advice,
        **details,
    )


class PatientLock:
    """A reentrant lock, used like :class:`threading.RLock`, that nobody waits for while the storage hangs.

    :raises diskyard.errors.RepositoryUnavailable: on entering, if the thread that holds it is in a
        storage call that should have returned by now.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._holder: ThreadCalls | None = None

    def __enter__(self) -> None:
        while not self._lock.acquire(timeout=_POLL_S):
            holder = self._holder
            call = None if holder is None else holder.overdue()
            if call is not None:
                raise no_answer(call)
        self._depth += 1
        self._holder = calls_of_this_thread()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if not self._depth:
            self._holder = None
        self._lock.release()
