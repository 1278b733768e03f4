"""Calls within this process: the whole engine, and no daemon."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from diskyard.client.form import require_form
from diskyard.client.values import Connected, EventType, OnProgress
from diskyard.model import requests as ask
from diskyard.model.results import Event
from diskyard.service import Service, call, run

_POLL_S = 0.05
_LOOK_EVERY_S = 0.2


class Embedded:
    """The service, in this process.

    :param state_folder: the directory that keeps connections and tasks; None for the usual one.
    :param actor: the caller, for the audit trail.
    :param one_command: this process ends soon, so that it imports only what it uses.
    """

    def __init__(self, state_folder: str | None, actor: str, *, one_command: bool = False) -> None:
        if not one_command:
            import diskyard.service.whole  # noqa: F401 - it imports everything else
        self.service = Service(state_folder=state_folder, actor=actor)

    def close(self) -> None:
        """Stop the tasks of this process at their next checkpoint, and wait for that."""
        self.service.close()

    def run(self, kind: type[ask.Request], words: Mapping[str, Any]) -> Any:
        """Run a verb."""
        return run(self.service, require_form(kind, kind.__name__, words))

    def call(self, verb: str, parameters: Any) -> Any:
        """Run a verb by its name."""
        return call(self.service, verb, parameters)

    def connected(self) -> Connected:
        """The connections. No storage is used."""
        return self.service.connections.remembered()

    # -- tasks -------------------------------------------------------------------------

    def take_started(self) -> list[str]:
        """The ids of the tasks started since the last call."""
        return self.service.tasks.take_started()

    def unfinished(self) -> list[str]:
        """The ids of this process's tasks that have not ended."""
        return [task.task_id for task in self.service.tasks.unfinished()]

    def wait(self, timeout_s: float | None, on_progress: OnProgress | None) -> bool:
        """Wait for the tasks of this process."""
        tasks = self.service.tasks
        if on_progress is None:
            return tasks.wait(timeout_s=timeout_s)
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        shown: set[str] = set()
        while True:
            left_s = _LOOK_EVERY_S if until_s is None else until_s - time.monotonic()
            is_over = tasks.wait(timeout_s=max(0.0, min(_LOOK_EVERY_S, left_s)))
            shown |= set(self.unfinished())
            for task_id in sorted(shown):
                on_progress(self.service.records.get(task_id))
            shown &= set(self.unfinished())
            if is_over or left_s <= 0:
                return is_over

    # -- events ------------------------------------------------------------------------

    def watch(self, types: Sequence[EventType], timeout_s: float | None) -> Generator[Event | None]:
        """Signal a check at each event, and often: other processes report no events here."""
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        woken = threading.Event()
        end = self.service.events.listen(woken.set)
        try:
            while until_s is None or time.monotonic() < until_s:
                woken.wait(_POLL_S if until_s is None else min(_POLL_S, max(0.0, until_s - time.monotonic())))
                woken.clear()
                yield None
        finally:
            end()

    def events(
        self, types: Sequence[EventType], repository_id: str | None, last_event_id: str | None
    ) -> Generator[Event]:
        """The events of this process, from now on or after the given one."""
        told, woken = self.service.events, threading.Event()
        known = told.newest() if last_event_id is None else told.number_of(last_event_id)
        number, is_missed = known or 0, known is None
        end = told.listen(woken.set)
        try:
            while True:
                woken.clear()
                found, newest, is_complete = told.after(number)
                if is_missed or not is_complete:
                    before = told.id_of(newest - len(found))
                    yield Event(event_id=before, kind="reset", repository_id=None, data={})
                number, is_missed = newest, False
                for event in found:
                    if (not types or event.kind in types) and repository_id in (None, event.repository_id):
                        yield event
                woken.wait()
        finally:
            end()
