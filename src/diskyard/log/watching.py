"""Informing listeners of every step by which a log's state moves forward."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from diskyard.model.state import State
from diskyard.model.transaction import Entry

Listener = Callable[[Entry | None, State, State], None]
"""Given an entry, the state before it, and the state after it; no entry where some were skipped."""


@dataclass(frozen=True, slots=True)
class _Step:
    entry: Entry | None
    before: State
    after: State


class Watching:
    """The listeners of one log, and what was reported to them.

    Steps are recorded while they are read. They are reported once the state that they lead to is known to
    stand and to be durable: in the order of the log, each once, to all that listen by then.
    """

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._told: State | None = None
        self._noted: list[_Step] = []
        self._due: deque[_Step] = deque()
        self._telling = threading.Lock()

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Report to a listener from now on, until the returned function is called."""
        own = partial(listener)  # a new object, since the same listener may listen twice
        self._listeners = [*self._listeners, own]

        def end() -> None:
            self._listeners = [found for found in self._listeners if found is not own]

        return end

    # -- with the log's lock -------------------------------------------------------------

    def note(self, entry: Entry, before: State, after: State) -> None:
        """Record that the state has moved."""
        if self._listeners:
            self._noted.append(_Step(entry, before, after))

    def restart(self) -> None:
        """Record that the state is being read again, from a checkpoint."""
        self._noted.clear()

    def stands(self, state: State) -> None:
        """Record that all steps so far stand, and lead to this state."""
        told, steps = self._told, self._noted
        self._told, self._noted = state, []
        if told is None or not self._listeners:
            return
        begin = next((i for i, step in enumerate(steps) if _same(step.before, told)), None)
        if begin is not None:
            self._due.extend(steps[begin:])
        elif not _same(state, told):
            skipped_to = steps[0].before if steps else state
            self._due.extend([_Step(None, told, skipped_to), *steps])

    # -- without it ----------------------------------------------------------------------

    def tell(self) -> None:
        """Report what is due, unless another thread is doing so; that one then reports it."""
        while self._due and self._telling.acquire(blocking=False):
            try:
                while self._due:
                    step = self._due.popleft()
                    for listener in self._listeners:
                        _tell(listener, step)
            finally:
                self._telling.release()


def _tell(listener: Listener, step: _Step) -> None:
    try:
        listener(step.entry, step.before, step.after)
    except Exception:  # noqa: BLE001 - reported like an exception that ends a thread; the log goes on
        threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))


def _same(one: State, other: State) -> bool:
    return (one.version, one.nonce) == (other.version, other.nonce)
