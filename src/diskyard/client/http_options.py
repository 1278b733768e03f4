"""What the HTTP transports share: options of connections, and the pace of listening."""

from __future__ import annotations

import socket
import ssl
import time

import httpx
import msgspec

from diskyard import errors
from diskyard.client.attempts import failure_text
from diskyard.client.handing import HandingAsync
from diskyard.client.unix import UnixTransport
from diskyard.client.wire import Address, Answer, require_token
from diskyard.model.results import Event, Task

STARTED_LIMIT = 10_000
CONNECT_TIMEOUT_S = 10.0
#: A stream of events sends something at least every 15 s.
DEAD_AFTER_S = 40.0
_QUIET_FIRST_S, _QUIET_MOST_S = 0.5, 5.0
_SHORTEST_S = 0.05
_AWAY_MOST_S = 60.0
_PAUSE_FIRST_S, _PAUSE_MOST_S = 0.05, 1.0
_LISTEN_PAUSE_S = 1.0
#: Shorter than a daemon keeps an idle connection, so that this side always closes it first.
_KEEP_IDLE_S = 2.0
_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=_KEEP_IDLE_S)
#: A host that is gone is noticed within a minute.
_TCP_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)


def headers(address: Address, token: str | None) -> dict[str, str]:
    """The headers of every request. No token is sent on a Unix socket: none is needed."""
    if address.socket is not None or token is None:
        return {}
    return {"Authorization": f"Bearer {require_token(token)}"}


def sync_transport(address: Address, ca_file: str | None, *, hands_over: bool) -> httpx.HTTPTransport:
    """The transport of the synchronous client.

    :param hands_over: on a Unix socket: hand over the files that requests name
        (:mod:`diskyard.client.handing`).

    :raises diskyard.errors.InvalidParameter: the authorities' file cannot be used.
    """
    if address.socket is not None:
        return UnixTransport(address.socket, _LIMITS, hands_over=hands_over)
    context = _trusting(ca_file)
    return httpx.HTTPTransport(verify=context, limits=_LIMITS, trust_env=False, socket_options=_TCP_OPTIONS)


def async_transport(address: Address, ca_file: str | None, *, hands_over: bool) -> httpx.AsyncHTTPTransport:
    """The transport of the asynchronous client; see :func:`sync_transport`.

    :raises diskyard.errors.InvalidParameter: the authorities' file cannot be used.
    """
    if address.socket is not None:
        unused = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if hands_over:
            return HandingAsync(address.socket, verify=unused, limits=_LIMITS, trust_env=False)
        return httpx.AsyncHTTPTransport(uds=address.socket, verify=unused, limits=_LIMITS, trust_env=False)
    context = _trusting(ca_file)
    return httpx.AsyncHTTPTransport(
        verify=context, limits=_LIMITS, trust_env=False, socket_options=_TCP_OPTIONS
    )


def _trusting(ca_file: str | None) -> ssl.SSLContext:
    """TLS 1.2 or newer, trusting these authorities, or the system's."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise errors.InvalidParameter(
            f"The certificates in {ca_file} cannot be used: {error}.",
            advice="Give a PEM file with the certificate of the authority that signed the daemon's.",
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def task_of(event: Event) -> Task | None:
    """The task that an event is about; None if it cannot be decoded."""
    try:
        return msgspec.convert(event.data, Task)
    except msgspec.ValidationError:
        return None  # the waiting caller soon checks by itself


class Patience:
    """How long to listen, and how often to check.

    :param timeout_s: how long in all; None for ever.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._until_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._pause_s = _PAUSE_FIRST_S
        self._quiet_s = _QUIET_FIRST_S
        self._reached_s = time.monotonic()

    def _left_s(self) -> float:
        return _QUIET_MOST_S if self._until_s is None else self._until_s - time.monotonic()

    def is_over(self) -> bool:
        """Whether the time has run out."""
        return self._left_s() <= 0

    def quiet_s(self) -> float:
        """How long the next stream may be silent: longer each time, until an event comes."""
        quiet_s, self._quiet_s = self._quiet_s, min(self._quiet_s * 2, _QUIET_MOST_S)
        return max(_SHORTEST_S, min(quiet_s, self._left_s()))

    def is_short_of(self, quiet_s: float) -> bool:
        """Whether the time will run out before a stream that may be silent for so long is given up."""
        return self._left_s() < quiet_s - _SHORTEST_S

    def reached(self) -> None:
        """Record that the daemon answers."""
        self._reached_s = time.monotonic()

    def is_away(self) -> bool:
        """Whether a daemon that does not answer may soon be back."""
        return time.monotonic() - self._reached_s < _AWAY_MOST_S

    def heard(self) -> None:
        """Record that an event came, so that listening works."""
        self._pause_s, self._quiet_s = _PAUSE_FIRST_S, _QUIET_MOST_S

    def pause_s(self) -> float:
        """How long to wait before checking, where listening does not work."""
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, _PAUSE_MOST_S)
        return max(0.0, min(pause_s, self._left_s()))


class Listening:
    """Whether to go on listening for events after a failure.

    :param give_up_s: how long failures may follow one another.
    """

    def __init__(self, url: str, give_up_s: float) -> None:
        self._url = url
        self._give_up_s = give_up_s
        self._works_s = time.monotonic()
        self._pause_s = _PAUSE_FIRST_S

    def works(self) -> None:
        """Record that a stream was opened."""
        self._works_s = time.monotonic()
        self._pause_s = _PAUSE_FIRST_S

    def refused(self, answer: Answer) -> None:
        """Record that no stream was opened.

        :raises diskyard.errors.DiskyardError: the reason, unless it passes by itself.
        """
        if answer.status not in (429, 502, 503, 504):
            raise answer.error()
        if time.monotonic() - self._works_s > self._give_up_s:
            raise answer.error()

    def failed(self, failure: httpx.HTTPError) -> None:
        """Record that the stream ended, or that there is no daemon.

        :raises diskyard.errors.RepositoryUnavailable: this has lasted too long.
        """
        if time.monotonic() - self._works_s > self._give_up_s:
            raise errors.RepositoryUnavailable(
                f"The events of {self._url} cannot be read: {failure_text(failure)}.",
                advice="Start the daemon (diskyard serve) or check the URL, then try again.",
                url=self._url,
            ) from failure

    def pause_s(self) -> float:
        """How long to wait before listening again."""
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, _LISTEN_PAUSE_S)
        return pause_s
