"""Progress bars of the tasks that a command waits for."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from diskyard.cli.values import human_size, human_time, shown

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from diskyard.model.results import Task

_QUIET_S = 1.0


class Bars:
    """A bar for each task that runs, on stderr; none before a second has passed."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._drawn: Progress | None = None
        self._lines: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._drawn is not None:
            self._drawn.stop()

    def show(self, task: Task) -> None:
        """Show a task as it is now."""
        if time.monotonic() - self._began_s < _QUIET_S:
            return
        drawn = self._drawn or self._begin()
        line = self._lines.get(task.task_id)
        if task.state != "running":
            if line is not None:
                drawn.remove_task(self._lines.pop(task.task_id))
            return
        if line is None:
            line = self._lines[task.task_id] = drawn.add_task("", total=None, rate="", left="")
        drawn.update(
            line,
            description=shown(f"{task.verb} {task.stage}".strip()),
            completed=task.done_bytes,
            total=task.total_bytes or None,
            rate=f"{human_size(task.rate_bytes_per_s)}/s" if task.rate_bytes_per_s else "",
            left="" if task.remaining_s is None else f"{human_time(task.remaining_s)} left",
        )

    def _begin(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[left]}"),
        )
        self._drawn = Progress(*columns, console=Console(stderr=True), transient=True)
        self._drawn.start()
        return self._drawn
