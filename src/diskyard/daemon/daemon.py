"""The daemon: a service, what it listens on, and how it begins and ends."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable

import msgspec

from diskyard import errors
from diskyard.daemon.announced import Announcement
from diskyard.daemon.audit import Audit
from diskyard.daemon.caretaker import Caretaker
from diskyard.daemon.config import Config, load, refused, state_folder
from diskyard.daemon.config_check import check
from diskyard.daemon.listeners import Listeners
from diskyard.daemon.logs import configure_logs
from diskyard.daemon.news import News
from diskyard.daemon.notify import notify
from diskyard.daemon.resume import resume
from diskyard.daemon.tokens import Tokens
from diskyard.host import Host
from diskyard.http.access import Door
from diskyard.http.app import Application
from diskyard.http.limits import Limits
from diskyard.http.metrics import Metrics
from diskyard.service import Service
from diskyard.tasks.limits import TaskLimits
from diskyard.version import version

log = logging.getLogger("diskyard.daemon")
_STARTED_LOOK_S = 0.01
_CLOSE_MOST_S = 20.0


def run_daemon(config_path: str | None, *, ready: Callable[[], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends it at once.

    :param config_path: None for the usual one, which may be absent.
    :raises diskyard.errors.DiskyardError: the configuration cannot be used, or another daemon runs
        on the same state folder.
    """
    config = load(config_path)
    wrong = check(config)
    if wrong:
        raise refused(config_path or "The configuration", wrong)
    configure_logs(config.log)
    Daemon(config, config_path).run()


class Daemon:
    """One daemon of this host.

    :param config: as it was checked.
    :param config_path: for what is said of it.
    """

    def __init__(self, config: Config, config_path: str | None = None) -> None:
        self._config = config
        self._host = Host.real()
        folder = state_folder(config)
        self.service = Service(
            self._host,
            folder,
            actor="daemon",
            task_limits=TaskLimits(
                at_once=config.tasks.at_once,
                at_once_per_repository=config.tasks.at_once_per_repository,
                order=config.tasks.order,
                rate_limit_bytes_per_s=config.tasks.rate_limit_bytes_per_s,
            ),
        )
        self._announcement = Announcement(self._host, folder)
        self._audit = Audit(config.log)
        self._metrics = Metrics(self.service, self._host.clock)
        self.listeners = Listeners(config, self._host)
        door = Door(Tokens(self._host, folder), config.transfer.folders)
        limits = Limits(
            request_bytes=config.limits.request_bytes,
            requests_per_s=config.limits.requests_per_s,
            concurrent_requests=config.limits.concurrent_requests,
            concurrent_per_repository=config.limits.concurrent_per_repository,
            event_streams=config.limits.event_streams,
        )
        self.app = Application(self.service, door, limits, self._metrics, self._audit)
        self._news = News(self.service)
        self._caretaker = Caretaker(self.service, config.caretaker)
