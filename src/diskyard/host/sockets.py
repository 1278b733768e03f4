"""Listening sockets of this host, and the peers of their connections."""

from __future__ import annotations

import errno
import ipaddress
import os
import pwd
import resource
import socket
import stat
import struct
from collections.abc import Callable

from diskyard.host.files import Files

_BACKLOG = 1024
_FILES_MOST = 65_536
_FILES_SHARE = 4  # a listener's connections may take one in so many of the files that this process may open
_IPV6_HOST_BITS = 64
_SEND_BUFFER_BYTES = 128 << 10  # the kernel takes twice that, half of it for its own needs
_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid


class Listener(socket.socket):
    """A listening socket that decides for each new connection whether it may stay.

    It decides at once, before the TLS handshake. Otherwise a caller that only connects could use up all
    descriptors of this process, and nothing could be read or written any more.

    :param listening: a listening socket; this object takes it over.
    :param may_stay: called with each connection and the address of its peer, empty on a Unix socket.
    """

    def __init__(self, listening: socket.socket, may_stay: Callable[[socket.socket, str], bool]) -> None:
        super().__init__(fileno=listening.detach())
        self._may_stay = may_stay

    def accept(self) -> tuple[socket.socket, object]:
        """Accept a connection, as any socket does.

        :raises ConnectionAbortedError: the connection may not stay, and is closed.
        """
        connection, address = super().accept()
        if not self._may_stay(connection, str(address[0]) if address else ""):
            connection.close()
            raise ConnectionAbortedError(errno.ECONNABORTED, "There are too many connections")
        return connection, address


def connections_most(wanted: int) -> int:
    """How many connections a listener may have: as many as wanted, or fewer if few files may be open."""
    return min(wanted, allow_open_files() // _FILES_SHARE)


def origin_of(address: str) -> str:
    """The origin of an address: for IPv6 its /64, because one host has very many addresses."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((found, _IPV6_HOST_BITS), strict=False))


def allow_open_files() -> int:
    """Raise this process's limit of open files as far as possible; the new limit.

    Many systems begin with 1024, for the sake of programs that cannot handle more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES_MOST if hard == resource.RLIM_INFINITY else min(hard, _FILES_MOST)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return most
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def listen_unix(
    files: Files,
    path: str,
    mode: int,
    group_id: int | None,
    *,
    kind: socket.SocketKind = socket.SOCK_STREAM,
) -> socket.socket:
    """A Unix socket that listens at a path.

    It has its mode and group before it has its name. It replaces a socket that an earlier process left.
    A caller that must not replace a live one holds a lock of its own.

    :param group_id: None for the process's own.
    :raises OSError: the socket cannot be made, or something else than a socket is there.
    """
    folder = os.path.dirname(path)
    files.ensure_folder(folder)
    if os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise FileExistsError(errno.EEXIST, "something that is no socket is there", path)
    temporary = f"{path}.new"
    files.discard(temporary)
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        # Nobody can connect before the mode is set: the socket does not listen yet.
        listener.bind(temporary)
        files.set_access(temporary, mode, group_id)
        listener.listen(_BACKLOG)
        files.rename(temporary, path)
    except BaseException:
        listener.close()
        raise
    return listener


def listen_tcp(host: str, port: int) -> socket.socket:
    """A TCP socket that listens at an address of this host.

    :param port: 0 for any that is free.
    :raises OSError: the address is not this host's, or is taken.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    made = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    # Its connections inherit this. asyncio sets it only where the protocol is named. Without it the second
    # part of an answer waits until the first is acknowledged: 40 ms.
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Inherited too. Without it the kernel buffers up to 4 MiB for each connection that does not read.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    return made


def connect_unix(path: str) -> socket.socket:
    """A connection to a Unix socket. It is made at once or not at all.

    :raises FileNotFoundError: nothing has the name.
    :raises ConnectionRefusedError: nobody listens there.
    :raises BlockingIOError: so many wait there to be served that no other may wait.
    :raises OSError: it cannot be reached, or the path is longer than a socket's may be.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)  # else connecting waits as long as the queue is full
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def _credentials(connection: socket.socket) -> tuple[int, int, int]:
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, user_id, group_id = _CREDENTIALS.unpack(data)
    return int(pid), int(user_id), int(group_id)


def peer_process_id(connection: socket.socket) -> int:
    """The number of the process at the other end of a Unix socket; of a listener: who began to listen.

    :returns: 0 if it has no number in this process's namespace.
    """
    return _credentials(connection)[0]


def peer_user_id(connection: socket.socket) -> int:
    """The id of the user whose process is at the other end of a Unix socket."""
    return _credentials(connection)[1]


def peer_user(connection: socket.socket) -> str:
    """The same user, as a name or a number."""
    user_id = peer_user_id(connection)
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:
        return str(user_id)
