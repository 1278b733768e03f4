"""The daemon: a service, its listeners, and how it begins and ends."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from functools import partial

from diskyard import errors
from diskyard.daemon.announced import Announcement
from diskyard.daemon.audit import Audit
from diskyard.daemon.caretaker import Caretaker
from diskyard.daemon.config import Config, load, refused, socket_path, state_folder
from diskyard.daemon.config_check import check
from diskyard.daemon.hand_over import HandOver
from diskyard.daemon.listeners import Listeners
from diskyard.daemon.logs import configure, logger
from diskyard.daemon.newest_time import NewestTime
from diskyard.daemon.news import News
from diskyard.daemon.notify import Manager
from diskyard.daemon.resume import resume
from diskyard.daemon.tokens import Tokens
from diskyard.host import Host, provably_gone
from diskyard.host.temporary import temporary_owner
from diskyard.http.access import Authenticator
from diskyard.http.app import Application
from diskyard.http.limits import Limits
from diskyard.http.metrics import Metrics
from diskyard.service import Service
from diskyard.service.whole import build_tables
from diskyard.tasks.limits import TaskLimits
from diskyard.version import version

_log = logger("diskyard.daemon")
_STARTED_LOOK_S = 0.01
_CLOSE_MOST_S = 20.0
#: Parts of the state directory in which files are replaced.
_WRITTEN_TO = ("imports", "tasks")


def checked_config(path: str | None) -> Config:
    """The configuration, if a daemon can use it.

    :param path: None for the usual file, which may be absent.
    :raises diskyard.errors.InvalidParameter: lists everything that is wrong with it.
    """
    config = load(path)
    wrong = check(config)
    if wrong:
        raise refused(path or "The configuration", wrong)
    return config


def make_service(config: Config, host: Host) -> Service:
    """The service of a daemon."""
    limits = TaskLimits(
        at_once=config.tasks.at_once,
        at_once_per_repository=config.tasks.at_once_per_repository,
        queued=config.tasks.queued,
        order=config.tasks.order,
        rate_limit_bytes_per_s=config.tasks.rate_limit_bytes_per_s,
    )
    return Service(
        host,
        state_folder(config),
        actor="daemon",
        limits=limits,
        transfer_folders=config.transfer.folders,
        served_images=config.limits.served_images,
    )


def make_application(
    config: Config,
    service: Service,
    audit: Audit | None,
    caretaker: Caretaker,
    hand_over: HandOver | None = None,
) -> Application:
    """The application that answers for a service.

    :param hand_over: takes files from callers on the Unix socket; None if nothing does.
    """
    limits = Limits(
        request_bytes=config.limits.request_bytes,
        requests_per_s=config.limits.requests_per_s,
        work_ms_per_s=config.limits.work_ms_per_s,
        concurrent_requests=config.limits.concurrent_requests,
        concurrent_per_repository=config.limits.concurrent_per_repository,
        long_calls=config.limits.long_calls,
        long_calls_per_token=config.limits.long_calls_per_token,
        event_streams=config.limits.event_streams,
        answer_bytes=config.limits.answer_bytes,
        connections_per_token=config.limits.connections_per_token,
    )
    tokens = Tokens(state_folder(config), service.host)
    authenticator = Authenticator(tokens, config.transfer.folders, config.repositories.folders, hand_over)
    metrics = Metrics(service, service.host.clock)
    app = Application(service, authenticator, limits, metrics, audit)
    metrics.watch(
        lambda: app.bulkheads.requests.count,
        lambda: app.streams.opened.count,
        caretaker.left_alone.counts,
        lambda: app.connections.unsent.count,
        lambda: app.connections.refused,
    )
    return app


class Daemon:
    """One daemon of this host.

    :raises diskyard.errors.InvalidParameter: another one runs with the same state directory, or it
        cannot listen where its configuration says.
    """

    def __init__(self, config: Config) -> None:
        configure(config.log)
        build_tables()  # also for the daemon's own types
        host = Host.real()
        self._manager = Manager()
        self.service = make_service(config, host)
        self._announcement = Announcement(host, state_folder(config))
        try:
            self._audit = Audit(config.log.audit_file, host)
        except OSError as error:
            raise errors.from_os_error(error, "opening the audit file") from error
        self._caretaker = Caretaker(self.service, config.caretaker)
        self._hand_over = HandOver(host, socket_path(config))
        self.app = make_application(config, self.service, self._audit, self._caretaker, self._hand_over)
        self._news = News(self.service)
        self._state_folder = state_folder(config)
        self._newest_time = NewestTime(host, self._state_folder)
        self._resumes = config.tasks.resume
        self._stop = asyncio.Event()
        try:
            self.listeners = Listeners(config, host, self.app.connections)
        except errors.DiskyardError:
            self._hand_over.close()
            raise

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. A second signal ends the process at once."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        serving = asyncio.create_task(self.listeners.serve(self.app.asgi()))
        stopped = asyncio.create_task(self._stop.wait())
        beside = [
            asyncio.create_task(self._manager.stay_alive()),
            asyncio.create_task(self._hand_over.serve()),
        ]
        try:
            while not (self.listeners.listening or serving.done()):
                await asyncio.sleep(_STARTED_LOOK_S)
            if serving.done():
                return  # it cannot serve; the reason is raised below
            self._started()
            await asyncio.wait((serving, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            try:
                await self._end(serving)
            finally:
                for task in beside:
                    task.cancel()
                self._hand_over.close()

    def _started(self) -> None:
        places = [found for found in (self.listeners.socket_path, self.listeners.tls_url) if found]
        self._announcement.tell(self.listeners.socket_path, self.listeners.tls_url)
        self.app.health.ready = True
        self._manager.ready(f"Answers at {' and '.join(places)}.")
        _log.info("answers", version=version(), at=places)
        _begin("diskyard-start", self._go_on)
        _begin("diskyard-time", self._newest_time.watch)

    def _go_on(self) -> None:
        """Connect repositories as before, and resume the work that was interrupted."""
        self._remove_leftovers()
        for repo_id in self.service.connections.remembered():
            try:
                self.service.supervisor.run(partial(self.service.connections.get, repo_id))
            except errors.DiskyardError as error:
                _log.warning("a repository is not connected", repositoryId=repo_id, reason=error.message)
        try:
            Tokens(self._state_folder, self.service.host).prepare_to_revoke()
        except errors.DiskyardError as error:
            _log.warning("a full disk may prevent tokens from being revoked", reason=error.message)
        if self._resumes:
            resume(self.service)
        self._news.start()
        self._caretaker.start()

    def _remove_leftovers(self) -> None:
        """Remove what killed processes left behind."""
        for what, remove in (
            ("sockets", self.service.servers.remove_leftovers),
            ("temporary files", self._remove_temporary_files),
        ):
            try:
                removed = remove()
            except OSError as error:
                _log.warning(f"{what} of dead processes stay", reason=str(error))
            else:
                if removed:
                    _log.info(f"{what} of dead processes are removed", paths=removed)

    def _remove_temporary_files(self) -> list[str]:
        """Remove temporary files from the state directory, which check does not scan; their paths."""
        host, removed = self.service.host, []
        for folder in (self._state_folder, *(os.path.join(self._state_folder, name) for name in _WRITTEN_TO)):
            if not host.files.is_folder(folder):
                continue
            for item in host.files.list(folder, temporary_owner):
                owner = temporary_owner(item.name) if item.is_file else None
                if owner is not None and provably_gone(owner, host.identity):
                    removed.append(os.path.join(folder, item.name))
                    host.files.discard(removed[-1])
        return removed

    def _asked_to_stop(self, number: signal.Signals) -> None:
        _log.info("ends", signal=signal.Signals(number).name)
        self._stop.set()
        for other in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(other)
            signal.signal(other, signal.SIG_DFL)

    def _reload(self) -> None:
        """Use files that were replaced: the certificate, and the audit file after a rotation."""
        self._manager.reloading()
        for what, again in (
            ("certificate", self.listeners.reload_certificate),
            ("audit file", self._audit.reopen),
        ):
            try:
                again()
            except OSError as error:
                _log.error("the old file stays in use", file=what, reason=str(error))
        self._manager.ready("Files were read again.")

    async def _end(self, serving: asyncio.Task[None]) -> None:
        """Answer the calls under way, stop tasks at their next checkpoint, and leave nothing behind."""
        self._manager.stopping("Running tasks end at their next checkpoint.")
        self.app.health.stopping = True
        self._announcement.withdraw()
        self._newest_time.stop()
        self.app.streams.stopping.set()
        self.listeners.stop()
        closed, loop = asyncio.Event(), asyncio.get_running_loop()

        def close() -> None:
            self._news.stop()
            self._caretaker.stop()
            if not self.service.close(resumable=True, timeout_s=_CLOSE_MOST_S):
                _log.warning("tasks wait for storage that does not answer; their fixes stay listed")
            loop.call_soon_threadsafe(closed.set)

        _begin("diskyard-close", close)
        await asyncio.wait((serving,))
        try:
            await asyncio.wait_for(closed.wait(), _CLOSE_MOST_S * 2)
        except TimeoutError:
            _log.error("open files do not close; the process ends anyway")
        self.listeners.close()
        self._audit.close()
        serving.result()


def _begin(name: str, work: Callable[[], None]) -> None:
    """Run work on a thread that a program can end without: storage that hangs may never answer."""
    threading.Thread(target=work, name=name, daemon=True).start()
