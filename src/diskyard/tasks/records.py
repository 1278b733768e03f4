"""Tasks as this host's processes show them to each other: one small file for each.

The files are not part of any repository. Losing them loses only what is shown of tasks: what a task must do
is in the log, and what it has done is in the volumes.
"""

from __future__ import annotations

import contextlib
import os

import msgspec

from diskyard import errors
from diskyard.host import Host, ProcessIdentity, provably_gone
from diskyard.host.identity import this_process
from diskyard.model.fix import FixData
from diskyard.model.results import Task

KEPT_S = 24 * 3600.0
_LIMIT_BYTES = 1 << 20
_ENDED = ("done", "failed", "stopped")


class Again(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is needed to start a task again, as its caller wanted it.

    :param fix: what the task does.
    :param rate_limit_bytes_per_s: as the caller gave it; 0 for none.
    :param participating: the repoIds in which it may search for images; None for all.
    :param actor: its caller.
    :param repositories: the repoIds that the caller could use; None for all.
    :param transfer_folders: the directories from which the caller could import; None for the host's own.
    :param crashes: how often in a row it was started again after its process had been killed.
    """

    fix: FixData
    rate_limit_bytes_per_s: int = 0
    participating: tuple[str, ...] | None = None
    actor: str = ""
    repositories: tuple[str, ...] | None = None
    transfer_folders: tuple[str, ...] | None = None
    crashes: int = 0


class TaskRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A task and the process that runs it.

    :param again: how to start it again; None if that is not possible.
    :param resumable: it was interrupted when its process ended in order.
    """

    task: Task
    process: ProcessIdentity
    again: Again | None = None
    resumable: bool = False


def _stopped(task: Task) -> Task:
    """A task whose process ended before it could record the task's end."""
    return msgspec.structs.replace(task, state="stopped", rate_bytes_per_s=0, remaining_s=None)


class TaskRecords:
    """The task files of one state directory.

    :param folder: the directory; made if it does not exist.
    """

    def __init__(self, host: Host, folder: str) -> None:
        self._host = host
        self._folder = folder
        self._process = this_process(host.identity)
        self._ended: dict[str, Task] = {}
        self._unshown: dict[str, Task] = {}
        host.files.ensure_folder(folder)

    def _path(self, task_id: str, suffix: str) -> str:
        return os.path.join(self._folder, f"{task_id}.{suffix}")

    def put(self, task: Task, again: Again | None = None, *, resumable: bool = False) -> None:
        """Show a task as it is now.

        If the state directory is full or gone, only this process sees the task. The work goes on: its
        repository may be well.
        """
        try:
            self._write(TaskRecord(task, self._process, again, resumable))
        except OSError:
            self._unshown[task.task_id] = task
        else:
            self._unshown.pop(task.task_id, None)

    def _write(self, record: TaskRecord) -> None:
        """Write a task's file. It is not durable, but is never seen in part."""
        data = msgspec.json.encode(record)
        temporary = self._host.files.temporary_path(self._folder)
        try:
            fd = self._host.files.create(temporary)
            try:
                self._host.files.write(fd, data)
            finally:
                os.close(fd)
            self._host.files.rename(temporary, self._path(record.task.task_id, "task"))
        except BaseException:
            self._host.files.discard(temporary)
            raise

    def all(self) -> list[Task]:
        """Every task of the last day, the oldest first. Tasks of ended processes count as ended."""
        tasks = []
        now_s = self._host.clock.wall_s()
        for item in self._host.files.list(self._folder):
            if now_s - item.modified_s > KEPT_S:
                self._forget_old(item.name)
            elif item.name.endswith(".task"):
                task = self._ended.get(item.name) or self._look(item.name)
                if task is not None and task.task_id not in self._unshown:
                    tasks.append(task)
        tasks += self._unshown.values()
        return sorted(tasks, key=lambda task: (task.queued_at, task.task_id))

    def unended(self) -> list[Task]:
        """The tasks that have not ended, in no order. This is quick even among very many others."""
        names = [name for name in self._host.files.names(self._folder) if name.endswith(".task")]
        found = [self._look(name) for name in names if name not in self._ended]
        shown = [task for task in found if task is not None and task.task_id not in self._unshown]
        return [task for task in (*shown, *self._unshown.values()) if task.state not in _ENDED]

    def _look(self, name: str) -> Task | None:
        task = self._read(os.path.join(self._folder, name))
        if task is not None and task.state in _ENDED:
            self._ended[name] = task  # it will not change any more
        return task

    def _forget_old(self, name: str) -> None:
        task = self._read(os.path.join(self._folder, name)) if name.endswith(".task") else None
        if task is None or task.state in _ENDED:
            self._ended.pop(name, None)
            self._host.files.discard(os.path.join(self._folder, name))

    def get(self, task_id: str) -> Task:
        """One task.

        :raises diskyard.errors.TaskNotFound: there is none of that id.
        """
        valid = task_id.isascii() and task_id.replace("-", "").isalnum() and len(task_id) <= 64
        task = self._unshown.get(task_id)
        if task is None and valid:
            task = self._read(self._path(task_id, "task"))
        if task is None:
            raise errors.TaskNotFound(f"There is no task {task_id!r:.80}.", taskId=task_id[:64])
        return task

    def _read(self, path: str) -> Task | None:
        record = self._read_record(path)
        if record is None:
            return None
        return _stopped(record.task) if self._was_cut(record) else record.task

    def _read_record(self, path: str) -> TaskRecord | None:
        try:
            data = self._host.files.read(path, _LIMIT_BYTES)
            if data is None:
                return None
            record = msgspec.json.decode(data, type=TaskRecord)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None  # damaged, or of another version; it is forgotten within a day
        if self._path(record.task.task_id, "task") != path:
            return None  # the name of a task's file must be its id
        return record

    def _was_cut(self, record: TaskRecord) -> bool:
        """Whether a task's process ended before the task did, and before it could record that."""
        return record.task.state not in _ENDED and provably_gone(record.process, self._host.identity)

    def interrupted(self) -> list[TaskRecord]:
        """The tasks that were interrupted by the end of their process, the oldest first.

        Tasks that somebody wanted to stop are not among them. Called before :meth:`all`, this also returns
        tasks that were queued for longer than a day.
        """
        names = [item.name for item in self._host.files.list(self._folder) if item.name.endswith(".task")]
        records = [self._read_record(os.path.join(self._folder, name)) for name in names]
        found = [
            record
            for record in records
            if record is not None
            and (self._was_cut(record) or (record.task.state == "stopped" and record.resumable))
            and not self.stop_asked(record.task.task_id)
        ]
        return sorted(found, key=lambda record: (record.task.queued_at, record.task.task_id))

    def settle(self, record: TaskRecord) -> None:
        """Mark an interrupted task as stopped for good: it does not count as interrupted any more.

        :raises OSError: that could not be written.
        """
        self._write(TaskRecord(_stopped(record.task), self._process))

    def ask_to_stop(self, task_id: str) -> None:
        """Request that the process which runs a task stop it."""
        path = self._path(task_id, "stop")
        if not self._host.files.exists(path):
            with contextlib.suppress(FileExistsError):  # another process does the same
                os.close(self._host.files.create(path))

    def stop_asked(self, task_id: str) -> bool:
        """Whether somebody wants a task to stop; False if the directory does not answer."""
        try:
            return self._host.files.exists(self._path(task_id, "stop"))
        except OSError:
            return False

    def forget_stop(self, task_id: str) -> None:
        """Remove the request to stop a task, since the task has ended."""
        self._host.files.discard(self._path(task_id, "stop"))
