"""Waiting for tasks and images. ``async_waiting.py`` is made from this file (scripts/make_async)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing

from diskyard import errors
from diskyard.client.transport import Transport
from diskyard.client.values import EventType, OnProgress
from diskyard.client.wire import error_of
from diskyard.model import requests as ask
from diskyard.model.results import Event, ImageStatus, Task


class Waiting:
    """The methods of :class:`Diskyard` for waiting: not verbs of the API, but built on them."""

    transport: Transport

    def wait_for_tasks(self, timeout_s: float | None = None, on_progress: OnProgress | None = None) -> bool:
        """Wait for the tasks that this object started; False if the time ran out.

        :param on_progress: called with each of these tasks at each check.
        """
        return self.transport.wait(timeout_s, on_progress)

    def unfinished_tasks(self) -> list[Task]:
        """The tasks that this object started and that have not ended, as they are now."""
        tasks = []
        for task_id in self.transport.unfinished():
            tasks.append(self._task(task_id))
        return tasks

    def take_started(self) -> list[str]:
        """The ids of the tasks that this object started since the last call."""
        return self.transport.take_started()

    def wait_for_task(
        self, task_id: str, timeout_s: float | None = None, on_progress: OnProgress | None = None
    ) -> Task:
        """Wait for a task, even of another process, and return how it ended.

        :param on_progress: called with the task at each check.
        :raises diskyard.errors.DiskyardError: the error that it failed with.
        :raises TimeoutError: it has not ended within the time.
        """
        task = self._task(task_id)
        if task.state in ("queued", "running"):
            with closing(self.transport.watch(("task",), timeout_s)) as changes:
                for event in changes:
                    if event is not None and event.data.get("taskId") != task_id:
                        continue
                    task = self._task(task_id)
                    if on_progress is not None:
                        on_progress(task)
                    if task.state not in ("queued", "running"):
                        break
                else:
                    raise TimeoutError(f"Task {task_id} is still {task.state}.")
        if task.state == "failed" and task.error is not None:
            raise error_of(task.error)
        return task

    def wait_for_image(
        self,
        repository_id: str,
        image_id: str,
        timeout_s: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> ImageStatus:
        """Wait until an image is usable and no task of the host works on it.

        :param on_progress: called at each check with the task that works on the image.
        :raises diskyard.errors.ImageBroken: nothing works on it, and it is broken.
        :raises TimeoutError: it is not usable within the time.
        """
        status = self._status(repository_id, image_id)
        if status.task_id is not None:
            with closing(self.transport.watch(("task", "image"), timeout_s)) as changes:
                for event in changes:
                    if event is not None and event.data.get("imageId") != image_id:
                        continue
                    status = self._status(repository_id, image_id)
                    if status.task_id is None:
                        break
                    if on_progress is not None:
                        on_progress(self._task(status.task_id))
                else:
                    raise TimeoutError(f"Image {image_id} is still {status.status}.")
        if status.status == "broken":
            raise errors.ImageBroken(
                f"Image {image_id} is broken and nothing works on it. {status.last_error}",
                imageId=image_id,
            )
        return status

    def events(
        self,
        types: Sequence[EventType] = (),
        repository_id: str | None = None,
        last_event_id: str | None = None,
    ) -> Generator[Event]:
        """Events of the host, from now on, without end.

        A lost connection to a daemon is made again, and the events that happened meanwhile come
        then. An event of kind ``reset`` says that some are lost: read again everything that you keep.
        Embedded, these are the events of this process only.

        :param types: of these types only; all if empty.
        :param repository_id: about this repository only.
        :param last_event_id: go on after this event; its id is ``event_id``.
        :raises diskyard.errors.DiskyardError: the daemon refuses, or is gone for too long.
        """
        with closing(self.transport.events(types, repository_id, last_event_id)) as events:
            for event in events:  # noqa: UP028 - the asynchronous form cannot use yield from
                yield event

    def _task(self, task_id: str) -> Task:
        task: Task = self.transport.run(ask.GetTask, {"taskId": task_id})
        return task

    def _status(self, repository_id: str, image_id: str) -> ImageStatus:
        words = {"repositoryId": repository_id, "imageId": image_id}
        status: ImageStatus = self.transport.run(ask.GetImageStatus, words)
        return status
