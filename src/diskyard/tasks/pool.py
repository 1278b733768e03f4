"""Threads for tasks: a few at a time, not counting those whose storage does not answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from diskyard.host.calls import ThreadCalls, calls_of_this_thread
from diskyard.tasks.limits import TaskLimits
from diskyard.tasks.waitlist import Waiting, Waitlist

_LOOK_EVERY_S = 1.0
#: Extra threads that one repository may have while its storage does not answer.
_STUCK_MOST = 2

#: The name of the threads in which tasks run.
TASK_THREADS = "diskyard-task"


class TaskPool:
    """Runs tasks, the most urgent first.

    A task in a storage call that should have returned does not count, neither for the host nor for its
    repository. But one repository gets only a few extra threads for that; then the rest of its work waits
    until the storage answers. The threads do not keep a program from ending: their tasks are then cut
    off as by a crash.

    :param timeout_s: how long a storage call may last before its thread no longer counts.
    :param look: called now and then while something waits. It returns whether anything still waits behind
        running tasks. It must not raise.
    """

    def __init__(
        self, limits: TaskLimits, timeout_s: float, look: Callable[[], bool] = lambda: False
    ) -> None:
        self._limits = limits
        self._timeout_s = timeout_s
        self._look = look
        self._changed = threading.Condition()
        self._waitlist = Waitlist()
        self._busy: dict[ThreadCalls, str | None] = {}
        self._submitted = 0
        self._is_closed = False
        self._keeper: threading.Thread | None = None

    def submit(self, waiting: Waiting, *, more: bool = False) -> None:
        """Run a task when it is its turn.

        :param more: other tasks wait behind it.
        """
        with self._changed:
            self._submitted += 1
            self._waitlist.add(waiting)
            self._begin_some()
            if (more or self._waitlist) and self._keeper is None:
                keeper = threading.Thread(target=self._keep, name="diskyard-tasks", daemon=True)
                if _started(keeper):
                    self._keeper = keeper

    def _begin_some(self) -> None:
        while self._answering() < self._limits.at_once:
            waiting = self._waitlist.take(self._may_begin)
            if waiting is None:
                return
            calls = ThreadCalls()
            self._busy[calls] = waiting.place
            thread = threading.Thread(
                target=self._run, args=(waiting.work, calls), name=TASK_THREADS, daemon=True
            )
            if not _started(thread):
                # It waits until the keeper tries again, or without a keeper until something else changes.
                del self._busy[calls]
                self._waitlist.add(waiting)
                return

    def _answering(self) -> int:
        return sum(calls.overdue() is None for calls in self._busy)

    def _may_begin(self, place: str | None) -> bool:
        limit = self._limits.at_once_per_repository
        busy = [calls for calls, found in self._busy.items() if found == place]
        answering = sum(calls.overdue() is None for calls in busy)
        return answering < limit and len(busy) < limit + _STUCK_MOST

    def _run(self, work: Callable[[], None], calls: ThreadCalls) -> None:
        calls.timeout_s = self._timeout_s
        calls_of_this_thread(calls)
        try:
            work()
        finally:
            with self._changed:
                del self._busy[calls]
                self._begin_some()
                self._changed.notify_all()

    def _keep(self) -> None:
        """While tasks wait, let them run in place of those whose storage does not answer."""
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._is_closed, _LOOK_EVERY_S):
                    return
                self._begin_some()
                submitted = self._submitted
            more = self._look()
            with self._changed:
                if not (more or self._waitlist or self._submitted != submitted):
                    self._keeper = None
                    return

    def close(self, timeout_s: float | None = None) -> bool:
        """Drop the tasks that wait, and wait for the others, except those whose storage does not answer.

        :param timeout_s: how long to wait at most; None for no limit.
        :returns: whether all tasks have ended, except those whose storage does not answer.
        """
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            self._waitlist.clear()
            self._is_closed = True
            self._changed.notify_all()
            while self._answering():
                pause_s = min(_LOOK_EVERY_S, self._timeout_s)
                if end_s is not None:
                    pause_s = min(pause_s, end_s - time.monotonic())
                if pause_s <= 0:
                    return False
                self._changed.wait(pause_s)
        return True


def _started(thread: threading.Thread) -> bool:
    """Start a thread; False if the host allows no more (RLIMIT_NPROC, TasksMax), which may pass."""
    try:
        thread.start()
    except RuntimeError:
        return False
    return True
