"""Handing a daemon the open file of an import, or the open directory of an export, before the call.

The protocol is in docs/http.md: one message on a socket beside the daemon's, with one descriptor.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

import httpx

HANDED_HEADER = "Diskyard-Handed"
_GREETING = b"diskyard 1"
_SUFFIX = ".files"
_ANSWER_BYTES = 4096
_TIMEOUT_S = 10.0
_CALLS = "/v1/"


class HandingAsync(httpx.AsyncHTTPTransport):
    """The asynchronous transport on a Unix socket, which hands over the files that requests name.

    :param path: of the socket.
    :param given: the parameters of httpx's own transport.
    """

    def __init__(self, path: str, **given: Any) -> None:
        super().__init__(uds=path, **given)
        self._path = path

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """As httpx does."""
        import asyncio  # a large module, which every asynchronous caller has loaded

        await asyncio.to_thread(hand_over, self._path, request)
        return await super().handle_async_request(request)


def hand_over(socket_path: str, request: httpx.Request) -> None:
    """Hand over the file that a request names, and put the ticket into its headers."""
    ticket = ticket_for(socket_path, request.url.path.removeprefix(_CALLS), request.content)
    if ticket is not None:
        request.headers[HANDED_HEADER] = ticket


def ticket_for(socket_path: str, verb: str, body: bytes) -> str | None:
    """Hand over the file that a request names; its ticket. None if there is none, or it cannot be opened.

    Without a ticket, the daemon does what it may by the path alone, and reports what it may not do.

    :param socket_path: of the daemon's API.
    :param body: the request's parameters, as JSON.
    """
    if verb not in ("importImage", "exportImage"):
        return None
    try:
        path = json.loads(body)["path"]
    except (ValueError, TypeError, KeyError):
        return None  # the daemon reports what is wrong with it
    if not isinstance(path, str) or not os.path.isabs(path) or "\0" in path:
        return None
    fd = _opened(path, is_file=verb == "importImage")
    if fd is None:
        return None
    try:
        return _ticket_of(socket_path, fd)
    finally:
        os.close(fd)


def _opened(path: str, *, is_file: bool) -> int | None:
    """Open the file to be read, or the directory of the new file.

    A link to a file is followed only if the daemon would follow it: to a device, where only root makes links.
    """
    # Imported here, since only two verbs need it.
    from diskyard.host import Host

    files = Host.real().files
    try:
        if not is_file:
            return files.open_folder(os.path.dirname(path))
        return files.open_to_read(files.device_behind(path), block_device=True)
    except OSError:
        return None


def _ticket_of(socket_path: str, fd: int) -> str | None:
    # Imported here, since only two verbs need it.
    from diskyard.host.sockets import peer_user_id

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(_TIMEOUT_S)
        try:
            connection.connect(socket_path + _SUFFIX)
            if peer_user_id(connection) not in (0, os.geteuid()):
                return None  # another user's process, which must not get what only this user may open
            socket.send_fds(connection, [_GREETING], [fd])
            answer = json.loads(connection.recv(_ANSWER_BYTES))
        except (OSError, ValueError):
            return None  # an older daemon, or one that is not ours
    ticket = answer.get("ticket") if isinstance(answer, dict) else None
    return ticket if isinstance(ticket, str) else None
