"""A program at a monitor's socket that says what a test chooses."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

Talk = Callable[[socket.socket], None]
COMMANDS = [{"name": "x-debug-query-block-graph"}, {"name": "query-status"}, {"name": "stop"}]
ANSWERS: Mapping[str, object] = {
    "qmp_capabilities": {},
    "query-version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""},
    "query-commands": COMMANDS,
    "query-jobs": [],
}
GREETING = {"QMP": {"version": ANSWERS["query-version"], "capabilities": ["oob"]}}


def say(connection: socket.socket, value: object) -> None:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    connection.sendall(data + b"\n")


def asked(connection: socket.socket) -> Iterator[dict[str, object]]:
    """The commands that come; QMP's client ends each with its last brace alone."""
    decoder, text = json.JSONDecoder(), ""
    while data := connection.recv(65536):
        text += data.decode()
        with contextlib.suppress(json.JSONDecodeError):
            while text:
                command, end = decoder.raw_decode(text)
                text = text[end:].lstrip()
                yield command


def answering(**instead: object) -> Talk:
    """Greets, and answers as a QEMU does; ``instead`` has other answers (``query_version=…``).

    An answer may be a function: it is given the connection and the id, and says what it likes.
    """
    answers = {**ANSWERS, **{name.replace("_", "-"): answer for name, answer in instead.items()}}
    answers["qmp_capabilities"] = instead.get("qmp_capabilities", {})

    def talk(connection: socket.socket) -> None:
        say(connection, GREETING)
        for command in asked(connection):
            answer = answers[str(command["execute"])]
            if callable(answer):
                answer(connection, command["id"])
            else:
                say(connection, {"return": answer, "id": command["id"]})

    return talk


def wait_for_the_end(connection: socket.socket, _id: object = None) -> None:
    """Say nothing until the other end is gone."""
    while connection.recv(65536):
        pass


@contextlib.contextmanager
def fake_monitor(path: Path, talk: Talk, *, listener: socket.socket | None = None) -> Iterator[str]:
    """Serve one client after another at a path, until the context is left."""
    if listener is None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(1)
    ending = threading.Event()

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(ConnectionError):
                if ending.is_set():
                    return
                talk(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield str(path)
    finally:
        ending.set()
        last = socket.socket(socket.AF_UNIX)
        last.connect(str(path))
        thread.join()
        last.close()
        listener.close()
