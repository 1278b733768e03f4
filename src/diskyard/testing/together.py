"""Several threads that commit at the same moment, so that their changes become one entry."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from diskyard.log.log import Author, Log
from diskyard.model.transaction import Draft
from diskyard.repository.commit import commit

_TIMEOUT_S = 60.0
_POLL_S = 0.001


class Together:
    """Threads whose first commits to one log wait until all of them have come.

    :ivar answers: what each returned, or the exception with which it ended.
    """

    def __init__(self, log: Log, acts: Sequence[Callable[[], object]]) -> None:
        self.answers: list[object] = [None] * len(acts)
        self._log = log
        self._threads = [
            threading.Thread(target=self._run, args=(number, act)) for number, act in enumerate(acts)
        ]

    def start(self) -> None:
        """Let them come in their order, wait, and then go on."""
        holds, may_go = threading.Event(), threading.Event()

        def hold(draft: Draft) -> None:
            holds.set()
            may_go.wait(_TIMEOUT_S)

        holder = threading.Thread(target=commit, args=(self._log, hold, Author("hold", "")))
        holder.start()
        assert holds.wait(_TIMEOUT_S)
        for count, thread in enumerate(self._threads, start=1):
            thread.start()
            self._await_waiting(count, thread)
        may_go.set()
        holder.join()

    def _await_waiting(self, count: int, thread: threading.Thread) -> None:
        deadline_s = time.monotonic() + _TIMEOUT_S
        while self._log.writers.waiting() < count:
            assert thread.is_alive(), f"it ended without a commit: {self.answers}"
            assert time.monotonic() < deadline_s
            time.sleep(_POLL_S)

    def join(self) -> list[object]:
        """Wait for their ends."""
        for thread in self._threads:
            thread.join(_TIMEOUT_S)
            assert not thread.is_alive(), "it waits for ever"
        return self.answers

    def _run(self, number: int, act: Callable[[], object]) -> None:
        try:
            self.answers[number] = act()
        except BaseException as error:  # noqa: BLE001 - this is the thread's answer
            self.answers[number] = error


def at_once(log: Log, *acts: Callable[[], object]) -> list[object]:
    """Call functions, each in a thread, so that their first commits share an entry if they can."""
    together = Together(log, acts)
    together.start()
    return together.join()
