"""Resuming the work that the end of an earlier process interrupted."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterable, Set
from contextvars import copy_context
from typing import Literal, TypeVar

import msgspec
from msgspec.structs import replace

from diskyard import errors
from diskyard.caller import CALLER, Caller
from diskyard.model import requests as ask
from diskyard.model.fix import Fix, fix_id, outlook
from diskyard.model.results import Task
from diskyard.operations.engine import FollowUp
from diskyard.service import Service
from diskyard.service.verbs import run_unwatched
from diskyard.tasks.records import Again, TaskRecord
from diskyard.tasks.runner import Job

R = TypeVar("R")
#: If its process is killed more often than this in a row, a task is not started again.
_CRASHES_MOST = 3
_HELD_S = 10.0
_POLL_S = 0.2
_log = logging.getLogger("diskyard.resume")


class Resumed(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome for one interrupted task.

    :param task: as it was when it was interrupted.
    :param outcome: ``started`` as a new task; ``over``: it is not started, now or later;
        ``later``: the next start of the daemon tries it again.
    :param why: the reason why it was not started.
    :param new_task_id: of the new task.
    """

    task: Task
    outcome: Literal["started", "over", "later"]
    why: str = ""
    new_task_id: str | None = None


def resume(service: Service) -> list[Resumed]:
    """Start the fixes of the tasks that were queued or running when their process ended.

    Those are the tasks whose process has certainly ended, and those that :meth:`Service.close` interrupted
    as resumable. Tasks that somebody wanted to stop are not among them. Each is started at most once, as
    its caller wanted it, if check still lists its fix and it can run.

    It takes as long as a check of each repository concerned. A repository that does not answer does not
    keep the tasks of others from being resumed.

    :returns: the outcome for each task; the repositories are in the order of their oldest task.
    :raises OSError: the state directory cannot be read.
    """
    by_repository: dict[str | None, list[TaskRecord]] = {}
    for record in service.records.interrupted():
        by_repository.setdefault(record.task.repository_id, []).append(record)
    done = []
    for repository_id, records in by_repository.items():
        done += _Resumption(service, repository_id or "").run(records)
    for one in done:
        _tell(one)
    return done


def _tell(one: Resumed) -> None:
    what = f"{one.task.verb} of image {one.task.image_id or '-'} in {one.task.repository_id or '-'}"
    if one.new_task_id is not None:
        _log.info("task %s resumed as %s: %s", one.task.task_id, one.new_task_id, what)
    else:
        words = "not resumed" if one.outcome == "over" else "not resumed yet"
        _log.warning("task %s %s: %s: %s", one.task.task_id, words, what, one.why)


