"""The caretaker: it checks and fixes by itself, as far as policies allow. Without policies it is off."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextvars import Context, copy_context
from typing import cast

from diskyard import errors
from diskyard.caller import CALLER, Caller
from diskyard.daemon.left_alone import LeftAlone
from diskyard.daemon.policy import EVERY, Policy
from diskyard.host.supervise import Running
from diskyard.model import requests as ask
from diskyard.model.fix import Fix
from diskyard.model.options import CheckOptions
from diskyard.model.results import Task
from diskyard.operations.engine import FollowUp
from diskyard.service import Service
from diskyard.service.verbs import run_unwatched
from diskyard.tasks.limits import Urgency
from diskyard.tasks.runner import Job
from diskyard.tasks.watcher import TaskWatcher

ACTOR = "caretaker"
#: The longest pause between two rounds of looking: clocks may be set, and repositories come and go.
_PAUSE_MOST_S = 60.0
_log = logging.getLogger("diskyard.caretaker")


class Caretaker:
    """Runs the fixes that policies name, one after the other in each repository.

    In the queue these fixes come after everything that callers have requested. A round begins when it is due
    and the policy's hours allow it. It checks the repository and runs the listed fixes of the policy's types
    that can run. Outside the hours no further fix is begun. A fix that fails three times in a row is left
    alone for a while (:class:`diskyard.daemon.left_alone.LeftAlone`).

    :param policies: each counts by itself, even if two are about one repository. Without any,
        :meth:`start` does nothing.
    :ivar left_alone: the fixes that failed, and are tried again later.
    """

    def __init__(self, service: Service, policies: Sequence[Policy]) -> None:
        self._service = service
        self._policies = policies
        self._rounds: dict[tuple[int, str], _Round] = {}
        self.left_alone = LeftAlone()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Take care of the repositories from now on, in a thread of its own."""
        if self._policies:
            self._thread = threading.Thread(target=self._run, name="diskyard-caretaker", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Begin nothing more. :meth:`Service.close` stops what is running."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                pause_s = self.look()
            except Exception:  # noqa: BLE001 - the last resort of a background thread
                _log.exception("the caretaker met a defect, and goes on")
                pause_s = _PAUSE_MOST_S
            self._wake.wait(pause_s)
            self._wake.clear()

    def look(self) -> float:
        """Do what can be done now, without waiting for any storage.

        :returns: after how many seconds to call this again, if nothing ends before.
        """
        pause_s = _PAUSE_MOST_S
        for one in list(self._all_rounds()):
            if self._stopping.is_set():
                break
            pause_s = min(pause_s, one.look())
        return pause_s

    def is_idle(self) -> bool:
        """Whether no round was under way when :meth:`look` last ran."""
        return not any(one.is_busy() for one in self._rounds.values())

    def _all_rounds(self) -> Iterator[_Round]:
        connected = self._service.connections.remembered()
        self.left_alone.forget_repositories_but(connected)
        for number, policy in enumerate(self._policies):
            repositories = list(connected) if policy.repository == EVERY else [policy.repository]
            for repository_id in repositories:
                key = (number, repository_id)
                if key not in self._rounds:
                    self._rounds[key] = _Round(
                        self._service, policy, repository_id, self.left_alone, self._wake
                    )
                yield self._rounds[key]


@dataclasses.dataclass(slots=True)
class _Round:
    """One policy in one repository: its current round, or when the next is due.

    :ivar due_s: when the next round begins, on the monotonic clock; None for at once.
    :ivar checking: the check of this round, until it has answered.
    :ivar is_late: the log has a line saying that the check does not answer.
    :ivar left: the fixes of this round that have not begun.
    :ivar fixing: the fix that is queued or running, as ``task_id``.
    :ivar ended: that task, once it has ended.
    """

    service: Service
    policy: Policy
    repository_id: str
    left_alone: LeftAlone
    wake: threading.Event
    due_s: float | None = None
    checking: Running | None = None
    is_late: bool = False
    left: deque[Fix] = dataclasses.field(default_factory=deque)
    fixing: Fix | None = None
    task_id: str | None = None
    ended: Task | None = None

    def look(self) -> float:
        """Go on as far as possible now. Return the seconds until there may be more to do."""
        clock = self.service.host.clock
        if self.checking is not None:
            self._look_at_check(self.checking)
        if self.fixing is not None and self.ended is not None:
            self._note_end(self.fixing, self.ended)
        is_open = self.policy.is_open(clock.wall_s())
        if not is_open:
            self._withdraw()
        if self.left and self.fixing is None:
            self._begin(self.left.popleft())
        now_s = clock.monotonic_s()
        if is_open and not self.is_busy() and (self.due_s is None or now_s >= self.due_s):
            self.due_s = now_s + self.policy.every_s
            self._check()
        if self.checking is not None:
            return self.service.supervisor.look_every_s
        return max(0.0, (self.due_s or now_s) - now_s) or _PAUSE_MOST_S

    def is_busy(self) -> bool:
        """Whether a check or a fix of this round is under way."""
        return self.checking is not None or self.fixing is not None

    def _check(self) -> None:
        options = CheckOptions(types=self.policy.fixes)
        request = ask.CheckStorageRepository(repository_id=self.repository_id, options=options)
        context = _own_context()
        self.is_late = False
        self.checking = self.service.supervisor.begin(
            lambda: context.run(run_unwatched, self.service, request), self.wake.set
        )

    def _look_at_check(self, checking: Running) -> None:
        """Take the check's answer. If the repository does not answer, it is left to the next round.

        No round begins while a check still hangs: it would only leave one more thread behind.
        """
        try:
            if checking.has_ended():
                self.checking = None
                listed = [] if self.is_late else cast("list[Fix]", checking.answer())
                now_s = self.service.host.clock.monotonic_s()
                if not self.is_late:
                    self.left_alone.forget_unlisted(self.repository_id, self.policy.fixes, listed)
                due = (fix for fix in listed if fix.runnable and self.left_alone.may_try(fix, now_s))
                self.left.extend(itertools.islice(due, self.policy.at_most))
            elif not self.is_late:
                checking.require_answering()
        except errors.DiskyardError as error:
            self.is_late = self.checking is not None
            _log.warning("repository %s could not be checked: %s", self.repository_id, error.message)

    def _begin(self, fix: Fix) -> None:
        self.fixing, self.ended = fix, None

        def run(watcher: TaskWatcher) -> bool:
            repo = self.service.connections.get(self.repository_id)
            if repo.marker != fix.data.marker:
                return False  # another repository has its name now
            rate_limit = self.policy.rate_limit_bytes_per_s
            follow_up = FollowUp(repo, fix.data.action, fix.image_id, rate_limit)
            return self.service.job(follow_up).run(watcher)

        job = Job(fix.type, self.repository_id, fix.image_id, run, fix.data.marker)
        tasks = self.service.tasks
        (task,) = _own_context().run(tasks.start, [job], Urgency.SPARE, self._when_ended)
        self.task_id = task.task_id

    def _when_ended(self, task: Task) -> None:
        self.ended = task
        self.wake.set()

    def _note_end(self, fix: Fix, task: Task) -> None:
        self.fixing = self.ended = None
        error = task.error or {}
        if task.state == "stopped" or error.get("code") == errors.RepositoryUnavailable.__name__:
            self.left.clear()
        words = (fix.fix_id, self.repository_id, task.state, fix.description, error.get("message", ""))
        _log.log(logging.WARNING if error else logging.INFO, "fix %s of %s %s: %s %s", *words)
        now_s = self.service.host.clock.monotonic_s()
        self.left_alone.note(fix, self.repository_id, task, now_s, self.policy.every_s)

    def _withdraw(self) -> None:
        """Drop what has not begun, because the hours are over."""
        self.left.clear()
        for task in self.service.tasks.unfinished():
            if task.task_id == self.task_id and task.state == "queued":
                self.service.tasks.stop(task.task_id)


def _own_context() -> Context:
    """A context in which the caretaker is the caller."""
    context = copy_context()
    context.run(CALLER.set, Caller(ACTOR))
    return context
