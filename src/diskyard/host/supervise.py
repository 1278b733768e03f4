"""Running a verb so that storage which never answers does not keep its caller for ever.

The verb runs on a thread of its own while the caller watches which storage call that thread
is in. When one lasts too long the caller gets an error and goes; the thread stays behind. To
the repository it is a suspended writer, for which the log's rules are made: it keeps its leases,
and when the storage answers it goes on or fails, and gives them up itself.
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
    """Something that was begun on a thread of its own, and what comes of it."""

    # Not a Future of the standard library: that keeps its error, whose traceback leads back to it.

    def __init__(self, work: Callable[[], object], when_ended: Callable[[], None] | None) -> None:
        self._work: Callable[[], object] | None = work
        self._when_ended = when_ended
        self._answer: object = None
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._calls: ThreadCalls | None = None

    def run(self, calls: ThreadCalls) -> None:
        """Do it, in the thread that is asked whether the storage answers it."""
        self._calls = calls
        # Let go of first: who waits refers to this, and is referred to by them. Such a cycle would keep what
        # a caller handed over open until the garbage collector comes.
        work, self._work = self._work, None
        when_ended, self._when_ended = self._when_ended, None
        assert work is not None
        try:
            self._answer = work()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that asked
            self._error = error
        del work
        self._ended.set()
        if when_ended is not None:
            when_ended()

    def has_ended(self) -> bool:
        """Whether it has an answer."""
        return self._ended.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; whether that came."""
        try:
            return self._ended.wait(timeout_s)
        except BaseException:
            self._ended.wait(_INTERRUPTED_GRACE_S)  # a signal: what is short ends in order
            raise

    def answer(self) -> object:
        """What it returned; it must have ended.

        :raises BaseException: what it raised.
        """
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # the error's traceback leads here: a cycle
        return self._answer

    def require_answering(self, *, may_be_done: bool = False) -> None:
        """Refuse to wait on.

        :param may_be_done: it changes something, and may do so yet.
        :raises diskyard.errors.RepositoryUnavailable: the storage should have answered by now.
        """
        call = None if self._calls is None else self._calls.overdue()
        if call is not None:
            raise no_answer(call, may_be_done=may_be_done)


class _Worker(threading.Thread):
    """A thread that does one thing after another; it keeps no program from ending."""

    def __init__(self, supervisor: Supervisor) -> None:
        super().__init__(name="diskyard-verb", daemon=True)
        self._supervisor = supervisor
        self._given = threading.Semaphore(0)
        self._next: Running | None = None

    def give(self, what: Running | None) -> None:
        """What to do, or None to end."""
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

    :param timeout_s: how long one storage call may last; calls that may well be long, as fsync,
        ten times that.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._idle: deque[_Worker] = deque()
        self._closed = False

    def run(self, work: Callable[[], R], *, may_be_done: bool = False) -> R:
        """Do it; what it returned.

        :param may_be_done: it changes something, which may be done yet when this gives up.
        :raises diskyard.errors.RepositoryUnavailable: the storage does not answer. It goes on
            when the storage does.
        """
        running = self.begin(work)
        while not running.wait(self.look_every_s):
            running.require_answering(may_be_done=may_be_done)
        return cast("R", running.answer())

    def begin(self, work: Callable[[], object], when_ended: Callable[[], None] | None = None) -> Running:
        """Start it, for who waits in another way.

        :param when_ended: called in the thread that did it.
        """
        running = Running(work, when_ended)
        self._worker().give(running)
        return running

    @property
    def look_every_s(self) -> float:
        """How often whoever waits should look whether the storage still answers."""
        return min(self.timeout_s / 4, _LOOK_MOST_S)

    def _worker(self) -> _Worker:
        try:
            return self._idle.pop()
        except IndexError:
            worker = _Worker(self)
            worker.start()
            return worker

    def keep(self, worker: _Worker) -> bool:
        """A worker has nothing to do; whether it should wait for more."""
        if self._closed or len(self._idle) >= _IDLE_MOST:
            return False
        self._idle.append(worker)
        return True

    def close(self) -> None:
        """End the threads that have nothing to do."""
        self._closed = True
        while self._idle:
            self._idle.pop().give(None)
