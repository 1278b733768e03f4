"""One task while it waits and runs: what is shown of it, and whether it should stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from diskyard.host import Clock
from diskyard.model.results import Task
from diskyard.tasks.records import Again, TaskRecords
from diskyard.tasks.speed import Speed

_SHOW_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Shown:
    """Where the tasks of a process are shown, and whether it is closing.

    :param tell: called for every change that is shown.
    """

    records: TaskRecords
    clock: Clock
    tell: Callable[[Task], None]
    closing: threading.Event


class TaskWatcher:
    """One task: what its work reports, and whether it should stop.

    :param again: how to start it again; None if that is not possible.
    """

    def __init__(self, task: Task, again: Again | None, shown: Shown) -> None:
        self.task = task
        self._again = again
        self._shown = shown
        self._asked = False
        self._shown_s = 0.0
        self._reported: dict[str, object] = {}
        self._speed = Speed()

    def show(self, *, resumable: bool = False, **changes: object) -> None:
        """Change what is shown of the task, and report the change.

        :param resumable: it was interrupted, and a later process may start it again.
        """
        self.task = replace(self.task, **changes)
        self._shown.records.put(self.task, self._again, resumable=resumable)
        self._shown.tell(self.task)

    def show_end(self, *, resumable: bool = False, **changes: object) -> None:
        """Show that the task has ended, together with its last report."""
        changes |= {"rate_bytes_per_s": 0, "remaining_s": None, "ended_at": self._shown.clock.now()}
        self.show(resumable=resumable, **self._reported, **changes)
        self._shown.records.forget_stop(self.task.task_id)

    def report(self, stage: str, done_bytes: int, total_bytes: int) -> None:
        """Report the bytes of a stage; this is shown at most twice a second."""
        now_s = self._shown.clock.monotonic_s()
        self._reported = {"stage": stage, "done_bytes": done_bytes, "total_bytes": total_bytes}
        self._speed.note(now_s, stage, done_bytes)
        if now_s - self._shown_s < _SHOW_EVERY_S:
            return
        self._shown_s = now_s
        self.show(
            stage=stage,
            done_bytes=done_bytes,
            total_bytes=total_bytes,
            percent=min(100, done_bytes * 100 // total_bytes) if total_bytes else -1,
            rate_bytes_per_s=int(self._speed.bytes_per_s(now_s)),
            remaining_s=self._speed.remaining_s(now_s, total_bytes),
        )

    def ask_to_stop(self) -> None:
        """Request that the task stop, from this process."""
        self._asked = True

    def asked(self) -> bool:
        """Whether a stop of the task was requested."""
        return self._asked or self._shown.records.stop_asked(self.task.task_id)

    def stop_asked(self) -> bool:
        """Whether this process is closing, or a stop of the task was requested."""
        return self._shown.closing.is_set() or self.asked()
