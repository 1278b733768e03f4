"""The sockets on which the daemon answers, and the servers of HTTP on them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from diskyard import errors
from diskyard.daemon.config import Config, TcpConfig, socket_path
from diskyard.daemon.config_check import group_id
from diskyard.host import Host
from diskyard.host.sockets import bounded, listen_tcp, listen_unix, peer_user

_CONNECTIONS_MOST = 1000  # of each listener
_SILENT_MOST_S = 30.0  # for the headers of a request to arrive
_IDLE_MOST_S = 75  # between two requests of a connection
_GRACE_S = 5  # for answers to be sent when the daemon ends
_HEADERS_MOST_BYTES = 64 << 10


class Connection(H11Protocol):
    """One connection: it knows its peer, and ends if no request comes."""

    _timer: asyncio.TimerHandle | None = None

    # uvicorn narrows the parameter of asyncio's own method, and so must this.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn does, with the user at the other end of a Unix socket as the client."""
        super().connection_made(transport)
        peer = transport.get_extra_info("socket")
        if peer is not None and peer.family == socket.AF_UNIX:
            self.client = (f"user:{peer_user(peer)}", 0)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """As uvicorn does."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn does."""
        super().connection_lost(exc)
        self._unwatch()

    def _watch(self) -> None:
        """Give the headers of the next request their time, from their first byte on.

        The rest of a body that was answered before it had come, as it is of who is not let in, has
        as much: it is read only to get to the next request.
        """
        cycle: RequestResponseCycle | None = self.cycle  # none before the first request
        answered = cycle is None or cycle.response_complete
        if not (answered and self.conn.their_state in (h11.IDLE, h11.SEND_BODY)):
            self._unwatch()
        elif self._timer is None:
            self._timer = self.loop.call_later(_SILENT_MOST_S, self.transport.close)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Server(uvicorn.Server):
    """A server that leaves signals to the daemon."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Listeners:
    """The Unix socket, and TCP with TLS where it is configured.

    :raises diskyard.errors.InvalidParameter: a socket cannot be made.
    """

    def __init__(self, config: Config, host: Host) -> None:
        self.socket_path = socket_path(config)
        self._files = host.files
        group = group_id(config.socket.group) if config.socket.group else None
        self._sockets: list[tuple[socket.socket, ssl.SSLContext | None]] = []
        self._servers: list[_Server] = []
        self._tcp = config.tcp
        try:
            made = listen_unix(host.files, self.socket_path, config.socket.mode_bits, group)
            self._sockets.append((bounded(made, _CONNECTIONS_MOST), None))
            if config.tcp is not None:
                made = listen_tcp(*config.tcp.address())
                self._sockets.append((bounded(made, _CONNECTIONS_MOST), tls_context(config.tcp)))
        except (OSError, ValueError) as error:
            self.close()
            raise errors.InvalidParameter(
                f"The daemon cannot listen: {error}.",
                advice="Correct [socket] or [tcp] in the configuration, or end what uses the address.",
            ) from error

    @property
    def tls_url(self) -> str | None:
        """Where TLS is; None if there is none."""
        if self._tcp is None:
            return None
        host, _ = self._tcp.address()
        port = self._sockets[1][0].getsockname()[1]
        return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"

    async def serve(self, app: Starlette) -> None:
        """Answer until :meth:`stop`, and then until what was asked is answered, if that is soon."""
        for _, context in self._sockets:
            self._servers.append(_Server(_uvicorn_config(app, context)))
        serving = zip(self._servers, self._sockets, strict=True)
        async with asyncio.TaskGroup() as group:
            for server, (listener, _) in serving:
                group.create_task(server.serve(sockets=[listener]))

    @property
    def listening(self) -> bool:
        """Whether all servers answer."""
        return bool(self._servers) and all(server.started for server in self._servers)

    def stop(self) -> None:
        """Accept nothing any more."""
        for server in self._servers:
            server.should_exit = True

    def reload_certificate(self) -> None:
        """Use the certificate as it now is on the disk, for new connections.

        :raises OSError: it cannot be read; the old one stays.
        """
        for _, context in self._sockets:
            if context is not None and self._tcp is not None:
                tls_context(self._tcp)  # of a pair that does not fit, the context in use would keep a half
                context.load_cert_chain(self._tcp.certificate, self._tcp.key)

    def close(self) -> None:
        """Close what listens, and remove the Unix socket."""
        for listener, _ in self._sockets:
            listener.close()
        if self._sockets:
            self._files.discard(self.socket_path)


def tls_context(tcp: TcpConfig) -> ssl.SSLContext:
    """TLS 1.2 or newer with the certificate of the configuration.

    :raises OSError: it cannot be read, or does not belong to the key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tcp.certificate, tcp.key)
    return context


def _uvicorn_config(app: Starlette, context: ssl.SSLContext | None) -> uvicorn.Config:
    given: dict[str, Any] = {}
    if context is not None:
        given["ssl_context_factory"] = lambda config, default: context
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # what callers without a token send makes no lines; the daemon tells the rest
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_IDLE_MOST_S,
        timeout_graceful_shutdown=_GRACE_S,
        h11_max_incomplete_event_size=_HEADERS_MOST_BYTES,
        **given,
    )
