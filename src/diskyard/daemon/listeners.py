"""The sockets on which the daemon answers, and the HTTP servers on them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from asyncio import sslproto
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from diskyard import errors
from diskyard.daemon.arrivals import Arrivals, Bounds
from diskyard.daemon.config import Config, TcpConfig, socket_path
from diskyard.daemon.config_check import group_id
from diskyard.host import Host
from diskyard.host.sockets import Listener, connections_most, listen_tcp, listen_unix, peer_user
from diskyard.http.connections import Connections, Held

_UNIX_CONNECTIONS_MOST = 1000
_SILENT_MOST_S = 30.0  # for a request's headers to arrive
_IDLE_MOST_S = 75  # between two requests on one connection
_GOODBYE_S = 0.2
_GRACE_S = 5  # for answers to be sent at the end of the daemon
_HEADERS_MOST_BYTES = 64 << 10
# asyncio would give each TLS connection a read buffer of 256 KiB of its own, whatever it sends.
_TLS_BUFFER_BYTES = 32 << 10


@dataclass(frozen=True, slots=True)
class Keeper:
    """What the connections of one listener share.

    :param unread_s: a connection is cut if its caller reads nothing of an answer for this long.
    """

    connections: Connections
    arrivals: Arrivals | None = None
    unread_s: float = 30.0


class Connection(H11Protocol):
    """One connection. It knows its peer, and ends if no request comes, or if no answer is read.

    :cvar keeper: of the listener that accepted it.
    """

    keeper: ClassVar[Keeper]
    _timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None
    _goodbye: asyncio.TimerHandle | None = None
    _unread_bytes = 0
    _held: Held

    # uvicorn narrows the parameter of asyncio's own method, so this must too.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn does, but the client is the user at the other end of a Unix socket."""
        super().connection_made(transport)
        peer = transport.get_extra_info("socket")
        is_unix = peer is not None and peer.family == socket.AF_UNIX
        if is_unix:
            self.client = (f"user:{peer_user(peer)}", 0)
        elif peer is not None and self.keeper.arrivals is not None:
            self.keeper.arrivals.has_begun(peer.fileno())
        drained = asyncio.Event()
        drained.set()
        address = str(self.client[0]) if self.client else "unknown"
        self._held = Held(address, not is_unix, transport.abort, drained)
        self.app_state = {**self.app_state, "connection": self._held}
        # Any byte left in this process pauses writing. (With 0, a TLS transport would never pause.)
        # It may pause at once, since the end of the handshake may still be on its way.
        transport.set_write_buffer_limits(high=1, low=0)
        self._watch()

    def pause_writing(self) -> None:
        """Pause writing, as uvicorn does, and watch whether the caller reads what is left."""
        super().pause_writing()
        self._held.drained.clear()
        if self._unread_timer is None:
            self._unread_bytes = self.transport.get_write_buffer_size()
            self._unread_timer = self.loop.call_later(self.keeper.unread_s, self._look_unread)

    def resume_writing(self) -> None:
        """Resume writing: the caller has read everything."""
        super().resume_writing()
        self._held.drained.set()
        self._stop_unread()

    def _look_unread(self) -> None:
        """Cut a connection whose caller has read nothing since the last check."""
        left_bytes = self.transport.get_write_buffer_size()
        if left_bytes < self._unread_bytes:
            self._unread_bytes = left_bytes
            self._unread_timer = self.loop.call_later(self.keeper.unread_s, self._look_unread)
            return
        self._unread_timer = None
        self.keeper.connections.note("unread", self._held.peer, actors=sorted(self._held.actors))
        self.transport.abort()

    def _stop_unread(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def data_received(self, data: bytes) -> None:
        """As uvicorn does, and watch the time for the next headers."""
        super().data_received(data)
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """As uvicorn does, except in the middle of an answer: that is sent to its end, and is the last.

        A request that has no answer yet gets this one, and its handler is told that the caller has left.
        """
        cycle: RequestResponseCycle | None = self.cycle  # none before the first request
        if self.conn.our_state is not h11.SEND_BODY:
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
            super().send_400_response(msg)
            return
        self.cycle.keep_alive = False
        self.flow.pause_reading()

    def shutdown(self) -> None:
        """As uvicorn does when the daemon ends, without waiting for the other side's end of TLS."""
        was_closing = self.transport.is_closing()
        has_unsent = not was_closing and self.transport.get_write_buffer_size() > 0
        super().shutdown()
        if self.transport.is_closing() and not (was_closing or has_unsent):
            self._goodbye = self.loop.call_later(_GOODBYE_S, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn does, and end the record of the connection."""
        super().connection_lost(exc)
        self._held.drained.set()
        self.keeper.connections.end(self._held)
        if self._goodbye is not None:
            self._goodbye.cancel()
        self._unwatch()
        self._stop_unread()

    def _watch(self) -> None:
        """Limit the time for the headers of the next request, from their first byte on.

        The same limit holds for the rest of a body whose request was answered early, for example refused: it
        is read only to reach the next request.
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
    """The Unix socket, and TCP with TLS if that is configured.

    :param connections: of the application that answers on them.
    :raises diskyard.errors.InvalidParameter: a socket cannot be made.
    """

    def __init__(self, config: Config, host: Host, connections: Connections) -> None:
        self.socket_path = socket_path(config)
        self._files = host.files
        group = group_id(config.socket.group) if config.socket.group else None
        self._sockets: list[tuple[Listener, ssl.SSLContext | None, Keeper]] = []
        self._servers: list[_Server] = []
        self._tcp = config.tcp
        unread_s = config.limits.unread_timeout_s
        try:
            made = listen_unix(host.files, self.socket_path, config.socket.mode_bits, group)
            arrivals = Arrivals(connections_most(_UNIX_CONNECTIONS_MOST), None, connections.note)
            keeper = Keeper(connections, arrivals, unread_s)
            self._sockets.append((Listener(made, arrivals.may_stay), None, keeper))
            if config.tcp is not None:
                made = listen_tcp(*config.tcp.address())
                most = connections_most(config.limits.connections)
                arrivals = Arrivals(most, Bounds.of(config.limits), connections.note)
                keeper = Keeper(connections, arrivals, unread_s)
                context = tls_context(config.tcp)
                self._sockets.append((Listener(made, arrivals.may_stay), context, keeper))
        except (OSError, ValueError) as error:
            self.close()
            raise errors.InvalidParameter(
                f"The daemon cannot listen: {error}.",
                advice="Correct [socket] or [tcp] in the configuration, or end the program that uses the "
                "address.",
            ) from error

    @property
    def tls_url(self) -> str | None:
        """The URL for TLS; None if there is none."""
        if self._tcp is None:
            return None
        host, _ = self._tcp.address()
        port = self._sockets[1][0].getsockname()[1]
        return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"

    async def serve(self, app: Starlette) -> None:
        """Answer until :meth:`stop`, and then finish the calls under way, if that does not take long."""
        sslproto.SSLProtocol.max_size = _TLS_BUFFER_BYTES
        for _, context, keeper in self._sockets:
            self._servers.append(_Server(_uvicorn_config(app, context, kept_by(keeper))))
        serving = zip(self._servers, self._sockets, strict=True)
        async with asyncio.TaskGroup() as group:
            for server, (listener, _, _) in serving:
                group.create_task(server.serve(sockets=[listener]))

    @property
    def listening(self) -> bool:
        """Whether all servers answer."""
        return bool(self._servers) and all(server.started for server in self._servers)

    def stop(self) -> None:
        """Accept no more connections."""
        for server in self._servers:
            server.should_exit = True

    def reload_certificate(self) -> None:
        """Use the certificate that is now on the disk, for new connections.

        :raises OSError: it cannot be read; the old one stays in use.
        """
        for _, context, _ in self._sockets:
            if context is not None and self._tcp is not None:
                tls_context(self._tcp)  # of a mismatched pair, the context in use would keep one half
                context.load_cert_chain(self._tcp.certificate, self._tcp.key)

    def close(self) -> None:
        """Close what listens, and remove the Unix socket."""
        for listener, _, _ in self._sockets:
            listener.close()
        if self._sockets:
            self._files.discard(self.socket_path)


def tls_context(tcp: TcpConfig) -> ssl.SSLContext:
    """TLS 1.2 or newer, with the certificate of the configuration.

    :raises OSError: it cannot be read, or does not belong to the key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tcp.certificate, tcp.key)
    return context


def kept_by(keeper: Keeper) -> type[Connection]:
    """The connection class of one listener: uvicorn makes connections from a class."""

    class Kept(Connection):
        pass

    Kept.keeper = keeper
    return Kept


def _uvicorn_config(
    app: Starlette, context: ssl.SSLContext | None, connection: type[Connection]
) -> uvicorn.Config:
    given: dict[str, Any] = {}
    if context is not None:
        given["ssl_context_factory"] = lambda config, default: context
    return uvicorn.Config(
        app,
        http=connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # callers without a token must not fill the log; the daemon logs the rest
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_IDLE_MOST_S,
        timeout_graceful_shutdown=_GRACE_S,
        h11_max_incomplete_event_size=_HEADERS_MOST_BYTES,
        **given,
    )
