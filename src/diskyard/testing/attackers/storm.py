"""A storm: a daemon, embedded processes, commands and a second host use the same images at once.

They do random operations on repositories on real file systems. Everything that runs is killed or
suspended, the storage has faults, and a vandal spoils what may be spoilt. Then the storm ends: every
acknowledged image must be right, and nothing else may be left (:mod:`storm_end`).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from diskyard.testing.attackers.hosts import Counts, Places, create_places
from diskyard.testing.attackers.sectors import OUTSIDER
from diskyard.testing.attackers.storm_client import ClientSettings
from diskyard.testing.attackers.storm_end import end
from diskyard.testing.attackers.storm_faults import Vandal, Weather
from diskyard.testing.daemon_process import DaemonProcess
from diskyard.testing.mounted import Mounted

#: The variable that marks all processes of a storm; its value is the storm's directory.
STORM = "DISKYARD_STORM"
_CLIENTS: dict[str, tuple[Literal["http", "embedded", "command"], str]] = {
    "http": ("http", "h1"),
    "embedded": ("embedded", "h1"),
    "embedded-elsewhere": ("embedded", "h2"),
    "command": ("command", "h1"),
    "command-elsewhere": ("command", "h2"),
}
_EVENTS = ("kill daemon", "end daemon", "suspend daemon", "kill client", "kill client", "kill client",
           "suspend client", "kill worker", "kill worker", "nothing")  # fmt: skip
_PAUSE_S, _SUSPENDED_S = (0.2, 1.6), (0.5, 8.0)
_CLIENT_ENDS_MOST_S, _LOOK_S = 300.0, 0.05
_LEAST_PER_S, _PATIENCE = 2, 5
_OVER = "over"
_WORKERS = ("qemu-storage-daemon", "qemu-img", "qemu-nbd")
_TABLES = {
    "tasks": {"at_once": 4, "at_once_per_repository": 3, "resume": True},
    "caretaker": [
        {
            "repository": "*",
            "fixes": ["clean", "merge", "optimize", "mend"],
            "every_s": 2,
            "at_most": 30,
        }
    ],
}


def processes_of(folder: Path) -> list[tuple[int, str, bool]]:
    """The processes of a storm: id, name, and whether it is a program of a guest or a judge."""
    mark, outsider, found = f"{STORM}={folder}".encode(), f"{OUTSIDER}=1".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (entry / "environ").read_bytes().split(b"\0")
            if mark in environment:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                found.append((int(entry.name), Path(words[0].decode()).name, outsider in environment))
    return found


@dataclass
class Storm:
    """One storm.

    :param folder: has a short path; for the daemon's socket, state directories, the ledger, and reports.
    :param disks: the file systems, by the repository on each.
    :ivar events: how often each was killed, suspended or ended.
    """

    folder: Path
    disks: Mapping[str, Mounted]
    seed: int
    events: Counter[str] = field(default_factory=Counter)

    @property
    def places(self) -> Places:
        """The repositories."""
        return {place: disk.place / place for place, disk in self.disks.items()}

    def run(self, seconds: float) -> tuple[Counts, Counter[str]]:
        """Storm for some time, then end it. Return what was done, and what was done to it."""
        for name in ("told", "transfer", "logs"):
            (self.folder / name).mkdir()
        self._rng = random.Random(f"storm {self.seed}")
        self._suspended: dict[int, float] = {}
        create_places(self.places, self.folder / "state-creator")
        tables = {**_TABLES, "transfer": {"folders": [str(self.folder / "transfer")]}}
        environment = {STORM: str(self.folder), "DISKYARD_HOST_ID": "h1"}
        state_folder = self.folder / "state-h1"
        self._daemon = DaemonProcess(self.folder / "d", tables, environment, state_folder=state_folder)
        self._daemon.start()
        self._clients = {name: self._start(name) for name in _CLIENTS}
        try:
            self._wait_for_clients()
            self._blow(seconds)
            self._settle_down()
        finally:
            self._kill_all()
        told = self._told()
        told.kills = sum(count for what, count in self.events.items() if what.startswith("kill"))
        told.add(end(self.folder, self.places, self._foreign))
        told.serious += [f"{name} has outlived the storm" for _, name, _ in processes_of(self.folder)]
        return told, self.events

    # -- who takes part -------------------------------------------------------------------

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        way, host = _CLIENTS[name]
        settings = ClientSettings(
            name=name,
            way=way,
            host=host,
            state_folder=str(self.folder / f"state-{host}"),
            url=self._daemon.url,
            places={place: str(path) for place, path in self.places.items()},
            folder=str(self.folder),
            seed=self._rng.getrandbits(32),
            over=str(self.folder / _OVER),
        )
        words = [sys.executable, "-m", "diskyard.testing.attackers.storm_client"]
        with (self.folder / "logs" / name).open("ab") as log:
            return subprocess.Popen(
                [*words, msgspec.json.encode(settings).decode()],
                env={**os.environ, STORM: str(self.folder), "DISKYARD_STORM_CLIENT": name},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def _wait_for_clients(self) -> None:
        """Wait until all clients take part, however slow the machine is."""
        deadline_s = time.monotonic() + _CLIENT_ENDS_MOST_S
        while {path.name.rpartition("-")[0] for path in self._tellings()} != set(_CLIENTS):
            ended = [name for name, client in self._clients.items() if client.poll() is not None]
            assert not ended, "\n".join(self._said(name) for name in ended)
            assert time.monotonic() < deadline_s, "clients do not begin"
            time.sleep(_LOOK_S)

    def _is_over(self, began_s: float, seconds: float) -> bool:
        """Whether the time is up; on a slow machine, whether enough was done, or several times that time."""
        lasted_s = time.monotonic() - began_s
        if lasted_s < seconds:
            return False
        enough = sum(self._told().done.values()) >= _LEAST_PER_S * seconds
        return enough or lasted_s > _PATIENCE * seconds

    def _blow(self, seconds: float) -> None:
        weather = Weather(list(self.disks.values()), random.Random(f"weather {self.seed}"))
        vandal = Vandal(list(self.places.values()), random.Random(f"vandal {self.seed}"))
        with ExitStack() as stack:
            stack.callback(self._resume_all)
            stack.enter_context(weather)
            stack.enter_context(vandal)
            began_s = time.monotonic()
            while not self._is_over(began_s, seconds):
                time.sleep(self._rng.uniform(*_PAUSE_S))
                self._happen(self._rng.choice(_EVENTS))
        (self.folder / _OVER).touch()
        self._foreign = vandal.foreign
        self.events.update({f"storage {what}": count for what, count in weather.counts.items()})
        self.events.update({f"vandal: {what}": count for what, count in vandal.counts.items()})

    def _happen(self, event: str) -> None:
        for pid, until in list(self._suspended.items()):
            if time.time() > until:
                self._resume(pid)
        what, _, whom = event.partition(" ")
        if whom == "daemon":
            self._to_daemon(what)
        elif whom == "client":
            self._to_client(what)
        elif whom == "worker":
            self._kill_worker()

    def _to_daemon(self, what: str) -> None:
        if self._daemon.pid in self._suspended:
            return
        self.events[f"{what} daemon"] += 1
        if what == "suspend":
            self._suspend(self._daemon.pid)
            return
        self._daemon.stop(signal.SIGKILL if what == "kill" else signal.SIGTERM)
        if what == "kill":
            time.sleep(self._rng.random() / 2)
        self._daemon.start()

    def _to_client(self, what: str) -> None:
        name = self._rng.choice(sorted(self._clients))
        client = self._clients[name]
        if client.poll() is not None or client.pid in self._suspended:
            return
        self.events[f"{what} client"] += 1
        if what == "suspend":
            self._suspend(client.pid)
            return
        client.kill()
        client.wait()
        self._kill_programs_of(name)
        self._clients[name] = self._start(name)

    def _kill_programs_of(self, name: str) -> None:
        """Kill guests and commands with the client that started them. Diskyard's programs end alone."""
        mark = f"DISKYARD_STORM_CLIENT={name}".encode()
        for pid, program, is_outsider in processes_of(self.folder):
            with contextlib.suppress(OSError):
                of_client = mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if of_client and (is_outsider or program not in _WORKERS):
                    _end_process(pid)

    def _kill_worker(self) -> None:
        workers = [
            pid for pid, name, outside in processes_of(self.folder) if name in _WORKERS and not outside
        ]
        if workers:
            self.events["kill worker"] += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._rng.choice(sorted(workers)), signal.SIGKILL)

    def _suspend(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        self._suspended[pid] = time.time() + self._rng.uniform(*_SUSPENDED_S)

    def _resume(self, pid: int) -> None:
        self._suspended.pop(pid, None)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def _resume_all(self) -> None:
        for pid in list(self._suspended):
            self._resume(pid)

    # -- how it ends -----------------------------------------------------------------------

    def _settle_down(self) -> None:
        """Let everything end in order."""
        for name, client in self._clients.items():
            try:
                status = client.wait(_CLIENT_ENDS_MOST_S)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"client {name} does not end: {self._said(name)}") from None
            assert status == 0, f"client {name} ended with {status}: {self._said(name)}"
        assert self._daemon.stop() == 0, "the daemon did not end in order"

    def _said(self, name: str) -> str:
        return (self.folder / "logs" / name).read_text(errors="replace")[-3000:]

    def _kill_all(self) -> None:
        for client in self._clients.values():
            if client.poll() is None:
                client.kill()
                client.wait()
        with contextlib.suppress(AssertionError):
            self._daemon.stop(signal.SIGKILL)

    def _told(self) -> Counts:
        told = Counts()
        for path in self._tellings():
            one = Counts()
            vars(one).update(json.loads(path.read_text()))
            told.add(one)
        return told

    def _tellings(self) -> Iterator[Path]:
        yield from sorted((self.folder / "told").glob("*.json"))


def _end_process(pid: int) -> None:
    """Kill a process, which is not a child of this one, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}/environ").read_bytes():
            time.sleep(0.01)
