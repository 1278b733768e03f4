"""Worker threads, each with its own resources. A program that ends does not wait for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from diskyard import errors

Tool = TypeVar("Tool")


class WorkerPool(Generic[Tool]):
    """A pool with one daemon thread for each resource: storage that hangs blocks only its own thread.

    An executor of the standard library would be joined at the end of the program.

    :raises diskyard.errors.StorageError: the host cannot start more threads; none is left running.
    """

    def __init__(self, tools: Sequence[Tool], name: str) -> None:
        self._jobs: SimpleQueue[tuple[Future[None], Callable[[Tool], None]] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, args=(tool,), name=f"{name}-{index}", daemon=True)
            for index, tool in enumerate(tools)
        ]
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:
            self._dismiss()
            raise errors.StorageError(
                f"This host cannot start another thread: {error}.",
                advice="Check its limits of processes and memory (TasksMax of the unit), then try again.",
            ) from error

    def submit(self, job: Callable[[Tool], None]) -> Future[None]:
        """Have the next free worker do a job. The future holds the job's error if it fails."""
        future: Future[None] = Future()
        self._jobs.put((future, job))
        return future

    def end(self, timeout_s: float) -> None:
        """Drop the jobs that were not begun. Wait for the others, but not longer than ``timeout_s``."""
        try:
            while True:
                self._jobs.get_nowait()
        except Empty:
            pass
        self._dismiss()
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))

    def _dismiss(self) -> None:
        for _ in self._threads:
            self._jobs.put(None)

    def is_alive(self) -> bool:
        """Whether any thread is still running."""
        return any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        """Wait for all threads, however long it takes."""
        for thread in self._threads:
            thread.join()

    def _serve(self, tool: Tool) -> None:
        while (item := self._jobs.get()) is not None:
            future, job = item
            try:
                job(tool)
            except BaseException as error:  # noqa: BLE001 - raised again where the future is used
                future.set_exception(error)
            else:
                future.set_result(None)


def when_ended(pools: Sequence[WorkerPool[Any]], do: Callable[[], None]) -> None:
    """Call ``do`` when all threads of some pools have ended, whenever that is. This does not wait."""

    def wait() -> None:
        for pool in pools:
            pool.join()
        do()

    threading.Thread(target=wait, name="pools-end", daemon=True).start()
