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
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from diskyard.host.calls import ThreadCalls, calls_of_this_thread, no_answer

R = TypeVar("R")
_LOOK_MOST_S = 1.0
_INTERRUPTED_GRACE_S = 2.0
_IDLE_MOST = 8


class _Job:
    """Something to do, and what came of it."""

    def __init__(self, work: Callable[[], object], when_ended: Callable[[], None] | None = None) -> None:
        self._work: Callable[[], object] | None = work
        self._when_ended = when_ended
        self._answer: object = None
        self._error: BaseException | None = None
        self.ended = threading.Event()

    def run(self) -> None:
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
        self.ended.set()
        if when_ended is not None:
            when_ended()

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; whether that came."""
        try:
            return self.ended.wait(timeout_s)
        except BaseException:
            self.ended.wait(_INTERRUPTED_GRACE_S)  # a signal: what is short ends in order
            raise

    def answer(self) -> object:
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # the error's traceback leads here: a cycle
        return self._answer


class _Worker(threading.Thread):
    """A thread that does one job after another; it keeps no program from ending."""

    def __init__(self, supervisor: Supervisor) -> None:
        super().__init__(name="diskyard-verb", daemon=True)
        self._supervisor = supervisor
        self._given = threading.Semaphore(0)
        self._job: _Job | None = None
        self.calls: ThreadCalls | None = None

    def give(self, job: _Job | None) -> None:
        """A job, or None to end."""
        self._job = job
        self._given.release()

    def run(self) -> None:
        self.calls = calls_of_this_thread()
        self.calls.timeout_s = self._supervisor.timeout_s
        while True:
            self._given.acquire()
            job, self._job = self._job, None
            if job is None:
                return
            job.run()
            del job
            if not self._supervisor.keep(self):
                return


@dataclass(frozen=True, slots=True)
class Running:
    """A verb that was begun."""

    job: _Job
    worker: _Worker

    def require_answering(self, **details: str) -> None:
        """Refuse to wait on.

        :raises diskyard.errors.RepositoryUnavailable: the storage should have answered by now.
        """
        call = None if self.worker.calls is None else self.worker.calls.overdue()
        if call is not None:
            raise no_answer(call, **details)


class Supervisor:
    """Runs verbs on threads of its own, and does not wait for storage for ever.

    :param timeout_s: how long one storage call may last; calls that may well be long, as fsync,
        ten times that.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._idle: deque[_Worker] = deque()
        self._closed = False

    def run(self, work: Callable[[], R], **details: str) -> R:
        """Do it; what it returned.

        :param details: of the error, where the storage does not answer.
        :raises diskyard.errors.RepositoryUnavailable: the storage does not answer. It goes on
            when the storage does.
        """
        running = self.begin(work)
        while not running.job.wait(self.look_every_s):
            running.require_answering(**details)
        return cast("R", running.job.answer())

    def begin(self, work: Callable[[], object], when_ended: Callable[[], None] | None = None) -> Running:
        """Start it, for who waits in another way.

        :param when_ended: called in the thread that did it.
        """
        job = _Job(work, when_ended)
        worker = self._worker()
        worker.give(job)
        return Running(job, worker)

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

    def keep(self, worker: Any) -> bool:
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
