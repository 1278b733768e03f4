"""Leader and followers: one thread does the work of all that wait.

The first thread begins at once, and does not wait for company. Threads that arrive while it works
wait, and the first of them then does the work of all of them (docs/decisions/0012-group-commit.md).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from diskyard.host.calls import calls_of_this_thread, no_answer

_POLL_S = 0.05

Answer = TypeVar("Answer")


class Job(Generic[Answer]):
    """The request of one thread, and its outcome.

    :ivar calls: of the thread that wants it.
    :ivar is_done: it has an answer.
    :ivar woken: set when it is done, or when it is its thread's turn to work.
    """

    def __init__(self) -> None:
        self.calls = calls_of_this_thread()
        self.is_done = False
        self.woken = threading.Event()
        self._answer: Answer
        self._error: Exception | None = None

    def succeed(self, answer: Answer) -> None:
        """Answer it."""
        self._answer = answer
        self._wake()

    def fail(self, error: Exception) -> None:
        """Answer it with an error, which is raised in the thread that wants it."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        self.is_done = True
        self.calls.behind = None
        self.woken.set()

    def answer(self) -> Answer:
        """What came of it; it must be done."""
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # the error's traceback leads here: a cycle
        return self._answer


AnyJob = TypeVar("AnyJob", bound=Job[Any])


def fail_all(jobs: Sequence[Job[Answer]], error: Exception) -> None:
    """Answer jobs with one error; each job gets its own copy, because threads add to theirs."""
    for job in jobs[1:]:
        own = copy.copy(error)
        own.__cause__ = error
        job.fail(own)
    for job in jobs[:1]:
        job.fail(error)


class Turns(Generic[AnyJob]):
    """One thread works at a time, for all that wait.

    :param must_stay: a thread does not leave while another one works for it: its change may
        still happen, and must not happen after it has given up.
    """

    def __init__(self, *, must_stay: bool) -> None:
        self._must_stay = must_stay
        self._lock = threading.Lock()  # held for a moment only, never while storage is asked
        self._waiting: list[AnyJob] = []
        self._taken: list[AnyJob] = []
        self._working: AnyJob | None = None

    def take_part(self, job: AnyJob, work: Callable[[Sequence[AnyJob]], None]) -> None:
        """Have a job done, by this thread or by another.

        :param work: does jobs. The first is this thread's own, and is done when this returns.
            Others may be left, even by an exception: they are for the next turn.
        :raises diskyard.errors.RepositoryUnavailable: the thread whose turn it is asks storage
            that should have answered by now. The job was not begun, and will not be.
        """
        try:
            if self._comes_first(job) or self._is_next(job):
                work(self._take())
        finally:
            self._leave(job)

    def waiting(self) -> int:
        """How many threads wait, and are not being worked for."""
        with self._lock:
            return len(self._waiting)

    def _comes_first(self, job: AnyJob) -> bool:
        with self._lock:
            self._waiting.append(job)
            if self._working is None:
                self._working = job
                return True
            job.calls.behind = self._working.calls
            return False

    def _is_next(self, job: AnyJob) -> bool:
        """Wait until the job is done, or until it is this thread's turn; whether it is."""
        try:
            while not job.woken.wait(_POLL_S):
                self._require_answering(job)
        finally:
            job.calls.behind = None
        return not job.is_done

    def _require_answering(self, job: AnyJob) -> None:
        """Give the job up if the thread whose turn it is hangs, and nothing can come of it then."""
        with self._lock:
            working = self._working
            if job.is_done or working is None or working is job:
                return
            job.calls.behind = working.calls
            call = working.calls.overdue()
            if call is None or (self._must_stay and job not in self._waiting):
                return
            self._forget(job)
        raise no_answer(call)

    def _take(self) -> Sequence[AnyJob]:
        with self._lock:
            self._taken, self._waiting = self._waiting, []
            return tuple(self._taken)

    def _leave(self, job: AnyJob) -> None:
        """Let the next thread work, if this one did; what it has left undone comes first."""
        with self._lock:
            self._forget(job)
            if self._working is not job:
                return
            self._waiting = [*(left for left in self._taken if not left.is_done), *self._waiting]
            self._taken = []
            self._working = self._waiting[0] if self._waiting else None
            if self._working is not None:
                self._working.calls.behind = None  # at once: others are behind it from here on
                self._working.woken.set()

    def _forget(self, job: AnyJob) -> None:
        for jobs in (self._waiting, self._taken):
            if job in jobs:
                jobs.remove(job)
