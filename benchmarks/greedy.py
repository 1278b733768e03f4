"""Greedy callers: what the others get beside them, and how much memory the daemon takes.

``unread``: a token with the scope ``read`` asks for lists of 16 MiB on 150 connections and reads nothing
of them; where it is refused it comes again two seconds later. ``silent``: somebody without a token opens
1,000 connections and does not begin their TLS; of those that are ended a hundred a second are made anew.
``greedy``: a token with 16 readers asks, over and over, for a check and for lists of 10,000 of a
repository of 20,000 images. Meanwhile four other callers, each with a token of its own, work as managers
do. They do the same before and after in quiet, and their slowest in a hundred calls are compared. All
come from one address. The limits are the daemon's defaults.

The greedy ones are processes of a low priority, since in earnest they are other machines.

    .venv/bin/python -m benchmarks.greedy [--seconds 20] [--images 20000] [--folder …]
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import re
import resource
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._many import make_repository
from benchmarks._rows import Row, percentile, print_heading, print_rows
from diskyard.testing.daemon_process import DaemonProcess

MiB = 1 << 20
WORST_OVER_QUIET = 2.0
UNANSWERED = 0
VICTIMS = 4
UNREAD, SILENT, READERS = 150, 1000, 16
NOTE_BYTES, NOTED = 16_000, 1_000
UNIT = Path(__file__).resolve().parents[1] / "packaging" / "diskyard.service"


@dataclass(frozen=True)
class Authenticator:
    """How a caller with a token comes in."""

    address: tuple[str, int]
    ca_file: str
    token: str

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca_file)

    def connection(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(*self.address, timeout=60, context=self.context())

    def ask(
        self, connection: http.client.HTTPSConnection, verb: str, words: dict[str, Any]
    ) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        connection.request("POST", f"/v1/{verb}", json.dumps(words), headers)
        answer = connection.getresponse()
        data = answer.read()
        if answer.getheader("Connection") == "close":
            connection.close()
        return answer.status, data


# -- the greedy ones, each in a process of its own -----------------------------------------------


def unread(authenticator: Authenticator) -> None:
    """Ask for a long list on each of many connections, and read nothing."""
    held: list[socket.socket] = []
    body = json.dumps({"repositoryId": "noted", "limit": 10_000})
    words = (
        f"POST /v1/listImages HTTP/1.1\r\nHost: d\r\nAuthorization: Bearer {authenticator.token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )
    while True:
        held = [one for one in held if one.fileno() >= 0 and not _has_ended(one)]
        while len(held) < UNREAD:
            try:
                plain = socket.create_connection(authenticator.address, 10)
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                one = authenticator.context().wrap_socket(plain, server_hostname="localhost")
                one.sendall(words.encode())
                held.append(one)
            except OSError:
                time.sleep(0.1)
        time.sleep(2)


def _has_ended(one: socket.socket) -> bool:
    """Whether the daemon has closed a connection, of which nothing is read."""
    state = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    if state == 1:  # TCP_ESTABLISHED
        return False
    one.close()
    return True


def silent(authenticator: Authenticator) -> None:
    """Hold many connections and say nothing on them; of those that are ended make some anew."""
    held: list[socket.socket] = []
    at_once = SILENT
    while True:
        held = [one for one in held if not _has_ended(one)]
        for _ in range(min(at_once, SILENT - len(held))):
            try:
                held.append(socket.create_connection(authenticator.address, 10))
            except OSError:
                break
        at_once = SILENT // 100
        time.sleep(0.1)


def greedy(authenticator: Authenticator) -> None:
    """Ask for what is dear, again and again, on several connections."""

    def one(number: int) -> None:
        connection = authenticator.connection()
        dear = (
            ("checkStorageRepository", {"repositoryId": "many"}),
            ("listImages", {"repositoryId": "many", "limit": 10_000}),
        )
        while True:
            try:
                authenticator.ask(connection, *dear[number % 2])
            except (OSError, http.client.HTTPException):
                connection.close()

    for number in range(READERS):
        threading.Thread(target=one, args=(number,), daemon=True).start()
    threading.Event().wait()


def _in_low_priority(work: Callable[[Authenticator], None], authenticator: Authenticator) -> None:
    os.nice(10)
    work(authenticator)


# -- the others ----------------------------------------------------------------------------------


class Victims:
    """Callers who each do one thing after the other, as managers do."""

    def __init__(self, authenticators: list[Authenticator]) -> None:
        self._authenticators = authenticators

    def work(self, seconds: float) -> tuple[list[float], Counter[int]]:
        """How long each call took, in milliseconds, and what was answered."""
        times_ms: list[float] = []
        statuses: Counter[int] = Counter()
        end_s = time.monotonic() + seconds

        def one(authenticator: Authenticator) -> None:
            connection = authenticator.connection()
            image = ""
            while time.monotonic() < end_s:
                for verb, words in (
                    ("createVirtualDisk", {"targetRepoId": "own", "size": MiB}),
                    ("getImageStatus", {"repositoryId": "own"}),
                    ("listImages", {"repositoryId": "many", "limit": 100}),
                    ("getHostInfo", {}),
                ):
                    given = {**words, "imageId": image} if verb == "getImageStatus" else words
                    begin_s = time.perf_counter()
                    try:
                        status, data = authenticator.ask(connection, verb, given)
                    except (OSError, http.client.HTTPException):
                        connection.close()
                        status, data = UNANSWERED, b""
                    times_ms.append((time.perf_counter() - begin_s) * 1000)
                    statuses[status] += 1
                    if verb == "createVirtualDisk" and status == 200:
                        image = json.loads(data)
                time.sleep(0.05)  # so that the rate of their tokens is no matter

        threads = [
            threading.Thread(target=one, args=(authenticator,)) for authenticator in self._authenticators
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return times_ms, statuses


# -- the daemon ----------------------------------------------------------------------------------


def peak_mib(pid: int, *, begin: bool = False) -> float:
    """The most memory that a process has had since it was last asked to begin anew."""
    if begin:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def memory_limit_mib() -> float:
    """What the unit gives the daemon."""
    found = re.search(r"^MemoryMax=(\d+)M$", UNIT.read_text(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def make_token(daemon: DaemonProcess, name: str, scope: str) -> str:
    words = [sys.executable, "-m", "diskyard.cli", "token", "create", name, "--scope", scope]
    place = {**os.environ, "DISKYARD_STATE_DIR": str(daemon.state_folder)}
    said = subprocess.run(words, env=place, capture_output=True, text=True, check=True).stdout
    found = re.search(r"dy_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", said)
    assert found is not None
    return found[0]


def prepared(daemon: DaemonProcess, images: int) -> None:
    for name, count, note in (("many", images, ""), ("noted", NOTED, "x" * NOTE_BYTES)):
        make_repository(daemon.place(name)["path"], count, note=note)
        daemon.call(
            "connectStorageRepository",
            repoId=name,
            repoFormat="localfs-1.0",
            connectionParameters=daemon.place(name),
        )
    asked = {"repoFormat": "localfs-1.0", "connectionParameters": daemon.place("own")}
    daemon.call("createStorageRepository", **asked)
    daemon.call("connectStorageRepository", repoId="own", **asked)
    for name in ("many", "noted"):  # what a host does once
        daemon.call("checkStorageRepository", repositoryId=name)


def attacked(
    daemon: DaemonProcess,
    victims: Victims,
    authenticator: Authenticator,
    work: Callable[[Authenticator], None],
    seconds: float,
) -> list[Row]:
    """The others' calls in quiet, beside the greedy ones, and in quiet again."""
    before, _ = victims.work(seconds / 2)
    peak_mib(daemon.pid, begin=True)
    attacker = multiprocessing.get_context("spawn").Process(
        target=_in_low_priority, args=(work, authenticator)
    )
    attacker.start()
    try:
        time.sleep(3)
        beside, statuses = victims.work(seconds)
        open_files = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    finally:
        attacker.kill()
        attacker.join()
    peak = peak_mib(daemon.pid)
    time.sleep(1)
    after, _ = victims.work(seconds / 2)
    quiet, limit = before + after, memory_limit_mib()
    worst, usual = percentile(beside, 99), percentile(quiet, 99)
    print(
        f"{work.__name__}: {len(beside)} calls beside it, {len(quiet)} in quiet, answers {dict(statuses)}, "
        f"{open_files} open files, load average {os.getloadavg()[0]:.1f}"
    )
    target = f"<= {WORST_OVER_QUIET:.0f} x in quiet, all answered"
    return [
        Row(f"{work.__name__}: others' p50", "ms", percentile(beside, 50), {"quiet": percentile(quiet, 50)}),
        Row(
            f"{work.__name__}: others' p99",
            "ms",
            worst,
            {"quiet": usual},
            target,
            worst <= WORST_OVER_QUIET * usual and not statuses[UNANSWERED],
        ),
        Row(f"{work.__name__}: peak memory", "MiB", peak, {"limit": limit}, "<= the limit", peak <= limit),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each attack")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--folder", help="where to measure; its path must be short")
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="dy-", dir=given.folder) as name:
        folder = Path(name)
        print_heading(folder)
        with DaemonProcess(folder / "g") as daemon:
            prepared(daemon, given.images)
            host, _, port = daemon.tls_url.removeprefix("https://").rpartition(":")

            def authenticator(token: str, scope: str) -> Authenticator:
                return Authenticator((host, int(port)), str(daemon.ca_file), make_token(daemon, token, scope))

            victims = Victims([authenticator(f"other-{number}", "write") for number in range(VICTIMS)])
            attacker = authenticator("greedy", "read")
            victims.work(2)
            rows = [
                row
                for work in (unread, silent, greedy)
                for row in attacked(daemon, victims, attacker, work, given.seconds)
            ]
        print_rows("Beside greedy callers", rows)


if __name__ == "__main__":
    main()
