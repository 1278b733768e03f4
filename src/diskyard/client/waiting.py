"""Waiting for tasks and images, for the class that Python programs use."""

from __future__ import annotations

import time

from diskyard import errors
from diskyard.model import requests as ask
from diskyard.model.results import ImageStatus, Task
from diskyard.service import Service, run

_POLL_S = 0.05


class Waiting:
    """What :class:`Diskyard` has for waiting: no verbs of the API, but made of them."""

    service: Service

    def wait_for_tasks(self, timeout_s: float | None = None) -> bool:
        """Wait for the tasks that this object started; False if the time ran out."""
        return self.service.tasks.wait(timeout_s=timeout_s)

    def unfinished_tasks(self) -> list[Task]:
        """The tasks that this object started and that have not ended, as they are now."""
        return [self._task(task.task_id) for task in self.service.tasks.unfinished()]

    def take_started(self) -> list[str]:
        """The ids of the tasks that this object started since this was last asked."""
        return self.service.tasks.take_started()

    def wait_for_task(self, task_id: str, timeout_s: float | None = None) -> Task:
        """Wait for a task, also of another process, and return how it ended.

        :raises diskyard.errors.DiskyardError: the error that it failed with.
        :raises TimeoutError: it has not ended within the time.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while (task := self._task(task_id)).state in ("queued", "running"):
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise TimeoutError(f"Task {task_id} is still {task.state}.")
            time.sleep(_POLL_S)
        if task.state == "failed" and task.error is not None:
            kind = errors.CODES.get(str(task.error.get("code")), errors.InternalError)
            raise kind(str(task.error.get("message")), advice=str(task.error.get("advice")))
        return task

    def wait_for_image(
        self, repository_id: str, image_id: str, timeout_s: float | None = None
    ) -> ImageStatus:
        """Wait until an image is usable and no task of this host works on it.

        :raises diskyard.errors.ImageBroken: nothing works on it, and it is broken.
        :raises TimeoutError: it is not usable within the time.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            status = self._status(repository_id, image_id)
            if status.task_id is None:
                if status.status != "broken":
                    return status
                raise errors.ImageBroken(
                    f"Image {image_id} is broken and nothing works on it. {status.last_error}",
                    imageId=image_id,
                )
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise TimeoutError(f"Image {image_id} is still {status.status}.")
            time.sleep(_POLL_S)

    def _task(self, task_id: str) -> Task:
        task: Task = run(self.service, ask.GetTask(task_id=task_id))
        return task

    def _status(self, repository_id: str, image_id: str) -> ImageStatus:
        request = ask.GetImageStatus(repository_id=repository_id, image_id=image_id)
        status: ImageStatus = run(self.service, request)
        return status
