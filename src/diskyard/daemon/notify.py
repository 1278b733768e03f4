"""Report the daemon's state to systemd: sd_notify(3), written with a socket."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import MutableMapping

from diskyard.daemon.logs import logger

_log = logger("diskyard.daemon")
_SEND_MOST_S = 1.0


class Manager:
    """The service manager that started this process. Without one, nothing is sent.

    :param environment: the manager's variables are removed from it, so that no child process uses them.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        self._address = _address(environment.pop("NOTIFY_SOCKET", ""))
        period = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", str(os.getpid()))
        asked = period.isdigit() and int(period) > 0 and pid == str(os.getpid())
        #: How often :meth:`alive` must be called; None if no watchdog waits for it.
        self.alive_every_s = int(period) / 2e6 if asked and self._address else None

    def ready(self, status: str) -> None:
        """Report that the daemon answers, for the first time or after a reload."""
        self._tell("READY=1", _status(status))

    def status(self, status: str) -> None:
        """Report a sentence for ``systemctl status``."""
        self._tell(_status(status))

    def reloading(self) -> None:
        """Report that the daemon reads its files again; :meth:`ready` ends that."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now_us}")

    def stopping(self, status: str) -> None:
        """Report that the daemon is about to end."""
        self._tell("STOPPING=1", _status(status))

    def alive(self) -> None:
        """Send the watchdog's keep-alive."""
        self._tell("WATCHDOG=1")

    async def stay_alive(self) -> None:
        """Send keep-alives while the event loop runs, if the service manager expects them."""
        while self.alive_every_s is not None:
            self.alive()
            await asyncio.sleep(self.alive_every_s)

    def _tell(self, *words: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
                connection.settimeout(_SEND_MOST_S)
                connection.sendto("\n".join(words).encode(), self._address)
        except OSError as error:
            _log.warning("the service manager cannot be told", words=words[0], reason=str(error))


def _address(given: str) -> str | None:
    """A path, or a name in the abstract namespace, which begins with ``@``."""
    if given.startswith("@"):
        return "\0" + given[1:]
    return given if given.startswith("/") else None


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())
