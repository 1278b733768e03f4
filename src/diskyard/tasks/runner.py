"""Runs work in the background of this process, as tasks that every process can see."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from msgspec.structs import replace

from diskyard import errors
from diskyard.host import Clock
from diskyard.host.identity import new_uuid
from diskyard.model.results import Task
from diskyard.mover.interface import Stopped
from diskyard.tasks.records import TaskRecords

_SHOW_EVERY_S = 0.5
_RATE_WINDOW_S = 5.0
_STARTED_LIMIT = 10_000
#: What the names of the threads begin with in which tasks run.
TASK_THREADS = "diskyard-task"


class TaskWatcher:
    """One task while it runs: what the work reports, and whether it should stop."""

    def __init__(self, task: Task, records: TaskRecords, clock: Clock, closing: threading.Event) -> None:
        self.task = task
        self._records = records
        self._clock = clock
        self._closing = closing
        self._shown_s = 0.0
        self._reported: dict[str, object] = {}
        self._samples: list[tuple[float, int]] = []
        self._last_done_bytes = 0
        self._moved_bytes = 0

    def show(self, **changes: object) -> None:
        """Change what is shown of the task."""
        self.task = replace(self.task, **changes)
        self._records.put(self.task)

    def show_end(self, **changes: object) -> None:
        """Show that the task has ended, and what was reported last."""
        self.show(**self._reported, rate_bytes_per_s=0, ended_at=self._clock.now(), **changes)

    def report(self, stage: str, done_bytes: int, total_bytes: int) -> None:
        """Bytes of a stage; shown at most twice a second."""
        now_s = self._clock.monotonic_s()
        self._reported = {"stage": stage, "done_bytes": done_bytes, "total_bytes": total_bytes}
        self._moved_bytes += max(0, done_bytes - self._last_done_bytes)
        self._last_done_bytes = done_bytes
        if now_s - self._shown_s < _SHOW_EVERY_S:
            return
        self._shown_s = now_s
        self._samples = [s for s in self._samples if now_s - s[0] <= _RATE_WINDOW_S]
        self._samples.append((now_s, self._moved_bytes))
        first_s, first_bytes = self._samples[0]
        rate = (self._moved_bytes - first_bytes) / (now_s - first_s) if now_s > first_s else 0
        percent = min(100, done_bytes * 100 // total_bytes) if total_bytes else -1
        self.show(
            stage=stage,
            percent=percent,
            done_bytes=done_bytes,
            total_bytes=total_bytes,
            rate_bytes_per_s=int(rate),
        )

    def stop_asked(self) -> bool:
        """Whether this process is closing, or anybody asked for the task to stop."""
        return self._closing.is_set() or self._records.stop_asked(self.task.task_id)


@dataclass(frozen=True, slots=True)
class Job:
    """Something to run as a task.

    :param run: does it; True if it changed anything.
    """

    verb: str
    repository_id: str | None
    image_id: str | None
    run: Callable[[TaskWatcher], bool]


class TaskRunner:
    """The tasks of this process.

    :param workers: how many run at a time.
    """

    def __init__(self, records: TaskRecords, clock: Clock, workers: int = 2) -> None:
        self._records = records
        self._clock = clock
        self._closing = threading.Event()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=TASK_THREADS)
        self._idle = threading.Condition()
        self._unfinished: dict[str, Task] = {}
        self._started: deque[str] = deque(maxlen=_STARTED_LIMIT)

    def start(self, jobs: Sequence[Job]) -> list[Task]:
        """Queue jobs that run one after the other.

        A job that is stopped ends the rest; one that fails does not: each of them plans anew,
        and what depended on the failed one finds nothing to do.

        :returns: their tasks, as queued.
        """
        watchers = []
        for job in jobs:
            task = Task(
                task_id=new_uuid(),
                verb=job.verb,
                repository_id=job.repository_id,
                image_id=job.image_id,
                state="queued",
                queued_at=self._clock.now(),
            )
            watcher = TaskWatcher(task, self._records, self._clock, self._closing)
            watcher.show()
            watchers.append(watcher)
        with self._idle:
            self._unfinished.update({w.task.task_id: w.task for w in watchers})
            self._started.extend(w.task.task_id for w in watchers)
        if jobs:
            self._pool.submit(self._run_all, list(zip(jobs, watchers, strict=True)))
        return [watcher.task for watcher in watchers]

    def _run_all(self, jobs: list[tuple[Job, TaskWatcher]]) -> None:
        stopped = False
        for job, watcher in jobs:
            try:
                if stopped:
                    watcher.show_end(state="stopped")
                else:
                    stopped = not self._run(job, watcher)
            finally:
                with self._idle:
                    del self._unfinished[watcher.task.task_id]
                    self._idle.notify_all()

    def _run(self, job: Job, watcher: TaskWatcher) -> bool:
        """Run a job to its end, however it ends; False if it was stopped."""
        try:
            watcher.show(state="running", started_at=self._clock.now())
            changed = job.run(watcher)
            watcher.show_end(state="done", percent=100, changed=changed)
        except Stopped:
            watcher.show_end(state="stopped", changed=True)
            return False
        except errors.DiskyardError as error:
            watcher.show_end(state="failed", error=error.to_json())
        except Exception as error:  # noqa: BLE001 - see the comment
            # The last resort of a background thread: shown to whoever asks for the task.
            watcher.show_end(state="failed", error=errors.unexpected(error).to_json())
        finally:
            self._records.forget_stop(watcher.task.task_id)
        return True

    def unfinished(self) -> list[Task]:
        """Tasks of this process that are queued or running."""
        with self._idle:
            return list(self._unfinished.values())

    def take_started(self) -> list[str]:
        """The ids of the tasks started since this was last asked: of many, only the latest."""
        with self._idle:
            taken = list(self._started)
            self._started.clear()
            return taken

    def wait(self, task_ids: Sequence[str] | None = None, timeout_s: float | None = None) -> bool:
        """Wait until the tasks, or all of this process, have ended; False if time ran out."""
        with self._idle:
            return self._idle.wait_for(
                lambda: not (set(self._unfinished) & set(task_ids or self._unfinished)), timeout_s
            )

    def close(self) -> None:
        """Stop all tasks at their next checkpoint and wait for them: nothing is left running."""
        self._closing.set()
        self._pool.shutdown(wait=True)
