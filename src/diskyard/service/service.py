"""Diskyard on this host, embedded in this process."""

from __future__ import annotations

import os

from diskyard.asked_imports import AskedImports
from diskyard.attachments.serve import SERVED_IMAGES, Servers
from diskyard.caller import CALLER
from diskyard.events import Events
from diskyard.host import Host
from diskyard.host.calls import default_timeout_s
from diskyard.host.sockets import allow_open_files
from diskyard.host.supervise import Supervisor
from diskyard.known_guests import KnownGuests
from diskyard.model.fix import FixData, Mend, fix_type
from diskyard.model.requests import Request
from diskyard.model.results import Task
from diskyard.model.verbs import Verb
from diskyard.operations.engine import Engine, Export, FollowUp, Outcome
from diskyard.repository.connections import Connections
from diskyard.settings import Settings, default_state_folder
from diskyard.tasks.limits import TaskLimits
from diskyard.tasks.records import Again, TaskRecords
from diskyard.tasks.runner import Job, TaskRunner
from diskyard.tasks.watcher import TaskWatcher


class Service:
    """What the verbs run on: connections, tasks, and this host.

    :param host: by default this machine.
    :param state_folder: the directory that keeps connections, tasks, and indexes of what was read from
        repositories; the default is ``$DISKYARD_STATE_DIR``, or the usual one.
    :param actor: the caller, for the audit trail.
    :param storage_timeout_s: how long the storage may take to answer one call; the default is
        ``$DISKYARD_STORAGE_TIMEOUT_S``, or 30. Calls that may well be long may take ten times as long.
    :param limits: for the tasks; the default is two at a time, with no limit of the rate.
    :param transfer_folders: directories from which pending imports are completed even if this host has no
        record that they were requested here.
    :param served_images: how many images this process may serve over NBD at a time.
    """

    def __init__(
        self,
        host: Host | None = None,
        state_folder: str | None = None,
        actor: str = "",
        storage_timeout_s: float | None = None,
        limits: TaskLimits | None = None,
        transfer_folders: tuple[str, ...] = (),
        served_images: int = SERVED_IMAGES,
    ) -> None:
        allow_open_files()  # a long chain needs one for each volume, twice during a copy
        timeout_s = default_timeout_s() if storage_timeout_s is None else storage_timeout_s
        self.supervisor = Supervisor(timeout_s)
        self.host = host or Host.real()
        folder = state_folder or default_state_folder()
        self.settings = Settings(self.host, folder)
        self.events = Events()
        self.connections = Connections(self.host, os.path.join(folder, "index"))
        self.records = TaskRecords(self.host, os.path.join(folder, "tasks"))
        self.limits = limits or TaskLimits()
        self.tasks = TaskRunner(self.records, self.host.clock, self.limits, timeout_s, self._tell_task)
        self.servers = Servers(self.host, os.path.join(folder, "nbd"), served_images)
        self.engine = Engine(
            host=self.host,
            connections=self.connections,
            asked_imports=AskedImports(self.host, self.settings),
            known_guests=KnownGuests(self.host, self.settings),
            settings=self.settings,
            events=self.events,
            supervisor=self.supervisor,
            records=self.records,
            tasks=self.tasks,
            servers=self.servers,
            actor=actor,
            transfer_folders=transfer_folders,
        )
        for repo_id, known in self.settings.connections().items():
            self.connections.remember(repo_id, known.format, known.parameters)

    def _tell_task(self, task: Task) -> None:
        self.events.tell("task", task.repository_id, task)

    def close(self, *, resumable: bool = False, timeout_s: float | None = None) -> bool:
        """Stop this process's tasks at their next checkpoint, wait for that, and end serving images.

        Attachments stay: only teardownImage ends them.

        :param resumable: tasks that this interrupts may be resumed by the next process.
        :param timeout_s: how long to wait for the tasks at most; None for as long as it takes.
        :returns: whether all tasks have ended, except those whose storage does not answer.
        """
        have_ended = self.tasks.close(resumable=resumable, timeout_s=timeout_s)
        self.servers.close()
        self.connections.close()
        self.supervisor.close()
        return have_ended

    def finish(self, verb: Verb, request: Request, outcome: Outcome) -> object:
        """Start the tasks that an operation made due, if the caller wants them. Return the verb's result."""
        tasks = []
        options = getattr(request, "options", None)
        if outcome.follow_ups and (verb.is_task or getattr(options, "auto_fix", True)):
            jobs = [
                self._export_job(due) if isinstance(due, Export) else self.job(due)
                for due in outcome.follow_ups
            ]
            tasks = self.tasks.start(jobs, outcome.urgency)
        if verb.is_task:
            return tasks[0]
        return outcome.image_id if verb.result is str else None

    def _export_job(self, export: Export) -> Job:
        asked = export.request
        rate_limit = asked.options.rate_limit or self.limits.rate_limit_bytes_per_s

        def run(watcher: TaskWatcher) -> bool:
            from diskyard.fixes.exporting import run_export

            return run_export(self.engine, export, watcher, rate_limit)

        return Job("exportImage", asked.repository_id, asked.image_id, run, export.repo.marker)

    def job(self, follow_up: FollowUp) -> Job:
        """The job that runs a fix as a task."""
        repo, action, participating = follow_up.repo, follow_up.action, follow_up.participating

        def run(watcher: TaskWatcher) -> bool:
            # Imported when a fix runs: most commands do not need the code that moves bytes.
            from diskyard.fixes.runner import run_fix

            return run_fix(
                self.engine,
                repo,
                action,
                watcher=watcher,
                rate_limit_bytes_per_s=self._rate_limit(follow_up),
                participating=participating,
                force=follow_up.force,
            )

        caller = CALLER.get()
        bound_to = None if caller is None else caller.repositories
        folders = None if caller is None else caller.transfer_folders
        again = Again(
            fix=FixData(repo.marker, action),
            rate_limit_bytes_per_s=follow_up.rate_limit_bytes_per_s,
            participating=None if participating is None else tuple(o.repo_id for o in participating),
            actor=self.engine.author(fix_type(action)).actor,
            repositories=None if bound_to is None else tuple(sorted(bound_to)),
            # The host's own directories are read again when the task is started again.
            transfer_folders=None if folders == self.engine.transfer_folders else folders,
        )
        return Job(fix_type(action), repo.repo_id, follow_up.image_id, run, repo.marker, again)

    def _rate_limit(self, follow_up: FollowUp) -> int:
        """The rate limit: from the caller of the fix, else from the caller of the image, else the host's."""
        given, usual = follow_up.rate_limit_bytes_per_s, self.limits.rate_limit_bytes_per_s
        if given or not usual or not isinstance(follow_up.action, Mend):
            return given or usual
        image = follow_up.repo.state().images.get(follow_up.action.image_id)
        has_own = image is not None and image.pending is not None and image.pending.rate_limit_bytes_per_s
        return 0 if has_own else usual
