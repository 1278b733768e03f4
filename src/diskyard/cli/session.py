"""One command's use of Diskyard: opening it, waiting for the tasks it started, interruption."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from diskyard import errors
from diskyard.cli.bars import Bars
from diskyard.cli.base import typed_url, wants_embedded
from diskyard.cli.output import note

if TYPE_CHECKING:
    from diskyard.client import Diskyard
    from diskyard.model.results import Task

_TOKEN_LIMIT = 4096


class Interrupted(BaseException):
    """Ctrl-C, or SIGTERM.

    :param signal_number: which of the two.
    :ivar goes_on: whether a daemon goes on with what the command started.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_status = 128 + signal_number
        self.goes_on = False


class StoppedByOther(Exception):
    """The command waited for a task, and somebody else stopped it."""

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
def open_yard(no_wait: bool = False) -> Iterator[Diskyard]:
    """Diskyard, through a daemon or embedded. At the end, wait for the tasks that were started.

    :param no_wait: leave these tasks to the daemon.
    :raises diskyard.errors.DiskyardError: the error of a task that it waited for.
    :raises diskyard.errors.ImageNotFound: an image was removed before it was complete.
    """
    yard = connect()
    try:
        yield yard
        if not no_wait:
            _require_made(yard, wait(yard))
    except Interrupted as interrupted:
        interrupted.goes_on = yard.url is not None
        raise
    finally:
        yard.close()


def connect() -> Diskyard:
    """Diskyard at the URL in the command line or the environment, else a running daemon, else embedded.

    :raises diskyard.errors.DiskyardError: the URL or the token cannot be used.
    """
    from diskyard.client import Diskyard

    url = typed_url()
    if url is not None and wants_embedded():
        raise refuse("Both --url and --embedded are given.", "Leave one of them out.")
    if url is None and not wants_embedded():
        url = os.environ.get("DISKYARD_URL") or None
        if url is None:
            from diskyard.client.found import running_daemon

            url = running_daemon()
    if url is None:
        return Diskyard(actor="cli", one_command=True)
    _leave_out_httpx_main()
    ca_file = os.environ.get("DISKYARD_CA_FILE") or None
    token = _token() if url.startswith("https:") else None
    return Diskyard(url, token=token, ca_file=ca_file, hands_over=True)


def _token() -> str | None:
    """The token in the environment."""
    token, path = os.environ.get("DISKYARD_TOKEN"), os.environ.get("DISKYARD_TOKEN_FILE")
    if token or not path:
        return token or None
    try:
        with open(path, encoding="ascii") as file:
            return file.read(_TOKEN_LIMIT).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise refuse(
            f"$DISKYARD_TOKEN_FILE cannot be read: {error}.", "Give a file with the token."
        ) from error


def _leave_out_httpx_main() -> None:
    """Keep httpx from importing its own command line, which takes as long as the rest of httpx."""
    # For the import system, None means "not available"; the type of sys.modules does not include it.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]


def auto_fix(yard: Diskyard, no_wait: bool) -> bool:
    """Whether a change should start the tasks that it makes due: something must be able to run them."""
    return yard.url is not None or not no_wait


def wait(yard: Diskyard) -> list[Task]:
    """Wait for the tasks that this command started, with a progress bar if that takes long.

    :returns: these tasks, as they ended.
    :raises diskyard.errors.DiskyardError: the error of the first task that failed.
    :raises StoppedByOther: somebody else stopped a task.
    """
    if sys.stderr.isatty():
        with Bars() as bars:
            yard.wait_for_tasks(on_progress=bars.show)
    else:
        yard.wait_for_tasks()
    ended = [yard.get_task(task_id) for task_id in yard.take_started()]
    for task in ended:
        if _is_others_work(task):
            note("Another task still works on it; the rest stays listed for 'diskyard repo fix'.")
            return ended
        if task.state == "failed":
            yard.wait_for_task(task.task_id)
    stopped = [task.task_id for task in ended if task.state == "stopped"]
    if stopped:
        raise StoppedByOther(stopped[0])
    return ended


def _require_made(yard: Diskyard, ended: Sequence[Task]) -> None:
    """Fail if an image is gone: a task that was to complete it found nothing to do, and succeeded."""
    for task in ended:
        if task.verb != "mend" or task.changed or task.image_id is None or task.repository_id is None:
            continue
        try:
            status = yard.get_image_status(task.repository_id, task.image_id)
        except errors.ImageNotFound as error:
            raise errors.ImageNotFound(
                f"Image {task.image_id} was removed before it was complete.",
                advice="If it was not removed on purpose, repeat the command.",
                repositoryId=task.repository_id,
                imageId=task.image_id,
            ) from error
        if status.status == "broken":
            note("Another task completes it; until then it is listed for 'diskyard repo fix'.")


def _is_others_work(task: Task) -> bool:
    """Whether a clean, or what follows it, is left to a task that still uses what it would delete."""
    return task.verb == "clean" and (task.error or {}).get("code") == errors.LeaseHeld.__name__


def say_interrupted(interrupted: Interrupted, *, as_json: bool) -> None:
    """Print a line that says what happens to the rest of the work."""
    if as_json:
        return
    if interrupted.goes_on:
        note("diskyard: interrupted; the daemon goes on with the work: see 'diskyard task list'.")
    else:
        note("diskyard: interrupted; unfinished work stays listed for 'diskyard repo fix'.")


def refuse(message: str, advice: str) -> errors.InvalidParameter:
    """The error for a request that cannot be meant; the caller raises it."""
    return errors.InvalidParameter(message, advice=advice)
