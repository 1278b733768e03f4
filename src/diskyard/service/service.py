"""Diskyard on this host, embedded in this process."""

from __future__ import annotations

import os

from diskyard.attachments.serve import Servers
from diskyard.connections import Connections
from diskyard.events import Events
from diskyard.fixes.runner import run_fix
from diskyard.host import Host
from diskyard.host.calls import default_timeout_s
from diskyard.model.fix import fix_type
from diskyard.opened import Opened
from diskyard.operations.engine import Engine, FollowUp, Outcome
from diskyard.service.supervise import Supervisor
from diskyard.settings import Settings, default_state_folder
from diskyard.tasks.records import TaskRecords
from diskyard.tasks.runner import Job, TaskRunner, TaskWatcher


class Service:
    """What the verbs run on: connections, tasks, and this host.

    :param host: this machine if not given.
    :param state_folder: where connections and tasks are remembered; the default is
        ``$DISKYARD_STATE_DIR``, or the usual place.
    :param actor: who calls, for the audit trail.
    :param storage_timeout_s: how long the storage may take to answer one call; the default is
        ``$DISKYARD_STORAGE_TIMEOUT_S``, or 30. Calls that may well be long have ten times that.
    """

    def __init__(
        self,
        host: Host | None = None,
        state_folder: str | None = None,
        actor: str = "",
        storage_timeout_s: float | None = None,
    ) -> None:
        timeout_s = default_timeout_s() if storage_timeout_s is None else storage_timeout_s
        self.supervisor = Supervisor(timeout_s)
        self.host = host or Host.real()
        folder = state_folder or default_state_folder()
        self.settings = Settings(self.host, folder)
        self.events = Events()
        self.connections = Connections(self.host)
        self.engine = Engine(self.host, self.connections, actor)
        self.records = TaskRecords(self.host, os.path.join(folder, "tasks"))
        self.tasks = TaskRunner(self.records, self.host.clock, timeout_s=timeout_s)
        self.servers = Servers(self.host, os.path.join(folder, "nbd"))
        for repo_id, known in self.settings.connections().items():
            self.connections.remember(repo_id, known.format, known.parameters)

    def close(self) -> None:
        """Stop this process's tasks at their next checkpoint and wait for that; stop serving.

        Attachments stay: they end by teardownImage.
        """
        self.tasks.close()
        self.servers.close()
        self.supervisor.close()

    def finish(self, outcome: Outcome, *, auto_fix: bool) -> str:
        """Start what an operation made due, unless the caller wants only the commit."""
        if auto_fix and outcome.follow_ups:
            self.tasks.start([self.job(follow_up) for follow_up in outcome.follow_ups])
        return outcome.image_id

    def job(
        self, follow_up: FollowUp, participating: list[Opened] | None = None, *, force: bool = False
    ) -> Job:
        """A fix as a task."""

        def run(watcher: TaskWatcher) -> bool:
            return run_fix(
                self.engine,
                follow_up.opened,
                follow_up.action,
                watcher=watcher,
                rate_limit_bytes_per_s=follow_up.rate_limit_bytes_per_s,
                participating=participating,
                force=force,
            )

        return Job(fix_type(follow_up.action), follow_up.opened.repo_id, follow_up.image_id, run)

    def task_on(self, image_id: str) -> str | None:
        """This host's running task on an image."""
        for task in self.records.all():
            if task.image_id == image_id and task.state in ("queued", "running"):
                return task.task_id
        return None
