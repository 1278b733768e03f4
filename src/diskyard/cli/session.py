"""One command's use of Diskyard: opening it, waiting for what was started, interruption."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from diskyard import errors
from diskyard.cli.output import note

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from diskyard.client import Diskyard
    from diskyard.model.results import Task

_QUIET_S = 1.0
_DRAW_EVERY_S = 0.2


class Interrupted(BaseException):
    """Ctrl-C, or SIGTERM.

    :param signal_number: which of them.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_status = 128 + signal_number


class StoppedByOther(Exception):
    """A task that was waited for was stopped by somebody else."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"task {task_id} was stopped")
        self.task_id = task_id


def catch_signals() -> None:
    """Let Ctrl-C and SIGTERM end the command in order; a second one ends it at once."""

    def interrupt(signal_number: int, _: FrameType | None) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        raise Interrupted(signal_number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


@contextmanager
def open_yard() -> Iterator[Diskyard]:
    """Diskyard, embedded; on the way out, what was started is waited for.

    :raises diskyard.errors.DiskyardError: what a task that was waited for failed with.
    """
    from diskyard.client import Diskyard

    with Diskyard(actor="cli") as yard:
        yield yard
        wait(yard)


def wait(yard: Diskyard) -> None:
    """Wait for the tasks that this process started, with a progress bar if that takes long.

    :raises diskyard.errors.DiskyardError: what the first that failed failed with.
    :raises StoppedByOther: somebody else stopped one.
    """
    draws = sys.stderr.isatty()
    if not yard.wait_for_tasks(timeout_s=_QUIET_S if draws else None):
        _draw_progress(yard)
    ended = [yard.get_task(task_id) for task_id in yard.take_started()]
    for task in ended:
        if _is_others_work(task):
            note("Somebody still works on it; the rest stays listed for 'diskyard repo fix'.")
            return
        if task.state == "failed":
            yard.wait_for_task(task.task_id)
    stopped = [task.task_id for task in ended if task.state == "stopped"]
    if stopped:
        raise StoppedByOther(stopped[0])


def _is_others_work(task: Task) -> bool:
    """Whether a clean, and what was to follow it, is left to whoever still uses what it deletes."""
    return task.verb == "clean" and (task.error or {}).get("code") == errors.LeaseHeld.__name__


def _draw_progress(yard: Diskyard) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        lines: dict[str, TaskID] = {}
        while True:
            over = yard.wait_for_tasks(timeout_s=_DRAW_EVERY_S)
            _update(bars, lines, yard.unfinished_tasks())
            if over:
                return


def _update(bars: Progress, lines: dict[str, TaskID], tasks: Sequence[Task]) -> None:
    from diskyard.cli.values import human_size

    running = {task.task_id: task for task in tasks if task.state == "running"}
    for gone in lines.keys() - running.keys():
        bars.remove_task(lines.pop(gone))
    for task_id, task in running.items():
        if task_id not in lines:
            lines[task_id] = bars.add_task("", total=None, rate="")
        bars.update(
            lines[task_id],
            description=f"{task.verb} {task.stage}".strip(),
            completed=task.done_bytes,
            total=task.total_bytes or None,
            rate=f"{human_size(task.rate_bytes_per_s)}/s" if task.rate_bytes_per_s else "",
        )


def say_interrupted(*, as_json: bool) -> None:
    """One line that says what becomes of the rest."""
    if not as_json:
        note("diskyard: interrupted; what is left to do stays listed for 'diskyard repo fix'.")


def refuse(message: str, advice: str) -> errors.InvalidParameter:
    """What a person asked for cannot be meant: an error to raise."""
    return errors.InvalidParameter(message, advice=advice)
