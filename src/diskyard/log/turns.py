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


class Waiter(Generic[Answer]):
    """The request of one thread, and its outcome.

    :ivar calls: the storage calls of the thread that waits.
    :ivar is_done: the request has an outcome.
    :ivar woken: set when the request is done, or when it is its thread's turn to work.
    """

    def __init__(self) -> None:
        self.calls = calls_of_this_thread()
        self.is_done = False
        self.woken = threading.Event()
        self._answer: Answer
        self._error: Exception | None = None

    def succeed(self, answer: Answer) -> None:
        """End the request with an answer."""
        self._answer = answer
        self._wake()

    def fail(self, error: Exception) -> None:
        """End the request with an error, which is raised in the thread that waits."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        self.is_done = True
        self.calls.behind = None
        self.woken.set()

    def answer(self) -> Answer:
        """The answer; the request must be done."""
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # the error's traceback refers to this object: a cycle
        return self._answer


AnyWaiter = TypeVar("AnyWaiter", bound=Waiter[Any])


def fail_all(waiters: Sequence[Waiter[Answer]], error: Exception) -> None:
    """End all requests with one error. Each gets its own copy, because threads add to theirs."""
    for waiter in waiters[1:]:
        own = copy.copy(error)
        own.__cause__ = error
        waiter.fail(own)
    for waiter in waiters[:1]:
        waiter.fail(error)


class Turns(Generic[AnyWaiter]):
    """One thread at a time works, for all that wait.

    :param must_stay: a thread does not leave while another one works for it: its change may
        still happen, and must not happen after the thread has given up.
    """

    def __init__(self, *, must_stay: bool) -> None:
        self._must_stay = must_stay
        self._lock = threading.Lock()  # held for a moment only, never during a storage call
        self._waiting: list[AnyWaiter] = []
        self._taken: list[AnyWaiter] = []
        self._working: AnyWaiter | None = None

    def take_part(self, waiter: AnyWaiter, work: Callable[[Sequence[AnyWaiter]], None]) -> None:
        """Have a request done, by this thread or by another.

        :param work: does requests. The first is this thread's own, and is done when this returns.
            Others may be left undone, even by an exception: the next turn does them.
        :raises diskyard.errors.RepositoryUnavailable: the thread whose turn it is waits for storage
            that should have answered by now. This request was not begun, and will not be.
        """
        try:
            if self._comes_first(waiter) or self._is_next(waiter):
                work(self._take())
        finally:
            self._leave(waiter)

    def waiting(self) -> int:
        """How many threads wait while no thread is working for them yet."""
        with self._lock:
            return len(self._waiting)

    def _comes_first(self, waiter: AnyWaiter) -> bool:
        with self._lock:
            self._waiting.append(waiter)
            if self._working is None:
                self._working = waiter
                return True
            waiter.calls.behind = self._working.calls
            return False

    def _is_next(self, waiter: AnyWaiter) -> bool:
        """Wait until the request is done, or until it is this thread's turn. Return whether it is."""
        try:
            while not waiter.woken.wait(_POLL_S):
                self._require_answering(waiter)
        finally:
            waiter.calls.behind = None
        return not waiter.is_done

    def _require_answering(self, waiter: AnyWaiter) -> None:
        """Give the request up if the thread whose turn it is hangs, and no change can come of it then."""
        with self._lock:
            working = self._working
            if waiter.is_done or working is None or working is waiter:
                return
            waiter.calls.behind = working.calls
            call = working.calls.overdue()
            if call is None or (self._must_stay and waiter not in self._waiting):
                return
            self._forget(waiter)
        raise no_answer(call)

    def _take(self) -> Sequence[AnyWaiter]:
        with self._lock:
            self._taken, self._waiting = self._waiting, []
            return tuple(self._taken)

    def _leave(self, waiter: AnyWaiter) -> None:
        """Let the next thread work, if this one did. Requests that it left undone come first."""
        with self._lock:
            self._forget(waiter)
            if self._working is not waiter:
                return
            self._waiting = [*(left for left in self._taken if not left.is_done), *self._waiting]
            self._taken = []
            self._working = self._waiting[0] if self._waiting else None
            if self._working is not None:
                self._working.calls.behind = None  # at once: others follow it from here on
                self._working.woken.set()

    def _forget(self, waiter: AnyWaiter) -> None:
        for waiters in (self._waiting, self._taken):
            if waiter in waiters:
                waiters.remove(waiter)
