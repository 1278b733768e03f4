"""The daemon: a service, what it listens on, and how it begins and ends."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from functools import partial

from diskyard import errors
from diskyard.daemon.announced import Announcement
from diskyard.daemon.config import Config, load, refused, state_folder
from diskyard.daemon.config_check import check
from diskyard.daemon.listeners import Listeners
from diskyard.host import Host
from diskyard.http.access import Door
from diskyard.http.app import Application
from diskyard.http.limits import Limits
from diskyard.service import Service
from diskyard.version import version

log = logging.getLogger("diskyard.daemon")
_STARTED_LOOK_S = 0.01
_CLOSE_MOST_S = 20.0


def checked_config(path: str | None) -> Config:
    """The configuration, as a daemon can use it.

    :param path: None for the usual file, which may be absent.
    :raises diskyard.errors.InvalidParameter: all that is wrong with it.
    """
    config = load(path)
    wrong = check(config)
    if wrong:
        raise refused(path or "The configuration", wrong)
    return config


class Daemon:
    """One daemon of this host.

    :raises diskyard.errors.InvalidParameter: another one runs on the same state folder, or it
        cannot listen where it is configured to.
    """

    def __init__(self, config: Config) -> None:
        host = Host.real()
        folder = state_folder(config)
        self.service = Service(host, folder, actor="daemon")
        self._announcement = Announcement(host, folder)
        self.listeners = Listeners(config, host)
        self.app = Application(
            self.service,
            Door(None, config.transfer.folders),
            Limits(
                request_bytes=config.limits.request_bytes,
                requests_per_s=config.limits.requests_per_s,
                concurrent_requests=config.limits.concurrent_requests,
                concurrent_per_repository=config.limits.concurrent_per_repository,
                event_streams=config.limits.event_streams,
            ),
        )
        self._stop = asyncio.Event()

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; a second one ends the process at once."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        serving = asyncio.create_task(self.listeners.serve(self.app.asgi()))
        stopped = asyncio.create_task(self._stop.wait())
        try:
            while not (self.listeners.listening or serving.done()):
                await asyncio.sleep(_STARTED_LOOK_S)
            self._started()
            await asyncio.wait((serving, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            await self._end(serving)

    def _started(self) -> None:
        places = [found for found in (self.listeners.socket_path, self.listeners.tls_url) if found]
        self._announcement.tell(self.listeners.socket_path, self.listeners.tls_url)
        self.app.health.ready = True
        log.info("diskyard %s answers at %s", version(), " and ".join(places))
        threading.Thread(target=self._reconnect, name="diskyard-reconnect", daemon=True).start()

    def _reconnect(self) -> None:
        """Connect again what was connected before, each place whatever becomes of the others."""
        for repo_id in self.service.connections.remembered():
            try:
                self.service.supervisor.run(partial(self.service.connections.get, repo_id))
            except errors.DiskyardError as error:
                log.warning("%s is not connected: %s It is tried again when it is used.", repo_id, error)

    def _asked_to_stop(self, number: signal.Signals) -> None:
        log.info("%s: ending", signal.Signals(number).name)
        self._stop.set()
        for other in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(other)

    def _reload(self) -> None:
        """Use files that were replaced: the certificate."""
        try:
            self.listeners.reload_certificate()
        except OSError as error:
            log.error("the certificate is not replaced: %s", error)

    async def _end(self, serving: asyncio.Task[None]) -> None:
        """Answer what was asked, stop what runs at its next checkpoint, and leave nothing behind."""
        self.app.health.stopping = True
        self._announcement.withdraw()
        self.app.streams.stopping.set()
        self.listeners.stop()
        # On a thread that keeps nothing from ending: storage that hangs may never answer.
        closed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def close() -> None:
            self.service.close()
            loop.call_soon_threadsafe(closed.set)

        threading.Thread(target=close, name="diskyard-close", daemon=True).start()
        await asyncio.wait((serving,))
        try:
            await asyncio.wait_for(closed.wait(), _CLOSE_MOST_S)
        except TimeoutError:
            log.warning("some tasks wait for storage that does not answer; their fixes stay listed")
        self.listeners.close()
        serving.result()
