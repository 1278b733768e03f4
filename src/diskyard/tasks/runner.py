"""Runs work in the background of this process, as tasks that every process can see."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial

from diskyard import errors
from diskyard.caller import CALLER, Parts, Share, share
from diskyard.host import Clock
from diskyard.host.calls import default_timeout_s
from diskyard.host.identity import new_uuid
from diskyard.model.results import Task
from diskyard.mover.interface import Stopped
from diskyard.tasks.limits import TaskLimits, Urgency
from diskyard.tasks.pool import TaskPool
from diskyard.tasks.records import Again, TaskRecords
from diskyard.tasks.waitlist import Waiting
from diskyard.tasks.watcher import Shown, TaskWatcher

_STARTED_LIMIT = 10_000
_QUEUE_RETRY_AFTER_S = 5


@dataclass(frozen=True, slots=True)
class Job:
    """Something to run as a task.

    :param run: does the work; True if it changed anything.
    :param place: the marker of the repository that it works in, whatever its repoId.
    :param again: how to start it again; None if that is not possible.
    """

    verb: str
    repository_id: str | None
    image_id: str | None
    run: Callable[[TaskWatcher], bool]
    place: str | None = None
    again: Again | None = None


@dataclass(slots=True)
class _Queue:
    """Jobs that run one after the other.

    :ivar left: the jobs that have not begun.
    """

    left: list[tuple[Job, TaskWatcher]]
    urgency: Urgency
    arrival: int
    context: Context
    when_ended: Callable[[Task], None] | None
    share: Share

    def cut(self, task_id: str) -> list[TaskWatcher]:
        """Take a job out of the queue, and those after it."""
        at = [watcher.task.task_id for _, watcher in self.left].index(task_id)
        cut, self.left = self.left[at:], self.left[:at]
        return [watcher for _, watcher in cut]


class TaskRunner:
    """The tasks of this process.

    :param timeout_s: how long storage may take to answer a task before others run in its place.
    :param tell: called with a task for every change of it that is shown; it must not raise.
    """

    def __init__(
        self,
        records: TaskRecords,
        clock: Clock,
        limits: TaskLimits | None = None,
        timeout_s: float | None = None,
        tell: Callable[[Task], None] = lambda task: None,
    ) -> None:
        self._records = records
        self._clock = clock
        self._limits = limits or TaskLimits()
        self._closing = threading.Event()
        self._shown = Shown(records, clock, tell, self._closing)
        self._resumable = False
        timeout_s = default_timeout_s() if timeout_s is None else timeout_s
        self._pool = TaskPool(self._limits, timeout_s, self._stop_queued)
        self._arrivals = itertools.count()
        self._idle = threading.Condition()
        self._unfinished: dict[str, TaskWatcher] = {}
        self._queued: dict[str, _Queue] = {}
        self._parts = Parts(self._limits.queued)
        self._started: deque[str] = deque(maxlen=_STARTED_LIMIT)

    def require_free_space(self) -> None:
        """Refuse a caller if no more tasks may wait, or no more of this caller's.

        This is checked before anything is changed. So callers that come at the same time may exceed the
        limit a little; and tasks of work that was begun already are queued however many wait.

        :raises diskyard.errors.TooManyRequests: too many tasks wait.
        """
        with self._idle:
            taken = self._parts.in_the_way(share())
        if taken is not None:
            raise errors.TooManyRequests(
                taken.format(words="tasks wait on this host") + ".",
                advice="Wait until some have ended, or stop some that listTasks names. With AutoFix false "
                "a call is still committed, and checkStorageRepository lists its work.",
                retry_after_s=_QUEUE_RETRY_AFTER_S,
            )

    def start(
        self,
        jobs: Sequence[Job],
        urgency: Urgency = Urgency.ASKED,
        when_ended: Callable[[Task], None] | None = None,
    ) -> list[Task]:
        """Queue jobs that run one after the other, in the context of the caller.

        Other jobs may run between two of them: each waits as urgently as its own type does. If a job is
        stopped, the rest end too. If one fails, they do not: each plans anew, and finds nothing to do if it
        depended on the one that failed.

        :param when_ended: called with each task when it has ended, in any thread.
        :returns: the tasks of the jobs, as queued.
        """
        watchers = [self._show_queued(job) for job in jobs]
        tasks = [watcher.task for watcher in watchers]
        task_ids = [task.task_id for task in tasks]
        left = list(zip(jobs, watchers, strict=True))
        queue = _Queue(left, urgency, next(self._arrivals), copy_context(), when_ended, share())
        caller = CALLER.get()
        if caller is not None:
            caller.started.extend(task_ids)
        with self._idle:
            self._unfinished.update(zip(task_ids, watchers, strict=True))
            self._queued.update(dict.fromkeys(task_ids, queue))
            self._parts.add(queue.share, len(task_ids))
            self._started.extend(task_ids)
            too_late = self._cut(task_ids[0]) if jobs and self._closing.is_set() else []
        self._end_unrun(queue, too_late)
        self._submit(queue)
        return tasks

    def _show_queued(self, job: Job) -> TaskWatcher:
        task = Task(
            task_id=new_uuid(),
            verb=job.verb,
            repository_id=job.repository_id,
            image_id=job.image_id,
            state="queued",
            queued_at=self._clock.now(),
        )
        watcher = TaskWatcher(task, job.again, self._shown)
        watcher.show()
        return watcher

    def _submit(self, queue: _Queue) -> None:
        """Let the next job of a queue wait for a thread."""
        with self._idle:
            if not queue.left:
                return
            job, more = queue.left[0][0], len(queue.left) > 1
        rank = self._limits.rank(job.verb)
        work = partial(self._run_next, queue)
        self._pool.submit(Waiting(queue.urgency, rank, queue.arrival, job.place, work), more=more)

    def _run_next(self, queue: _Queue) -> None:
        with self._idle:
            if not queue.left:
                return  # stopped meanwhile
            job, watcher = queue.left.pop(0)
            del self._queued[watcher.task.task_id]
            self._parts.remove(queue.share)
        try:
            goes_on = queue.context.run(self._run, job, watcher)
        finally:
            self._forget(queue, watcher)
        with self._idle:
            cut = [] if goes_on or not queue.left else self._cut(queue.left[0][1].task.task_id)
        self._end_unrun(queue, cut)
        self._submit(queue)

    def _run(self, job: Job, watcher: TaskWatcher) -> bool:
        """Run a job to its end, however it ends. Return False if it was stopped."""
        try:
            if watcher.stop_asked():
                watcher.show_end(state="stopped", resumable=self._is_resumable(watcher))
                return False
            watcher.show(state="running", started_at=self._clock.now())
            changed = job.run(watcher)
            watcher.show_end(state="done", percent=100, changed=changed)
        except Stopped:
            watcher.show_end(state="stopped", changed=True, resumable=self._is_resumable(watcher))
            return False
        except errors.DiskyardError as error:
            watcher.show_end(state="failed", error=error.to_json())
        except OSError as error:
            failed = errors.from_os_error(error, f"running {job.verb}")
            watcher.show_end(state="failed", error=failed.to_json())
        except Exception as error:  # noqa: BLE001 - see the comment
            # The last resort of a background thread: the error is shown in the task.
            watcher.show_end(state="failed", error=errors.unexpected(error).to_json())
        return True

    def _is_resumable(self, watcher: TaskWatcher) -> bool:
        """Whether a stopped task is to go on later: only the end of this process stopped it."""
        return self._resumable and not watcher.asked()

    # -- stopping -----------------------------------------------------------------------------

    def stop(self, task_id: str) -> None:
        """Stop a task of any process: at once if it is queued, otherwise at its next checkpoint.

        :raises OSError: another process cannot be reached: no file can be made in the state directory.
        """
        with self._idle:
            watcher = self._unfinished.get(task_id)
            queue = self._queued.get(task_id)
            cut = self._cut(task_id)
        if queue is not None:
            self._end_unrun(queue, cut)
        elif watcher is not None:
            watcher.ask_to_stop()
        else:
            self._records.ask_to_stop(task_id)

    def _cut(self, task_id: str) -> list[TaskWatcher]:
        """Take a queued task out of its queue, and those after it. The caller holds the lock."""
        queue = self._queued.get(task_id)
        cut = [] if queue is None else queue.cut(task_id)
        for watcher in cut:
            del self._queued[watcher.task.task_id]
        if queue is not None:
            self._parts.remove(queue.share, len(cut))
        return cut

    def _end_unrun(self, queue: _Queue, watchers: Sequence[TaskWatcher]) -> None:
        for watcher in watchers:
            watcher.show_end(state="stopped", resumable=self._is_resumable(watcher))
            self._forget(queue, watcher)

    def _forget(self, queue: _Queue, watcher: TaskWatcher) -> None:
        """Drop a task that has ended, or that an exception cut off which ends this process."""
        with self._idle:
            del self._unfinished[watcher.task.task_id]
            self._idle.notify_all()
        if queue.when_ended is not None:
            queue.when_ended(watcher.task)

    def _stop_queued(self) -> bool:
        """End queued tasks that another process wants to stop. Return whether any were queued."""
        with self._idle:
            queued = list(self._queued)
        for task_id in queued:
            if self._records.stop_asked(task_id):
                self.stop(task_id)
        return bool(queued)

    # -- waiting ------------------------------------------------------------------------------

    def unfinished(self) -> list[Task]:
        """Tasks of this process that are queued or running."""
        with self._idle:
            return [watcher.task for watcher in self._unfinished.values()]

    def take_started(self) -> list[str]:
        """The ids of the tasks started since the last call; if there were many, only the latest."""
        with self._idle:
            taken = list(self._started)
            self._started.clear()
            return taken

    def wait(self, task_ids: Sequence[str] | None = None, timeout_s: float | None = None) -> bool:
        """Wait until these tasks, or all tasks of this process, have ended. False after the time-out."""
        with self._idle:
            return self._idle.wait_for(
                lambda: not (set(self._unfinished) & set(task_ids or self._unfinished)), timeout_s
            )

    def close(self, *, resumable: bool = False, timeout_s: float | None = None) -> bool:
        """Stop queued tasks at once and running ones at their next checkpoint, and wait for that.

        It does not wait for tasks whose storage does not answer: they end with this process, or when it does.

        :param resumable: the next process that resumes tasks of this state directory is to start the
            interrupted tasks again.
        :param timeout_s: how long to wait at most; None for as long as it takes.
        :returns: whether all tasks have ended, except those whose storage does not answer. The rest are cut
            off by the end of this process, as by a crash.
        """
        with self._idle:
            self._resumable = self._resumable or resumable
            self._closing.set()
            queues = {queue.arrival: queue for queue in self._queued.values()}
            cut = [(queues[key], self._cut(queues[key].left[0][1].task.task_id)) for key in sorted(queues)]
        for queue, watchers in cut:
            self._end_unrun(queue, watchers)
        return self._pool.close(timeout_s)
