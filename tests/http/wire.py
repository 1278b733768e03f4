"""Bytes to a daemon and back, without a client that would mend them; and what must stay as it is."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diskyard.testing.daemon_process import DaemonProcess

PATIENCE_S = 20.0
#: Of the daemon that is attacked: of one body, and how many may listen to events.
LIMIT_BYTES = 64 << 10
EVENT_STREAMS = 4
#: No image has this id.
IMAGE = "11111111-2222-4333-8444-555555555555"
_QUIET_S = 0.5  # a daemon that still works on a request answers within that, or a test sees no answer
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ?[^\r\n]*\r\n")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as it came.

    :param headers: by their names in small letters; the last of each.
    """

    status: int
    headers: dict[str, str]
    body: bytes

    def problem(self) -> dict[str, Any]:
        """Its body, which must be a whole problem."""
        assert self.headers["content-type"] == "application/problem+json", self
        found: dict[str, Any] = json.loads(self.body)
        assert found["status"] == self.status
        assert found["requestId"] == self.headers["x-request-id"]
        assert {"type", "title", "detail", "code", "advice", "retryable", "hostID"} <= set(found)
        return found


@contextmanager
def connected(daemon: DaemonProcess) -> Iterator[socket.socket]:
    """A connection to the Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as found:
        found.settimeout(PATIENCE_S)
        found.connect(str(daemon.socket_path))
        yield found


@contextmanager
def connected_tls(daemon: DaemonProcess) -> Iterator[socket.socket]:
    """A connection to the TLS port."""
    context = ssl.create_default_context(cafile=str(daemon.ca_file))
    with (
        socket.create_connection(tcp_address(daemon), PATIENCE_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as found,
    ):
        yield found


def tcp_address(daemon: DaemonProcess) -> tuple[str, int]:
    host, _, port = daemon.tls_url.removeprefix("https://").rpartition(":")
    return host, int(port)


def request(
    path: str,
    body: bytes = b"",
    *,
    method: str = "POST",
    headers: dict[str, str] | None = None,
    version: str = "1.1",
) -> bytes:
    """A request, the last of its connection unless ``headers`` say other; they replace its own."""
    given = {"Host": "daemon", "Connection": "close", **(headers or {})}
    if not {name.lower() for name in given} & {"content-length", "transfer-encoding"}:
        given["Content-Length"] = str(len(body))
    if body and "content-type" not in {name.lower() for name in given}:
        given["Content-Type"] = "application/json"
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"{method} {path} HTTP/{version}\r\n{lines}\r\n".encode("latin-1") + body


def exchange(daemon: DaemonProcess, sent: bytes, *, cut: bool = False) -> list[Answer]:
    """All answers to what was sent.

    :param cut: nothing more will be sent: a daemon that waits for more sees the end of it.
    """
    with connected(daemon) as connection:
        return answers_on(connection, sent, cut=cut)


def answers_on(connection: socket.socket, sent: bytes, *, cut: bool = False) -> list[Answer]:
    """The same on a connection: until the daemon closes it, or has answered and then waits."""
    received = bytearray()
    try:
        connection.sendall(sent)
        if cut:
            connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(1 << 16):
            received += part
            connection.settimeout(_QUIET_S)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it was refused before all was sent; what came until then counts
    except TimeoutError:
        assert received, "no answer came"
    return parsed(bytes(received))


def parsed(received: bytes) -> list[Answer]:
    """Answers one after the other."""
    found = []
    while received:
        status = _STATUS.match(received)
        assert status is not None, received[:200]
        head, _, rest = received.partition(b"\r\n\r\n")
        pairs = [line.partition(b":") for line in head.split(b"\r\n")[1:]]
        headers = {name.decode().lower(): value.strip().decode() for name, _, value in pairs}
        if headers.get("transfer-encoding") == "chunked":
            body, rest = _chunks(rest)
        else:
            length = int(headers.get("content-length", len(rest)))
            body, rest = rest[:length], rest[length:]
        found.append(Answer(int(status[1]), headers, body))
        received = rest
    return found


def _chunks(rest: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        count = int(size, 16)
        body, rest = body + rest[:count], rest[count + 2 :]
        if not count:
            return body, rest


def one(answers: list[Answer]) -> Answer:
    """The only answer."""
    assert len(answers) == 1, answers
    return answers[0]


def refused(answer: Answer, status: int = 422, code: str = "InvalidParameter") -> str:
    """An error of the table; what it says."""
    found = answer.problem()
    assert (answer.status, found["code"]) == (status, code), found
    return str(found["detail"])


def receive_until(connection: socket.socket, wanted: bytes) -> None:
    """Read until something has come; an end before it is refused."""
    received = b""
    while wanted not in received:
        part = connection.recv(1 << 16)
        assert part, received
        received += part


def ask(daemon: DaemonProcess, verb: str, body: bytes) -> Answer:
    return one(exchange(daemon, request(f"/v1/{verb}", body)))


class Canary:
    """A tree that nobody may touch, and all that could be seen if somebody did.

    :param root: the folder to watch; it is filled.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "deep" / "er").mkdir(parents=True)
        (root / "secret.raw").write_bytes(b"canary" * 1024)
        (root / "deep" / "er" / "note").write_text("nobody reads this")
        (root / "link").symlink_to("secret.raw")
        self.before = self._look()

    def _look(self) -> dict[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}
        for path in (self.root, *sorted(self.root.rglob("*"))):
            info = path.lstat()
            data = path.read_bytes() if path.is_file() else b""
            digest = hashlib.sha256(data).hexdigest()
            found[str(path)] = (info.st_ino, info.st_mode, info.st_size, info.st_mtime_ns, digest)
        return found

    def require_untouched(self) -> None:
        """Refuse any change: of names, bytes, modes and times."""
        now = self._look()
        changed = {name for name in {*now, *self.before} if now.get(name) != self.before.get(name)}
        assert changed == set()


def require_well(daemon: DaemonProcess) -> None:
    """The daemon answers, and has met nothing that it does not expect."""
    assert one(exchange(daemon, request("/healthz/ready", method="GET"))).status == 200
    log = daemon.log_path.read_text().splitlines()
    signs = ('"level": "error"', '"outcome": "InternalError"', "Traceback (most recent call last)")
    defects = [line for line in log if any(sign in line for sign in signs)]
    assert not defects, "\n".join(defects[-5:])
