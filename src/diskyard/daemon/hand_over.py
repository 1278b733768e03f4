"""The socket on which callers hand over open files, even files that the daemon itself could not open.

HTTP cannot carry descriptors. So a caller sends the descriptor here (``SCM_RIGHTS`` of unix(7)), gets a
ticket, and names it in the header of the one request that it is for (docs/decisions/0037-handed-files.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
from dataclasses import dataclass

from diskyard import errors
from diskyard.caller import HandedFile
from diskyard.host import Host
from diskyard.host.sockets import listen_unix, peer_user, peer_user_id

#: The text of a message: the first version of this protocol.
_GREETING = b"diskyard 1"
_SUFFIX = ".files"
_MODE = 0o600
_SAYS_MOST_S = 5.0
_ROOM_MOST_S = 5.0
_KEPT_S = 60.0
_KEPT_MOST = 64
_TALKING_MOST = 16
_MESSAGE_BYTES = 256


def hand_over_path(socket_path: str) -> str:
    """The path of the socket for handing files over to a daemon, from that of the API's socket."""
    return socket_path + _SUFFIX


@dataclass(frozen=True, slots=True)
class _Kept:
    """A file that waits for its request."""

    file: HandedFile
    actor: str
    until_s: float


class HandOver:
    """Takes open files from root, and from the daemon's own user. Used in the event loop only.

    This does not use storage: the code that reads a descriptor checks what it is open on.

    :param socket_path: of the API; see :func:`hand_over_path`.
    :raises diskyard.errors.InvalidParameter: the socket cannot be made.
    """

    def __init__(self, host: Host, socket_path: str) -> None:
        self._files, self._clock = host.files, host.clock
        self.path = hand_over_path(socket_path)
        self._kept: dict[str, _Kept] = {}
        self._fewer = asyncio.Event()
        self._talking: set[asyncio.Task[None]] = set()
        try:
            self._listener = listen_unix(host.files, self.path, _MODE, None, kind=socket.SOCK_SEQPACKET)
        except OSError as error:
            raise errors.InvalidParameter(
                f"The daemon cannot listen at {self.path}: {error}.",
                advice="Correct [socket] in the configuration, or remove what has that name.",
            ) from error
        self._listener.setblocking(False)

    async def serve(self) -> None:
        """Take files until this is cancelled.

        Above a limit, callers wait for one another: a hundred commands may be started at once.
        """
        loop = asyncio.get_running_loop()
        while True:
            if len(self._talking) >= _TALKING_MOST:
                await asyncio.wait(self._talking, return_when=asyncio.FIRST_COMPLETED)
                continue
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError:  # this process has too many files open; others must be closed first
                await asyncio.sleep(_SAYS_MOST_S)
                continue
            talk = loop.create_task(self._talk(connection))
            self._talking.add(talk)
            talk.add_done_callback(self._talking.discard)

    async def _talk(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, TimeoutError):  # the caller has left, or sent nothing
            async with asyncio.timeout(_SAYS_MOST_S):
                await _readable(connection)
            if peer_user_id(connection) in (0, os.geteuid()):
                answer = await self._take_one(connection)
            else:
                # If the message were not read, the connection would be reset, and the answer lost.
                connection.recv(_MESSAGE_BYTES)
                answer = {"refused": "files are taken of root and of the daemon's own user only"}
            connection.send(json.dumps(answer).encode())

    async def _take_one(self, connection: socket.socket) -> dict[str, str]:
        message, numbers, flags, _ = socket.recv_fds(
            connection, _MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
        )
        files = [HandedFile(number) for number in numbers]
        if message != _GREETING or len(files) != 1 or flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            return {"refused": f"a message is {_GREETING.decode()!r} with one descriptor"}
        if not await self._has_room():
            return {"refused": f"{_KEPT_MOST} files wait for their requests already"}
        ticket = secrets.token_hex(16)
        actor = f"user:{peer_user(connection)}"
        self._kept[ticket] = _Kept(files[0], actor, self._clock.monotonic_s() + _KEPT_S)
        asyncio.get_running_loop().call_later(_KEPT_S, self._forget_late)
        return {"ticket": ticket}

    async def _has_room(self) -> bool:
        """Whether another file may wait for its request. This waits a little for some to be taken."""
        self._forget_late()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ROOM_MOST_S):
                while len(self._kept) >= _KEPT_MOST:
                    self._fewer.clear()
                    await self._fewer.wait()
        return len(self._kept) < _KEPT_MOST

    def _forget_late(self) -> None:
        now_s = self._clock.monotonic_s()
        for ticket in [ticket for ticket, kept in self._kept.items() if kept.until_s <= now_s]:
            self._forget(ticket)

    def _forget(self, ticket: str) -> None:
        del self._kept[ticket]
        self._fewer.set()

    def take(self, ticket: str, actor: str) -> HandedFile | None:
        """The file of a ticket, once, for the caller that handed it over; None if there is none."""
        self._forget_late()
        kept = self._kept.get(ticket)
        if kept is None or kept.actor != actor:
            return None
        self._forget(ticket)
        return kept.file

    def close(self) -> None:
        """Take no more files, close those that wait, and remove the socket."""
        self._listener.close()
        self._kept.clear()
        self._files.discard(self.path)


async def _readable(connection: socket.socket) -> None:
    """Wait until there is something to receive: asyncio itself cannot receive descriptors."""
    loop, came = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection, came.set)
    try:
        await came.wait()
    finally:
        loop.remove_reader(connection)
