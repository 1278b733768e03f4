"""Which connections may stay: a limited number in all and from one address, and few silent ones."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from diskyard.daemon.config import LimitsConfig
from diskyard.host.sockets import origin_of
from diskyard.http.connections import Why

#: For this long no connection is cut in favour of others: a caller needs a moment to begin its TLS.
_SPARED_S = 0.25


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many connections a TCP listener accepts.

    :param of_origin: from one address.
    :param silent: connections in all whose TLS handshake is not complete.
    :param silent_of_origin: such connections from one address.
    :param silent_s: the time to complete the handshake.
    """

    of_origin: int
    silent: int
    silent_of_origin: int
    silent_s: float

    @classmethod
    def of(cls, limits: LimitsConfig) -> Bounds:
        """The bounds in the configuration."""
        return cls(
            limits.connections_per_address,
            limits.handshakes,
            limits.handshakes_per_address,
            limits.handshake_timeout_s,
        )


@dataclass(slots=True, eq=False)
class _Arrival:
    """A connection that was let in."""

    connection: socket.socket
    origin: str
    came_s: float
    is_silent: bool
    timer: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        return self.connection.fileno() >= 0


class Arrivals:
    """The connections of one listener, from their first moment on; only for the event loop.

    At the limit of silent connections, each new one causes the one that has been silent for longest to be
    closed. So a caller that holds a thousand silent connections does not keep out those that speak at once.

    :param most: how many connections there may be in all.
    :param bounds: None for a Unix socket, which has no such limits.
    :param note: called for each connection that is refused or cut, with its address.
    """

    def __init__(self, most: int, bounds: Bounds | None, note: Callable[[Why, str], None]) -> None:
        self._most = most
        self._bounds = bounds
        self._note = note
        self._arrivals: list[_Arrival] = []

    def may_stay(self, connection: socket.socket, address: str) -> bool:
        """Decide whether a connection that has just come may stay."""
        self._arrivals = [one for one in self._arrivals if one.is_open]
        origin = origin_of(address)
        why = self._in_the_way(origin)
        if why is not None:
            self._note(why, address)
            return False
        arrival = _Arrival(connection, origin, time.monotonic(), is_silent=self._bounds is not None)
        if self._bounds is not None:
            loop = asyncio.get_running_loop()
            arrival.timer = loop.call_later(self._bounds.silent_s, self._cut, arrival)
        self._arrivals.append(arrival)
        return True

    def _in_the_way(self, origin: str) -> Why | None:
        bounds = self._bounds
        if bounds is not None:
            of_origin = [one for one in self._arrivals if one.origin == origin]
            silent = [one for one in self._arrivals if one.is_silent]
            silent_of_origin = [one for one in of_origin if one.is_silent]
            if len(silent_of_origin) >= bounds.silent_of_origin and not self._made_room(silent_of_origin):
                return "handshake"
            if len(silent) >= bounds.silent and not self._made_room(silent):
                return "handshake"
            if sum(one.is_open for one in of_origin) >= bounds.of_origin:
                return "address"
        return "all" if sum(one.is_open for one in self._arrivals) >= self._most else None

    def _made_room(self, silent: list[_Arrival]) -> bool:
        """Cut the connection that has been silent for longest, unless it came a moment ago."""
        oldest = silent[0]  # they are in the order of their arrival
        if time.monotonic() - oldest.came_s < _SPARED_S:
            return False
        self._cut(oldest)
        return True

    def has_begun(self, fileno: int) -> None:
        """Record that the TLS handshake of a connection is complete. On a Unix socket there is none."""
        for arrival in self._arrivals:
            if arrival.connection.fileno() == fileno:
                arrival.is_silent = False
                if arrival.timer is not None:
                    arrival.timer.cancel()

    def _cut(self, arrival: _Arrival) -> None:
        """End a silent connection. The code that waits on it notices, and closes it."""
        if arrival.is_silent and arrival.is_open:
            arrival.is_silent = False
            self._note("handshake", arrival.origin)
            with contextlib.suppress(OSError):  # its other side has closed it already
                arrival.connection.shutdown(socket.SHUT_RDWR)
