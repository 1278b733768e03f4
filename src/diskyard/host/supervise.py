"""Running a verb so that storage which never answers does not keep its caller for ever.

The verb runs on a thread of its own while the caller watches which storage call that thread
is in. If a call lasts too long, the caller gets an error and leaves; the thread stays behind. To
the repository that thread is a suspended writer, which the log's rules allow for: it keeps its leases,
and when the storage answers, it goes on or fails, and releases them itself.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar, cast

from diskyard.host.calls import ThreadCalls, calls_of_this_thread, no_answer

R = TypeVar("R")
_LOOK_MOST_S = 1.0
_INTERRUPTED_GRACE_S = 2.0
_IDLE_MOST = 8


class Running:
    """Work that was begun on a thread of its own, and its outcome."""

    # Not a Future of the standard library: that keeps its error, whose traceback refers back to it.

    def __init__(self, work: Callable[[], object], when_ended: Callable[[], None] | None) -> None:
        self._work: Callable[[], object] | None = work
        self._when_ended = when_ended
        self._answer: object = None
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._calls: ThreadCalls | None = None

    def run(self, calls: ThreadCalls) -> None:
        """Do the work. ``calls`` are those of the thread that does it."""
        self._calls = calls
        # Drop these references first: the waiting caller refers to this object, and the work refers to the
        # caller. Such a cycle would keep what a caller handed over open until the garbage collector runs.
        work, self._work = self._work, None
        when_ended, self._when_ended = self._when_ended, None
        assert work is not None
        try:
            self._answer = work()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self._error = error
        del work
        self._ended.set()
        if when_ended is not None:
            when_ended()

    def has_ended(self) -> bool:
        """Whether the work has ended."""
        return self._ended.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end. Return whether it came."""
        try:
            return self._ended.wait(timeout_s)
        except BaseException:
            self._ended.wait(_INTERRUPTED_GRACE_S)  # a signal: short work ends in order
            raise

    def answer(self) -> object:
        """What the work returned; it must have ended.

        :raises BaseException: what the work raised.
        """
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # the error's traceback refers to this object: a cycle
        return self._answer

    def require_answering(self, *, may_be_done: bool = False) -> None:
        """Refuse to wait any longer if the storage does not answer.

        :param may_be_done: the work changes something, and the change may still happen.
        :raises diskyard.errors.RepositoryUnavailable: the storage should have answered by now.
        """
        call = None if self._calls is None else self._calls.overdue()
        if call is not None:
            raise no_answer(call, may_be_done=may_be_done)


class _Worker(threading.Thread):
    """A thread that does one piece of work after another. A program can end without it."""

    def __init__(self, supervisor: Supervisor) -> None:
        super().__init__(name="diskyard-verb", daemon=True)
        self._supervisor = supervisor
        self._given = threading.Semaphore(0)
        self._next: Running | None = None

    def give(self, what: Running | None) -> None:
        """Give the thread its next work, or None to end it."""
        self._next = what
        self._given.release()

    def run(self) -> None:
        calls = calls_of_this_thread()
        calls.timeout_s = self._supervisor.timeout_s
        while True:
            self._given.acquire()
            running, self._next = self._next, None
            if running is None:
                return
            running.run(calls)
            del running
            if not self._supervisor.keep(self):
                return


class Supervisor:
    """Runs verbs on threads of its own, and does not wait for storage for ever.

    :param timeout_s: how long one storage call may last; a call that may well be long, such as fsync,
        may last ten times as long.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._idle: deque[_Worker] = deque()
        self._closed = False

    def run(self, work: Callable[[], R], *, may_be_done: bool = False) -> R:
        """Do work and return its result.

        :param may_be_done: the work changes something; after an error, the change may still happen.
        :raises diskyard.errors.RepositoryUnavailable: the storage does not answer. The work goes on once it
            does.
        """
        running = self.begin(work)
        while not running.wait(self.look_every_s):
            running.require_answering(may_be_done=may_be_done)
        return cast("R", running.answer())

    def begin(self, work: Callable[[], object], when_ended: Callable[[], None] | None = None) -> Running:
        """Start work, for a caller that waits in a way of its own.

        :param when_ended: called in the thread that did the work.
        """
        running = Running(work, when_ended)
        self._worker().give(running)
        return running

    @property
    def look_every_s(self) -> float:
        """How often a waiting caller should check whether the storage still answers."""
        return min(self.timeout_s / 4, _LOOK_MOST_S)

    def _worker(self) -> _Worker:
        try:
            return self._idle.pop()
        except IndexError:
            worker = _Worker(self)
            worker.start()
            return worker

    def keep(self, worker: _Worker) -> bool:
        """Called by a worker that has nothing to do. Return whether it should wait for more."""
        if self._closed or len(self._idle) >= _IDLE_MOST:
            return False
        self._idle.append(worker)
        return True

    def close(self) -> None:
        """End the threads that have nothing to do."""
        self._closed = True
        while self._idle:
            self._idle.pop().give(None)
