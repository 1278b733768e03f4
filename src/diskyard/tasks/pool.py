"""Threads for tasks: a few at a time, not counting those whose storage does not answer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from diskyard.host.calls import ThreadCalls, calls_of_this_thread

_LOOK_EVERY_S = 1.0

#: The name of the threads in which tasks run.
TASK_THREADS = "diskyard-task"


class TaskPool:
    """Runs what it is given in the order in which it came.

    Its threads keep no program from ending: a task is cut there as by a crash.

    :param workers: how many run at a time.
    :param timeout_s: how long a storage call may last before its thread does not count.
    """

    def __init__(self, workers: int, timeout_s: float) -> None:
        self._workers = workers
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._waiting: deque[Callable[[], None]] = deque()
        self._busy: list[ThreadCalls] = []
        self._keeper: threading.Thread | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Run it as soon as a thread is free; it must not raise."""
        with self._changed:
            self._waiting.append(work)
            self._start_some()
            if self._waiting and self._keeper is None:
                self._keeper = threading.Thread(target=self._keep, name="diskyard-tasks", daemon=True)
                self._keeper.start()

    def _start_some(self) -> None:
        while self._waiting and self._answering() < self._workers:
            calls = ThreadCalls()
            self._busy.append(calls)
            work = self._waiting.popleft()
            thread = threading.Thread(target=self._run, args=(work, calls), name=TASK_THREADS, daemon=True)
            thread.start()

    def _answering(self) -> int:
        return sum(calls.overdue() is None for calls in self._busy)

    def _run(self, work: Callable[[], None], calls: ThreadCalls) -> None:
        calls.timeout_s = self._timeout_s
        calls_of_this_thread(calls)
        try:
            work()
        finally:
            with self._changed:
                self._busy.remove(calls)
                self._start_some()
                self._changed.notify_all()

    def _keep(self) -> None:
        """While something waits: let it run in the place of what the storage does not answer."""
        with self._changed:
            while self._waiting:
                self._changed.wait(_LOOK_EVERY_S)
                self._start_some()
            self._keeper = None

    def close(self) -> None:
        """Wait for everything given, but not for storage that does not answer."""
        with self._changed:
            while self._waiting or self._answering():
                self._start_some()
                self._changed.wait(min(_LOOK_EVERY_S, self._timeout_s))
