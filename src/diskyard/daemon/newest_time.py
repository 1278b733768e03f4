"""The newest time that this host has ever seen: setting a clock back makes no token valid again."""

from __future__ import annotations

import contextlib
import os
import re
import threading

from diskyard.host import Host
from diskyard.host.files import PRIVATE_BITS

_EVERY_S = 60.0
_LIMIT_BYTES = 4096
# The form in which the clock writes times, so that their texts sort as the times do.
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


class NewestTime:
    """The newest time, kept in the state directory. A daemon writes it at most a minute late.

    To correct a clock that was ahead, remove the file: it is read at each use.
    """

    def __init__(self, host: Host, folder: str) -> None:
        self._host = host
        self._path = os.path.join(folder, "newest-time")
        self._read: tuple[str, str] | None = None
        self._stopping = threading.Event()

    def now(self) -> str:
        """The current time, or the newest time that was kept, whichever is later.

        :raises OSError: the file cannot be read.
        """
        return max(self._host.clock.now(), self._kept())

    def keep(self) -> None:
        """Keep the current time, durably, if it is the newest. An existing file needs no new blocks.

        :raises OSError: it cannot be written.
        """
        now = self._host.clock.now()
        if now <= self._kept():
            return
        if not self._host.files.exists(self._path):
            self._host.files.replace(self._path, now.encode(), mode_bits=PRIVATE_BITS)
            return
        # As long as the old text, and shorter than what a disk writes in one piece.
        fd = self._host.files.open_for_writing(self._path)
        try:
            self._host.files.write(fd, now.encode())
            self._host.files.sync(fd)
        finally:
            os.close(fd)

    def watch(self) -> None:
        """Keep the time now and every minute, until :meth:`stop`."""
        while True:
            with contextlib.suppress(OSError):  # the directory fails or is full: try again in a minute
                self.keep()
            if self._stopping.wait(_EVERY_S):
                return

    def stop(self) -> None:
        """End :meth:`watch`."""
        self._stopping.set()

    def _kept(self) -> str:
        try:
            seen = self._host.files.fingerprint(self._path)
        except FileNotFoundError:
            return ""
        known = self._read
        if known is None or known[0] != seen:
            text = (self._host.files.read(self._path, _LIMIT_BYTES) or b"").decode(errors="replace")
            known = self._read = (seen, text if _TIME.fullmatch(text) else "")
        return known[1]
