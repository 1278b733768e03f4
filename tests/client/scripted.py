"""A server that answers as a test says, on a Unix socket: what daemons and networks do when they fail."""

from __future__ import annotations

import json
import re
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

PROBLEM = "application/problem+json"


@dataclass(frozen=True)
class Reply:
    """An answer; ``status`` 0 ends the connection without one."""

    status: int
    body: Any = None
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        given = {"Content-Type": self.kind, "Content-Length": str(len(body)), **self.headers}
        lines = [f"HTTP/1.1 {self.status} X", *(f"{name}: {value}" for name, value in given.items())]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


LOST = Reply(0)


def problem(code: str, status: int, headers: dict[str, str] | None = None, **members: object) -> Reply:
    """An error as a daemon sends it."""
    known = {"type": f"urn:diskyard:error:{code}", "title": "", "status": status, "detail": "It is so."}
    more = {"code": code, "advice": "Do this.", "retryable": False, "requestId": "r1", "hostID": "h"}
    return Reply(status, {**known, **more, **members}, PROBLEM, headers or {})


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    path: str
    headers: dict[str, str]
    body: Any


class Scripted:
    """Answers requests with the replies given, in their order.

    :ivar asked: what came.
    """

    def __init__(self, folder: Path, *replies: Reply) -> None:
        self._path = folder / "s.sock"
        self._replies = list(replies)
        self.asked: list[Asked] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)

    @property
    def url(self) -> str:
        return f"unix://{self._path}"

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        while data := self._request(connection):
            head, _, body = data.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines)
            self.asked.append(Asked(first.split()[1], headers, json.loads(body) if body else None))
            reply = self._replies.pop(0)
            if not reply.status:
                return
            connection.sendall(reply.encoded())

    def _request(self, connection: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            part = connection.recv(65536)
            if not part:
                return b""
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head.lower())
        length = int(found[1]) if found else 0
        while len(body) < length:
            body += connection.recv(65536)
        return head + b"\r\n\r\n" + body

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        assert self._replies == []
