"""What happens on this host, for those that listen: tasks, images, connections."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, Literal

import msgspec

from diskyard.host.identity import new_nonce
from diskyard.model.results import Event

__all__ = ["KEPT", "Event", "Events", "Kind"]

KEPT = 10_000
Kind = Literal["task", "image", "repository", "reset"]
_INSTANCE_DIGITS = 12


class Events:
    """The latest events of this process. Safe to use from several threads.

    Reporting costs next to nothing while nobody listens. An event that nobody has fetched is lost
    when :data:`KEPT` newer ones have come; :meth:`after` says so to a listener that wanted it.
    """

    def __init__(self) -> None:
        self._instance = new_nonce()[:_INSTANCE_DIGITS]
        self._lock = threading.Lock()
        self._kept: deque[Event] = deque(maxlen=KEPT)
        self._count = 0
        self._listeners: list[Callable[[], None]] = []

    def tell(self, kind: Kind, repository_id: str | None, data: Any) -> None:
        """Keep an event and wake the listeners.

        :param data: a value of :mod:`diskyard.model.results`, or JSON-like.
        """
        with self._lock:
            self._count += 1
            event_id = self.id_of(self._count)
            told = msgspec.to_builtins(data)
            self._kept.append(Event(event_id=event_id, kind=kind, repository_id=repository_id, data=told))
            listeners = list(self._listeners)
        for wake in listeners:
            wake()

    def newest(self) -> int:
        """The number of the newest event, 0 if there was none."""
        with self._lock:
            return self._count

    def number_of(self, event_id: str) -> int | None:
        """The number of an event of this process; None if the event is not this process's."""
        instance, _, number = event_id.rpartition("-")
        if instance != self._instance or not (number.isascii() and number.isdigit()):
            return None
        found = int(number[:20])
        return found if found <= self.newest() else None

    def id_of(self, number: int) -> str:
        """The id of the event with a number; 0 stands for the time before the first event."""
        return f"{self._instance}-{number}"

    def after(self, number: int, most: int = KEPT) -> tuple[list[Event], int, bool]:
        """The events after a number, the oldest first.

        :param most: how many at most.
        :returns: the events, the number of the last one, and whether no event before them is lost.
        """
        with self._lock:
            first = self._count - len(self._kept) + 1
            wanted = max(number + 1, first)
            found = list(islice(self._kept, wanted - first, wanted - first + most))
            return found, wanted - 1 + len(found), number + 1 >= first

    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call ``wake`` after each event, in the reporting thread, until the returned function is called."""
        with self._lock:
            self._listeners.append(wake)

        def end() -> None:
            with self._lock:
                self._listeners.remove(wake)

        return end

    def has_listeners(self) -> bool:
        """Whether anybody listens."""
        with self._lock:
            return bool(self._listeners)
