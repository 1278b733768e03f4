"""listTasks, getTask, stopTask: the tasks of this host."""

from __future__ import annotations

from diskyard import errors
from diskyard.caller import may_use
from diskyard.model.requests import GetTask, ListTasks, StopTask
from diskyard.model.results import Task
from diskyard.operations.engine import Engine


def list_tasks(engine: Engine, request: ListTasks) -> list[Task]:
    """The tasks of repositories that the caller may use."""
    wanted = request.image_id
    tasks = [task for task in engine.records.all() if wanted in (None, task.image_id)]
    return [task for task in tasks if may_use(task.repository_id)]


def get_task(engine: Engine, request: GetTask) -> Task:
    """One task.

    :raises diskyard.errors.Forbidden: the task works in a repository that the caller may not use.
    """
    return _task(engine, request.task_id)


def stop_task(engine: Engine, request: StopTask) -> None:
    """Stop a task, if it has not ended."""
    task = _task(engine, request.task_id)
    if task.state in ("queued", "running"):
        engine.tasks.stop(task.task_id)


def _task(engine: Engine, task_id: str) -> Task:
    task = engine.records.get(task_id)
    if not may_use(task.repository_id):
        raise errors.Forbidden(f"Task {task_id} works in a repository that the token is not bound to.")
    return task
