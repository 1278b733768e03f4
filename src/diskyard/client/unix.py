"""HTTP on a Unix socket, for the synchronous client.

httpx's own transport first makes a TLS context with all authorities, which takes longer than the call. It
also leaves a socket that it could not connect to the garbage collector.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore
import httpx

from diskyard.client.handing import hand_over


@contextmanager
def _mapped(timeout: type[Exception], failure: type[Exception]) -> Iterator[None]:
    """Turn errors of the system into httpcore's."""
    try:
        yield
    except TimeoutError as error:
        raise timeout(str(error)) from error
    except OSError as error:
        raise failure(str(error)) from error


class _Stream(httpcore.NetworkStream):
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _mapped(httpcore.ReadTimeout, httpcore.ReadError):
            self._socket.settimeout(timeout)
            return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _mapped(httpcore.WriteTimeout, httpcore.WriteError):
            self._socket.settimeout(timeout)
            self._socket.sendall(buffer)

    def close(self) -> None:
        self._socket.close()

    def get_extra_info(self, info: str) -> Any:
        """Answer whether the other side has closed a connection that httpcore wants to use again."""
        if info != "is_readable":
            return None
        if self._socket.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))


class _Backend(httpcore.NetworkBackend):
    """Makes connections."""

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _mapped(httpcore.ConnectTimeout, httpcore.ConnectError):
                connection.settimeout(timeout)
                connection.connect(path)
        except BaseException:
            connection.close()
            raise
        return _Stream(connection)


class UnixTransport(httpx.HTTPTransport):
    """httpx's transport on a Unix socket.

    :param path: of the socket.
    :param hands_over: hand over the files that requests name (:mod:`diskyard.client.handing`).
    """

    def __init__(self, path: str, limits: httpx.Limits, *, hands_over: bool) -> None:
        self._path, self._hands_over = path, hands_over
        # httpx's own constructor is not called: it would make the pool that this one replaces.
        self._pool = httpcore.ConnectionPool(
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            uds=path,
            network_backend=_Backend(),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """As httpx does."""
        if self._hands_over:
            hand_over(self._path, request)
        return super().handle_request(request)
