"""Which locks of this process a thread holds, for instance while it makes a storage call.

Storage that does not answer must hold up only the callers that need it. A thread that makes a storage call
while it holds a lock holds up every thread that wants the lock.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol
from unittest import mock


class _Lock(Protocol):
    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.held: list[str] = []


_thread = _OfThread()


def locks_held() -> list[str]:
    """The watched locks that this thread holds: where each was made."""
    return list(_thread.held)


class WatchedLock:
    """A lock, reentrant or not, that notes when a thread holds it.

    :param where: the module and line that made it.
    """

    def __init__(self, lock: _Lock, where: str) -> None:
        self._lock, self._where = lock, where

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """See :meth:`threading.Lock.acquire`."""
        taken = self._lock.acquire(blocking, timeout)
        if taken:
            _thread.held.append(self._where)
        return taken

    def release(self) -> None:
        """See :meth:`threading.Lock.release`."""
        self._lock.release()
        _thread.held.remove(self._where)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _maker(real: Callable[[], Any]) -> Callable[..., Any]:
    def make() -> Any:
        caller = sys._getframe(1)
        module = str(caller.f_globals.get("__name__", ""))
        if not module.startswith("diskyard.") or module.startswith("diskyard.testing."):
            return real()
        return WatchedLock(real(), f"{module}:{caller.f_lineno}")

    return make


@contextmanager
def watched_locks() -> Iterator[None]:
    """Locks that Diskyard's modules make within are watched."""
    with (
        mock.patch.object(threading, "Lock", _maker(threading.Lock)),
        mock.patch.object(threading, "RLock", _maker(threading.RLock)),
    ):
        yield