class _Resumption:
    """The interrupted tasks of one repository."""

    def __init__(self, service: Service, repository_id: str) -> None:
        self._service = service
        self._repository_id = repository_id
        self._seen: set[str] = set()
        self._chains: list[list[tuple[TaskRecord, Again]]] = []
        self._of_image: dict[str, list[tuple[TaskRecord, Again]]] = {}
        self._waiting_images: set[str] = set()

    def run(self, records: list[TaskRecord]) -> list[Resumed]:
        done = [self._settle(record, _no_again(record.task)) for record in records if record.again is None]
        pairs = [(record, record.again) for record in records if record.again is not None]
        if pairs:
            try:
                listed = self._listed({fix_id(again.fix) for _, again in pairs})
            except errors.DiskyardError as error:
                return [*_flat(done), *(_later(record, error.message) for record, _ in pairs)]
            done += [self._sort(record, again, listed) for record, again in pairs]
            done += [self._start(chain) for chain in self._chains]
        return _flat(done)

    def _listed(self, wanted: Set[str]) -> dict[str, Fix]:
        """The fixes that check lists now, by their ids.

        The children of a killed process hold its leases until they notice its death, which is soon.
        """
        request = ask.CheckStorageRepository(repository_id=self._repository_id)
        clock = self._service.host.clock
        end_s = clock.monotonic_s() + _HELD_S
        while True:
            fixes: list[Fix] = self._supervised(lambda: run_unwatched(self._service, request))
            listed = {fix.fix_id: fix for fix in fixes}
            if not any(listed[key].held_by for key in wanted & listed.keys()) or clock.monotonic_s() > end_s:
                return listed
            clock.sleep(_POLL_S)

    def _sort(self, record: TaskRecord, again: Again, listed: dict[str, Fix]) -> list[Resumed]:
        """Add a task to the chain with which it starts, or else return its outcome."""
        key, image_id = fix_id(again.fix), record.task.image_id
        behind = None if image_id is None else self._of_image.get(image_id)
        fix = listed.get(key)
        if _crashes(record, again) > _CRASHES_MOST:
            return self._settle(record, f"its process was killed {_crashes(record, again)} times in a row")
        if key in self._seen:
            return self._settle(record, "another resumed task does the same")
        if image_id in self._waiting_images:
            return [_later(record, "the task before it cannot run yet")]
        if behind is None and fix is None:
            return self._settle(record, "its fix is not listed any more")
        if behind is None and fix is not None and not fix.runnable:
            self._waiting_images |= {image_id} if image_id is not None else set()
            return [_later(record, outlook(fix))]
        self._seen.add(key)
        if behind is None:
            behind = []
            self._chains.append(behind)
        # A task that was queued behind work on its image runs after that work. It will find what is to be
        # done then, whether its fix is listed now or not.
        behind.append((record, again))
        if image_id is not None:
            self._of_image[image_id] = behind
        return []

    def _settle(self, record: TaskRecord, why: str) -> list[Resumed]:
        try:
            self._service.records.settle(record)
        except OSError as error:
            return [_later(record, f"the state directory cannot be written: {error}")]
        return [Resumed(task=record.task, outcome="over", why=why)]

    def _start(self, chain: list[tuple[TaskRecord, Again]]) -> list[Resumed]:
        first = chain[0][1]
        caller = Caller(
            first.actor,
            repositories=None if first.repositories is None else frozenset(first.repositories),
            transfer_folders=first.transfer_folders,
        )
        try:
            jobs = self._supervised(lambda: [self._job(record, again) for record, again in chain], caller)
        except errors.DiskyardError as error:
            return [_later(record, error.message) for record, _ in chain]
        results = _flat(self._settle(record, "") for record, _ in chain)  # none must be started twice
        settled = list(itertools.takewhile(lambda one: one.outcome == "over", results))
        context = copy_context()
        context.run(CALLER.set, caller)
        tasks = context.run(self._service.tasks.start, jobs[: len(settled)])
        started = [
            replace(one, outcome="started", new_task_id=task.task_id)
            for one, task in zip(settled, tasks, strict=True)
        ]
        return [*started, *results[len(settled) :]]

    def _job(self, record: TaskRecord, again: Again) -> Job:
        connections = self._service.connections
        job = self._service.job(
            FollowUp(
                connections.get(self._repository_id),
                again.fix.action,
                record.task.image_id,
                again.rate_limit_bytes_per_s,
                connections.among(again.participating),
            )
        )
        assert job.again is not None
        return dataclasses.replace(job, again=replace(job.again, crashes=_crashes(record, again)))

    def _supervised(self, work: Callable[[], R], caller: Caller | None = None) -> R:
        """Do work for a caller, and give up if storage does not answer."""
        context = copy_context()
        context.run(CALLER.set, caller)
        return self._service.supervisor.run(lambda: context.run(work))


def _crashes(record: TaskRecord, again: Again) -> int:
    """How often in a row its process ended without recording that, this time included."""
    return 0 if record.resumable else again.crashes + 1


def _flat(parts: Iterable[Iterable[Resumed]]) -> list[Resumed]:
    """One list of the results."""
    return [one for part in parts for one in part]


def _no_again(task: Task) -> str:
    if task.verb == "exportImage":
        return "an export is not resumed: export the image again"
    return "the caretaker finds due fixes by itself"


def _later(record: TaskRecord, why: str) -> Resumed:
    return Resumed(task=record.task, outcome="later", why=why)
