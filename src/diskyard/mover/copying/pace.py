"""Keeping to a rate limit that may change while the work goes on."""

from __future__ import annotations

from collections.abc import Callable

from diskyard.host import Host
from diskyard.mover.interface import Monitor

_SLICE_S = 0.1
_MADE_UP_FOR_S = 1.0  # of time lost, because moves were few or slow, at most this much is made up for


class Pace:
    """Waits before each piece of work, so that the average rate stays below the limit."""

    def __init__(self, host: Host, monitor: Monitor) -> None:
        self._host = host
        self._monitor = monitor
        self._limit = monitor.rate_limit_bytes_per_s
        self._since_s = host.clock.monotonic_s()
        self._moved_bytes = 0

    def admit(self, next_bytes: int, advance: Callable[[], None]) -> None:
        """Return once the limit allows ``next_bytes`` more.

        :param advance: reports progress during the wait; its exceptions pass through.
        """
        self._moved_bytes += next_bytes
        while (limit := self._monitor.rate_limit_bytes_per_s) > 0:
            if limit != self._limit:
                # Bytes that were moved under another limit do not count for this one.
                self._limit = limit
                self._since_s = self._host.clock.monotonic_s()
                self._moved_bytes = next_bytes
            early_s = self._moved_bytes / limit - (self._host.clock.monotonic_s() - self._since_s)
            if early_s <= 0:
                self._since_s += max(0.0, -early_s - _MADE_UP_FOR_S)
                return
            self._host.clock.sleep(min(early_s, _SLICE_S))
            advance()
